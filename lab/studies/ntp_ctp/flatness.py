"""Whether flatness explains the gap between NTP and CTP: CTP is made flat by other means, and compared with NTP.

Weight decay, wrong answers, SAM and noise in the weights are axes of a task's grid, or of a variant `<task>_<axis>` of
CTP alone with the same seeds: a product of all would be too many rows. Sharpness is the largest eigenvalue of the
Hessian of the answer's loss on clean training sequences, the median over seeds; rows are those of `claims`. Which
CTP counts is chosen by sharpness, never by accuracy. Rules and thresholds were written before any run of this study.

That a flat CTP generalizes does not show that flatness did it, since a regularizer does other things too. That it does
not generalize refutes that this sharpness is enough; a row whose loss was driven to zero is flat whatever it learnt.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from lab.analysis import regression
from lab.objective import CTP
from lab.report import style
from lab.report.objectives import OBJECTIVES
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.studies.ntp_ctp import claims
from lab.studies.ntp_ctp.claims import OOD, REGULARIZERS, Controlled, controlled, over_tasks, with_ood_accuracy

LARGE_DECAY = 1.0
MATCHED = 2.0  # times NTP's sharpness, up to which a CTP counts as flat as NTP
SHARPNESS, NORM = "minimum.top", "norm.log_frobenius_whole"
MARKERS = dict(zip((*OBJECTIVES, *(f"CTP + {of}" for of in REGULARIZERS.values())), "osDX^v", strict=True))
PREDICTORS = ("log sharpness", "log norm of the weights", "objective (CTP 0, NTP 1)")
TEXT = (
    "If flatness explained why NTP generalizes better, a CTP made as flat by other means would do so too. A picture's "
    "points are rows of the usual initial scale; the regression is over all rows of the task's grid and of its "
    "controls, of all scales. Its intervals resample seeds, of which there are few, and a coefficient is what goes "
    "with a predictor at fixed others: where the inflation factor is above 5 or so they can hardly be told apart."
)


class Trained(NamedTuple):
    """Rows of one objective, one a seed, with a regularizer of some strength; 0 without one."""

    label: str
    strength: float
    sharpness: xr.DataArray
    accuracy: xr.DataArray  # out of distribution

    @property
    def log_sharpness(self) -> float:
        """Median over the seeds in which it is positive; NaN where there are none."""
        positive = self.sharpness.where(self.sharpness > 0).dropna("seed")
        return float(np.log(positive).median()) if positive.size else np.nan

    @property
    def words(self) -> str:
        return f"{self.label} {self.strength:g}" if self.strength else self.label


def trained(run: Run, label: str, ntp_weight: float, **regularizer: float) -> Trained:
    """
    Raises:
      MissingData: a value that the grid does not have, or something that was not measured.
    """
    run, (strength,) = with_ood_accuracy(run), tuple(regularizer.values()) or (0.0,)
    sharpness, accuracy = (
        run.final(name, ("seed",), ntp_weight=ntp_weight, **regularizer) for name in (SHARPNESS, OOD)
    )
    return Trained(label, strength, sharpness, accuracy)


def plain(task: Controlled) -> tuple[Trained, Trained]:
    """CTP and NTP without a regularizer."""
    ctp, ntp = (trained(task.run, label, weight) for label, weight in OBJECTIVES.items())
    return ctp, ntp


def regularized(task: Controlled, axis: str) -> list[Trained]:
    """CTP at every value of a regularizer above that of plain CTP; none where it was not varied.

    Raises:
      MissingData: the variant that holds them has other seeds, or as `trained`.
    """
    run = task.control(axis) if axis in task.controls else task.run
    usual = float(task.run.dataset[axis][task.run.place()[axis]]) if axis in task.run.axes else 0.0
    strengths = run.values_of(axis) if axis in run.axes else ()
    label = f"CTP + {REGULARIZERS[axis]}"
    return [trained(run, label, CTP, **{axis: float(value)}) for value in strengths if value > usual]


def match_sharpness(candidates: Sequence[Trained], ntp: Trained) -> Trained:
    """The candidate whose sharpness is nearest to NTP's, of those that are as flat: at most `MATCHED` times as sharp.

    Raises:
      MissingData: none is.
    """
    above = [(one.log_sharpness - ntp.log_sharpness, one) for one in candidates]
    flat = [(distance, one) for distance, one in above if distance <= np.log(MATCHED)]
    if not flat:
        tried = ", ".join(f"{one.label} {one.strength:g}: {np.exp(distance):.2g} times" for distance, one in above)
        raise MissingData(f"a CTP as flat as NTP ({tried or 'none tried'})")
    return min(flat, key=lambda pair: abs(pair[0]))[1]


def sharpness_note(chosen: Trained, ctp: Trained, ntp: Trained) -> str:
    of_chosen, of_ctp, of_ntp = (f"{np.exp(one.log_sharpness):.2g}" for one in (chosen, ctp, ntp))
    return f"{chosen.words} has sharpness {of_chosen}, NTP {of_ntp}, plain CTP {of_ctp}"


@claims.recovery_claim("N5c", "Weight decay 1 in place of noise lets CTP recover part of the gap")
def weight_decay_recovers(runs: Runs):
    """However sharp it is; NaN where NTP is not ahead."""

    def gain(task: Controlled):
        ctp, ntp = plain(task)
        decayed = [one for one in regularized(task, "weight_decay") if np.isclose(one.strength, LARGE_DECAY)]
        if not decayed:
            raise MissingData(f"weight decay {LARGE_DECAY:g}")
        gained = (decayed[0].accuracy - ctp.accuracy).where(ntp.accuracy > ctp.accuracy)
        return gained, sharpness_note(decayed[0], ctp, ntp)

    return over_tasks(gain, controlled(runs))


def gain_at_equal_sharpness(axis: str, task: Controlled):
    """What CTP gains out of distribution by a regularizer that makes it as flat as NTP; NaN where NTP is not ahead, or
    plain CTP is as flat already and there is nothing to make flat."""
    ctp, ntp = plain(task)
    chosen = match_sharpness(regularized(task, axis), ntp)
    is_sharp = ctp.log_sharpness > ntp.log_sharpness + np.log(MATCHED)
    gained = (chosen.accuracy - ctp.accuracy).where((ntp.accuracy > ctp.accuracy) & is_sharp)
    return gained, sharpness_note(chosen, ctp, ntp)


flattened_claim = functools.partial(
    claims.control_claim, above=0,
    quantity=f"gain of CTP out of distribution, sharpness at most {MATCHED:g} times NTP's, where NTP is ahead",
)  # fmt: skip


@flattened_claim("N5d", "CTP made as flat as NTP recovers part of the gap: by SAM")
def flattening_by_sam_recovers(runs: Runs):
    return over_tasks(functools.partial(gain_at_equal_sharpness, "sam_radius"), controlled(runs))


@flattened_claim("N5e", "CTP made as flat as NTP recovers part of the gap: by noise in the weights")
def flattening_by_weight_noise_recovers(runs: Runs):
    return over_tasks(functools.partial(gain_at_equal_sharpness, "weight_noise"), controlled(runs))


@claims.control_claim(
    "N5f", "Flatness explains the gap: CTP of NTP's sharpness, whatever made it so, closes most of it",
    quantity="what it closes minus what it leaves, where NTP is ahead", above=0,
)  # fmt: skip
def flatness_explains_the_gap(runs: Runs):
    """Plain CTP is a candidate: where it is as flat as NTP already, it closes nothing."""

    def closed(task: Controlled):
        ctp, ntp = plain(task)
        candidates = [one for axis in REGULARIZERS for one in regularized(task, axis)]
        chosen = match_sharpness([ctp, *candidates], ntp)
        gap, left = ntp.accuracy - ctp.accuracy, ntp.accuracy - chosen.accuracy
        return (gap - 2 * left).where(gap > 0), sharpness_note(chosen, ctp, ntp)

    return over_tasks(closed, controlled(runs))


CLAIMS = (
    weight_decay_recovers, flattening_by_sam_recovers, flattening_by_weight_noise_recovers, flatness_explains_the_gap,
)  # fmt: skip


def sections(runs: Runs) -> list[Section]:
    """One for every task with both objectives whose sharpness was measured."""
    tasks, drawings = controlled(runs), (sharpness_and_accuracy, regression_on_sharpness)
    return [
        draw_section(f"Does flatness explain the gap? {name}", TEXT, tasks[name], drawings, name)
        for name, run in claims.with_both_objectives(runs).items()
        if SHARPNESS in run
    ]


@style.paper()
def sharpness_and_accuracy(task: Controlled) -> Picture:
    """A marker for every row."""
    title = "Out of distribution against sharpness"
    caption = (
        "One point a row, at the last step. If flatness explained the gap, a flat CTP (left) would stand as high as "
        "NTP. Rows whose largest eigenvalue is not positive have no place on the axis."
    )
    figure, (ax,) = style.panels(1, 7, 3.6, f"{title}: {task.name}")
    handles = {}
    for one in (*plain(task), *(one for axis in REGULARIZERS for one in regularized(task, axis))):
        colour = style.CATEGORIES[[*MARKERS].index(one.label)]
        stroke = {"color": colour, "marker": MARKERS[one.label], "ls": "", "ms": 6, "label": one.label}
        ax.plot(one.sharpness.where(one.sharpness > 0), one.accuracy, **stroke, gid="rows")
        handles[one.label] = Line2D([], [], **stroke)
    ax.set_xscale("log")
    ax.set(ylim=(-0.06, 1.06), xlabel="sharpness (nats per weight²)", ylabel="accuracy out of distribution")
    style.legend_below(figure, [*handles.values()])
    return Picture("controls", caption, figure, title)


def regression_on_sharpness(task: Controlled) -> Picture:
    """The standardized coefficients of `PREDICTORS` with their intervals."""
    columns = regression_table(task)
    try:
        found = regression.ols(columns["accuracy"], {label: columns[label] for label in PREDICTORS}, columns["seed"])
    except ValueError as error:
        raise MissingData(f"rows for it: {error}") from error
    each = []
    for label in PREDICTORS:
        one = found.sel(predictor=label)
        shares = f"R² {float(one.alone):.2f} alone, {float(one.added):.2f} added last"
        each.append(f"{label}: {shares}, inflation {float(one.inflation):.1f}")
    missing = f"{int(found.n_missing)} rows without finite numbers left out"
    caption = ". ".join([f"R² of all: {float(found.r2):.2f}", "; ".join(each), missing]) + "."
    title = "What goes with accuracy out of distribution, the others fixed?"
    return Picture("regression", caption, coefficients(found, f"{title} {task.name}"), title)


def regression_table(task: Controlled) -> dict[str, np.ndarray]:
    """All rows of a task and of its controls: `accuracy` out of distribution, `seed` and the `PREDICTORS`.

    Raises:
      MissingData: a predictor was not measured.
    """
    columns = [
        _columns(run) for run in (task.run, *(task.controls[axis] for axis in REGULARIZERS if axis in task.controls))
    ]
    return {label: np.concatenate([of[label] for of in columns]) for label in columns[0]}


def _columns(run: Run) -> dict[str, np.ndarray]:
    accuracy, sharpness, norm = (with_ood_accuracy(run).final(name, run.axes) for name in (OOD, SHARPNESS, NORM))
    predictors = (np.log(sharpness.where(sharpness > 0)), norm, run.dataset["ntp_weight"])
    columns = {"accuracy": accuracy, "seed": run.dataset["seed"]} | dict(zip(PREDICTORS, predictors, strict=True))
    return {label: of.broadcast_like(accuracy).transpose(*run.axes).values.ravel() for label, of in columns.items()}


@style.paper()
def coefficients(found: xr.Dataset, title: str):
    """The standardized coefficients of `lab.analysis.regression.ols` with their intervals, the first one on top."""
    place_P = np.arange(found.sizes["predictor"])[::-1]
    note = f"{int(found.n_rows)} rows, intervals of {100 * found.attrs['level']:g} % over resampled seeds"
    figure, (ax,) = style.panels(1, 7.5, 0.35 * len(place_P) + 0.9, title, [note])
    ax.axvline(0, color=style.GREY, lw=1, zorder=1)
    ax.hlines(place_P, found["low"], found["high"], color=style.CATEGORIES[0], lw=1.8, gid="interval")
    ax.plot(found["coefficient"], place_P, "o", color=style.CATEGORIES[0], ms=6, gid="value")
    ax.set_yticks(place_P, found["predictor"].values)
    ax.set(ylim=(-0.6, len(place_P) - 0.4), xlabel="standard deviations of the accuracy for one of the predictor")
    ax.grid(False, axis="y")
    return figure
