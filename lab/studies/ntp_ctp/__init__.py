"""Why next-token prediction reasons better than answer-only training: arXiv 2502.02007."""

from lab.studies import Study
from lab.studies.ntp_ctp import claims, controls, flow, page, transfer
from lab.studies.ntp_ctp.measures import measures

STUDY = Study(
    name="ntp_ctp",
    title=page.TITLE,
    lead=page.LEAD,
    papers=("arXiv 2502.02007",),
    presets={
        "smoke": "seconds; every part runs, nothing is learnt",
        "cpu": "15 minutes on two CPU cores",
        "gpu": "all tasks, minutes on one GPU (not yet timed)",
        "paper": "GPT-2 small from scratch on every task: days on one GPU (not yet timed)",
    },
    measures=lambda experiment: [*measures(experiment), *flow.measures(experiment)],
    claims=(*claims.CLAIMS, *controls.CLAIMS, *transfer.CLAIMS, *flow.CLAIMS),
    target="ood.accuracy",
    sections=lambda datasets: [*page.sections(datasets), *controls.sections(datasets), *transfer.sections(datasets)],
)
