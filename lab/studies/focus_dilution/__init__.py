"""The learning cycle of attention: arXiv 2605.01199 on Markov chains, and its companion arXiv 2510.06954."""

from lab.studies import Study
from lab.studies.focus_dilution import claims, companion
from lab.studies.focus_dilution.measures import measures
from lab.studies.focus_dilution.page import LEAD, TITLE, sections

STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(claims.PAPER, companion.PAPER),
    measures=measures,
    claims=claims.CLAIMS + companion.CLAIMS,
    target="test.excess",
    published_sizes=False,
    sections=sections,
)
