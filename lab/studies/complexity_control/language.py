"""Complexity control where language or arithmetic is composed: SCAN, COGS, addition (arXiv 2405.05409 and 2501.08537).

Two corners of the grid are compared: the largest initial weights with the smallest decay, and the smallest with the
largest. STUDY is the study on SCAN and COGS, whose data the user has; addition is a variant of the main study.
"""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab import models
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.models import decode
from lab.report import figures, maps
from lab.report.measures import lines_with_error
from lab.report.page import Picture, Section
from lab.studies import Study
from lab.studies.claims import Claim, Lacking, Measured
from lab.studies.complexity_control.published import PAPER
from lab.tasks import Cogs, Scan, cogs

# Family -> where a row is asked what training is like, and where it is not. SCAN has no test of the former kind.
SPLITS = {"addition": ("test_seen", "ood"), "scan": ("train", "test"), "cogs": ("test", "gen")}
CORNERS = {"small weights, large decay": (-1, -1), "large weights, small decay": (0, 0)}  # of gamma, of decay
KEPT = ("train_items", "seed")  # axes of the grid that are not reduced
AGAINST = {
    "train_items": "training items",
    "ntp_weight": "weight of a question's token in the loss",  # 0: answers are trained, 1: all tokens
}
SEQUENCES = 210  # decoded: of COGS ten of each type, on average

Datasets = Mapping[str, xr.Dataset]


def family(dataset: xr.Dataset) -> str:
    return dataset.attrs["config"]["task"]["family"]


