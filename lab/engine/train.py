"""The training loop: runs chunks of steps, and writes metrics, snapshots and checkpoints while the next chunk runs."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from lab import config as configs
from lab import families, schedule
from lab.disk import files, metrics, store, verify
from lab.disk.files import DamagedError, WorkdirError
from lab.disk.provenance import provenance
from lab.disk.workdir import Workdir
from lab.engine import batches, init_from, multihost, plan, shard, sweep
from lab.engine import step as steps
from lab.engine.background import Writer
from lab.engine.rows import Rows
from lab.engine.shard import Layout
from lab.engine.sigterm import sigterm_flag
from lab.experiment import Experiment
from lab.grid import Grid

LOG_SECONDS = 30  # between lines of progress where nobody watches


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM), and has saved."""


def train_variants(config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None = None) -> list[Path]:
    """Trains every static variant of a config, each in its own folder below `workdir`; returns the folders.

    Every variant is checked before the first one starts. See `train`.
    """
    return [_run(*one) for one in prepare_variants(config, workdir, grid).values()]


def train(config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None = None) -> Path:
    """Trains the rows of a grid to the config's last step, continuing what the folder already holds.

    What the folder holds is verified first. Damage is reported and set aside, and training goes on from the newest
    checkpoint before which nothing is missing: the folder ends byte-equal to that of an uninterrupted training with the
    same width on the same kind of device. Of several processes (`jax.distributed`) each trains and saves its own rows.

    Args:
      config: one variant, see `lab.config`.
      grid: the rows, where they are not the product of the axes in `config.grid`.

    Raises:
      ValueError: an impossible config.
      WorkdirError: the folder holds another training, or another process is training in it; or the training starts
        from the weights of one that is not trained to its end (`config.start`, see `lab.engine.init_from`).
      SaveError: the disk is full or refuses; what was saved before is whole.
      Interrupted: SIGTERM came; the state is saved.
    """
    return _run(config, *prepare(config, workdir, grid))


def prepare_variants(config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None = None) -> dict:
    """Name -> `(config, folder, rows)` of every variant, checked: what `_run` is given, in the order to train them.

    Raises:
      ValueError, WorkdirError: as `train`.
    """
    prepared = {}
    for name, variant in configs.variants(config).items():
        source = prepared.get(variant.start.variant)
        planned = None if source is None else (source[0], source[2])
        prepared[name] = (variant, *prepare(variant, Path(workdir) / name, grid, planned))
    return prepared


def prepare(
    config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None, source: init_from.Planned | None = None
) -> tuple[Workdir, Grid]:
    """Checks a training before anything is written.

    Args:
      source: what it starts from, if it does and that is still to be trained.

    Raises:
      ValueError, WorkdirError: as `train`.
    """
    experiment = configs.experiment(config)
    grid = configs.grid(config) if grid is None else grid
    work = Workdir(workdir)
    if not _refuse_other(work, config, grid):
        _check_rows(experiment, grid)
        _trace(experiment, grid)
        init_from.check(work.path, config, grid, source)
    return work, grid


def _run(config: ml_collections.ConfigDict, work: Workdir, grid: Grid) -> Path:
    """`train`, once its config and grid are checked."""
    shard.run_mesh(len(grid), config.data_devices)  # refuses what these devices cannot be split into
    with multihost.only_writer(work.path), sigterm_flag() as stop_asked:
        done = config.steps
        if multihost.on_first_process(lambda: _begin(work, config, grid)):
            _say(f"{work.path}: trained already ({config.steps} steps, {len(grid)} rows), nothing to do")
        else:
            done = _loop(Workdir(work.path), grid, stop_asked)
        if multihost.max_over_processes(stop_asked()):
            raise Interrupted(f"{work.path}: stopped at step {done} as asked; the same command continues")
    return work.path


