"""Initialization picks the solution: arXiv 2405.05409 and 2501.08537 on the two-anchor composition task."""

from lab.studies import Study
from lab.studies.composition.claims import CLAIMS
from lab.studies.composition.measures import measures
from lab.studies.composition.page import LEAD, TITLE, sections

STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=("arXiv 2405.05409", "arXiv 2501.08537"),
    measures=measures,
    claims=CLAIMS,
    target="ood_43.reasoning",
    sections=sections,
)