def corner(dataset: xr.Dataset, name: str, which: str) -> xr.DataArray:
    """The last value in a corner, (size, seed): size is the number of training items; NaN for rows that diverged.

    The middle of every other axis of the grid.

    Args:
      which: of `CORNERS`.

    Raises:
      Lacking: there is no such variable, or one gamma or decay only.
    """
    if name not in dataset:
        raise Lacking(name)
    for axis in ("gamma", "weight_decay"):
        if dataset.sizes[axis] < 2:
            raise Lacking(f"a second {axis.replace('_', ' ')}")
    values = dataset[name].where(dataset["diverged_at"] < 0).sortby(["gamma", "weight_decay"])
    for time in {"step", "snapshot"} & set(values.dims):
        values = values.isel({time: -1})
    at_gamma, at_decay = CORNERS[which]
    values = values.isel(gamma=at_gamma, weight_decay=at_decay)
    rows = set(dataset["diverged_at"].dims)
    values = values.isel({axis: values.sizes[axis] // 2 for axis in values.dims if axis in rows - set(KEPT)})
    sized = values.rename(train_items="size") if "train_items" in values.dims else values.expand_dims(size=[0])
    return sized.sortby("size").transpose("size", "seed", ...)


def small_and_decayed_wins(families: tuple[str, ...], datasets: Datasets) -> Measured:
    leads, notes = [], []
    for name, dataset in _of(families, datasets).items():
        ood = [corner(dataset, f"{SPLITS[family(dataset)][1]}.accuracy", one) for one in CORNERS]
        lead = ood[0] - ood[1]
        leads.append(lead.min("size", skipna=False).values)
        by_size = zip(lead["size"].values, *(o.median("seed").values for o in ood), strict=True)
        notes += [f"{name}{f' of {size:g} items' if size else ''}: {a:.2f} against {b:.2f}" for size, a, b in by_size]
    return Measured(tuple(np.min(leads, axis=0).tolist()), 0.0, f"Medians: {'; '.join(notes)}.", strictly=True)


def both_fit(families: tuple[str, ...], datasets: Datasets) -> Measured:
    lowest, splits = [], []
    for dataset in _of(families, datasets).values():
        split = SPLITS[family(dataset)][0]
        fits = [corner(dataset, f"{split}.accuracy", one).min("size", skipna=False).values for one in CORNERS]
        lowest.append(np.minimum(*fits))
        splits.append(split)
    return Measured(tuple(np.min(lowest, axis=0).tolist()), 0.99, f"Of split {', '.join(dict.fromkeys(splits))}.")


def corner_claims(prefix: str, words: str, families: tuple[str, ...], source: str) -> tuple[Claim, Claim]:
    """That the corner of low complexity wins out of distribution, and that this is not for want of fitting."""
    return (
        Claim(
            f"{prefix}1", f"On {words} small weights with large decay beat large weights with small decay", source,
            "out of distribution, at every data size", "accuracy out of distribution higher: least lead above 0",
            functools.partial(small_and_decayed_wins, families),
        ),
        Claim(
            f"{prefix}2", f"while both fit {words} in distribution", source, "above 99 %",
            "lowest accuracy of both in distribution at least 0.99", functools.partial(both_fit, families),
        ),
    )  # fmt: skip


def decoded(experiment: Experiment) -> Measure:
    """Exact matches out of distribution by greedy decoding with a key-value cache; by type of generalization (COGS)."""
    task = experiment.task
    split = SPLITS["cogs" if isinstance(task, Cogs) else "scan"][1]

    def function(row):
        correct_B = decode.exact_match(row.model, row.params, task, row.batch)
        found = {"accuracy": jnp.mean(correct_B)}
        return found | ({"type_accuracy": cogs.by_type(correct_B, row.batch)} if isinstance(task, Cogs) else {})

    units = dict.fromkeys(("accuracy", "type_accuracy") if isinstance(task, Cogs) else ("accuracy",), "share right")
    dims = {"type_accuracy": ("gen_type",)} if isinstance(task, Cogs) else {}
    return Measure("decoded", function, units, dims, dict(task.coords), "last", split=split, n=SEQUENCES)


def measures(experiment: Experiment) -> list[Measure]:
    """
    Raises:
      ValueError: the model is not a transformer, or the task neither SCAN nor COGS.
    """
    model, task = experiment.model, experiment.task
    if not isinstance(model, models.Transformer) or not isinstance(task, Scan | Cogs):
        raise ValueError(
            f"complexity_control_language measures transformers on scan or cogs, not {type(model).__name__} on "
            f"{type(task).__name__}"
        )
    return [decoded(experiment)]


def sections(datasets: Datasets) -> list[Section]:
    return [Section(f"{family(ds).upper()} ({name})", TEXT, pictures(name, ds)) for name, ds in datasets.items()]


def pictures(name: str, dataset: xr.Dataset) -> list[Picture]:
    """The grid, accuracy against the number of training items and the objective where they vary, and by type."""
    split_id, split_ood = SPLITS[family(dataset)]
    shown = {f"{split_id}.accuracy": "in distribution", f"{split_ood}.accuracy": "out of distribution"}
    largest = {"train_items": float(dataset.train_items.max())} if "train_items" in dataset.dims else {}
    title = "Exact match over initial scale and weight decay"
    drawn = [
        Picture(
            f"{name}-grid", title, f"Split {split_id} in, {split_ood} out of distribution.",
            figures.phase_diagram(dataset, shown, title=title, **largest),
        ),
        Picture(
            f"{name}-training", "Over training", "At the grid's smallest weight decay.",
            figures.training_curves(dataset, shown, title="Exact match over training", **largest),
        ),
    ]  # fmt: skip
    if min(dataset.sizes["gamma"], dataset.sizes["weight_decay"]) > 1:
        drawn += [_against(name, dataset, axis) for axis in AGAINST if dataset.sizes.get(axis, 1) > 1]
        drawn += [_by_type(name, dataset)] if "decoded.type_accuracy" in dataset else []
    return drawn


def along(dataset: xr.Dataset, name: str, which: str, axis: str) -> xr.DataArray:
    """The last value in a corner along one more axis of the grid, (axis, seed); of the largest training set, if that is
    not the axis. See `corner`."""
    ordered = dataset.sortby(axis)
    parts = (ordered.sel({axis: [value]}) for value in ordered[axis].values)
    return xr.concat([corner(part, name, which).isel(size=-1, drop=True) for part in parts], ordered[axis])


def _against(name: str, dataset: xr.Dataset, axis: str) -> Picture:
    lines = {}
    for words, split in zip(("in", "out of"), SPLITS[family(dataset)], strict=True):
        for one in CORNERS:
            values = along(dataset, f"{split}.accuracy", one, axis)
            error = values.std("seed", ddof=1).values / np.sqrt(values.sizes["seed"])
            lines[f"{one}, {words} distribution"] = values.mean("seed").values, error
    title = f"Exact match by {AGAINST[axis]}"
    figure = lines_with_error(np.sort(dataset[axis].values), lines, AGAINST[axis], "exact match", title)
    return Picture(f"{name}-{axis.replace('_', '-')}", title, "Means over seeds, at the last evaluation.", figure)


def _by_type(name: str, dataset: xr.Dataset) -> Picture:
    columns = [corner(dataset, "decoded.type_accuracy", one).mean("seed").isel(size=-1).values for one in CORNERS]
    title, corners = "Which generalizations succeed", [one.replace(", ", "\n") for one in CORNERS]
    shown = {"mean over seeds": np.stack(columns, axis=1)}
    figure = maps.heatmap(shown, list(cogs.GEN_TYPES), corners, "exact match", title, "", "")
    return Picture(f"{name}-types", title, "Decoded greedily, mean over seeds, the largest training set.", figure)


def _of(families: tuple[str, ...], datasets: Datasets) -> dict[str, xr.Dataset]:
    found = {name: dataset for name, dataset in datasets.items() if family(dataset) in families}
    if not found:
        raise Lacking(f"a training on {' or '.join(families)}")
    return found


TITLE = "Does low complexity compose language?"
LEAD = (
    "One transformer answers questions by text: commands to actions (SCAN), sentences to logical forms (COGS). It is "
    "asked for combinations that training holds out. Only the initial scale of the weights (std = d_in^-gamma), the "
    "weight decay and the number of training items differ between rows."
)
TEXT = (
    "An answer counts if every word of it is right. For SCAN `in distribution` is accuracy on training items, as the "
    "variant's test is all held out; for COGS it is the test split."
)
STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=("arXiv 2405.05409", PAPER),
    measures=measures,
    claims=corner_claims("L", "SCAN and COGS", ("scan", "cogs"), PAPER),
    target="gen.accuracy",
    sections=sections,
)
