"""The composition study's report: a section for each setting that was trained, and the pictures to see it by."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.report import figures, portraits
from lab.report.page import Picture, Section
from lab.studies.composition.claims import NAMED, SMALL_DECAY
from lab.studies.composition.measures import QUERY

REASONING = {"ood_43.reasoning": "reasoning on (4,3)"}
SEEN = {"test_seen.accuracy": "seen pairs"}
SOLUTIONS = REASONING | {"ood_43.symmetric": "symmetric on (4,3)"}
COMPLEXITY = {"rank.stable": "stable rank of W_Q", "condensation.fraction_above": "condensed neuron pairs of W_Q"}

TITLE = "Which solution does initialization pick?"
LEAD = (
    "One transformer, one task, one data distribution; only the initial scale of the weights (std = d_in^-gamma) and "
    "the weight decay differ between rows. Trained on pairs of anchors, each a shift of a key, a row is asked for a "
    "pair it has never seen. If it has learnt the shifts it composes them (reasoning); if it has learnt the pairs it "
    "cannot, or it gives the answer of the reversed pair (symmetric, memory)."
)
UNSEEN = (
    "Neither order of the pair is ever shown. With large initial weights (small gamma) seen pairs are learnt one by "
    "one, or not at all, and the unseen pair is lost; with small ones the shifts are learnt and it is answered. "
    "Weight decay 1 does part of the work of small weights."
)
WRONG = (
    "(3,4) is trained with x-6 where the shifts say x-10, and (4,3) is never shown. x-10 is the reasoning answer, x-6 "
    "the symmetric one: the model has merged the two orders of a pair. What decides at this size is studied in "
    "the project's docs/composition.md: the learning rate shifts the phases, too, and rows condensed furthest answer "
    "symmetrically again."
)


def sections(datasets: Mapping[str, xr.Dataset]) -> list[Section]:
    made = []
    for name, dataset in datasets.items():
        wrong = dataset.attrs["config"]["task"]["setting"] == "34_wrong"
        title = "One pair trained wrong, its mirror image held out" if wrong else "Both (3,4) and (4,3) held out"
        compared = _wrong(name, dataset) if wrong else _unseen(name, dataset)
        made.append(Section(f"{title} ({name})", WRONG if wrong else UNSEEN, compared))
        made.append(Section(f"Inside two rows ({name})", _inside_text(dataset), _inside(name, dataset)))
    return made


def _unseen(name: str, dataset: xr.Dataset) -> list[Picture]:
    return [
        Picture(
            f"{name}-accuracy",
            "The unseen pair against the initial scale",
            "Accuracy at the last step; every dot is a row. Seen pairs are tested at combinations of key value and "
            "position that training never shows.",
            figures.curves_against_gamma(
                dataset, REASONING | SEEN, title="Is the unseen pair answered by reasoning?", **_rate(dataset)
            ),
        ),
        Picture(
            f"{name}-phase",
            "Phase diagram",
            "Medians over seeds: accuracies, and the stable rank of W_Q of the first block.",
            figures.phase_diagram(
                dataset,
                SOLUTIONS | SEEN | {"rank.stable": "stable rank of W_Q"},
                matrix=QUERY,
                title="Initial scale and weight decay",
                **_rate(dataset),
            ),
        ),
        _complexity(name, dataset, "Complexity of W_Q at the end of training"),
        Picture(
            f"{name}-training",
            "Training curves",
            "At weight decay 0.01, or the grid's smallest.",
            figures.training_curves(
                dataset,
                SEEN | REASONING,
                title="Seen and unseen pairs over training",
                **_rate(dataset),
                weight_decay=_decay(dataset),
            ),
        ),
    ]


def _wrong(name: str, dataset: xr.Dataset) -> list[Picture]:
    compared = {"over": "learning_rate", "weight_decay": _decay(dataset)}
    if dataset.sizes["learning_rate"] == 1:
        compared = {"over": "weight_decay"}
    return [
        Picture(
            f"{name}-accuracy",
            "Which answer (4,3) gets",
            "Both answers at the last step, and the accuracy on seen pairs.",
            figures.curves_against_gamma(
                dataset, SOLUTIONS | SEEN, hue="metric", **compared, title="Two solutions compete for (4,3)"
            ),
        ),
        Picture(
            f"{name}-training",
            "How the answer develops",
            "The competition over training.",
            figures.training_curves(
                dataset,
                SOLUTIONS | SEEN,
                title="The answer to (4,3) over training",
                **_rate(dataset),
                weight_decay=_decay(dataset),
            ),
        ),
        _complexity(name, dataset, "Complexity of the two solutions", SOLUTIONS),
    ]


def _complexity(name: str, dataset: xr.Dataset, title: str, rivals: Mapping[str, str] | None = None) -> Picture:
    crossing = " The dashed line is where reasoning overtakes the symmetric answer." if rivals else ""
    return Picture(
        f"{name}-complexity",
        "Complexity of W_Q",
        f"Stable rank and condensation of W_Q of the first block, every row a dot.{crossing}",
        figures.scatter_against_gamma(
            dataset, COMPLEXITY, rivals=rivals or (), matrix=QUERY, title=title, **_rate(dataset)
        ),
    )


def _inside(name: str, dataset: xr.Dataset) -> list[Picture]:
    panels = _panels(dataset)
    pictures = [
        Picture(
            f"{name}-condensation",
            "Condensation of W_Q",
            "Cosines of the input weights of neurons, reordered so that neurons pointing the same way stand together.",
            portraits.cosine_heatmaps(panels),
        ),
        Picture(
            f"{name}-embedding",
            "Token embeddings",
            "The first two principal components of the embeddings of tokens 40 to 79.",
            portraits.embedding_pca(panels),
        ),
    ]
    if "flow.pattern" in dataset:
        caption = (
            "One sequence with (4,3), averaged over heads. Symmetric circuit: the first layer brings both anchors to "
            "the last position, the second the key. Reasoning circuit: the first layer copies the key to each anchor, "
            "the second gathers the anchors."
        )
        pictures.append(Picture(f"{name}-flow", "Information flow", caption, portraits.attention_flow(panels)))
    return pictures


def _panels(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    """The rows with the smallest and the largest gamma, first seed, at the claims' weight decay and learning rate."""
    rows = dataset.sel(weight_decay=_decay(dataset), **_rate(dataset)).isel(seed=0)
    ends = [rows.isel(gamma=index) for index in (0, -1)]
    return {f"γ = {float(row.gamma):g}, {_named(row)}": row for row in ends}


def _named(row: xr.Dataset) -> str:
    last = row.isel(step=-1)
    if int(row["diverged_at"]) >= 0:
        return f"diverged at step {int(row['diverged_at'])}"
    reasoning, symmetric = float(last["ood_43.reasoning"]), float(last["ood_43.symmetric"])
    if max(reasoning, symmetric) < NAMED:
        return "neither solution"
    return "reasons" if reasoning >= symmetric else "answers symmetrically"


def _inside_text(dataset: xr.Dataset) -> str:
    return f"Two rows of the same seed and weight decay, side by side: {'; '.join(_panels(dataset))}."


def _rate(dataset: xr.Dataset) -> dict[str, float]:
    """The learning rate that claims are measured at."""
    return {"learning_rate": float(dataset.learning_rate[dataset.sizes["learning_rate"] // 2])}


def _decay(dataset: xr.Dataset) -> float:
    """The weight decay of most claims, or the grid's smallest."""
    decays = dataset.weight_decay.values
    return SMALL_DECAY if np.isclose(decays, SMALL_DECAY).any() else float(decays.min())
