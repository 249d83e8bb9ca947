"""Classification of rows into the phases of arXiv 2501.08537, the phase of several seeds, and the published phases.

Everything here runs on the host, on DataArrays of `lab.load`. A row that diverged is NaN.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from lab.analysis import statistics

# arXiv 2501.08537, phase grid: by in-distribution and out-of-distribution accuracy, and by whether unseen pairs of
# anchors are answered alike in both orders
PHASES = ("1", "2 w/o", "2 w", "3")
NO_PHASE = -1
# Scores of the two-anchor task that `classify` takes, in its order.
SCORES = ("test_seen.accuracy", "ood_43.reasoning", "swap.commutativity")
NAMED = 0.5  # accuracy from which a row is named after a solution (arXiv 2405.05409: "whichever it tends to output")

# As the released notebooks report it: ten layers, ten heads of width 64, the best over all evaluations, three seeds.
PUBLISHED = xr.DataArray(
    [
        [PHASES.index(name) for name in by_decay]
        for by_decay in (
            ("1", "1", "1", "2 w"),
            ("2 w/o", "2 w/o", "2 w/o", "3"),
            ("2 w/o", "2 w/o", "2 w/o", "3"),
            ("2 w", "2 w", "2 w", "3"),
            *(("3",) * 4,) * 5,
        )
    ],
    {"gamma": [0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80], "weight_decay": [0.0, 0.01, 0.1, 1.0]},
)


def published_scores(best: Callable, last: Callable, *args, **at) -> tuple[xr.DataArray, ...]:
    """The arguments of `classify` as arXiv 2501.08537 has them: the best accuracies over all evaluations.

    Commutativity is that of the last evaluation: how theirs was chosen is not known, and an untrained model answers
    everything alike.

    Args:
      best, last: give a variable by its name, as `Run.best` and `Run.final`; they are called with `args` and `at`, too.
    """
    *accuracies, commutativity = SCORES
    return (*(best(name, *args, **at) for name in accuracies), last(commutativity, *args, **at))


def both(best: xr.DataArray, last: xr.DataArray) -> str:
    """Means over seeds, which the papers print, of a number at the best and at the last evaluation; NaN is left out."""
    return f"mean over seeds {float(best.mean()):.2f} (best evaluation), {float(last.mean()):.2f} (last)"


def classify(
    id_accuracy: xr.DataArray,
    ood_accuracy: xr.DataArray,
    commutativity: xr.DataArray,
    good_id: float = 0.9,
    good_ood: float = NAMED,
    commutative: float = 0.5,
) -> xr.DataArray:
    """Phase of every row (arXiv 2501.08537): an index into `PHASES`, or `NO_PHASE`; int8, exact.

    | phase   | in distribution | out of distribution | unseen pairs commute |
    |---|---|---|---|
    | `1`     | poor            | poor                | either               |
    | `2 w/o` | good            | poor                | no                   |
    | `2 w`   | good            | poor                | yes                  |
    | `3`     | good            | good                | either               |

    Args:
      id_accuracy: on seen pairs with held-out keys. ood_accuracy: on the unseen pair.
      commutativity: P[same answer to (c, d) and (d, c)] on unseen pairs.
      good_id, good_ood, commutative: good, or commuting, from there on. 0.9 is where arXiv 2405.05409 shades cells
        as failing; the paper of the phases states no thresholds, and one half is ours for the other two.

    Returns:
      `NO_PHASE` where an accuracy is NaN, where a phase 2 depends on a commutativity that is NaN, and where a model
      is poor in distribution but good out of it, which no phase describes. `attrs`: `names` and `no_phase`.

    Raises:
      ValueError: the arrays have different coordinates.
    """
    id_accuracy, ood_accuracy, commutativity = xr.align(id_accuracy, ood_accuracy, commutativity, join="exact")
    known = id_accuracy.notnull() & ood_accuracy.notnull()
    fits, generalizes = id_accuracy >= good_id, ood_accuracy >= good_ood
    memorizes = known & fits & ~generalizes
    conditions = {
        "1": known & ~fits & ~generalizes,
        "2 w/o": memorizes & (commutativity < commutative),
        "2 w": memorizes & (commutativity >= commutative),
        "3": known & fits & generalizes,
    }
    phase = xr.full_like(sum(conditions.values()), NO_PHASE, dtype=np.int8)
    for index, name in enumerate(PHASES):
        phase = xr.where(conditions[name], np.int8(index), phase)
    return phase.rename("phase").assign_attrs(names=PHASES, no_phase=NO_PHASE)


def vote(phase: xr.DataArray, over: str = "seed") -> xr.Dataset:
    """The most frequent phase over seeds, and how far they agree.

    Returns:
      Dataset of `phase` (as of `classify`; `NO_PHASE` in a tie and where no row has a phase), `agreement` (the share
      of the rows with a phase that have the most frequent one; NaN where there is none), `n` rows with a phase and
      `n_lost`.

    Raises:
      ValueError: no dimension `over`.
    """
    _check_dim(phase, over)
    votes = xr.concat([(phase == index).sum(over) for index in range(len(PHASES))], "candidate")
    most, n = votes.max("candidate"), votes.sum("candidate")
    elected = votes.argmax("candidate").where((votes == most).sum("candidate") == 1, NO_PHASE).astype(np.int8)
    return xr.Dataset(
        {
            "phase": elected.assign_attrs(names=PHASES, no_phase=NO_PHASE),
            "agreement": most / n.where(n > 0),
            "n": n,
            "n_lost": phase.sizes[over] - n,
        }
    )


def typical(
    id_accuracy: xr.DataArray, ood_accuracy: xr.DataArray, commutativity: xr.DataArray, over: str = "seed"
) -> xr.Dataset:
    """The phase of the medians over seeds, and how many of the seeds have it themselves.

    Args:
      id_accuracy, ood_accuracy, commutativity: as of `classify`; NaN in a row that diverged, which medians leave out.

    Returns:
      Dataset as of `vote`: `agreement` is the share of the rows with a phase that have that of the medians; NaN where
      the medians have none.

    Raises:
      ValueError: no dimension `over`, or the arrays have different coordinates.
    """
    scores = xr.align(id_accuracy, ood_accuracy, commutativity, join="exact")
    _check_dim(scores[0], over)
    found, of_rows = classify(*(values.median(over) for values in scores)), classify(*scores)
    n = (of_rows != NO_PHASE).sum(over)
    agreement = ((of_rows == found).sum(over) / n.where(n > 0)).where(found != NO_PHASE)
    return xr.Dataset({"phase": found, "agreement": agreement, "n": n, "n_lost": of_rows.sizes[over] - n})


def _check_dim(values: xr.DataArray, dim: str) -> None:
    if dim not in values.dims:
        raise ValueError(f"no dimension {dim!r}; there are {', '.join(map(str, values.dims))}")


def boundary_shift(small: xr.DataArray, large: xr.DataArray) -> tuple[xr.DataArray, str]:
    """How far a larger weight decay moves down the gamma from which an accuracy is at least `NAMED`, and a note.

    A crossing outside the grid counts as at the grid's end.

    Args:
      small, large: accuracies by `gamma`, ascending, at the smaller and at the larger decay (their coordinate
        `weight_decay`).
    """
    gammas = small["gamma"].values
    before, after = (statistics.crossing(values, NAMED).clip(*gammas[[0, -1]]) for values in (small, large))
    note = (
        f"Median crossing {float(before.median()):.2f} at decay {float(small.weight_decay):g}, "
        f"{float(after.median()):.2f} at {float(large.weight_decay):g}; linear between gamma "
        f"{', '.join(f'{gamma:g}' for gamma in gammas)}, and at an end of these where it lies beyond."
    )
    return before - after, note
