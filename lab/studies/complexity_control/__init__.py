"""Complexity control: arXiv 2501.08537, phases over initial scale and weight decay, and what explains them."""

from lab.studies import Study
from lab.studies.complexity_control.claims import CLAIMS
from lab.studies.complexity_control.measures import measures
from lab.studies.complexity_control.page import LEAD, TITLE, sections

STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=("arXiv 2501.08537", "arXiv 2405.05409"),
    measures=measures,
    claims=CLAIMS,
    target="ood_43.reasoning",
    sections=sections,
)