def _begin(work: Workdir, config: ml_collections.ConfigDict, grid: Grid) -> bool:
    """Writes what is to be trained, unless it is there; returns whether it is trained and whole."""
    verify.set_aside_identity(work, _say)
    _refuse_other(work, config, grid)  # again: another process may have begun here since
    begun = (work.path / "config.json").is_file()
    start = {} if begun else init_from.identity(work.path, config, grid)
    if not (work.path / "grid.json").is_file():
        files.write_json(work.path / "grid.json", grid.to_json())
    kept = configs.experiment(config).task.files()
    for name, content in kept.items():
        files.write_bytes(work.data / name, content)
    if begun:
        init_from.refuse_other(work)
    else:
        said = {"config": configs.to_json(config), "data": files.hashes(kept), "start": start}
        said |= {"classes": families.own(config), **provenance()}
        files.write_json(work.path / "config.json", said)
    return verify.whole(work)


def _refuse_other(work: Workdir, config: ml_collections.ConfigDict, grid: Grid) -> bool:
    """Whether the folder says it holds this training; raises WorkdirError if it says it holds another."""
    try:
        held_config, held_grid = work.config, work.grid
    except DamagedError:  # missing or unreadable: written anew when training starts
        return False
    changed = configs.differences(configs.to_json(held_config), configs.to_json(config))
    asked = Grid.from_json(grid.to_json()).to_json()
    changed = changed or configs.differences(held_grid.to_json(), asked, "grid.json ")
    changed = changed or configs.differences(work.data_hashes, files.hashes(work.experiment.task.files()), "data ")
    changed = changed or families.changed(work.classes)
    if changed:
        raise WorkdirError(f"{work.path} holds another training; use another workdir. Changed: {'; '.join(changed)}")
    return True


def _check_rows(experiment: Experiment, grid: Grid) -> None:
    """What a task or objective refuses as its own value is refused in a grid, where rows would diverge at once."""
    for owner in (experiment.task, experiment.objective):
        varied = [name for name in owner.hparams if name in grid.columns]
        for values in dict.fromkeys(zip(*(grid.columns[name] for name in varied), strict=True)):
            try:
                row_owner = dataclasses.replace(owner, **dict(zip(varied, values, strict=True)))
                if owner is experiment.task:  # what only the data say, once they are read
                    jax.eval_shape(lambda task=row_owner: task.sample(jax.random.key(0), 1, "train", {}))
            except ValueError as error:
                raise ValueError(f"a row of the grid: {error}") from error


def _trace(experiment: Experiment, grid: Grid) -> None:
    """Goes through a start and an evaluation without computing: what their shapes forbid is refused here."""
    state = jax.eval_shape(functools.partial(steps.start, experiment), grid.row(0))
    evaluation_set = jax.eval_shape(lambda: batches.evaluation_set(experiment, batches.train_set(experiment)))
    jax.eval_shape(functools.partial(steps.evaluate, experiment), state, evaluation_set)


