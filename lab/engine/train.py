"""The training loop: runs chunks of steps, and writes metrics, snapshots and checkpoints while the next chunk runs."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from lab import config as configs
from lab import schedule
from lab.disk import files, metrics, store, verify
from lab.disk.workdir import Workdir
from lab.engine import compiled, init_from, memory, multihost, numerics, parts, plan, program_cache, shard, sweep
from lab.engine.background import Writer
from lab.engine.extension import AS_WIDE, recall_plan
from lab.engine.interrupts import stop_flag
from lab.engine.prepare import Prepared, begin, portions, prepare, prepare_extension, prepare_variants
from lab.engine.progress import Progress
from lab.engine.rows import Rows
from lab.engine.shard import Layout
from lab.grid import Grid

NAP_SECONDS = 0.005  # between two looks at whether an evaluation is done


class Interrupted(Exception):
    """Training was asked to stop by a signal (SIGTERM or SIGINT), `number`, and has saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class OutOfMemory(Exception):
    """The devices had too little memory for the first chunk of steps."""


@numerics.settled()
def train_variants(
    config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None = None, then: str = ""
) -> list[Path]:
    """Trains every static variant of a config, each in its own folder below `workdir`; returns the folders.

    Every variant is checked before the first one starts. See `train`.

    Args:
      then: what comes after the last variant, for the lines of progress.
    """
    with Progress(quiet=not multihost.is_first(), then=then) as progress:
        progress.doing("checking the config")
        return _run_all(progress, prepare_variants(config, workdir, grid))


@numerics.settled()
def extend(workdir: str | Path, axes: Mapping[str, Sequence], variants: Sequence[str] | None = None) -> list[Path]:
    """Trains more rows of the trainings in a folder: more values of some axes, beside every combination of the others.

    What is there stays as it is; the new rows are in folders of their own in `extensions`, and whoever reads the
    training reads all. They have the width of those before, so they have the bits that they would have had among them.
    What a training has of an earlier extension is continued. To ask again for what is there trains nothing.

    Args:
      axes: hyperparameter -> values to add.
      variants: None: all in the folder.

    Raises:
      ValueError: no such axis, as `Grid.extended`; or several processes have joined.
      WorkdirError: nothing was trained here; or as `train`, of numerics too: rows that were trained with other ones
        are not beside these.
      SaveError, Interrupted: as `train`.
    """
    with Progress() as progress:
        progress.doing("checking the config")
        return _run_all(progress, prepare_extension(workdir, axes, variants))


@numerics.settled()
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
      WorkdirError: the folder holds another training, or this one as other numerics began it (see
        `lab.engine.numerics`), or another process is training in it; or the training starts from the weights of
        one that is not trained to its end (`config.start`, see `lab.engine.init_from`).
      SaveError: the disk is full or refuses; what was saved before is whole.
      Interrupted: SIGTERM or SIGINT came; the state is saved. A second SIGINT is a KeyboardInterrupt.
    """
    config = configs.plain(config)
    with Progress(quiet=not multihost.is_first()) as progress:
        progress.doing("checking the config")
        return _run_all(progress, {"": prepare(config, workdir, grid)})[0]


def _run_all(progress: Progress, prepared: Mapping[str, Prepared]) -> list[Path]:
    progress.expect(portions(prepared.values()))
    for one in prepared.values():
        for config, work, grid in one.parts:
            _run(progress, config, work, grid)
    return [one.work.path for one in prepared.values()]


def _run(progress: Progress, config: ml_collections.ConfigDict, work: Workdir, grid: Grid) -> Path:
    """`train`, once its config and grid are checked."""
    say = progress.say
    shard.run_mesh(len(grid), config.data_devices)  # refuses what these devices cannot be split into
    with multihost.only_writer(work.path), stop_flag(say) as stop_asked:
        done = config.steps
        progress.doing("reading what the folder holds")
        if multihost.on_first_process(lambda: begin(work, config, grid, say)):
            say(f"{work.path}: trained already ({config.steps} steps, {len(grid)} rows), nothing to do")
        else:
            progress.begin(work.name, config.steps)
            done = _loop(Workdir(work.path), grid, stop_asked, progress)
            progress.end()
        if number := multihost.max_over_processes(stop_asked()):
            raise Interrupted(f"{work.path}: stopped at step {done} as asked; the same command continues", number)
    return work.path


def _loop(work: Workdir, grid: Grid, stop_asked: Callable[[], int], progress: Progress) -> int:
    """Trains until the last step or until asked to stop; returns the step reached.

    Raises:
      ValueError: not even one row fits in the devices' memory.
    """
    layout = _layout(work, grid, progress)
    while True:
        try:
            return _train_rows(work, grid, layout, stop_asked, progress)
        except OutOfMemory as error:
            if layout.width == 1:
                raise ValueError(f"one row does not fit in memory: {plan.SMALLER} ({error})") from error
        layout = shard.layout(layout.mesh, len(grid), layout.width // 2, layout.row_batches)
        progress.say(
            f"{work.path}: out of memory, going on with {layout.width} rows at once; from here on results agree up to "
            "rounding with those of more"
        )
        plan.narrow(work.path, layout.width)
        compiled.forget()  # the wider program holds memory, too


def _train_rows(work: Workdir, grid: Grid, layout: Layout, stop_asked: Callable[[], int], progress: Progress) -> int:
    """`_loop` with a layout.

    Raises:
      OutOfMemory: at the start or the first chunk, of which nothing is on disk; and there is no other process.
    """
    config = work.config
    ends, evaluated, kept = schedule.boundaries(config)
    progress.doing("drawing data and first weights")
    with _memory_watched():
        rows = Rows(work.experiment, grid, layout, schedule.longest_part(config), sweep.options(config))
        done = _resume(work, rows, progress)  # the last step on disk; -1: not even the evaluation before training
    progress.begin(work.name, config.steps, max(done, 0))
    pace = parts.pace(work, layout)

    def heard(n_steps: int, seconds: float) -> None:
        progress.advance(n_steps, f"{n_steps * len(grid) / max(seconds, 1e-9):,.0f} row-steps/s")

    watched, saved = _memory_watched, {*schedule.checkpointed(config)}
    with Writer() as writer:
        for end in (end for end in ends if end > done):
            first = max(done, 0)
            with watched():
                if end > first and watched is _memory_watched:
                    progress.doing("compiling the training step", at_once=True)
                recorded = parts.advance(rows, first, end, pace, heard)
                progress.doing("evaluating")
                scores = _wait(rows.evaluate()) if end in evaluated else None
            if end > first and watched is _memory_watched:
                watched = contextlib.nullcontext
                program_cache.seal()
            progress.doing("saving")
            multihost.raise_everywhere(writer.failure())
            stopping = multihost.max_over_processes(stop_asked())  # a signal from here on counts after the next chunk
            chunk = Chunk(first, end, recorded, scores, rows.diverged_at())
            state = rows.fetch() if end in kept or end in saved or stopping else None
            writer.write(_save, work, rows.layout, chunk, state, end in kept, end in saved or stopping)
            progress.doing("")
            done = end
            if stopping:
                break
        progress.doing("saving")
    return done


def _wait(scores: list) -> list:
    """The scores, once they are there; signals are heard meanwhile, as in `Rows.wait`."""
    leaves = jax.tree.leaves(scores)
    while not all(leaf.is_ready() for leaf in leaves):
        time.sleep(NAP_SECONDS)
    return jax.block_until_ready(scores)


@contextlib.contextmanager
def _memory_watched() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1 or not memory.has_run_out(error):
            raise
        raise OutOfMemory(str(error).splitlines()[0]) from None


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What a chunk of training recorded; None: nothing was done.

    Attributes:
      metrics: on the host, (rows, end - first).
      scores, diverged_at: still on the devices, see `Layout.all_gather`.
    """

    first: int
    end: int
    metrics: dict | None
    scores: list | None
    diverged_at: list


