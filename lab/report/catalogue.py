"""The report's pictures of the catalogue's measurements: a section a variant, with those that its run holds.

Rank correlations with the answer out of distribution are of all measures that are there.
"""

import contextlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab.analysis import complexity, sharpness
from lab.report import figures, maps, measures
from lab.report.page import Picture, Section, file_name
from lab.runs import MissingData, Run, Runs, words

TEXT = (
    "Pictures of the measurements that were taken. docs/analysis.md says of each what it is, what it costs and how it "
    "misleads. Where two rows are compared they are those with the highest and the lowest {target}, of those measured."
)
FEWEST_ROWS = 5  # that a rank correlation is shown of
# variable -> its label, over training
OVER_TIME = {
    "rank.stable": "stable rank",
    "directions.weighted_effective_directions": "effective directions",
    "laziness.turn_whole": "1 - cos(W, W0)",
    "ntk.alignment": "alignment of the tangent kernel",
    "focus.second_ratio": "s2 / s1 of the embedding",
    "sparsity.active": "active share of hidden units",
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


def sections(runs: Runs, target: str) -> list[Section]:
    """One section for every variant of which something was measured.

    Args:
      target: the metric of generalization out of distribution, e.g. `ood_43.reasoning`.
    """
    made = []
    for variant, run in runs.items():
        pictures = []
        for draw in (_over_time, _against_gamma, *_PAIRS, _predictors):
            with contextlib.suppress(MissingData):
                picture = draw(run, target)
                pictures.append(
                    Picture(f"{file_name(variant)}-measured-{picture.name}", picture.caption, picture.figure)
                )
        if pictures:
            made.append(Section(f"Measured ({variant})", TEXT.format(target=target), pictures))
    return made


def predictors(run: Run, target: str) -> xr.Dataset:
    """`complexity.predictors` of the measures that are there, on the last snapshot and the last evaluation; its knobs
    are all that the grid varies but the seed.

    Raises:
      MissingData: there is no target, or no measure that has a finite value.
    """
    measured = {label: made(_last(run, name)) for label, (name, made) in PREDICTORS.items() if name in run}
    varying = {label: values for label, values in measured.items() if np.isfinite(values).any()}
    if not varying:
        raise MissingData("a measure that may predict")
    knobs = [axis for axis in run.axes if axis != "seed"]
    return complexity.predictors(run.dataset, varying, _last(run, target), knobs)


def _last(run: Run, name: str) -> xr.DataArray:
    return run.final(name, keep=run.axes)


def _over_time(run: Run, target: str) -> Picture:
    there = {name: label for name, label in OVER_TIME.items() if name in run and "snapshot" in run.dataset[name].dims}
    _need(there and run.dataset.sizes["snapshot"] > 1, "measurements over training")
    figure = measures.against_gamma_over_time(run, there, title="Measurements over training")
    caption = "Of the first matrix or eigenvalue, where there are several; every snapshot that was measured."
    return Picture("training", caption, figure)


def _against_gamma(run: Run, target: str) -> Picture:
    there = {name: label for name, label in AGAINST_GAMMA.items() if name in run}
    _need(there, "curvature")
    figure = figures.curves_against_gamma(run, there, title="Curvature of the loss at the end of training")
    caption = (
        "Of the loss on the answer. Sharpness is the largest eigenvalue of the Hessian; at an edge of stability of 1 "
        "the step is as long as curvature bears."
    )
    if run.config["optim"]["schedule"] == "warmup_cosine":
        caption += (
            " It is drawn for steps at the peak of the learning rate, which had decayed by then (`sharpness.rate`): "
            "`sharpness.adam_edge` is that of the last steps."
        )
    return Picture("sharpness", caption, figure)


def _spectrum(run: Run, target: str) -> Picture:
    values = _rows(run, target, "spectrum.matrix")
    matrices = [name for name in next(iter(values.values())).matrix.values.tolist() if "head " not in name]
    return Picture("spectrum", "Of every weight matrix.", measures.singular_spectra(values, matrices))


def _density(run: Run, target: str) -> Picture:
    names = ("density.node", "density.weight", "sharpness.top", "sharpness.bottom")
    grids, densities, errors, values = {}, {}, {}, {}
    for label, (node, weight, *ends) in _together(run, target, *names).items():
        node, weight = (array.transpose("probe", "node_index").values for array in (node, weight))
        width = (node.max() - node.min()) / 100
        grids[label] = np.linspace(node.min() - 4 * width, node.max() + 4 * width, 400)
        smoothed = sharpness.smooth(
            sharpness.Density(*map(jnp.asarray, (node, weight))), jnp.asarray(grids[label], node.dtype), float(width)
        )
        densities[label], errors[label] = map(np.asarray, smoothed)
        values[label] = np.concatenate(ends)
    caption = "Stochastic Lanczos quadrature, every node a Gaussian of a hundredth of the range; ticks are eigenvalues."
    return Picture("density", caption, measures.spectrum(densities, grids, errors, values))


def _line(run: Run, target: str) -> Picture:
    lines = _together(run, target, "flatness.line", "flatness.line_error")
    x = run.dataset.alpha.values
    figure = measures.lines_with_error(
        x, lines, "step along the direction", "rise of the loss (nats)", title="The loss along random directions"
    )
    return Picture("line", "Mean over random directions, each neuron's part as long as its weights.", figure)


def _noise(run: Run, target: str) -> Picture:
    lines = {}
    for place in ("weight", "input"):
        with contextlib.suppress(MissingData):
            pair = _together(run, target, f"noise.{place}_accuracy", f"noise.{place}_accuracy_error")
            lines |= {f"{label}, noise in {place}s": values for label, values in pair.items()}
    _need(lines, "noise")
    figure = measures.lines_with_error(
        run.dataset.sigma.values, lines, "noise, relative to the RMS", "accuracy", title="Accuracy under noise"
    )
    return Picture("noise", "Mean over draws of the noise.", figure)


def _focus(run: Run, target: str) -> Picture:
    drawn = {}
    for label, place in _pair(run, target, "focus.attention").items():
        row = run.over_time("focus.attention", keep=(), **place).isel(layer=0).dropna("snapshot", how="all")
        for at in dict.fromkeys((0, row.sizes["snapshot"] // 2, row.sizes["snapshot"] - 1)):
            here = row.isel(snapshot=at).transpose("query_token", "key_token")
            drawn[f"{label}, step {int(here.snapshot)}"] = here.values
    tokens = [str(token) for token in row.query_token.values]
    figure = maps.token_attention(drawn, tokens, tokens, title="Attention between the most frequent tokens, layer 1")
    return Picture("focus", "Mean attention from a query token (row) to a key token (column), heads averaged.", figure)


def _lens(run: Run, target: str) -> Picture:
    caption = "Mean reciprocal rank of the answer when the head reads the stream after each block."
    return _map("lens", run, target, "lens.mrr", "Logit lens", "mean reciprocal rank", caption)


def _tracing(run: Run, target: str) -> Picture:
    caption = "Probability of the answer restored in a run on another sequence by the state of a layer and position."
    return _map("tracing", run, target, "tracing.restored", "Causal tracing", "restored probability", caption)


def _map(short, run, target, variable, title, quantity, caption) -> Picture:
    drawn = {
        label: values.transpose("state", "position").values for label, values in _rows(run, target, variable).items()
    }
    states, positions = next(iter(drawn.values())).shape
    layers = ["tokens"] + [f"block {i + 1}" for i in range(states - 1)]
    return Picture(short, caption, maps.heatmap(drawn, layers, [str(p) for p in range(positions)], quantity, title))


def _edges(run: Run, target: str) -> Picture:
    drawn = {
        f"{label}, layer {i + 1}": effect.sum("head", skipna=False).transpose("query", "position").values
        for label, values in _rows(run, target, "edges.logit").items()
        for i, effect in enumerate(values.transpose("layer", ...))
    }
    length = next(iter(drawn.values())).shape[0]
    names = [str(position) for position in range(length)]
    title = "Effect of cutting one attention edge"
    figure = maps.heatmap(drawn, names, names, "change of the answer's logit", title, "query position", "key position")
    caption = "Query positions from below, key positions from the left; negative where the answer needs the edge."
    return Picture("edges", caption, figure)


_PAIRS = (_spectrum, _density, _line, _noise, _focus, _lens, _tracing, _edges)


def _predictors(run: Run, target: str) -> Picture:
    table = predictors(run, target)
    table = table.isel(measure=(table["n_rows"] >= FEWEST_ROWS).values)
    _need(table.sizes["measure"] > 1, f"two measures of {FEWEST_ROWS} rows")
    caption = (
        f"Spearman's rank correlation with {target} over the rows, and beyond what {', '.join(table.attrs['knobs'])} "
        "explain: only rows of the same cell are compared. Intervals are a bootstrap over seeds; few seeds make them "
        "rough."
    )
    title = "Which complexity measure predicts reasoning?"
    return Picture("predictors", caption, measures.predictors(table, title=title))


def _pair(run: Run, target: str, *variables: str) -> dict[str, dict]:
    """The rows with the highest and the lowest target, among the healthy ones of which every variable was measured:
    label -> place in the grid. Without a target, the rows of the largest and the smallest gamma.

    Raises:
      MissingData: there is no such row, or no such variable.
    """
    by = target if target in run else "gamma"
    score = _last(run, target) if target in run else run.dataset["gamma"].broadcast_like(run.dataset["diverged_at"])
    score = score.where(run.dataset["diverged_at"] < 0)
    for name in variables:
        measured = np.isfinite(_last(run, name))
        score = score.where(measured.any([dim for dim in measured.dims if dim not in run.axes]))
    _need(bool(score.notnull().any()), " and ".join(variables) or target)
    pair = {}
    for word, found in (("lowest", score.argmin(run.axes)), ("highest", score.argmax(run.axes))):
        place = {axis: score[axis].values[int(index)].item() for axis, index in found.items()}
        varied = [f"{words(axis)} {value:g}" for axis, value in place.items() if run.dataset.sizes[axis] > 1]
        if place not in pair.values():
            pair[f"{word} {by} ({float(score.sel(place)):.2f})\n{', '.join(varied)}".strip()] = place
    return pair


def _together(run: Run, target: str, *variables: str) -> dict[str, tuple[xr.DataArray, ...]]:
    """Of each row of `_pair`, the last values of all variables."""
    return {
        label: tuple(run.final(name, keep=(), **place) for name in variables)
        for label, place in _pair(run, target, *variables).items()
    }


def _rows(run: Run, target: str, variable: str) -> dict[str, xr.DataArray]:
    return {label: values for label, (values,) in _together(run, target, variable).items()}


def _need(what, name: str) -> None:
    if not what:
        raise MissingData(name)
