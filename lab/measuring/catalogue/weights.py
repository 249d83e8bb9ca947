"""Measurements of weight matrices alone: ranks, spectra, condensation, norms, and how far they moved."""

import jax

from lab import models, rng
from lab.analysis import complexity, condensation, laziness, rank, weights
from lab.experiment import Experiment
from lab.layouts import Layout
from lab.measuring.declare import Measure
from lab.tree import named_leaves, stack

THRESHOLD = 0.7  # cosine from which two neurons count as one (arXiv 2405.05409, section 5)


def ranks(experiment: Experiment) -> Measure:
    """Soft ranks of every weight matrix."""
    names = ("stable", "effective", "effective_squared", "participation", "nuclear")
    known = layouts(experiment)
    return Measure(
        "rank",
        lambda row: rank.ranks(row.params, known),
        units={name: "rank" for name in names[:-1]} | {"nuclear": "nuclear over Frobenius norm"},
        dims={name: ("matrix",) for name in names},
        coords={"matrix": _matrices(experiment)},
        left_out=_left_out(experiment),
    )


def spectra(experiment: Experiment) -> Measure:
    """Singular values of every matrix, and of every head's QK and OV product."""
    known = layouts(experiment)

    def function(row):
        found = {"matrix": rank.spectra(row.params, known)}
        return found | (rank.circuit_spectra(row.params, row.model.n_heads) if heads_of(row.model) else {})

    def heads_of(model):
        return 0 if isinstance(model, models.Mamba2) else getattr(model, "n_heads", 0)

    dims = {"matrix": ("matrix", "index")}
    if heads_of(experiment.model):
        dims |= {name: ("layer", "head", "circuit_index") for name in ("qk", "ov")}
    units = {name: "weight" if name == "matrix" else "weight^2" for name in dims}
    coords = {"matrix": _matrices(experiment)}
    return Measure("spectrum", function, units, dims, coords, snapshots="log", left_out=_left_out(experiment))


def directions(experiment: Experiment) -> Measure:
    """Condensation of the neurons of every matrix, by what enters them."""
    known = layouts(experiment)
    kernels = tuple(weights.kernel_names(shapes(experiment), known))

    def function(row):
        found = weights.weight_matrices(row.params, known)
        return stack([condensation.condensation_numbers(found[name].T, THRESHOLD) for name in kernels])

    units = {
        "n_groups": "groups",
        "fraction_above": "share of neuron pairs",
        "mean_absolute_cosine": "cosine",
        "direction_entropy": "nats",
        "effective_directions": "directions",
    }
    units |= {f"weighted_{n}": units[n] for n in ("fraction_above", "direction_entropy", "effective_directions")}
    dims = {name: ("kernel",) for name in units}
    return Measure("directions", function, units, dims, {"kernel": kernels}, left_out=_left_out(experiment))


def norms(experiment: Experiment) -> Measure:
    """Logarithms of norms of every weight matrix, of their products, and of the distance from the initial weights."""
    has_paths = isinstance(experiment.model, models.Transformer) or type(experiment.model) in complexity.CHAINS
    known = layouts(experiment)

    def function(row):
        found = complexity.norms(row.params, known) | complexity.distance(row.params, row.start, known)
        return found | ({"log_path": complexity.log_path_norm(row.model, row.params)} if has_paths else {})

    by_matrix = ("log_spectral", "log_frobenius", "log_distance")
    whole = ("log_spectral_product", "log_frobenius_product", "log_frobenius_whole", "log_distance_whole")
    names = (*by_matrix, *whole, *(("log_path",) if has_paths else ()))
    dims, coords = {name: ("matrix",) for name in by_matrix}, {"matrix": _matrices(experiment)}
    units = dict.fromkeys(names, "log weight")
    return Measure("norm", function, units, dims, coords, left_out=_left_out(experiment))


def lazy(experiment: Experiment) -> Measure:
    """How far every tensor moved from its initial value, relative to its size, and how far it turned."""

    def function(row):
        moved, turned = (f(row.params, row.start) for f in (laziness.relative_distance, laziness.direction_change))
        return {
            "distance": moved["tensor"], "distance_whole": moved["whole"],
            "turn": turned["tensor"], "turn_whole": turned["whole"],
        }  # fmt: skip

    units = {"distance": "|W - W0| / |W0|", "turn": "1 - cosine"}
    units |= {f"{name}_whole": unit for name, unit in units.items()}
    dims = {"distance": ("tensor",), "turn": ("tensor",)}
    coords = {"tensor": tuple(laziness.tensor_names(shapes(experiment)))}
    return Measure("laziness", function, units, dims, coords)


def layouts(experiment: Experiment) -> tuple[tuple[str, Layout], ...]:
    """How the leaves of the model's weight matrices are laid out."""
    return weights.layouts_of(experiment.model, experiment.task.example())


def _matrices(experiment: Experiment) -> tuple[str, ...]:
    return tuple(weights.matrix_names(shapes(experiment), layouts(experiment)))


def _left_out(experiment: Experiment) -> tuple[str, ...]:
    leaves = {name: leaf.shape for name, leaf in named_leaves(shapes(experiment)).items()}
    return weights.left_out(leaves, layouts(experiment))


def shapes(experiment: Experiment):
    """Parameters of a row, as shapes and dtypes."""
    return jax.eval_shape(lambda: models.init(experiment.model, rng.key(0, "init"), experiment.task.example()))
