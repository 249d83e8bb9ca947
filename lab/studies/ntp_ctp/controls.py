"""Does flatness explain the gap between NTP and CTP? CTP is made flat by other means, and compared with NTP.

Weight decay, wrong answers, SAM and noise in the weights are axes of a task's grid, or of a variant `<task>_<axis>` of
CTP alone with the same seeds: a product of all would be too many rows. Sharpness is the largest eigenvalue of the
Hessian of the answer's loss on clean training sequences, the median over seeds; rows are those of `claims.rows`. Which
CTP counts is chosen by sharpness, never by accuracy. Rules and thresholds were written before any run of this study.

That a flat CTP generalizes does not show that flatness did it, since a regularizer does other things too. That it does
not generalize refutes that this sharpness is enough; a row whose loss was driven to zero is flat whatever it learnt.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from lab.analysis import regression
from lab.report import style
from lab.report.page import Picture, Section
from lab.studies.claims import Claim, Lacking, Measured
from lab.studies.ntp_ctp.claims import (
    CONTROL,
    CTP,
    PAPER,
    accuracy,
    both,
    compared,
    final,
    lead,
    measured,
    over_tasks,
    rows,
)

REGULARIZERS = {
    "weight_decay": "decay", "label_noise": "label noise", "sam_radius": "SAM", "weight_noise": "weight noise",
}  # fmt: skip
LARGE_DECAY = 1.0
MATCHED = 2.0  # times NTP's sharpness, up to which a CTP counts as flat as NTP
PREDICTORS = {
    "log sharpness": lambda ds: _log(measured(ds, "minimum.top")),
    "log norm of the weights": lambda ds: measured(ds, "norm.log_frobenius_whole"),
    "objective (CTP 0, NTP 1)": lambda ds: ds["ntp_weight"],
}
MARKERS = dict(zip(("CTP", "NTP", *(f"CTP + {of}" for of in REGULARIZERS.values())), "osDX^v", strict=True))
TEXT = (
    "If flatness explained why NTP generalizes better, a CTP made as flat by other means would do so too. A picture's "
    "points are rows of the usual initial scale; the regression is over all rows of the task's grid and of its "
    "controls, of all scales. Its intervals resample seeds, of which there are few, and a coefficient is what goes "
    "with a predictor at fixed others: where the inflation factor is above 5 or so they can hardly be told apart."
)

Datasets = Mapping[str, xr.Dataset]


class Trained(NamedTuple):
    """CTP with a regularizer of some strength: its rows, one a seed."""

    label: str
    value: float
    rows: xr.Dataset


def regularized(datasets: Datasets, name: str, axis: str) -> list[Trained]:
    """CTP at every value of a regularizer above that of plain CTP; none where it was not varied.

    Raises:
      Lacking: the variant that holds them has other seeds, or not the rows of `claims.rows`.
    """
    variant, dataset = f"{name}_{axis}", datasets[name]
    held, plain = datasets.get(variant, dataset), rows(dataset, CTP)
    if not np.array_equal(held["seed"], dataset["seed"]):
        raise Lacking(f"in variant {variant} the seeds of {name}")
    values = held[axis].values if axis in held["diverged_at"].dims else ()
    strengths = [float(value) for value in values if value > float(plain.get(axis, 0))]
    return [Trained(f"CTP + {REGULARIZERS[axis]}", value, rows(held, CTP, **{axis: value})) for value in strengths]


def log_sharpness(chosen: xr.Dataset) -> float:
    """Median over the seeds in which it is positive; NaN where there are none."""
    top_S = final(measured(chosen, "minimum.top"))
    return float(np.median(np.log(top_S[top_S > 0]))) if (top_S > 0).any() else np.nan


def matched(candidates: Sequence[Trained], ntp: xr.Dataset) -> Trained:
    """The candidate whose sharpness is nearest to NTP's, of those that are as flat: at most `MATCHED` times as sharp.

    Raises:
      Lacking: none is.
    """
    target = log_sharpness(ntp)
    above = [(log_sharpness(one.rows) - target, one) for one in candidates]
    flat = [(distance, one) for distance, one in above if distance <= np.log(MATCHED)]
    if not flat:
        tried = ", ".join(f"{one.label} {one.value:g}: {np.exp(distance):.2g} times" for distance, one in above)
        raise Lacking(f"a CTP as flat as NTP ({tried or 'none tried'})")
    return min(flat, key=lambda pair: abs(pair[0]))[1]


def decayed(datasets: Datasets) -> Measured:
    """What CTP gains out of distribution by weight decay 1, however sharp it is; NaN where NTP is not ahead."""

    def of_task(name: str):
        ctp, ntp = both(datasets[name])
        found = [one for one in regularized(datasets, name, "weight_decay") if np.isclose(one.value, LARGE_DECAY)]
        if not found:
            raise Lacking(f"weight decay {LARGE_DECAY:g}")
        gain_S = final(accuracy(found[0].rows)) - final(accuracy(ctp))
        return np.where(lead(ctp, ntp) > 0, gain_S, np.nan), _said(found[0], ctp, ntp)

    return _over_tasks(of_task, datasets)


def gained(axis: str, datasets: Datasets) -> Measured:
    """What CTP gains out of distribution by a regularizer that makes it as flat as NTP; NaN where NTP is not ahead, or
    plain CTP is as flat already and there is nothing to make flat."""

    def of_task(name: str):
        ctp, ntp = both(datasets[name])
        found = matched(regularized(datasets, name, axis), ntp)
        gain_S = final(accuracy(found.rows)) - final(accuracy(ctp))
        is_sharp = log_sharpness(ctp) > log_sharpness(ntp) + np.log(MATCHED)
        return np.where((lead(ctp, ntp) > 0) & is_sharp, gain_S, np.nan), _said(found, ctp, ntp)

    return _over_tasks(of_task, datasets)


def explained(datasets: Datasets) -> Measured:
    """How much of the gap a CTP of NTP's sharpness closes, minus what it leaves; NaN where NTP is not ahead.

    Plain CTP is a candidate: where it is as flat as NTP already, it closes nothing.
    """

    def of_task(name: str):
        ctp, ntp = both(datasets[name])
        candidates = [Trained("CTP", 0.0, ctp)]
        for axis in REGULARIZERS:
            candidates += regularized(datasets, name, axis)
        found = matched(candidates, ntp)
        gap_S, left_S = lead(ctp, ntp), lead(found.rows, ntp)
        return np.where(gap_S > 0, gap_S - 2 * left_S, np.nan), _said(found, ctp, ntp)

    return _over_tasks(of_task, datasets)


def table(datasets: Datasets, name: str) -> dict[str, np.ndarray]:
    """All rows of a task and of its controls: `accuracy` out of distribution, `seed` and the `PREDICTORS`.

    NaN for rows that diverged.

    Raises:
      Lacking: a predictor was not measured.
    """
    held = [datasets[name], *(datasets[f"{name}_{axis}"] for axis in REGULARIZERS if f"{name}_{axis}" in datasets)]
    columns = [_columns(dataset) for dataset in held]
    return {label: np.concatenate([of[label] for of in columns]) for label in columns[0]}


def sections(datasets: Datasets) -> list[Section]:
    """One for every task whose sharpness was measured."""
    return [_section(datasets, name) for name in compared(datasets) if "minimum.top" in datasets[name]]


def _section(datasets: Datasets, name: str) -> Section:
    drawn, text = [], TEXT
    for picture in (_scatter, _regression):
        try:
            drawn.append(picture(datasets, name))
        except (Lacking, ValueError) as error:
            text += f"\n\nOne picture could not be drawn: {error}."
    return Section(f"Does flatness explain the gap? {name}", text, drawn)


def _scatter(datasets: Datasets, name: str) -> Picture:
    points = list(zip(("CTP", "NTP"), both(datasets[name]), strict=True))
    for axis in REGULARIZERS:
        points += [(one.label, one.rows) for one in regularized(datasets, name, axis)]
    title = "Out of distribution against sharpness"
    caption = (
        "One point a row, at the last step. If flatness explained the gap, a flat CTP (left) would stand as high as "
        "NTP. Rows whose largest eigenvalue is not positive have no place on the axis."
    )
    of_rows = [(label, final(measured(one, "minimum.top")), final(accuracy(one))) for label, one in points]
    figure = sharpness_and_accuracy(of_rows, f"{title}: {name}")
    return Picture(f"{name}-controls", title, caption, figure)


def _regression(datasets: Datasets, name: str) -> Picture:
    columns = table(datasets, name)
    found = regression.ols(columns["accuracy"], {label: columns[label] for label in PREDICTORS}, columns["seed"])
    each = []
    for label in PREDICTORS:
        one = found.sel(predictor=label)
        shares = f"R² {float(one.alone):.2f} alone, {float(one.added):.2f} added last"
        each.append(f"{label}: {shares}, inflation {float(one.inflation):.1f}")
    missing = f"{int(found.n_missing)} rows without finite numbers left out"
    caption = ". ".join([f"R² of all: {float(found.r2):.2f}", "; ".join(each), missing]) + "."
    title = "What goes with accuracy out of distribution, the others fixed?"
    return Picture(f"{name}-regression", title, caption, coefficients(found, f"{title} {name}"))


@style.paper()
def sharpness_and_accuracy(points: Sequence[tuple[str, np.ndarray, np.ndarray]], title: str):
    """A marker for every row: `points` are (a key of `MARKERS`, sharpness_S, accuracy_S)."""
    figure, (ax,) = style.panels(1, 7, 3.6, title)
    drawn = {}
    for label, sharpness_S, accuracy_S in points:
        colour = style.CATEGORIES[[*MARKERS].index(label)]
        stroke = {"color": colour, "marker": MARKERS[label], "ls": "", "ms": 6, "label": label}
        ax.plot(np.where(sharpness_S > 0, sharpness_S, np.nan), accuracy_S, **stroke, gid="rows")
        drawn[label] = Line2D([], [], **stroke)
    ax.set_xscale("log")
    ax.set(ylim=(-0.06, 1.06), xlabel="sharpness (nats per weight²)", ylabel="accuracy out of distribution")
    style.legend_below(figure, [*drawn.values()])
    return figure


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


def _columns(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    diverged_at = dataset["diverged_at"]
    found = {"accuracy": accuracy(dataset), "seed": dataset["seed"]}
    found |= {label: of(dataset) for label, of in PREDICTORS.items()}
    healthy = {label: values.where(diverged_at < 0) for label, values in found.items()}
    return {label: final(values.transpose(..., *diverged_at.dims)).ravel() for label, values in healthy.items()}


def _log(values: xr.DataArray) -> xr.DataArray:
    return np.log(values.where(values > 0))


def _said(found: Trained, ctp: xr.Dataset, ntp: xr.Dataset) -> str:
    of_found, of_ctp, of_ntp = (np.exp(log_sharpness(chosen)) for chosen in (found.rows, ctp, ntp))
    strength = f" {found.value:g}" if found.value else ""
    return f"{found.label}{strength} has sharpness {of_found:.2g}, NTP {of_ntp:.2g}, plain CTP {of_ctp:.2g}"


def _over_tasks(of_task: Callable[[str], tuple[np.ndarray, str]], datasets: Datasets) -> Measured:
    """`over_tasks` of the tasks that have the number; the note says with which sharpness."""
    of_tasks, said, lacking = {}, [], None
    for name in compared(datasets):
        try:
            of_tasks[name], words = of_task(name)
            said.append(f"{name}: {words}.")
        except Lacking as missing:
            lacking = lacking or missing
    if not of_tasks:
        raise lacking or Lacking("a task with both objectives")
    found = over_tasks(of_tasks, ratio=False)
    return dataclasses.replace(found, note=" ".join([found.note, *said]))


def _gained(name: str, words: str, axis: str) -> Claim:
    return Claim(
        name, f"CTP made as flat as NTP recovers part of the gap: by {words}", CONTROL, "-",
        f"gain of CTP out of distribution above 0, sharpness at most {MATCHED:g} times NTP's, where NTP is ahead",
        functools.partial(gained, axis),
    )  # fmt: skip


CLAIMS = (
    Claim(
        "N5c", "Weight decay 1 in place of noise lets CTP recover part of the gap", PAPER, "no number",
        "gain of CTP out of distribution above 0, where NTP is ahead", decayed,
    ),
    _gained("N5d", "SAM", "sam_radius"),
    _gained("N5e", "noise in the weights", "weight_noise"),
    Claim(
        "N5f", "Flatness explains the gap: CTP of NTP's sharpness, whatever made it so, closes most of it", CONTROL,
        "-", "what it closes minus what it leaves above 0, where NTP is ahead", explained,
    ),
)  # fmt: skip
