"""The only training loop. It runs chunks, and between them writes metrics, snapshots and checkpoints."""

import contextlib
import fcntl
import functools
import importlib.metadata
import os
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

import lab
from lab.engine import config as configs
from lab.engine import data, shard, store, sweep, table
from lab.engine import step as steps
from lab.engine.step import Experiment
from lab.engine.workdir import Workdir, WorkdirError
from lab.grid import Grid

KEPT_CHECKPOINTS = 2
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM), and has saved."""


def train_variants(config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None = None) -> list[Path]:
    """Trains every static variant of a config, each in its own folder below `workdir`; returns the folders.

    Every variant is checked before the first one starts. See `train`.
    """
    resolved = configs.variants(config)
    prepared = [(variant, *prepare(variant, Path(workdir) / name, grid)) for name, variant in resolved.items()]
    return [_run(*one) for one in prepared]


def train(config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None = None) -> Path:
    """Trains the rows of a grid to the config's last step, continuing what the folder already holds.

    Args:
      config: one variant, see `lab.engine.config`.
      grid: the rows, where they are not the product of the axes in `config.grid`.

    Raises:
      ValueError: an impossible config.
      WorkdirError: the folder holds another training, or another process is training in it.
      Interrupted: SIGTERM came; the state is saved.
    """
    return _run(config, *prepare(config, workdir, grid))


def _run(config: ml_collections.ConfigDict, work: Workdir, grid: Grid) -> Path:
    """`train`, once its config and grid are checked."""
    with _only_writer(work), _polite_stop() as stop_asked:
        done = config.steps
        if work.trained():
            tqdm.write(f"{work.path}: trained already ({config.steps} steps, {len(grid)} rows), nothing to do")
        else:
            _refuse_other(work, config, grid)  # again: another process may have begun here since
            _write_identity(work, config, grid)
            done = _loop(work, grid, stop_asked)
        if stop_asked():
            raise Interrupted(f"{work.path}: stopped at step {done} as asked; the same command continues")
    return work.path


def prepare(config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None) -> tuple[Workdir, Grid]:
    """Checks a training before anything is written.

    Raises:
      ValueError, WorkdirError: as `train`.
    """
    experiment = configs.experiment(config)
    grid = configs.grid(config) if grid is None else grid
    work = Workdir(workdir)
    if not _refuse_other(work, config, grid):
        _trace(experiment, grid)
    return work, grid


def _refuse_other(work: Workdir, config: ml_collections.ConfigDict, grid: Grid) -> bool:
    """Whether the folder holds this training already; raises WorkdirError if it holds another."""
    begun = (work.path / "config.json").is_file()
    if begun:
        changed = configs.differences(configs.to_json(work.config), configs.to_json(config))
        asked = Grid.from_json(grid.to_json()).to_json()
        changed = changed or configs.differences(work.grid.to_json(), asked, "grid.json ")
        if changed:
            raise WorkdirError(
                f"{work.path} holds another training; use another workdir. Changed: {'; '.join(changed)}"
            )
    return begun


def _trace(experiment: Experiment, grid: Grid) -> None:
    """Goes through a start and an evaluation without computing: what their shapes forbid is refused here."""
    state = jax.eval_shape(functools.partial(steps.start, experiment), grid.row(0))
    evaluation_set = jax.eval_shape(lambda: data.evaluation_set(experiment, data.train_set(experiment)))
    jax.eval_shape(functools.partial(steps.evaluate, experiment), state, evaluation_set)


def boundaries(config: ml_collections.ConfigDict) -> tuple[list[int], set[int], set[int]]:
    """The steps at which chunks end, those of them that are evaluated, and those at which a snapshot is kept.

    Evaluations at 0, every `eval_every` steps and the end; `snapshots` many snapshots at 0, the end, and the end
    halved again and again: log-spaced, as learning is.
    """
    total = config.steps
    evaluated = {*range(0, total, config.eval_every), total}
    kept = {0, total} | {round(total / 2**k) for k in range(config.snapshots - 1)}
    saved = set(range(0, total, config.checkpoint_every))
    return sorted(evaluated | kept | saved), evaluated, kept


def _loop(work: Workdir, grid: Grid, stop_asked: Callable[[], bool]) -> int:
    """Trains until the last step or until asked to stop; returns the step reached."""
    config, experiment = work.config, work.experiment
    mesh = shard.run_mesh(len(grid))
    width = min(config.block_width, -(-len(grid) // mesh.shape["run"]))
    n_padded = shard.padded_rows(len(grid), width, mesh)
    ends, evaluated, kept = boundaries(config)
    programs = sweep.build(experiment, int(max(np.diff(ends))), width, mesh)
    hparams = shard.place_rows(grid.arrays(), n_padded, mesh)
    train_set = data.train_set(experiment)
    evaluation_set = data.evaluation_set(experiment, train_set)

    state = programs.start(hparams)
    done = -1  # the last step on disk; -1: not even the evaluation before training
    saved = store.restore_newest(work.checkpoints, shard.fetch_rows(state, len(grid)), tqdm.write)
    if saved is not None:
        done, rows = saved
        state = shard.place_rows(rows, n_padded, mesh)
        tqdm.write(f"{work.path}: continuing at step {done}")
    table.forget_after(work.metrics, done)

    with tqdm(total=config.steps, initial=max(done, 0), unit="step", desc=work.path.name) as progress:
        for end in (end for end in ends if end > done):
            begun, first = time.monotonic(), max(done, 0)
            state, record = _advance(programs, hparams, state, train_set, first, end, len(grid))
            if end in evaluated:
                scores = shard.fetch_rows(programs.evaluate(state, evaluation_set), len(grid))
                record |= {"step": np.array([end]), **{name: score[None] for name, score in scores.items()}}
            record["diverged_at"] = shard.fetch_rows(state.diverged_at, len(grid))
            stopping = stop_asked()  # asked once: who asks during the save is heard after the next chunk, and saved
            _save(work, config, end, state, record, end in kept, len(grid), stopping)
            done = end
            progress.update(end - first)
            progress.set_postfix_str(f"{(end - first) * len(grid) / (time.monotonic() - begun):.0f} row-steps/s")
            if stopping:
                break
    return done


def _advance(programs: sweep.Sweep, hparams, state, train_set, first: int, end: int, n_rows: int):
    """Trains from step `first` to `end`: the new state, and the steps' metrics as host arrays (steps, rows)."""
    if first == end:  # step 0, which is evaluated before anything is trained
        nothing = np.zeros((0, n_rows), np.float32)
        return state, {"train_step": np.arange(0), **dict.fromkeys(table.TRAIN_METRICS, nothing)}
    state, metrics = programs.chunk(hparams, state, train_set, first, end - first)
    by_step = {name: values[:, : end - first].T for name, values in shard.fetch_rows(metrics, n_rows).items()}
    return state, {"train_step": np.arange(first, end), **by_step}


