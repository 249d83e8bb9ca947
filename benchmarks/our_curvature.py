"""Our side of `sharpness.py`: the rows to be measured, our way of measuring them, and the reference that judges all."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import laboratory
import numpy as np
from workload import Workload

from lab import rng, tree
from lab.analysis import curvature, loss_fn, sharpness
from lab.engine import shard, sweep
from lab.experiment import Experiment
from lab.measuring import run

EIGENVALUES = 5
LOOP = 8  # gradients or products in a row, where one of them is timed


class Problem(NamedTuple):
    """What every way is given: trained parameters of R rows and the sequences of the loss, on the host."""

    fixed: Experiment
    params_R: dict
    batch: object
    n_rows: int
    n_probes: int

    @property
    def n_parameters(self) -> int:
        return tree.size(self.params_R) // self.n_rows


class Found(NamedTuple):
    """Of some rows: eigenvalues, decreasing, and the trace with its standard error."""

    value_RxK: np.ndarray
    trace_R: np.ndarray
    error_R: np.ndarray


class Reference(NamedTuple):
    """K eigenvalues of every row, decreasing: the largest, and those largest in magnitude; how far off they may be."""

    largest_RxK: np.ndarray
    magnitude_RxK: np.ndarray
    residual: float


class Program(NamedTuple):
    """A function of one row, compiled for all rows as `lab.measuring.run` maps them: `call() -> outputs (R, ...)`.

    Attributes:
      memory: most bytes of one device, parameters and data left out.
      rows_at_once: rows that a device computes side by side.
    """

    call: Callable
    compile_seconds: float
    memory: int
    n_devices: int
    rows_at_once: int


def trained(workload: Workload, n_rows: int, n_steps: int, n_sequences: int, n_probes: int) -> Problem:
    """Rows of `laboratory.rows`, trained for `n_steps` by the engine."""
    fixed = laboratory.experiment(workload)
    layout = _layout(n_rows)
    (hparams,) = layout.to_device(laboratory.rows(workload, n_rows).arrays())
    programs = sweep.build(fixed, n_steps, layout.width, layout.mesh)
    state, _ = programs.chunk(hparams, programs.start(hparams), None, 0, n_steps)
    batch = fixed.task.sample(rng.key(0, "benchmark/sharpness"), n_sequences, "train", {})
    return Problem(fixed, layout.fetch([state.params]), jax.device_get(batch), n_rows, n_probes)


def spectra(problem: Problem, n_matvecs: int) -> Program:
    """The way a user takes: Lanczos with `n_matvecs` products, one for each eigenvalue's residual, and Hutchinson."""

    def function(params, batch, key):
        top_key, trace_key = jax.random.split(key)
        operator = _hessian(problem, params, batch)
        # the tolerance decides `converged_K`, which nobody reads here
        top = sharpness.top(*operator, top_key, EIGENVALUES, n_matvecs, tolerance=0.0)
        return Found(top.value_K, *sharpness.trace(*operator, trace_key, problem.n_probes))

    return compiled(problem, function)


def n_products(n_matvecs: int, n_probes: int) -> int:
    """Products with the Hessian that `spectra` takes; the 1 finds the scale that Lanczos works at."""
    return n_matvecs + 1 + n_probes


def reference(problem: Problem, n_matvecs: int) -> Reference:
    """Long Lanczos runs in float64; how far off, by the residuals: relative to each eigenvalue, the worst of all."""

    def function(params, batch, key):
        return sharpness.extremes(*_hessian(problem, params, batch), key, EIGENVALUES, n_matvecs, tolerance=0.0)

    top, bottom = compiled(problem, function, "float64").call()
    both_Rx2K = np.concatenate([top.value_K, bottom.value_K], axis=1)
    residual_Rx2K = np.concatenate([top.residual_K, bottom.residual_K], axis=1) / np.abs(both_Rx2K)
    chosen_RxK = np.argsort(-np.abs(both_Rx2K), axis=1)[:, :EIGENVALUES]
    magnitude_RxK = decreasing(np.take_along_axis(both_Rx2K, chosen_RxK, axis=1))
    residual = max(residual_Rx2K[:, :EIGENVALUES].max(), np.take_along_axis(residual_Rx2K, chosen_RxK, axis=1).max())
    return Reference(top.value_K, magnitude_RxK, float(residual))


def gradients(problem: Problem) -> Program:
    """LOOP gradients of every row, at points next to each other."""

    def function(params, batch, key):
        vector_P, rebuild = loss_fn.flatten(params)
        nearby_SxP = vector_P + 1e-6 * jax.random.normal(key, (LOOP, vector_P.size), vector_P.dtype)
        loss, batches = loss_fn.answer_loss(problem.fixed.model), loss_fn.minibatches(batch, _sequences(problem))
        gradient_SxP = jax.lax.map(lambda near_P: curvature.gradient(loss, rebuild(near_P), batches), nearby_SxP)
        return jnp.sum(gradient_SxP)

    return compiled(problem, function)


def products(problem: Problem) -> Program:
    """LOOP products of every row's Hessian with random vectors."""

    def function(params, batch, key):
        matvec, like_P = _hessian(problem, params, batch)
        return jnp.sum(jax.lax.map(matvec, jax.random.normal(key, (LOOP, like_P.size), like_P.dtype)))

    return compiled(problem, function)


def compiled(problem: Problem, function: Callable, precision: str = "float32") -> Program:
    """`function(params, batch, key)` of one row, as a program for all of them."""
    layout = _layout(problem.n_rows)
    options = {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None
    mapped = jax.jit(sweep.over_rows(function, layout.width, layout.mesh, 1, 2), compiler_options=options)
    key = rng.key(0, "benchmark/sharpness/noise")
    cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(precision) if leaf.dtype == np.float32 else leaf)

    def exactly():
        return jax.enable_x64(precision == "float64")

    def arguments():
        return *layout.to_device(cast(problem.params_R)), cast(problem.batch), key

    with exactly(), jax.default_matmul_precision(run.MATMUL):
        begun = time.perf_counter()
        program = mapped.lower(*arguments()).compile()
        seconds = time.perf_counter() - begun

    def call():
        with exactly():
            return layout.fetch([program(*arguments())])

    needs = program.memory_analysis()
    memory = needs.output_size_in_bytes + needs.temp_size_in_bytes
    return Program(call, seconds, memory, layout.mesh.size, layout.width)


def take(found: Found, rows: Sequence[int]) -> Found:
    return Found(*(values[np.array(rows)] for values in found))


def decreasing(value_RxK):
    return np.sort(value_RxK, axis=1)[:, ::-1]


def _hessian(problem: Problem, params, batch):
    """As the catalogue's measurement takes it: of the answer loss, in one minibatch."""
    batches = loss_fn.minibatches(batch, _sequences(problem))
    return curvature.hessian(loss_fn.answer_loss(problem.fixed.model), params, batches)


def _sequences(problem: Problem) -> int:
    return len(problem.batch.tokens_BxL)


def _layout(n_rows: int) -> shard.Layout:
    return shard.layout(shard.run_mesh(n_rows), n_rows, 1 if jax.default_backend() == "cpu" else run.BLOCK_ROWS)
