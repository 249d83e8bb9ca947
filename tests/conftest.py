"""Strict numerics, two host devices, a float64 fixture, the toy of `toys/echo.py`, and compiled programs of it."""

import dataclasses
import functools
import gc
import importlib.util
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src import compiler
from jax.sharding import Mesh

from lab import config as configs
from lab import tasks
from lab.disk import files, store
from lab.disk.workdir import Workdir
from lab.engine import batches, compiled, shard, sweep

jax.config.update("jax_num_cpu_devices", int(os.environ.get("LAB_TEST_DEVICES", "2")))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


TRAINING = {"cluster", "disk", "engine"}  # folders whose tests take optimizer steps
# Where programs of different shapes, or of this process and of others, are to give the same bytes: what users run
AS_SHIPPED = {
    "cluster",
    "test_extension.py",
    "test_hosts.py",
    "test_kill.py",
    "test_numerics.py",
    "test_plan.py",
    "test_rows.py",
    "test_shard.py",
    "test_sweep.py",
    "test_verify_row.py",
}
QUICK = {
    "xla_cpu_use_fusion_emitters": False,  # the usual emitters take half of the time
    "xla_cpu_parallel_codegen_split_count": 1,  # functions of a program in one LLVM module take a quarter less
}


def pytest_collection_finish(session):
    """What is imported and collected stays to the end: walking over it for garbage again and again takes a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def get_compile_options(*args, _of_jax=compiler.get_compile_options, **kwargs):
    """Where most optimizations are off, what XLA compiles quicker by, too: see `QUICK`.

    JAX has no public setting for this but XLA_FLAGS, which are for a whole process.
    """
    options = _of_jax(*args, **kwargs)
    if jax.config.read("jax_disable_most_optimizations"):
        options.env_option_overrides = [*options.env_option_overrides, *QUICK.items()]
    return options


compiler.get_compile_options = get_compile_options


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What took time to compile is read from disk the next time, by this process, its twins and those they start."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "jax_compilation_cache_dir": str(folder),
            "jax_persistent_cache_min_compile_time_secs": 0.05,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield


@pytest.fixture(scope="module", autouse=True)
def compiled_fast(request):
    """Small programs are compiled without optimizations, which is what takes the time.

    They are kept by shape, whatever they were compiled with: none may reach a module of the other kind.
    """
    plain = AS_SHIPPED.isdisjoint(request.path.parts)
    if plain != jax.config.read("jax_disable_most_optimizations"):
        jax.clear_caches()
        compiled.forget()
        jax.config.update("jax_disable_most_optimizations", plain)


@pytest.fixture(scope="session")
def quick_flags():
    """XLA_FLAGS of processes that compile as `compiled_fast` does."""
    flags = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} | QUICK
    return " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items())


@pytest.fixture
def float64():
    """Double precision for spectra and finite differences."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """For tests that take optimizer steps: optax itself raises a float to an integer array, which strict forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _by_path(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "toys" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bench:
    """One set of compiled programs, and how to run a grid of any values through it."""

    def __init__(self, experiment, max_steps, n_rows, width, n_devices):
        self.experiment = experiment
        mesh = Mesh(np.array(jax.devices()[:n_devices]).reshape(-1, 1), ("run", "data"))
        self.layout = shard.Layout(mesh, n_rows, width, n_rows // n_devices, 1)
        self.programs = sweep.build(experiment, max_steps, width, mesh)

    def hparams(self, grid):
        return self.place(grid.arrays())

    def place(self, rows):
        """Host arrays of any number of rows, up to those the programs are for."""
        n_rows = len(jax.tree.leaves(rows)[0])
        (placed,) = dataclasses.replace(self.layout, n_rows=n_rows).to_device(rows)
        return placed

    def fetch(self, placed, n_rows):
        return dataclasses.replace(self.layout, n_rows=n_rows).fetch([placed])

    def start(self, grid):
        return self.programs.start(self.hparams(grid))

    def train(self, grid, chunks, train_set=None, state=None, first_step=0):
        """Host state and metrics, (rows, steps), after chunks of these lengths."""
        state = self.start(grid) if state is None else self.place(state)
        parts = []
        for n_steps in chunks:
            state, metrics = self.programs.chunk(self.hparams(grid), state, train_set, first_step, n_steps)
            parts.append({name: values[:, :n_steps] for name, values in self.fetch(metrics, len(grid)).items()})
            first_step += n_steps
        metrics = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        return self.fetch(state, len(grid)), metrics

    def evaluate(self, state, train_set=None):
        evaluation_set = batches.evaluation_set(self.experiment, train_set)
        return self.fetch(self.programs.evaluate({}, self.place(state), evaluation_set), len(state.diverged_at))


@pytest.fixture(scope="module", autouse=True)
def optax_promotes(request):
    """optax raises floats to int32 powers (`decay**count`), so whatever trains cannot run under strict promotion."""
    if TRAINING.isdisjoint(request.path.parts):
        yield
        return
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def echo():
    return _by_path("echo")


@pytest.fixture(scope="session")
def bench(echo):
    """(rows, width, devices, **changes of the experiment) -> `Bench`; at most twelve steps a chunk."""

    @functools.cache
    def make(n_rows, width, n_devices, **changes):
        return Bench(echo.experiment(**changes), 12, n_rows, width, n_devices)

    return make


@pytest.fixture(scope="session")
def untrained():
    """`(path, config, {step: params of all rows}) -> Workdir`: a folder with these snapshots, and no metrics."""

    def write(path, config, snapshots):
        work, rows = Workdir(path), configs.grid(config)
        files.write_json(path / "config.json", {"config": configs.to_json(config), "data": {}, "start": {}})
        files.write_json(path / "grid.json", rows.to_json())
        chunk = {"train_step": np.arange(0), "step": np.array([0]), "train_loss": np.zeros((0, len(rows)), np.float32)}
        files.write_npz(work.metrics / "0.npz", chunk | {"diverged_at": np.zeros(len(rows))})
        for step, params in snapshots.items():
            store.save(work.snapshots, step, params)
        return work

    return write


@pytest.fixture(scope="session")
def same_bits():
    """Asserts that two trees are equal bit by bit, NaNs and signs of zero included."""

    def check(tree, other):
        assert jax.tree.structure(tree) == jax.tree.structure(other)
        for (path, leaf), twin in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(other), strict=True):
            leaf, twin = np.asarray(leaf), np.asarray(twin)
            assert leaf.dtype == twin.dtype, path
            assert leaf.shape == twin.shape, path
            assert leaf.tobytes() == twin.tobytes(), path

    return check


@pytest.fixture(scope="module")
def echo_is_a_task(echo):
    """So that configs may name it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.FAMILIES, "echo", echo.Echo)
        yield
