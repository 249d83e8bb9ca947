"""Checks a training before anything is written, and writes the files that say which one a folder holds."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import ml_collections

from lab import config as configs
from lab import families, optim, tree
from lab.disk import files, verify
from lab.disk.files import DamagedError, WorkdirError
from lab.disk.provenance import provenance
from lab.disk.workdir import Workdir, chosen
from lab.engine import batches, extension, init_from, numerics
from lab.engine import step as steps
from lab.engine.progress import Portion
from lab.experiment import Experiment
from lab.grid import Grid
from lab.tasks import Task


@numerics.settled()
def prepare_variants(config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None = None) -> dict:
    """Name -> `Prepared` of every variant, checked, in the order to train them.

    Raises:
      ValueError, WorkdirError: as `lab.engine.train.train`.
    """
    return _all((name, config, Path(workdir) / name, grid) for name, config in configs.variants(config).items())


@numerics.settled()
def prepare_extension(
    workdir: str | Path, axes: Mapping[str, Sequence], variants: Sequence[str] | None = None
) -> dict[str, "Prepared"]:
    """As `prepare_variants`, of the trainings in a folder with more values of some axes of their grids.

    Args:
      variants: None: all.

    Raises:
      ValueError, WorkdirError: as `lab.engine.train.extend`.
    """
    if not axes:
        raise ValueError("which axes get more values? e.g. seed=(5, 6, 7)")
    works = chosen(workdir, variants)
    for work in works.values():
        work.bring_back()
    held = configs.sources_first({name: work.config for name, work in works.items()})
    return _all(
        (name, config, works[name].path, extension.larger_grid(works[name], axes)) for name, config in held.items()
    )


def _all(asked: Iterable[tuple]) -> dict[str, "Prepared"]:
    prepared = {}
    for name, config, path, grid in asked:
        source = prepared.get(config.start.variant)
        prepared[name] = prepare(config, path, grid, None if source is None else (source.config, source.grid))
    return prepared


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A training that may begin or go on.

    Attributes:
      grid: all rows that are asked for.
      parts: the folders that they are in, see `extension.parts`.
    """

    config: ml_collections.ConfigDict
    work: Workdir
    grid: Grid
    parts: list[extension.Part]

    def trained(self) -> bool:
        return all(work.trained() for _, work, _ in self.parts)


def prepare(
    config: ml_collections.ConfigDict, workdir: str | Path, grid: Grid | None, source: init_from.Planned | None = None
) -> Prepared:
    """Checks a training before anything is written.

    Args:
      source: what it starts from, if it does and that is still to be trained.

    Raises:
      ValueError, WorkdirError: as `lab.engine.train.train`.
    """
    main = Workdir(workdir)
    if main.extends is not None:
        raise WorkdirError(f"{main.path}: its rows were added to {main.extends.path}; extend or train that one")
    experiment = configs.experiment(config)
    grid = configs.grid(config) if grid is None else grid
    parts = extension.parts(main, config, grid)
    for its_config, work, rows in parts:
        if _refuse_other(work, its_config, rows):
            if not work.trained():
                _refuse_other_numerics(work)
        else:
            _check_rows(experiment, rows)
            _trace(experiment, rows)
            batches.check_ids(experiment)
            init_from.check(work.path, its_config, rows, source)
        if work.extends is not None and not work.trained():
            numerics.refuse_other(main.path, main.read_json("config.json"), "add rows")
    return Prepared(config, main, grid, parts)


def portions(prepared: Iterable[Prepared]) -> dict[str, Portion]:
    """What is to be done in every folder, in row-steps; where their programs differ, times parameters and tokens."""
    parts = [part for one in prepared for part in one.parts]
    programs = {repr([config[option] for option in ("model", "task", "batch_size")]) for config, _, _ in parts}
    found = {}
    for config, work, grid in parts:
        done = min(max(files.steps(work.checkpoints), default=0), config.steps)
        cost = _row_cost(config, grid) if len(programs) > 1 else 1.0
        found[work.name] = Portion(config.steps, done, len(grid) * cost)
    return found


def _row_cost(config: ml_collections.ConfigDict, grid: Grid) -> float:
    """Of a row-step, about in proportion to its operations."""
    experiment = configs.experiment(config)
    params = jax.eval_shape(lambda hparams: steps.start(experiment, hparams).params, grid.row(0))
    return float(tree.size(params)) * config.batch_size * max(1, experiment.task.length)


