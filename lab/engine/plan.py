"""Chooses how many rows a vmap holds, by timing the real compiled step.

A wider vmap pays while one row cannot fill the device: hundreds of small rows on a GPU, one on a core of a CPU. Block
widths are timed for a moment each on the devices of this process; the fastest whose predicted memory fits is cached.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import platform
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lab
from lab import cache, schedule, tree
from lab import config as configs
from lab.disk import files
from lab.disk.files import DamagedError, SaveError
from lab.engine import batches, numerics, shard, step, sweep
from lab.engine.shard import Layout
from lab.engine.sweep import Options
from lab.experiment import Experiment
from lab.grid import Grid

FACTOR = 4  # between the widths tried first; the neighbours of the best come after
SLOWER = 0.95  # below this share of the best rate a width is given up, and with it all wider ones
REPEATS, SECONDS = 7, 0.2  # timings of each width, the best of which counts, and how long each lasts at least
DESCRIBED, ENTRY = 1700, 270  # bytes on disk beside the numbers: of an array in a save, and in an npz file
MEMORY_SHARE = 0.9  # of what a device has
SMALLER = "set data_devices and split_params to spread it over several devices, or make batch_size smaller"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice of width, and what it was chosen from.

    Attributes:
      devices: how many of which kind.
      width: rows that a vmap holds at once.
      row_batches: how many batches of rows take turns on the devices; 1 where all rows' states fit there together.
      flops: floating-point operations of one row-step, by XLA's count before it optimizes.
      rates: width -> row-steps/s measured on the devices of one process; empty where the user set the width.
      memory: width -> bytes on one device, as XLA predicts them.
      determinism: how many times longer a step takes because `deterministic` is set; None where it is not, or is free.
    """

    devices: str
    width: int
    row_batches: int
    flops: float
    rates: dict[int, float]
    memory: dict[int, int]
    determinism: float | None = None

    def sentence(self) -> str:
        """The choice, for people."""
        turns = f", in {self.row_batches} batches of rows" if self.row_batches > 1 else ""
        if self.width not in self.rates:
            why = "fewer than planned, for want of memory" if self.rates else "as the config says"
            return f"{self.width} rows at once on each of {self.devices}{turns}, {why}"
        rate = self.rates[self.width]
        tried = ", ".join(f"{width}: {rate:.0f}" for width, rate in sorted(self.rates.items()))
        cost = "" if self.determinism is None else f"; determinism makes a step {self.determinism:.2f} times as long"
        return (
            f"{self.width} rows at once on each of {self.devices}{turns}: {rate:.0f} row-steps/s, "
            f"{rate * self.flops / 1e9:.0f} GFLOP/s (row-steps/s by width: {tried}){cost}"
        )


def choose(
    experiment: Experiment,
    grid: Grid,
    mesh: Mesh,
    options: Options,
    max_steps: int,
    width: int = 0,
    fresh: bool = False,
) -> Plan:
    """The plan for a grid on a mesh. Of several processes only one shall ask, and tell the others.

    Args:
      max_steps: longest chunk that will be asked for.
      width: the one the user wants; 0: measure.
      fresh: measure again what is remembered.
    """
    first = Plan(device_names(), width or 1, 1, flops(experiment, grid), {}, {})
    rows_each = math.ceil(len(grid) / mesh.shape["run"])
    if not width:
        first = _measured(first, experiment, grid, mesh, options, max_steps, rows_each, fresh)
    working = first.memory.get(first.width, 0)
    return dataclasses.replace(first, row_batches=_row_batches(experiment, grid, rows_each, mesh, options, working))


