"""The learning cycle of attention: arXiv 2605.01199 on Markov chains, and its companion arXiv 2510.06954."""

from lab.studies import Study
from lab.studies.focus_dilution import claims, companion
from lab.studies.focus_dilution.measures import measures
from lab.studies.focus_dilution.page import LEAD, TITLE, sections

STUDY = Study(
    name="focus_dilution",
    title=TITLE,
    lead=LEAD,
    papers=(claims.PAPER, companion.PAPER),
    presets={
        "smoke": "seconds; every part runs, nothing is learnt",
        "cpu": "up to 10 minutes on two CPU cores",
        "gpu": "minutes on one GPU (not yet timed)",
        "paper": "longer sequences, wider models, the companion as published (not yet timed)",
    },
    measures=measures,
    claims=claims.CLAIMS + companion.CLAIMS,
    target="test.excess",
    sections=sections,
)