def begin(work: Workdir, config: ml_collections.ConfigDict, grid: Grid, report: Callable[[str], None]) -> bool:
    """Writes what is to be trained, unless it is there; returns whether it is trained and whole.

    To be called by the only writer. The config comes last: a folder without one, or without anything trained, is begun
    anew.

    Args:
      report: is given one line for everything that is damaged.

    Raises:
      WorkdirError: another training, or other numerics, began here.
    """
    verify.set_aside_identity(work, report)
    _refuse_other(work, config, grid)  # again: another process may have begun here since
    begun = (work.path / "config.json").is_file() and _has_results(work)
    start = {} if begun else init_from.identity(work.path, config, grid)
    if not begun or not (work.path / "grid.json").is_file():
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
    if verify.whole(work):
        return True
    _refuse_other_numerics(work)
    return False


def _has_results(work: Workdir) -> bool:
    """Whether a step was saved here, whole or not; what was not trained yet may begin in another way."""
    folders = (work.metrics, work.checkpoints, work.snapshots)
    return any(files.is_step(path.stem) for folder in folders if folder.is_dir() for path in folder.iterdir())


def _refuse_other_numerics(work: Workdir) -> None:
    if _has_results(work):
        numerics.refuse_other(work.path, work.read_json("config.json"), "continue")


def _refuse_other(work: Workdir, config: ml_collections.ConfigDict, grid: Grid) -> bool:
    """Whether the folder says it holds this training; raises WorkdirError if it says it holds another."""
    try:
        held_config, held_grid = work.config, work.grid
    except DamagedError:  # missing or unreadable: written anew when training starts
        return False
    changed = configs.differences(*(configs.to_json(families.completed(one)) for one in (held_config, config)))
    asked = Grid.from_json(grid.to_json()).to_json()
    changed = changed or configs.differences(held_grid.to_json(), asked, "grid.json ")
    changed = changed or families.changed(work.classes)
    changed = changed or configs.differences(work.data_hashes, files.hashes(work.experiment.task.files()), "data ")
    if changed:
        raise WorkdirError(f"{work.path} holds another training; use another workdir. Changed: {'; '.join(changed)}")
    return True


def _check_rows(experiment: Experiment, grid: Grid) -> None:
    """What a task, objective, optimizer or controller refuses as its own value is refused in a grid, too."""
    optim.check_decay(experiment.optim, experiment.steps, grid.columns)
    owners = (experiment.task, experiment.objective, *filter(None, [experiment.controller]))
    for owner in owners:
        varied = [name for name in owner.hparams if name in grid.columns]
        for values in dict.fromkeys(zip(*(grid.columns[name] for name in varied), strict=True)):
            try:
                row_owner = dataclasses.replace(owner, **dict(zip(varied, values, strict=True)))
                if owner is experiment.task:  # what only the data say, once they are read
                    jax.eval_shape(lambda task=row_owner: task.sample(jax.random.key(0), 1, "train", {}))
            except ValueError as error:
                raise ValueError(f"a row of the grid: {error}") from error
    axes = {name: tuple(dict.fromkeys(column)) for name, column in grid.columns.items()}
    experiment.objective.check_fit(experiment.task, getattr(experiment.model, "readout", "all"), axes)
    if experiment.controller is not None:
        experiment.controller.check_axes(axes)


def _trace(experiment: Experiment, grid: Grid) -> None:
    """Goes through a start and an evaluation without computing: what their shapes forbid is refused here."""
    experiment.check_model()
    state = jax.eval_shape(functools.partial(steps.start, experiment), grid.row(0))
    evaluation_set = batches.traced(experiment).shapes.evaluation_set
    scores = jax.eval_shape(functools.partial(steps.evaluate, experiment), state, evaluation_set)
    _check_scores(experiment.task, scores, grid)


def _check_scores(task: Task, scores: Mapping, grid: Grid) -> None:
    """What `load` will make of the evaluations must be what the task says they are."""
    kind, taken = type(task).__name__, {*grid.columns, "row", "step", "train_step", "snapshot"}
    sizes = {dim: len(values) for dim, values in task.coords.items()}
    for name, score in scores.items():
        dims = task.dims.get(name.split(".")[-1], ())
        if len(dims) != len(score.shape):
            raise ValueError(
                f"{kind}.score: {name} has the shape {score.shape}, and {kind}.dims names the dimensions {tuple(dims)} "
                "for it; accepted: a name for each axis, none for a scalar"
            )
        for dim, size in zip(dims, score.shape, strict=True):
            if dim in taken:
                raise ValueError(f"{kind}.dims: {name} has a dimension {dim!r}, which is one of every training's")
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"{kind}.score: {name} has {size} entries along {dim!r}, and {kind}.coords or another score has "
                    f"{sizes[dim]}"
                )