def _layout(work: Workdir, grid: Grid, progress: Progress) -> Layout:
    """Where the rows are computed: as before, if this training was begun on devices like these; else as planned now."""
    config, options = work.config, sweep.options(work.config)
    mesh = shard.run_mesh(len(grid), config.data_devices)
    chosen = None

    def choose() -> int:
        nonlocal chosen
        chosen = plan.recall(work.path) or recall_plan(work, len(grid), progress.say)
        if chosen is None or chosen.devices != plan.device_names():
            if chosen is not None or files.steps(work.checkpoints):
                before = "lost plan.json" if chosen is None else chosen.devices
                progress.say(f"{work.path}: planned anew after {before}; from here on results agree up to rounding")
            progress.doing("planning how many rows run at once", at_once=not config.block_width)
            longest = schedule.longest_part(config)
            chosen = plan.choose(work.experiment, grid, mesh, options, longest, config.block_width)
            plan.record(work.path, chosen)
        progress.say(f"{work.path}: {chosen.sentence()}")
        return chosen.width

    width = multihost.on_first_process(choose)
    row_batches = multihost.on_first_process(lambda: chosen.row_batches)
    exactly = chosen is not None and chosen.reason == AS_WIDE  # one process alone: it has chosen itself
    return shard.layout(mesh, len(grid), width, row_batches, exactly)


def _resume(work: Workdir, rows: Rows, progress: Progress) -> int:
    """Starts the rows, or puts them where the newest sound checkpoint left them; returns the last step on disk."""
    abstract, say = rows.abstract(), progress.say

    def newest() -> int:
        saved = store.newest_whole(work.checkpoints, abstract, say, verify.sound_until(work, say))
        metrics.forget_after(work.metrics, -1 if saved is None else saved)
        return -1 if saved is None else saved

    step = multihost.on_first_process(newest)
    if step < 0:
        say(f"{work.path}: {rows.experiment.init_table(work.grid.columns, measure=False)[0]}")
        rows.start(init_from.weights(work.path, work.config, work.grid, *rows.layout.source_rows))
    else:
        rows.resume(store.restore(work.checkpoints, step, abstract, rows.layout.source_rows))
        say(f"{work.path}: continuing at step {step}")
    return step


def _save(work: Workdir, layout: Layout, chunk: Chunk, state, keep: bool, checkpoint: bool) -> None:
    """Metrics first: a checkpoint promises that everything before it is on disk."""
    n_steps = chunk.end - chunk.first
    nothing = np.zeros((0, layout.n_rows), np.float32)
    record = {
        "train_step": np.arange(chunk.first, chunk.end),
        **dict.fromkeys(metrics.train_metrics(work.config), nothing),
    }
    if chunk.metrics is not None:
        # The order in memory is in the file, and a file shall not depend on the parts of a chunk: as it was with one.
        order = "F" if n_steps == schedule.longest_chunk(work.config) else "C"
        record |= {name: np.asarray(values.T, order=order) for name, values in chunk.metrics.items()}
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
