"""Complexity measures of a trained row, and their rank correlation with out-of-distribution accuracy across a grid.

The norms are natural logarithms: a product over ten layers of decayed weights leaves float32's range, its logarithm
does not, and ranks, all that `predictors` reads, are the same. Everything but the intervals is exact up to rounding.
A zero matrix has log-norm -inf, a NaN one NaN.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.scipy.special import logsumexp

from lab.analysis.rank import singular_values
from lab.analysis.scale import by_peak
from lab.analysis.statistics import resamples
from lab.analysis.weights import Layouts, matrix_names, weight_matrices
from lab.models import EmbMLP, Transformer, TwoLayerMLP

CHAINS = {TwoLayerMLP: ("in", "out"), EmbMLP: ("embed", "in", "head")}
COEFFICIENTS = ("spearman", "kendall")
CONTROLS = ("none", "knobs")


def norms(params, layouts: Layouts | None = None) -> dict:
    """Log-norms of the M weight matrices, in the order of `lab.analysis.weights.matrix_names`, as its arguments.

    Returns:
      `log_spectral` (M) and `log_frobenius` (M): log |W|_2 and log |W|_F of each.
      `log_spectral_product` and `log_frobenius_product`: their sums (Bartlett et al. 2017, eq. 1.2 without margin and
        distance; Neyshabur et al. 2015, with p = q = 2).
      `log_frobenius_whole`: log of the norm of all matrices as one vector. In these three a head counts once, as part
        of its kernel.
    """
    matrices = weight_matrices(params, layouts)
    log_spectral_M = _stack(matrices, lambda m: _log_norm(m, lambda scaled: singular_values(scaled)[0]))
    log_frobenius_M = _stack(matrices, lambda m: _log_norm(m, jnp.linalg.norm))
    whole = _wholes(params, layouts)
    return {
        "log_spectral": log_spectral_M,
        "log_frobenius": log_frobenius_M,
        "log_spectral_product": jnp.sum(whole(log_spectral_M)),
        "log_frobenius_product": jnp.sum(whole(log_frobenius_M)),
        "log_frobenius_whole": _log_root_of_squares(whole(log_frobenius_M)),
    }


def distance(params, initial, layouts: Layouts | None = None) -> dict:
    """How far the M weight matrices moved: `log_distance` (M), log |W - W_0|_F, and `log_distance_whole` of all.

    The subtraction rounds to eps |W|: a shorter way than that is noise.
    """
    start = weight_matrices(initial, layouts)
    moved = {name: matrix - start[name] for name, matrix in weight_matrices(params, layouts).items()}
    log_distance_M = _stack(moved, lambda m: _log_norm(m, jnp.linalg.norm))
    whole = _wholes(params, layouts)
    return {"log_distance": log_distance_M, "log_distance_whole": _log_root_of_squares(whole(log_distance_M))}


def log_path_norm(model, params):
    """log of the l1 path norm: of all inputs (tokens, positions), through all units, to all logits.

    A bias is a path that starts at a constant 1. A path norm does not change under W_1 -> W_1 diag(c),
    W_2 -> diag(1/c) W_2, c > 0, and neither does the function if the activation is positively homogeneous (ReLU).

    Exact for `TwoLayerMLP` and `EmbMLP` (a token counted once, wherever it stands). For a `Transformer` it is a
    proxy: attention counts with its value and output matrices only (a pattern's rows sum to one, so that mixing adds
    no weight), skip connections with weight 1, layer norms not at all.

    Raises:
      ValueError: another model.
    """
    if isinstance(model, Transformer):
        return _transformer_log_path_norm(model, params)
    if type(model) not in CHAINS:
        accepted = ", ".join(known.__name__ for known in (*CHAINS, Transformer))
        raise ValueError(f"path norm of {type(model).__name__}: defined for {accepted}")
    first, *rest = (params[name] for name in CHAINS[type(model)])
    log_v = _sources(first) if "embedding" in first else _through(jnp.zeros_like(first["kernel"][:, 0]), first)
    for layer in rest:
        log_v = _through(log_v, layer)
    return logsumexp(log_v)


def predictors(
    dataset: xr.Dataset,
    measures: Mapping[str, xr.DataArray],
    target: xr.DataArray,
    knobs: Sequence[str] = ("gamma", "weight_decay"),
    over: str = "seed",
    n_bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> xr.Dataset:
    """Rank correlation of each measure with the target over the rows of a grid, and beyond its knobs.

    Knobs move measure and target together, so that anything they move "predicts". Control `knobs` therefore compares
    a row only with rows of the same cell: ranks within the cell, less the cell's middle rank. It is 0 in expectation
    where measure and target are independent given the knobs.

    Intervals resample whole seeds. Rows of one seed share its draw of initial weights (and of data, where these go by
    seed), and stray together; resampling rows would take them for independent and give intervals that are too narrow.
    Few seeds make them rough: with three there are ten different resamples. Resamples are the same for all measures;
    those without a correlation (all values tied) are left out.

    Args:
      dataset: of `lab.disk.load.load`, or a selection: its `diverged_at` says which rows there are and are healthy.
      measures: label -> one number a row. target: the same, e.g. out-of-distribution accuracy.
      knobs: coordinates whose values make a cell. seed: of the resampling.

    Returns:
      Dataset with dims (measure, coefficient, control), coefficients `spearman` and `kendall` (tau-b), controls
      `none` and `knobs`: `value`, `low`, `high` (NaN below two seeds, or where nothing varies); and by measure
      `n_rows` used, `n_diverged` and `n_missing` (NaN in a healthy row) left out.

    Raises:
      ValueError: an array has not one number a row, or there is no such knob.
    """
    diverged_at_R = _column(dataset, dataset["diverged_at"])
    healthy_R = diverged_at_R < 0  # NaN: the grid has no such row
    target_R = _column(dataset, target)
    _, cluster_R = np.unique(_coordinate(dataset, over), return_inverse=True)
    _, cell_R = np.unique([_coordinate(dataset, knob) for knob in knobs], axis=1, return_inverse=True)
    strata = {"none": np.zeros_like(cluster_R), "knobs": cell_R.ravel()}

    counts_BxS = resamples(cluster_R.max() + 1, n_bootstrap, seed)

    values, counted = [], []
    for measure in measures.values():
        measure_R = _column(dataset, measure)
        used_R = healthy_R & ~np.isnan(measure_R) & ~np.isnan(target_R)
        counted.append((used_R.sum(), (diverged_at_R >= 0).sum(), (healthy_R & ~used_R).sum()))
        rows = [(column[used_R] for column in (measure_R, target_R, strata[by], cluster_R)) for by in CONTROLS]
        values.append([rank_correlations(*columns, counts_BxS) for columns in rows])
    value_MxKxCxB = np.moveaxis(np.stack(values), 2, 1)

    low, high = _interval(np.where(counts_BxS.shape[1] < 2, np.nan, value_MxKxCxB[..., 1:]), level)
    dims = ("measure", "coefficient", "control")
    arrays = {"value": (dims, value_MxKxCxB[..., 0]), "low": (dims, low), "high": (dims, high)}
    for name, n_M in zip(("n_rows", "n_diverged", "n_missing"), np.array(counted).T, strict=True):
        arrays[name] = ("measure", n_M)
    coords = {"measure": list(measures), "coefficient": list(COEFFICIENTS), "control": list(CONTROLS)}
    return xr.Dataset(arrays, coords, {"knobs": tuple(knobs), "over": over, "level": level, "n_bootstrap": n_bootstrap})


def rank_correlations(x_N, y_N, stratum_N, cluster_N, counts_BxS) -> np.ndarray:
    """(2, B): Spearman's rho and Kendall's tau-b of B resamples, comparing only values of the same stratum.

    The rows of cluster s occur counts_BxS[b, s] times in resample b. Both are of signs s_ij = sign(x_i - x_j), 0 across
    strata (Daniels 1944): tau sums s_ij t_ij over pairs, rho does so with the centred ranks sum_j s_ij. One stratum
    gives the common coefficients. NaN where x or y does not vary within any stratum.
    """
    member_NxS = (cluster_N[:, None] == np.arange(counts_BxS.shape[1])[None]).astype(float)
    same_NxN = stratum_N[:, None] == stratum_N[None]
    # comparisons, not differences: values may be infinite
    signs = [np.where(same_NxN, np.greater.outer(v_N, v_N) * 1.0 - np.less.outer(v_N, v_N), 0) for v_N in (x_N, y_N)]
    ranks = [counts_BxS @ (sign_NxN @ member_NxS).T for sign_NxN in signs]
    counts_BxN = counts_BxS[:, cluster_N]

    def over_rows(a_BxN, b_BxN):
        return np.sum(counts_BxN * a_BxN * b_BxN, axis=1)

    def over_pairs(a_NxN, b_NxN):
        return np.sum(counts_BxS @ (member_NxS.T @ (a_NxN * b_NxN) @ member_NxS) * counts_BxS, axis=1)

    products = ((over_rows, ranks), (over_pairs, signs))
    with np.errstate(invalid="ignore"):
        return np.stack([of(x, y) / np.sqrt(of(x, x) * of(y, y)) for of, (x, y) in products])


def _stack(matrices: Mapping, function):
    return jnp.stack([function(matrix) for matrix in matrices.values()])


def _wholes(params, layouts: Layouts | None):
    """A function that takes the values (M) of matrices and gives those of which none is a head of another."""
    names, wholes = matrix_names(params, layouts), set(matrix_names(params, layouts, heads=False))
    places = np.array([i for i, name in enumerate(names) if name in wholes])
    return lambda values_M: values_M if len(places) == len(names) else values_M[places]


def _log_norm(matrix, norm):
    scaled, peak = by_peak(matrix)
    return jnp.log(peak) + jnp.log(jnp.where(peak == 0, 1, norm(scaled)))


def _log_root_of_squares(log_norm_M):
    return logsumexp(2 * log_norm_M) / 2


def _through(log_v_I, layer):
    log_v_O = logsumexp(log_v_I[:, None] + jnp.log(jnp.abs(layer["kernel"])), axis=0)
    return jnp.logaddexp(log_v_O, jnp.log(jnp.abs(layer["bias"]))) if "bias" in layer else log_v_O


def _sources(embedding):
    """Paths from every row of a table, each entered with weight 1."""
    return logsumexp(jnp.log(jnp.abs(embedding["embedding"])), axis=0)


def _transformer_log_path_norm(model, params):
    token, position = params["embed"]["token"], params["embed"]["position"]
    log_v_D = jnp.logaddexp(_sources(token), _sources(position))
    for i in range(model.n_layers):
        block = params[f"block_{i}"]
        for part, first, second in (("attn", "value", "out"), ("mlp", "in", "out"))[: 1 + bool(model.d_ff)]:
            branch_D = _through(_through(log_v_D, block[part][first]), block[part][second])
            log_v_D = jnp.logaddexp(log_v_D, branch_D)
    return logsumexp(_through(log_v_D, {"kernel": token["embedding"].T} if model.tied_head else params["head"]))


def _column(dataset: xr.Dataset, values: xr.DataArray) -> np.ndarray:
    """One number a row, in the order of `diverged_at`."""
    rows = dataset["diverged_at"]
    if set(values.dims) != set(rows.dims):
        raise ValueError(f"{values.name}: dims {values.dims}; one number a row has dims {rows.dims}")
    _, values = xr.align(rows, values, join="exact")
    return values.transpose(*rows.dims).values.ravel()


def _coordinate(dataset: xr.Dataset, name: str) -> np.ndarray:
    if name not in dataset.coords:
        raise ValueError(f"no coordinate {name!r}; the rows have {', '.join(map(str, dataset.coords))}")
    rows = dataset["diverged_at"]
    return dataset[name].broadcast_like(rows).transpose(*rows.dims).values.ravel()


def _interval(value_xB: np.ndarray, level: float):
    low_high_x = np.full((2, *value_xB.shape[:-1]), np.nan)
    known_x = ~np.isnan(value_xB).all(axis=-1)
    low_high_x[:, known_x] = np.nanquantile(value_xB[known_x], [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return low_high_x