@numerics.settled()
def explain(config: ml_collections.ConfigDict, compile_only: bool = False, fresh: bool = False) -> list[str]:
    """What a variant's grid needs on these devices, in lines for people.

    Args:
      compile_only: nothing is run; the width is the config's, or 1.
      fresh: measure again what is remembered.
    """
    experiment, grid, options = configs.experiment(config), configs.grid(config), sweep.options(config)
    mesh = shard.run_mesh(len(grid), config.data_devices)
    experiment.check_model()
    state = jax.eval_shape(functools.partial(step.start, experiment), grid.row(0))
    count = tree.size(state.params)
    lines = [
        f"{len(grid)} rows of {count:,} parameters, {tree.n_bytes(state) / 1e6:,.1f} MB each with the moments of the "
        f"optimizer, {flops(experiment, grid) / 1e9:,.2f} GFLOP a step; on {mesh.shape['run']} x {mesh.shape['data']} "
        "devices (run x data)",
        *experiment.init_table(grid.columns, measure=not compile_only),
    ]
    if compile_only:
        layout = shard.layout(mesh, len(grid), config.block_width or 1)
        compiled = compile_chunk(
            experiment, grid, layout, sweep.build(experiment, 1, layout.width, mesh, options), options
        )
        held = compiled.memory_analysis()
        lines.append(
            f"each device holds {held.argument_size_in_bytes / 1e6:,.0f} MB of states and data, and "
            f"{held.temp_size_in_bytes / 1e6:,.0f} MB while it computes, {layout.width} rows at once"
        )
        return [*lines, disk_sentence(config, experiment, grid)]
    longest = schedule.longest_part(config)
    chosen = choose(experiment, grid, mesh, options, longest, config.block_width, fresh)
    rate = chosen.rates.get(chosen.width) or _rate_or_none(experiment, grid, mesh, options, longest, chosen.width)[0]
    return [
        *lines,
        chosen.sentence(),
        duration_sentence(len(grid), config.steps, rate, chosen.width * mesh.shape["run"]),
        disk_sentence(config, experiment, grid),
    ]


def duration_sentence(n_rows: int, steps: int, rate: float | None, at_once: int) -> str:
    """How long training takes at a rate in row-steps/s; rows that fill up a last block are computed, too."""
    if not rate:
        return "no duration: one block does not fit in memory"
    computed = math.ceil(n_rows / at_once) * at_once
    return (
        f"about {hours_and_minutes(computed * steps / rate)}: {n_rows} rows x {steps} steps at {rate:.0f} row-steps/s; "
        "evaluations and compiling come on top"
    )


def hours_and_minutes(seconds: float) -> str:
    """`3 d 4 h`, `2 h 05 min`, `12 min`, `40 s`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
    return "{} d {} h".format(*divmod(hours, 24))


def disk_sentence(config: ml_collections.ConfigDict, experiment: Experiment, grid: Grid) -> str:
    """Bytes that a finished training leaves on disk, by what they are."""
    state = jax.eval_shape(functools.partial(step.start, experiment), grid.row(0))
    data = jax.eval_shape(lambda: batches.evaluation_set(experiment, batches.train_set(experiment)))
    scores = jax.eval_shape(functools.partial(step.evaluate, experiment), state, data)
    ends, evaluated, kept = schedule.boundaries(config)
    n_checkpoints = min(schedule.KEPT_CHECKPOINTS, len(schedule.checkpointed(config)))

    def saves(count: int, tree_of_row) -> float:
        described = DESCRIBED * len(jax.tree.leaves(tree_of_row))
        return count * (described + tree.n_bytes(tree_of_row) * len(grid))

    numbers = 2 * 4 * config.steps + 4 * len(ends) + len(evaluated) * tree.n_bytes(scores)  # two metrics a step
    parts = {
        f"{n_checkpoints} checkpoints": saves(n_checkpoints, state),
        f"{len(kept)} snapshots": saves(len(kept), state.params),
        "metrics": numbers * len(grid) + ENTRY * len(ends) * (len(scores) + 5),
    }
    listed = ", ".join(f"{name} {size(n_bytes)}" for name, n_bytes in parts.items())
    return f"on disk about {size(sum(parts.values()))}: {listed}"


def size(n_bytes: float) -> str:
    """`12 kB`, `3.4 MB`, `56 GB`."""
    power, unit = next(((p, unit) for p, unit in ((1e9, "GB"), (1e6, "MB")) if n_bytes >= p), (1e3, "kB"))
    n_bytes /= power
    return f"{n_bytes:.2g} {unit}" if n_bytes < 100 else f"{n_bytes:.0f} {unit}"


def record(workdir: Path, plan: Plan) -> None:
    """`plan.json` of a training: it continues with the same width, which its last bits depend on."""
    values = dataclasses.asdict(plan)
    values["waves"] = values.pop("row_batches")
    files.write_json(workdir / files.PLAN, values)


def recall(workdir: Path) -> Plan | None:
    """The plan that a training was begun with; None if there is none, or it is damaged."""
    try:
        held = files.read_json(workdir / files.PLAN)
        held["row_batches"] = held.pop("waves")
        return Plan(**held | _by_width(held))
    except (DamagedError, KeyError, TypeError):  # the latter two: signed, but by somebody else
        return None


def narrow(workdir: Path, width: int) -> None:
    """Says in `plan.json` that a narrower width was taken in the end."""
    if (held := recall(workdir)) is not None:
        record(workdir, dataclasses.replace(held, width=width))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory, as XLA and its allocators say it."""
    return any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"))


