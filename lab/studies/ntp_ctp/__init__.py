"""Why next-token prediction reasons better than answer-only training: arXiv 2502.02007."""

from lab.studies import Study
from lab.studies.ntp_ctp.claims import CLAIMS
from lab.studies.ntp_ctp.measures import measures
from lab.studies.ntp_ctp.page import LEAD, TITLE, sections

STUDY = Study(
    name="ntp_ctp",
    title=TITLE,
    lead=LEAD,
    papers=("arXiv 2502.02007",),
    presets={
        "smoke": "seconds; every part runs, nothing is learnt",
        "cpu": "15 minutes on two CPU cores",
        "gpu": "all tasks, minutes on one GPU (not yet timed)",
        "paper": "GPT-2 small from scratch on every task: days on one GPU (not yet timed)",
    },
    measures=measures,
    claims=CLAIMS,
    target="ood.accuracy",
    sections=sections,
)
