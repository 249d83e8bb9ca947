"""The data of a report's interactive part: every row's curves, measurements and spectra, packed small."""

import base64
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping

import matplotlib
import numpy as np
import xarray as xr

from lab import series
from lab.report import style
from lab.runs import TIMES, Run

MOST = 1_500_000  # characters of a page's data; its pictures are about as long
POINTS = (60, 30, 15, 8, 4, 2)  # steps of a curve, at most: the first of these with which all scalar metrics fit
SNAPSHOTS = 4  # of a spectrum, at most
SINGULAR_VALUES = 24  # of a spectrum, at most
SPECTRA = "spectrum."  # what the names of the variables that hold singular values begin with
KINDS = ("scalar", "spectrum", "places")  # by what is kept first: of a row one number, singular values, several numbers
COLOURS = 33  # of a colour map; the page blends between them


@dataclasses.dataclass(frozen=True)
class Entry:
    """A metric, or the singular values of one matrix.

    Attributes:
      values_TxRxK: K is 1 for a metric.
      steps_T: ascending; None where there is no time, and T is 1.
      kind: one of `KINDS`; of a spectrum K counts singular values.
    """

    name: str
    values_TxRxK: np.ndarray
    steps_T: np.ndarray | None
    kind: str = "scalar"

    def thinned(self, points: int) -> dict:
        """As explore.js takes it, with `points` steps at most, or `SNAPSHOTS` and `SINGULAR_VALUES` of a spectrum."""
        (n_T, _, n_K), spectrum = self.values_TxRxK.shape, self.kind == "spectrum"
        times, places = thin(n_T, SNAPSHOTS if spectrum else points), thin(n_K, SINGULAR_VALUES)
        return {
            "name": self.name,
            "steps": None if self.steps_T is None else self.steps_T[times].tolist(),
            "data": pack(self.values_TxRxK[times][..., places]),
            **({"index": (places + 1).tolist()} if spectrum else {}),
            **({"of": n_T} if len(times) < n_T else {}),
            **({"of_index": n_K} if len(places) < n_K else {}),
        }


def data(run: Run, target: str = "", most: int = MOST) -> dict:
    """What explore.js draws one training from, as JSON values.

    Rows are never left out. Where the whole would be longer than `most` characters, curves lose steps; where that does
    not do, metrics are left out: those of single matrices first, then spectra. `note` says so.

    Args:
      target: the metric that is shown first, if it is there.

    Returns:
      `axes` (that vary: name -> ascending values), `rows` (name -> index of each row's value), `usual` (name -> index
      of the value that is meant where none is chosen), `n_rows`, `diverged_at` (-1: healthy), `target`, `note`, and
      `metrics` and `spectra`: each a `name`, `steps` (None: no time) and `data`, see `pack`, of shape (T, R), or
      (T, R, K) of a spectrum, whose `index` counts singular values from 1. One that was thinned says `of` how many
      steps and `of_index` of how many singular values.
    """
    kinds = {name: kind for name in map(str, run.dataset.data_vars) if (kind := _kind(run, name))}
    run = dataclasses.replace(run, dataset=run.dataset[[*kinds, "diverged_at"]])
    masked = run.rows(keep=run.axes)
    diverged_at_R = masked["diverged_at"].values.reshape(-1)
    (there,) = np.nonzero(~np.isnan(diverged_at_R))  # a grid that is no product has no row at some places
    found = _grid(run, there) | {"diverged_at": diverged_at_R[there].astype(int).tolist(), "target": target}
    ordered = sorted(kinds, key=lambda name: KINDS.index(kinds[name]))
    entries = [entry for name in ordered for entry in _entries(run, masked, name, kinds[name])]
    entries = [dataclasses.replace(entry, values_TxRxK=entry.values_TxRxK[:, there]) for entry in entries]
    fitted, points, left_out = _fit(entries, most - len(json.dumps(found)))
    return found | {
        "metrics": [entry for entry in fitted if "index" not in entry],
        "spectra": [entry for entry in fitted if "index" in entry],
        "note": _note(fitted, points, left_out),
    }


def _grid(run: Run, there: np.ndarray) -> dict:
    found = {"axes": {}, "rows": {}, "usual": {}, "n_rows": len(there)}
    diverged_at = run.dataset["diverged_at"]
    for axis in run.axes:
        column_R = diverged_at[axis].broadcast_like(diverged_at).values.reshape(-1)[there]
        values, indices_R = np.unique(column_R, return_inverse=True)
        if len(values) > 1:
            found["axes"][axis], found["rows"][axis] = values.tolist(), indices_R.tolist()
    if len(there) == diverged_at.size:  # of other grids one value of an axis may leave a single row
        usual = run.place(keep=("seed",))
        found["usual"] = {axis: index for axis, index in usual.items() if axis in found["axes"]}
    return found


