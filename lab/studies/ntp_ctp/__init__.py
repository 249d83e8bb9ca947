"""Why next-token prediction reasons better than answer-only training: arXiv 2502.02007."""

from lab.studies import Study
from lab.studies.ntp_ctp import claims, controls, flow, page, transfer
from lab.studies.ntp_ctp.measures import measures

STUDY = Study(
    title=page.TITLE,
    lead=page.LEAD,
    papers=("arXiv 2502.02007",),
    measures=lambda experiment: [*measures(experiment), *flow.measures(experiment)],
    claims=(*claims.CLAIMS, *controls.CLAIMS, *transfer.CLAIMS, *flow.CLAIMS),
    target="ood.accuracy",
    sections=lambda datasets: [*page.sections(datasets), *controls.sections(datasets), *transfer.sections(datasets)],
)