def _by_width(held: dict) -> dict[str, dict[int, float]]:
    """JSON made strings of the widths."""
    return {name: {int(width): value for width, value in held[name].items()} for name in ("rates", "memory")}


def flops(experiment: Experiment, grid: Grid) -> float:
    """Floating-point operations of one step of one row, by XLA's count of the program before it optimizes it."""
    hparams = {name: column[0] for name, column in grid.arrays().items()}
    state = jax.eval_shape(functools.partial(step.start, experiment), hparams)
    batch = jax.eval_shape(lambda: experiment.task.sample(jax.random.key(0), experiment.batch_size, "train", hparams))
    lowered = jax.jit(functools.partial(step.train_step, experiment)).lower(hparams, state, batch, 0)
    return float((lowered.cost_analysis() or {}).get("flops", math.nan))


def device_names() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _measured(plan: Plan, experiment, grid, mesh, options: Options, max_steps, rows_each: int, fresh: bool) -> Plan:
    """The plan with its width measured, or remembered from an earlier training with the same shapes."""
    place = _remembered(experiment, grid, mesh, options, max_steps, rows_each)
    if not fresh:
        with contextlib.suppress(DamagedError, KeyError, TypeError):
            known = files.read_json(place)
            return dataclasses.replace(plan, **known | _by_width(known))

    rates, memory = explore(functools.partial(_rate_or_none, experiment, grid, mesh, options, max_steps), rows_each)
    if not rates:
        raise ValueError(
            f"one row needs {memory[1] / 1e9:.1f} GB on a device that has {_memory() / 1e9:.1f} GB: {SMALLER}"
        )
    # a last block that is not full computes its padding too
    width = max(rates, key=lambda width: rates[width] / (math.ceil(rows_each / width) * width))
    cost = None
    if options.deterministic and jax.default_backend() == "gpu":
        faster = dataclasses.replace(options, deterministic=False)
        free, _ = _rate_or_none(experiment, grid, mesh, faster, max_steps, width)
        cost = free and free / rates[width]
    with contextlib.suppress(SaveError):  # a home folder that cannot be written is no reason not to train
        files.write_json(place, {"width": width, "rates": rates, "memory": memory, "determinism": cost})
    return dataclasses.replace(plan, width=width, rates=rates, memory=memory, determinism=cost)


