"""Measurements of the loss around a row's parameters: curvature, flatness, noise, tangent kernel, description length.

All are of the loss that the row was trained on, on `SEQUENCES` sequences of the training distribution unless the user
names another number, and of the model as it was trained: with `readout="last"` nothing is computed that the loss does
not read.
"""

import math

import jax
import jax.numpy as jnp

from lab import optim, own_optim
from lab.analysis import (
    curvature,
    description_length,
    flatness,
    laziness,
    learning_coefficient,
    loss_fn,
    sharpness,
)
from lab.analysis.estimate import errors, named
from lab.experiment import Experiment
from lab.measuring.catalogue.weights import shapes
from lab.measuring.declare import Measure

SEQUENCES = MINIBATCH = 256
STREAM = "loss"  # all see the same sequences: the density is that of the Hessian whose eigenvalues were taken
EIGENVALUES, MATVECS, TOLERANCE = 5, 32, 0.01
TRACE_PROBES, DENSITY_PROBES = 16, 3
SLOPES = 8  # sequences of each of the gradients that Adam's second moment is estimated from
ALPHAS = tuple(round(-0.5 + 0.1 * i, 1) for i in range(11))  # steps along directions as long as the weights
DIRECTIONS = 8
RADII = (0.05, 0.1, 0.2)  # of L2 balls, in units of the weights
RELATIVE_RADII = (0.5, 1.0, 2.0)  # of adaptive balls (Kwon et al. 2021 train with 0.5 to 2)
ASCENT_STEPS = 5
SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8)  # of noise, relative to the RMS of what it is added to
DRAWS = 5
CHAINS, BURN_IN, SAMPLES, LOCALIZATION = 3, 30, 70, 100.0
SMALL = 64  # sequences of a minibatch in chains and subspaces
LOST_NATS = 0.01  # that quantization may cost
SUBSPACES, SUBSPACE_STEPS, SUBSPACE_RATE = (16, 128, 1024, 4096), 200, 0.02
NTK_SEQUENCES, NTK_PROBES = 32, 8


def tangent_kernel(experiment: Experiment) -> Measure:
    """Alignment of the tangent kernel now with that before training."""

    def function(row):
        outputs = laziness.answer_logits(experiment.model)
        found = laziness.projected_alignment(outputs, row.params, row.start, row.batch, row.key, NTK_PROBES)
        return named("alignment", found)

    return Measure("ntk", function, errors({"alignment": "cosine"}), snapshots="log", n=NTK_SEQUENCES)