def _loop(work: Workdir, grid: Grid, stop_asked: Callable[[], bool]) -> int:
    """Trains until the last step or until asked to stop; returns the step reached."""
    config = work.config
    ends, evaluated, kept = schedule.boundaries(config)
    rows = Rows(work.experiment, grid, _layout(work, grid), schedule.longest_chunk(config), sweep.options(config))
    done = _resume(work, rows)  # the last step on disk; -1: not even the evaluation before training

    saved = {*schedule.checkpointed(config)}
    with _progress(config, work.path.name, done) as progress, Writer() as writer:
        for end in (end for end in ends if end > done):
            begun, first = time.monotonic(), max(done, 0)
            recorded = rows.advance(first, end) if end > first else None
            rows.wait()
            multihost.raise_everywhere(writer.failure())
            stopping = multihost.max_over_processes(stop_asked())  # a SIGTERM from here on counts after the next chunk
            chunk = Chunk(first, end, recorded, rows.evaluate() if end in evaluated else None, rows.diverged_at())
            state = rows.fetch() if end in kept or end in saved or stopping else None
            writer.write(_save, work, rows.layout, chunk, state, end in kept, end in saved or stopping)
            done = end
            rate = (end - first) * len(grid) / (time.monotonic() - begun)
            progress.set_postfix_str(f"{rate:.0f} row-steps/s", refresh=False)
            progress.update(end - first)
            if stopping:
                break
    return done


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What a chunk of training recorded, still on the devices (see `Layout.all_gather`); None: nothing was done."""

    first: int
    end: int
    metrics: list | None
    scores: list | None
    diverged_at: list


def _layout(work: Workdir, grid: Grid) -> Layout:
    """Where the rows are computed: as before, if this training was begun on devices like these; else as planned now."""
    config, options = work.config, sweep.options(work.config)
    mesh = shard.run_mesh(len(grid), config.data_devices)
    chosen = None

    def choose() -> int:
        nonlocal chosen
        chosen = plan.recall(work.path)
        if chosen is None or chosen.devices != plan.device_names():
            if chosen is not None or store.steps(work.checkpoints):
                before = "lost plan.json" if chosen is None else chosen.devices
                _say(f"{work.path}: planned anew after {before}; from here on results agree up to rounding")
            longest = schedule.longest_chunk(config)
            chosen = plan.choose(work.experiment, grid, mesh, options, longest, config.block_width)
            plan.record(work.path, chosen)
        _say(f"{work.path}: {chosen.sentence()}")
        return chosen.width

    width = multihost.on_first_process(choose)
    row_batches = multihost.on_first_process(lambda: chosen.row_batches)
    return shard.layout(mesh, len(grid), width, row_batches)


def _resume(work: Workdir, rows: Rows) -> int:
    """Starts the rows, or puts them where the newest sound checkpoint left them; returns the last step on disk."""
    abstract = rows.abstract()

    def newest() -> int:
        saved = store.newest_whole(work.checkpoints, abstract, _say, verify.sound_until(work, _say))
        metrics.forget_after(work.metrics, -1 if saved is None else saved)
        return -1 if saved is None else saved

    step = multihost.on_first_process(newest)
    if step < 0:
        rows.start(init_from.weights(work.path, work.config, work.grid, *rows.layout.source_rows))
    else:
        rows.resume(store.restore(work.checkpoints, step, abstract, rows.layout.source_rows))
        _say(f"{work.path}: continuing at step {step}")
    return step


def _save(work: Workdir, layout: Layout, chunk: Chunk, state, keep: bool, checkpoint: bool) -> None:
    """Metrics first: a checkpoint promises that everything before it is on disk."""
    n_steps = chunk.end - chunk.first
    nothing = np.zeros((0, layout.n_rows), np.float32)
    record = {"train_step": np.arange(chunk.first, chunk.end), **dict.fromkeys(metrics.TRAIN_METRICS, nothing)}
    if chunk.metrics is not None:
        record |= {name: values[:, :n_steps].T for name, values in layout.to_host(chunk.metrics).items()}
    if chunk.scores is not None:
        scores = {name: score[None] for name, score in layout.to_host(chunk.scores).items()}
        record |= {"step": np.array([chunk.end]), **scores}
    if multihost.is_first():
        files.write_npz(work.metrics / f"{chunk.end}.npz", record | {"diverged_at": layout.to_host(chunk.diverged_at)})
    first, parts = layout.local_rows[0], layout.process_starts
    if keep:
        store.save(work.snapshots, chunk.end, state.params, first, parts)
    if checkpoint:
        store.save(work.checkpoints, chunk.end, state, first, parts)
        if multihost.is_first():
            store.keep_newest(work.checkpoints, schedule.KEPT_CHECKPOINTS)


def _say(line: str) -> None:
    if multihost.is_first():
        tqdm.write(line)


def _progress(config: ml_collections.ConfigDict, name: str, done: int) -> tqdm:
    seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    shown = {"unit": "step", "desc": name, "mininterval": seconds, "disable": not multihost.is_first()}
    return tqdm(total=config.steps, initial=max(done, 0), **shown)