def _save(work, config, step: int, state, record: dict, keep: bool, n_rows: int, stopping: bool) -> None:
    """Metrics first: a checkpoint promises that everything before it is on disk."""
    table.write_npz(work.metrics / f"{step}.npz", record)
    if keep:
        store.save(work.snapshots, step, shard.fetch_rows(state.params, n_rows))
    if stopping or step == config.steps or (step and step % config.checkpoint_every == 0):
        store.save(work.checkpoints, step, shard.fetch_rows(state, n_rows))
        store.keep_newest(work.checkpoints, KEPT_CHECKPOINTS)


def _write_identity(work: Workdir, config: ml_collections.ConfigDict, grid: Grid) -> None:
    if (work.path / "config.json").is_file():
        return
    store.write_json(work.path / "grid.json", grid.to_json())
    identity = {
        "config": configs.to_json(config),
        "command": _command(),
        "versions": {"gammalab": lab.__version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    store.write_json(work.path / "config.json", identity)


def _command() -> str:
    """What a user would type to run this process again."""
    program = Path(sys.argv[0])
    if program.name == "lab" or program.parts[-2:] == ("lab", "__main__.py"):
        return shlex.join(["python", "-m", "lab", *sys.argv[1:]])
    return f"from Python ({program.name})"


@contextlib.contextmanager
def _only_writer(work: Workdir):
    """One process a folder; the lock dies with its process."""
    work.path.mkdir(parents=True, exist_ok=True)
    with (work.path / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirError(f"{work.path}: another process is training here") from None
        yield


@contextlib.contextmanager
def _polite_stop():
    """Gives a function that tells whether SIGTERM has come since."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