def _kind(run: Run, name: str) -> str | None:
    """How a variable is shown: one of `KINDS`, or not at all."""
    variable = run.dataset[name]
    others = [dim for dim in variable.dims if dim not in (*run.axes, *TIMES)]
    if name == "diverged_at" or not {*run.axes} <= {*variable.dims}:
        return None
    if name.startswith(SPECTRA):
        return "spectrum"
    measured = not {"step", "train_step"} & {*variable.dims}
    few = len(others) == 1 and measured and variable.sizes[others[0]] <= series.MOST
    return "scalar" if not others else "places" if few else None


def _entries(run: Run, masked: xr.Dataset, name: str, kind: str) -> Iterator[Entry]:
    """Of one variable, all rows in the order of the grid's axes."""
    values, steps_T, labels = series.flat(masked, name)
    if steps_T is None:
        values = values[None]
    else:  # where it was measured, also if only of rows that had diverged
        (times,) = np.nonzero(~np.isnan(series.flat(run.dataset, name)[0]).all(axis=(1, 2)))
        values, steps_T = values[times], steps_T[times]
    if not len(values):  # no step was taken yet
        return
    if kind == "spectrum":
        yield from _spectra(name, values, steps_T, labels)
    else:
        for i, label in enumerate(labels):
            yield Entry(series.named(name, label), values[..., [i]], steps_T, kind)


def _spectra(name: str, values_TxRxN: np.ndarray, steps_T: np.ndarray | None, labels: list[tuple]) -> Iterator[Entry]:
    """One for each matrix, or layer and head, with as many singular values as it has."""
    for matrix, places in itertools.groupby(range(len(labels)), lambda i: labels[i][:-1]):
        values_TxRxK = values_TxRxN[..., list(places)]
        held = np.flatnonzero(~np.isnan(values_TxRxK).all(axis=(0, 1)))
        if held.size:
            of = f"{name.removeprefix(SPECTRA)} {', '.join(map(str, matrix))}"
            yield Entry(of, values_TxRxK[..., : held[-1] + 1], steps_T, "spectrum")


def _fit(entries: list[Entry], most: int) -> tuple[list[dict], int, list[str]]:
    """The entries that fit into so many characters, how many steps they were given, and the names of all others."""

    @functools.cache
    def thinned(points: int) -> list[tuple[dict, int]]:
        made = [entry.thinned(points) for entry in entries]
        return [(entry, len(json.dumps(entry)) + 2) for entry in made]

    scalar = [entry.kind == "scalar" for entry in entries]
    points = next((n for n in POINTS if np.dot(scalar, [size for _, size in thinned(n)]) <= most), POINTS[-1])
    fitted, left_out = [], []
    for entry, size in thinned(points):
        if size <= most:
            most -= size
            fitted.append(entry)
        else:
            left_out.append(entry["name"])
    return fitted, points, left_out


def _note(fitted: Iterable[Mapping], points: int, left_out: list[str]) -> str:
    """What was thinned and what left out, in a sentence each."""
    thinned = [entry["name"] for entry in fitted if "of" in entry and "index" not in entry]
    said = [f"Curves of {_some(thinned)} show {points} steps at most."] if thinned else []
    if any("of" in entry and "index" in entry for entry in fitted):
        said.append(f"Spectra show {SNAPSHOTS} snapshots at most, the first and the last among them.")
    if any("of_index" in entry for entry in fitted):
        said.append(f"Spectra show {SINGULAR_VALUES} singular values at most.")
    if left_out:
        said.append(f"For its size left out: {_some(left_out)}.")
    return " ".join(said)


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def thin(n: int, most: int) -> np.ndarray:
    """Indices of at most `most` of n values, both ends among them: half evenly spaced, half by powers."""
    if n <= most:
        return np.arange(n)
    n_even = most // 2 + 1
    even, early = np.linspace(0, n - 1, n_even), np.geomspace(1, n - 1, most - n_even + 1)[:-1]
    return np.unique(np.concatenate([even, early]).round().astype(int))


def pack(values: np.ndarray) -> str:
    """float32 rounded to 16 significant bits (by 2^-16 of the value at most), four characters each, in C order."""
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, "<f4")
    bits = np.where(np.isnan(single), np.uint32(0x7FC00000), single.view("<u4"))
    rounded = np.where(np.isfinite(single), bits + np.uint32(0x80), bits).astype("<u4")
    return base64.b64encode(rounded.reshape(-1, 1).view(np.uint8)[:, 1:].tobytes()).decode()


def colours() -> dict[str, list[list[int]]]:
    """Those of the report's phase diagrams, as red, green and blue to 255: of shares, and of other values."""
    maps = {"share": style.ORDERED, "other": style.UNBOUNDED}
    places = np.linspace(0, 1, COLOURS)
    return {
        name: (matplotlib.colormaps[cmap](places)[:, :3] * 255).round().astype(int).tolist()
        for name, cmap in maps.items()
    }
