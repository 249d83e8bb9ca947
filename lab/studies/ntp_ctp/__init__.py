"""Why next-token prediction reasons better than answer-only training: arXiv 2502.02007."""

from lab.studies import Study
from lab.studies.ntp_ctp import by_task, claims, equal_loss, flatness, pictures, transfer
from lab.studies.ntp_ctp.measures import measures

TITLE = "Why does next-token prediction reason better than training on answers?"
LEAD = (
    "One model, one training set, two objectives: next-token prediction (NTP) scores every token, critical token "
    "prediction (CTP) the answer alone. What surrounds the answer is mostly noise, and to predict it is said to "
    "regularize: slower training, flatter minima, more robust models, better answers out of distribution."
)

STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(claims.PAPER,),
    measures=measures,
    claims=(*by_task.CLAIMS, *claims.CLAIMS, *equal_loss.CLAIMS, *flatness.CLAIMS, *transfer.CLAIMS),
    target="ood.accuracy",
    usual=claims.USUAL,
    published_sizes=False,
    sections=lambda runs: [*pictures.sections(runs), *flatness.sections(runs), *transfer.sections(runs)],
)
