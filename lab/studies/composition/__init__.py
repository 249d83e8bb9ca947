"""Initialization picks the solution: arXiv 2405.05409 and 2501.08537 on the two-anchor composition task."""

from lab.studies import Study
from lab.studies.composition.claims import CLAIMS
from lab.studies.composition.measures import measures
from lab.studies.composition.page import LEAD, TITLE, sections

STUDY = Study(
    name="composition",
    title=TITLE,
    lead=LEAD,
    papers=("arXiv 2405.05409", "arXiv 2501.08537"),
    presets={
        "smoke": "seconds; every part runs, nothing is learnt",
        "cpu": "5 minutes on two CPU cores",
        "gpu": "minutes on one GPU (not yet timed)",
        "paper": "as published: days on one GPU (not yet timed)",
    },
    measures=measures,
    claims=CLAIMS,
    target="ood_43.reasoning",
    sections=sections,
)