def explore(measure, widest: int) -> tuple[dict[int, float], dict[int, int]]:
    """Rates and memory of widths 1, 4, 16, ... up to the first clearly slower one, then of the best one's neighbours.

    Args:
      measure: width -> (rate or None where it does not fit, bytes).
    """
    rates, memory = {}, {}

    def goes_on(width: int) -> bool:
        rate, memory[width] = measure(width)
        if rate is not None:
            rates[width] = rate
        return rate is not None and rate >= SLOWER * max(rates.values())

    width = 1
    while width <= widest and goes_on(width):
        width *= FACTOR
    if rates:
        best = max(rates, key=rates.get)
        for neighbour in (best // 2, min(best * 2, widest)):
            if neighbour >= 1 and neighbour not in memory:
                goes_on(neighbour)
    return rates, memory


def _rate_or_none(*program) -> tuple[float | None, int]:
    """`_rate`, and None too where XLA's prediction was too small."""
    try:
        return _rate(*program)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, math.ceil(min(_memory(), 2**60))


def _rate(experiment, grid: Grid, mesh: Mesh, options: Options, max_steps: int, width: int) -> tuple[float | None, int]:
    """Row-steps/s with one block on each device of this process, None if it does not fit, and its bytes on each."""
    groups = [group for group in mesh.devices if group[0].process_index == jax.process_index()]
    mesh = Mesh(np.array(groups), mesh.axis_names)
    layout = Layout(mesh, width * len(groups), width, width, 1)
    programs = sweep.build(experiment, max_steps, width, mesh, options)
    compiled = compile_chunk(experiment, grid, layout, programs, options)
    needed = device_bytes(compiled)
    if needed > MEMORY_SHARE * _memory():
        return None, needed

    (hparams,) = layout.to_device(grid.take(np.arange(layout.n_rows) % len(grid)).arrays())
    train_set = shard.replicate(batches.train_set(experiment), mesh)
    (state,) = layout.to_device(jax.device_get(programs.start(hparams)), options.split_params)

    def seconds(n_steps: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(hparams, state, train_set, 0, n_steps))
        return time.perf_counter() - begun

    seconds(1)
    n_steps = min(max_steps, max(1, math.ceil(SECONDS / seconds(1))))
    return layout.n_rows * n_steps / min(seconds(n_steps) for _ in range(REPEATS)), needed


def compile_chunk(experiment: Experiment, grid: Grid, layout: Layout, programs: sweep.Sweep, options: Options):
    """The compiled training step of a sweep, for arrays that need not exist."""
    hparams = layout.abstract(grid.arrays())
    state = layout.abstract(jax.eval_shape(programs.start, hparams), options.split_params)
    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    train_set = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(lambda: batches.train_set(experiment)),
    )
    return programs.chunk.lower(hparams, state, train_set, 0, 1).compile()


def device_bytes(compiled) -> int:
    """What a program holds on one device while it runs, as XLA predicts."""
    size = compiled.memory_analysis()
    held = size.argument_size_in_bytes + size.output_size_in_bytes - size.alias_size_in_bytes
    return held + size.temp_size_in_bytes + size.generated_code_size_in_bytes


def _row_batches(experiment, grid: Grid, rows_each: int, mesh: Mesh, options: Options, working: int) -> int:
    """How many batches the rows of a device fall into, so that one and its copy fit beside a block at work."""
    hparams = {name: column[0] for name, column in grid.arrays().items()}
    state = jax.eval_shape(functools.partial(step.start, experiment), hparams)
    leaves = jax.tree.leaves(state)
    parts = [
        mesh.shape["data"] if options.split_params and shard.split_spec(leaf.shape, mesh) else 1 for leaf in leaves
    ]
    row_bytes = sum(leaf.size * leaf.dtype.itemsize / n for leaf, n in zip(leaves, parts, strict=True))
    return max(1, math.ceil(2 * rows_each * row_bytes / max(MEMORY_SHARE * _memory() - working, row_bytes)))


def _memory() -> float:
    """Memory of one device; a CPU's is the machine's, shared by the devices there."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not say
        return math.inf
    return machine / jax.local_device_count()


def _remembered(experiment: Experiment, grid: Grid, mesh: Mesh, options: Options, max_steps, rows_each: int) -> Path:
    """Where the widths of a program on devices like these are kept; raises ValueError as `cache.folder`."""
    home = platform.node() if jax.default_backend() == "cpu" else ""
    program = (
        experiment,
        tuple(grid.columns),
        mesh.shape,
        options,
        max_steps,
        rows_each,
        os.environ.get("XLA_FLAGS"),
        jax.__version__,
        lab.__version__,
    )
    name = hashlib.sha256(repr((device_names(), home, *program)).encode()).hexdigest()[:16]
    return cache.folder("plans") / f"{name}.json"