def sharp(experiment: Experiment) -> Measure:
    """Extreme eigenvalues of the Hessian, its trace, that of Gauss-Newton, and how near the edge of stability.

    Edges are at the learning rate of the snapshot, and at its peak: where the rate decays, the first end near zero
    whatever the loss is like, and the second say what the steps at the peak would bear. None of an optimizer of a
    user's own, whose edge is not known.
    """
    trained = experiment.optim
    factor, adam = optim.schedule(trained, experiment.steps), trained.family == "adamw"
    momentum, own = 0.0 if adam else trained.momentum, own_optim.is_own(trained.family)

    def function(row):
        loss, batches = loss_fn.answer_loss(experiment.model), loss_fn.weighted_minibatches(row.batch, MINIBATCH)
        keys = jax.random.split(row.key, 4)
        matvec, like_P = curvature.hessian(loss, row.params, batches)
        top, bottom = sharpness.extremes(matvec, like_P, keys[0], EIGENVALUES, MATVECS, TOLERANCE)
        logits = loss_fn.logits(experiment.model)
        gauss_newton, _ = curvature.gauss_newton(logits, loss_fn.answer_loss_of, row.params, batches)
        peak = row.hparams["learning_rate"]
        rates = {"": peak * jnp.asarray(factor(row.step), like_P.dtype), "_at_peak": peak}
        found = ritz("top", top) | ritz("bottom", bottom)
        found |= largest("gauss_newton", gauss_newton, like_P, keys[1], MATVECS // 2)
        edges = {}
        if not own:
            edges["edge"] = lambda rate: sharpness.edge_of_stability(rate, top.value_K[0], momentum)
        if adam:
            scaled = curvature.preconditioned(matvec, _adams_scale(experiment, loss, row))
            found |= largest("adam_top", scaled, like_P, keys[2], MATVECS)
            edges["adam_edge"] = lambda rate: sharpness.adam_edge_of_stability(rate, found["adam_top"], trained.b1)
        found |= {f"{name}{at}": edge(rate) for name, edge in edges.items() for at, rate in rates.items()}
        return found | {"rate": rates[""]} | named("trace", sharpness.trace(matvec, like_P, keys[3], TRACE_PROBES))

    eigenvalues = {"top": "nats per weight^2", "bottom": "nats per weight^2", "gauss_newton": "nats per weight^2"}
    eigenvalues |= {"adam_top": "per learning rate"} if adam else {}
    units = {name + end: unit for name, unit in eigenvalues.items() for end in ("", "_residual")}
    units |= {f"{name}_converged": "yes or no" for name in eigenvalues} | errors({"trace": "nats per weight^2"})
    edges = () if own else ("edge", "edge_at_peak", *(("adam_edge", "adam_edge_at_peak") if adam else ()))
    units |= {"rate": "learning rate"} | dict.fromkeys(edges, "of the stable learning rate")
    dims = {name: ("eigenvalue",) for name in units if name.startswith(("top", "bottom"))}
    return of_loss("sharpness", function, units, dims)


def density(experiment: Experiment) -> Measure:
    """Nodes and weights of the Hessian's spectral density; `sharpness.smooth` draws it."""

    def function(row):
        loss, batches = loss_fn.answer_loss(experiment.model), loss_fn.weighted_minibatches(row.batch, MINIBATCH)
        matvec, like_P = curvature.hessian(loss, row.params, batches)
        found = sharpness.density(matvec, like_P, row.key, DENSITY_PROBES, MATVECS)
        return {"node": found.node_SxM, "weight": found.weight_SxM}

    units = {"node": "nats per weight^2", "weight": "share"}
    dims = dict.fromkeys(units, ("probe", "node_index"))
    return of_loss("density", function, units, dims)


def flat(experiment: Experiment) -> Measure:
    """Rise of the loss along random filter-normalized directions, one step up, and in the worst direction."""

    def function(row):
        loss, batches = loss_fn.answer_loss(experiment.model), loss_fn.weighted_minibatches(row.batch, MINIBATCH)
        line_key, ascent_key = jax.random.split(row.key)
        line = flatness.random_lines(
            loss, row.params, line_key, flatness.filter_normalized, DIRECTIONS, jnp.array(ALPHAS), batches
        )

        def worst(ball, radii):
            return jax.lax.map(lambda r: ball(loss, row.params, ascent_key, batches, r, ASCENT_STEPS), jnp.array(radii))

        sam = jax.lax.map(lambda radius: flatness.sam(loss, row.params, batches, radius), jnp.array(RADII))
        return named("line", line) | {
            "sam": sam,
            "worst": worst(flatness.worst_case, RADII),
            "worst_adaptive": worst(flatness.worst_case_adaptive, RELATIVE_RADII),
        }

    dims = {"line": ("alpha",), "line_error": ("alpha",), "sam": ("radius",), "worst": ("radius",)}
    dims |= {"worst_adaptive": ("relative_radius",)}
    coords = {"alpha": ALPHAS, "radius": RADII, "relative_radius": RELATIVE_RADII}
    return of_loss("flatness", function, dict.fromkeys(dims, "nats"), dims, coords)


def noise(experiment: Experiment) -> Measure:
    """Loss and accuracy under noise in the weights and in the input embeddings."""

    def function(row):
        batches = loss_fn.weighted_minibatches(row.batch, MINIBATCH)
        weight_key, input_key = jax.random.split(row.key)
        scores = {"loss": loss_fn.answer_loss_of, "accuracy": loss_fn.answer_accuracy_of}
        sigmas, found = jnp.array(SIGMAS), {}
        for name, score_of in scores.items():
            plain = loss_fn.score(experiment.model, score_of)
            edited = flatness.with_embedding_edit(experiment.model, score_of)
            in_weights = flatness.weight_noise(plain, row.params, weight_key, sigmas, DRAWS, batches)
            in_inputs = flatness.embedding_noise(edited, row.params, input_key, sigmas, DRAWS, batches)
            found |= named(f"weight_{name}", in_weights) | named(f"input_{name}", in_inputs)
        return found

    units = errors({f"{of}_{name}": unit for of in ("weight", "input") for name, unit in
                     (("loss", "nats"), ("accuracy", "share"))})  # fmt: skip
    dims = dict.fromkeys(units, ("sigma",))
    return of_loss("noise", function, units, dims, {"sigma": SIGMAS})


def singular(experiment: Experiment) -> Measure:
    """The local learning coefficient, its step a quarter of what the sharpest direction bears."""

    def function(row):
        n_examples = experiment.train_size or len(row.batch.tokens_BxL)
        loss, batches = loss_fn.answer_loss(experiment.model), _parts(row.batch, SMALL)
        top_key, chain_key = jax.random.split(row.key)
        matvec, like_P = curvature.hessian(loss, row.params, batches)
        sharpest = jnp.maximum(largest("top", matvec, like_P, top_key, MATVECS // 2)["top"], 0)
        stiffness = n_examples / math.log(n_examples) * sharpest + LOCALIZATION
        found, rise_CxT = learning_coefficient.local_learning_coefficient(
            loss, row.params, batches, chain_key, n_examples=n_examples, step_size=1 / stiffness,
            localization=LOCALIZATION, n_chains=CHAINS, n_steps=SAMPLES, n_burn_in=BURN_IN,
        )  # fmt: skip
        return named("coefficient", found) | {"rise": jnp.mean(rise_CxT, axis=0)}

    units = errors({"coefficient": "parameters"}) | {"rise": "nats"}
    return of_loss("learning_coefficient", function, units, {"rise": ("draw",)})


def quantized(experiment: Experiment) -> Measure:
    """Bits a weight that the loss can be had for, and the description length they make."""

    def function(row):
        batches = loss_fn.weighted_minibatches(row.batch, MINIBATCH)
        found = description_length.by_quantization(
            loss_fn.answer_loss(experiment.model), row.params, batches, LOST_NATS
        )
        return {name: found[name] for name in ("bits", "description_length", "loss_by_bits")}

    units = {"bits": "bits a weight", "description_length": "bits", "loss_by_bits": "nats"}
    coords = {"bits_tried": description_length.BITS}
    dims = {"loss_by_bits": ("bits_tried",)}
    return of_loss("quantization", function, units, dims, coords)


def subspace(experiment: Experiment) -> Measure:
    """Loss reached from the row's initial weights by training in random subspaces; half the first loss is the goal.

    Of the initial weights, not of what training made of them: measured once, at the last snapshot, and NaN at others.
    """
    n_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(experiment)))
    dims_tried = tuple(d for d in SUBSPACES if d <= n_params)

    def measured(row):
        loss = loss_fn.answer_loss(experiment.model)
        start = loss_fn.mean_loss(loss, row.start, loss_fn.weighted_minibatches(row.batch, MINIBATCH))
        found = description_length.subspace_losses(
            loss, row.start, lambda key: experiment.task.sample(key, SMALL, "train", row.hparams), row.key,
            dims_tried, SUBSPACE_STEPS, SUBSPACE_RATE, n_eval=4,
        )  # fmt: skip
        dimension = description_length.intrinsic_dimension(found["loss"].value, dims_tried, start / 2)
        return named("loss", found["loss"]) | {"dimension": dimension}

    def function(row):
        # the step is the same for all rows, so this is a branch, not a selection
        nothing = jax.tree.map(lambda like: jnp.full_like(like, jnp.nan), jax.eval_shape(lambda: measured(row)))
        return jax.lax.cond(row.step == experiment.steps, lambda: measured(row), lambda: nothing)

    units = errors({"loss": "nats"}) | {"dimension": "dimensions"}
    dims = {"loss": ("subspace",), "loss_error": ("subspace",)}
    return of_loss("subspace", function, units, dims, {"subspace": dims_tried})


def top_eigenvalue(experiment: Experiment, matvecs: int) -> Measure:
    """The largest eigenvalue of the Hessian of the answer's loss, alone: `sharp` takes more of it."""

    def function(row):
        batches = loss_fn.weighted_minibatches(row.batch, MINIBATCH)
        matvec, like_P = curvature.hessian(loss_fn.answer_loss(experiment.model), row.params, batches)
        return largest("top", matvec, like_P, row.key, matvecs)

    units = dict.fromkeys(("top", "top_residual"), "nats per weight^2") | {"top_converged": "yes or no"}
    return of_loss("minimum", function, units)


def largest(name: str, matvec, like_P, key, matvecs: int) -> dict[str, jax.Array]:
    """The largest eigenvalue of an operator as `<name>`, its residual as `<name>_residual`, and `<name>_converged`."""
    found = sharpness.top(matvec, like_P, key, 1, matvecs, TOLERANCE)
    return {output: values_1[0] for output, values_1 in ritz(name, found).items()}


def of_loss(name: str, function, units, dims=None, coords=None) -> Measure:
    """Of trained rows, on the sequences that all measurements of the loss share."""
    return Measure(name, function, units, dims or {}, coords or {}, snapshots="last", n=SEQUENCES, stream=STREAM)


def ritz(name: str, found: sharpness.Ritz) -> dict[str, jax.Array]:
    """Eigenvalues of an operator as outputs: themselves, their residuals, and whether they have converged."""
    return {name: found.value_K, f"{name}_residual": found.residual_K, f"{name}_converged": found.converged_K}


def _adams_scale(experiment: Experiment, loss, row):
    """What Adam divides its step by in a row that stands still; with the noise of as many sequences as there are, where
    training batches hold more."""
    n = len(row.batch.tokens_BxL)
    batches = _parts(row.batch, min(SLOPES, n // 2))
    nu_P = curvature.second_moment(loss, row.params, batches, min(experiment.batch_size, n))
    return jnp.sqrt(nu_P) + experiment.optim.eps


def _parts(batch, most: int):
    """Minibatches of at most so many sequences; of the largest number that divides those of a small training set."""
    n = len(batch.tokens_BxL)
    return loss_fn.minibatches(batch, max(size for size in range(1, min(most, n) + 1) if n % size == 0))
