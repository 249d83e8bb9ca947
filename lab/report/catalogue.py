"""The report's pictures of whatever was measured: a section a variant, and in it what the dataset holds.

Which complexity measure predicts the right answer out of distribution is asked of all that are there.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab.analysis import complexity, sharpness
from lab.report import figures, maps, measures
from lab.report.page import Picture, Section

TEXT = (
    "Pictures of the measurements that were taken. docs/analysis.md says of each what it is, what it costs and how it "
    "misleads. Where two rows are compared they are those of the smallest and the largest gamma, at the middle "
    "learning rate and the first value of all else in the grid: weight decay, seed and so on."
)
# variable -> its label, over training
OVER_TIME = {
    "rank.stable": "stable rank",
    "directions.weighted_effective_directions": "effective directions",
    "laziness.turn_whole": "1 - cos(W, W0)",
    "ntk.alignment": "alignment of the tangent kernel",
    "focus.second_ratio": "s2 / s1 of the embedding",
    "sharpness.top": "sharpness",
}
AGAINST_GAMMA = {
    "sharpness.top": "sharpness",
    "sharpness.trace": "trace of the Hessian",
    "sharpness.adam_edge_at_peak": "Adam's edge of stability, peak rate",
    "learning_coefficient.coefficient": "local learning coefficient",
}
# label -> the variable, and what is made of the axes beside those of the grid
PREDICTORS: dict[str, tuple[str, Callable]] = {
    "spectral norms, product": ("norm.log_spectral_product", lambda x: x),
    "path norm": ("norm.log_path", lambda x: x),
    "Frobenius norm": ("norm.log_frobenius_whole", lambda x: x),
    "distance from init": ("norm.log_distance_whole", lambda x: x),
    "relative distance": ("laziness.distance_whole", lambda x: x),
    "direction change": ("laziness.turn_whole", lambda x: x),
    "tangent kernel alignment": ("ntk.alignment", lambda x: x),
    "stable rank, mean": ("rank.stable", lambda x: x.mean("matrix")),
    "effective rank, mean": ("rank.effective", lambda x: x.mean("matrix")),
    "neuron groups, sum": ("directions.n_groups", lambda x: x.sum("kernel", skipna=False)),
    "effective directions, mean": ("directions.weighted_effective_directions", lambda x: x.mean("kernel")),
    "sharpness": ("sharpness.top", lambda x: x.isel(eigenvalue=0)),
    "Hessian trace": ("sharpness.trace", lambda x: x),
    "SAM sharpness": ("flatness.sam", lambda x: x.isel(radius=0)),
    "adaptive worst case": ("flatness.worst_adaptive", lambda x: x.isel(relative_radius=0)),
    "loss under weight noise": ("noise.weight_loss", lambda x: x.isel(sigma=1)),
    "loss under input noise": ("noise.input_loss", lambda x: x.isel(sigma=1)),
    "learning coefficient": ("learning_coefficient.coefficient", lambda x: x),
    "description length": ("quantization.description_length", lambda x: x),
    "subspace dimension": ("subspace.dimension", lambda x: x),
}


def sections(datasets: Mapping[str, xr.Dataset], target: str) -> list[Section]:
    """One section for every variant of which something was measured.

    Args:
      target: the metric of generalization out of distribution, e.g. `ood_43.reasoning`.
    """
    made = [Section(f"Measured ({name})", TEXT, _pictures(name, ds, target)) for name, ds in datasets.items()]
    return [section for section in made if section.pictures]


def predictors(dataset: xr.Dataset, target: str) -> xr.Dataset | None:
    """`complexity.predictors` of the measures that are there, on the last snapshot and the last evaluation; its knobs
    are all that the grid varies but the seed."""
    there = {label: made(_last(dataset[of])) for label, (of, made) in PREDICTORS.items() if of in dataset}
    varying = {label: values for label, values in there.items() if np.isfinite(values).any()}
    if not varying or target not in dataset:
        return None
    columns = [name for name, values in dataset.coords.items() if set(values.dims) <= set(dataset.diverged_at.dims)]
    knobs = [name for name in columns if name != "seed"]
    return complexity.predictors(dataset, varying, _last(dataset[target]), knobs)


def _pictures(name: str, dataset: xr.Dataset, target: str) -> list[Picture]:
    drawn = [_over_time, _against_gamma] if "gamma" in dataset.dims else []
    pictures = [picture for draw in drawn if (picture := draw(name, dataset))]
    rows = _compared(dataset)
    for draw in (_spectrum, _density, _line, _noise, _focus, _lens, _tracing, _edges):
        if picture := draw(name, rows):
            pictures.append(picture)
    table = predictors(dataset, target)
    if table is not None and table.sizes["measure"] > 1:
        pictures.append(_predictors(name, table, target))
    return pictures


def _over_time(name: str, dataset: xr.Dataset) -> Picture | None:
    there = {of: label for of, label in OVER_TIME.items() if of in dataset and dataset[of].sizes.get("snapshot", 0) > 1}
    if not there:
        return None
    figure = measures.against_gamma_over_time(dataset, there, title="Measurements over training")
    caption = "Of the first matrix or eigenvalue, where there are several; every snapshot that was measured."
    return Picture(f"{name}-measured-training", "Over training", caption, figure)


def _against_gamma(name: str, dataset: xr.Dataset) -> Picture | None:
    there = {of: label for of, label in AGAINST_GAMMA.items() if of in dataset}
    if not there:
        return None
    figure = figures.curves_against_gamma(dataset, there, title="Curvature of the loss at the end of training")
    caption = (
        "Of the loss on the answer. Sharpness is the largest eigenvalue of the Hessian; at an edge of stability of 1 "
        "the step is as long as curvature bears. It is drawn for steps at the peak of the learning rate, which had "
        "decayed by then (`sharpness.rate`): `sharpness.adam_edge` is that of the last steps."
    )
    return Picture(f"{name}-measured-sharpness", "Sharpness against the initial scale", caption, figure)


def _spectrum(name: str, rows: Mapping[str, xr.Dataset]) -> Picture | None:
    if not _have(rows, "spectrum.matrix"):
        return None
    values = {label: row["spectrum.matrix"] for label, row in rows.items()}
    matrices = next(iter(values.values())).matrix.values.tolist()
    figure = measures.singular_spectra(values, matrices)
    return Picture(f"{name}-measured-spectrum", "Singular values", "Of every weight matrix.", figure)


def _density(name: str, rows: Mapping[str, xr.Dataset]) -> Picture | None:
    if not _have(rows, "density.node", "sharpness.top"):
        return None
    grids, densities, errors, values = {}, {}, {}, {}
    for label, row in rows.items():
        node = row["density.node"].transpose("probe", "node_index").values
        weight = row["density.weight"].transpose("probe", "node_index").values
        width = (node.max() - node.min()) / 100
        grids[label] = np.linspace(node.min() - 4 * width, node.max() + 4 * width, 400)
        found = sharpness.smooth(
            sharpness.Density(*map(jnp.asarray, (node, weight))), jnp.asarray(grids[label], node.dtype), float(width)
        )
        densities[label], errors[label] = map(np.asarray, found)
        values[label] = np.concatenate([row["sharpness.top"].values, row["sharpness.bottom"].values])
    figure = measures.spectrum(densities, grids, errors, values)
    caption = "Stochastic Lanczos quadrature, every node a Gaussian of a hundredth of the range; ticks are eigenvalues."
    return Picture(f"{name}-measured-density", "Spectral density of the Hessian", caption, figure)


def _line(name: str, rows: Mapping[str, xr.Dataset]) -> Picture | None:
    lines = _with_errors(rows, "flatness.line")
    if not lines:
        return None
    x = next(iter(rows.values())).alpha.values
    figure = measures.lines_with_error(x, lines, "step along the direction", "rise of the loss (nats)")
    caption = "Mean over random directions, each neuron's part as long as its weights."
    return Picture(f"{name}-measured-line", "The loss along random directions", caption, figure)


def _noise(name: str, rows: Mapping[str, xr.Dataset]) -> Picture | None:
    lines = {
        f"{label}, noise in {of}": values
        for of, variable in (("weights", "noise.weight_accuracy"), ("inputs", "noise.input_accuracy"))
        for label, values in _with_errors(rows, variable).items()
    }
    if not lines:
        return None
    x = next(iter(rows.values())).sigma.values
    figure = measures.lines_with_error(x, lines, "noise, relative to the RMS", "accuracy")
    return Picture(f"{name}-measured-noise", "Accuracy under noise", "Mean over draws of the noise.", figure)


def _focus(name: str, rows: Mapping[str, xr.Dataset]) -> Picture | None:
    if not _have(rows, "focus.attention"):
        return None
    drawn = {}
    for label, row in rows.items():
        found = row.attrs["over_time"]["focus.attention"].isel(layer=0).dropna("snapshot", how="all")
        for at in dict.fromkeys((0, found.sizes["snapshot"] // 2, found.sizes["snapshot"] - 1)):
            here = found.isel(snapshot=at).transpose("query_token", "key_token")
            drawn[f"{label}, step {int(here.snapshot)}"] = here.values
    tokens = [str(token) for token in found.query_token.values]
    figure = maps.token_attention(drawn, tokens, tokens, title="Attention between the most frequent tokens, layer 1")
    caption = "Mean attention from a query token (row) to a key token (column), heads averaged."
    return Picture(f"{name}-measured-focus", "Attention between tokens", caption, figure)


def _lens(name: str, rows: Mapping[str, xr.Dataset]) -> Picture | None:
    caption = "Mean reciprocal rank of the answer when the head reads the stream after each block."
    return _map(name, rows, "lens", "lens.mrr", "Logit lens", "mean reciprocal rank", caption)


def _tracing(name: str, rows: Mapping[str, xr.Dataset]) -> Picture | None:
    caption = "Probability of the answer restored in a run on another sequence by the state of a layer and position."
    return _map(name, rows, "tracing", "tracing.restored", "Causal tracing", "restored probability", caption)


def _map(name, rows, short, variable, title, quantity, caption) -> Picture | None:
    if not _have(rows, variable):
        return None
    drawn = {label: row[variable].transpose("state", "position").values for label, row in rows.items()}
    states, positions = next(iter(drawn.values())).shape
    layers = ["tokens"] + [f"block {i + 1}" for i in range(states - 1)]
    figure = maps.heatmap(drawn, layers, [str(p) for p in range(positions)], quantity, title)
    return Picture(f"{name}-measured-{short}", title, caption, figure)


def _edges(name: str, rows: Mapping[str, xr.Dataset]) -> Picture | None:
    if not _have(rows, "edges.logit"):
        return None
    drawn = {
        f"{label}, layer {i + 1}": effect.sum("head", skipna=False).transpose("query", "position").values
        for label, row in rows.items()
        for i, effect in enumerate(row["edges.logit"].transpose("layer", ...))
    }
    length = next(iter(drawn.values())).shape[0]
    names = [str(position) for position in range(length)]
    title = "Effect of cutting one attention edge"
    figure = maps.heatmap(drawn, names, names, "change of the answer's logit", title, "query position", "key position")
    caption = "Query positions from below, key positions from the left; negative where the answer needs the edge."
    return Picture(f"{name}-measured-edges", "Circuits: what every edge is worth", caption, figure)


def _predictors(name: str, table: xr.Dataset, target: str) -> Picture:
    knobs = ", ".join(table.attrs["knobs"])
    caption = (
        f"Spearman's rank correlation with {target} over the rows, and beyond what {knobs} explain: only rows of the "
        "same cell are compared. Intervals are a bootstrap over seeds; few seeds make them rough."
    )
    title = "Which complexity measure predicts reasoning?"
    return Picture(f"{name}-measured-predictors", title, caption, measures.predictors(table, title=title))


def _compared(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    """The rows of the smallest and the largest gamma, at their last snapshot; all snapshots stay in `attrs`."""
    if "gamma" in dataset.dims:
        axes = set(dataset.diverged_at.dims) - {"gamma"}
        place = {axis: dataset.sizes[axis] // 2 if axis == "learning_rate" else 0 for axis in axes}
        one = dataset.sortby("gamma").isel(place)
        ends = [one.isel(gamma=at) for at in dict.fromkeys((0, one.sizes["gamma"] - 1))]
    else:
        order = np.argsort(dataset.gamma.values, kind="stable")
        ends = [dataset.isel(row=order[at]) for at in (0, -1)]
    return {f"γ = {float(row.gamma):g}": _at_last(row) for row in ends}


def _at_last(row: xr.Dataset) -> xr.Dataset:
    measured = [of for of in row if "snapshot" in row[of].dims]
    return row.drop_vars(measured).assign({of: _last(row[of]) for of in measured}).assign_attrs(over_time=row)


def _last(values: xr.DataArray) -> xr.DataArray:
    """At the last time that it was measured at."""
    for time in {"step", "snapshot"} & set(values.dims):
        there = values.dropna(time, how="all")
        values = (there if there.sizes[time] else values).isel({time: -1}, drop=True)
    return values


def _have(rows: Mapping[str, xr.Dataset], *variables: str) -> bool:
    """Whether every row has finite values of each."""
    return all(of in row and np.isfinite(row[of].values).any() for row in rows.values() for of in variables)


def _with_errors(rows: Mapping[str, xr.Dataset], variable: str) -> dict[str, tuple]:
    if not _have(rows, variable):
        return {}
    return {label: (row[variable].values, row[f"{variable}_error"].values) for label, row in rows.items()}
