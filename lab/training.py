"""A training from Python: model, task, grid and steps as objects; then train, measure, look, report."""

import dataclasses
import functools
import hashlib
import html
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from ml_collections import ConfigDict

from lab import claims as claim_values
from lab import config as configs
from lab import configure, families, stages, studies, user_code
from lab.configs import base
from lab.disk import files
from lab.disk.load import load
from lab.disk.workdir import united, variants_in
from lab.engine import plan as plans
from lab.engine import train as engine
from lab.grid import Grid
from lab.report import figures
from lab.row import Lines, Row, shown
from lab.runs import Run, first_scores
from lab.sinks import export

LEAD = "Trained from Python."


class Training:
    """A grid of rows of one model on one task, its folder, and what is measured of it.

    `Training(model=..., task=..., grid=..., steps=..., workdir=...)` takes what `lab.configure.config` takes;
    `Training(config, workdir)` a config, or a name of one such as `composition:smoke`; `Training.open(workdir)` what is
    there. Nothing is written before `train`. Methods that do something return the training, so that they follow each
    other: `run.train().measure("rank")`.

    Attributes:
      config: every option.
      workdir: with a folder for each variant; a config without variants has one, `main`.
      variant: which one numbers and rows are of; None where there are several.
    """

    def __init__(self, config=None, workdir=None, *, grid: Mapping | Grid | None = None, **objects):
        """
        Args:
          config: a `ConfigDict`, or the name of one and of its preset; None: one is made of `objects`.
          workdir: None: a folder below runs/ whose name has a hash of all that is trained.
          grid: as `lab.configure.config`; beside a config, axes in place of those of its own that have their names, the
            others stay; rows of `lab.grid` are in place of all of its own.
          objects: what a training is made of, `model`, `task`, `steps`, ...: see `lab.configure.config`.

        Raises:
          ValueError: an impossible config; a model or a task is missing; objects beside a config.
        """
        if config is None:
            missing = [name for name in ("model", "task") if objects.get(name) is None]
            if missing:
                raise ValueError(f"lab.Training: {' and '.join(missing)} is missing, or a config")
            config = configure.config(grid=grid, **objects)
        elif objects:
            raise ValueError(f"{next(iter(objects))}: an option of the config; change it there")
        else:
            config = _config(config)
            if isinstance(grid, Mapping):
                config.grid = ConfigDict({**config.grid.to_dict(), **configure.named_axes(grid)})
        self.config, self._rows = configs.plain(config), grid if isinstance(grid, Grid) else None
        self._configs = configs.variants(self.config)
        self._grids = {name: self._rows or configs.grid(variant) for name, variant in self._configs.items()}
        self._experiments = {name: configs.experiment(variant) for name, variant in self._configs.items()}
        self.workdir = Path(workdir or Path("runs") / self._name())
        self.variant = next(iter(self._configs)) if len(self._configs) == 1 else None
        self._paths = {name: self.workdir / name for name in self._configs}
        _warn_of_unimportable(self._configs)

    @classmethod
    def open(cls, workdir: str | Path) -> "Training":
        """What a folder holds, trained by this process or another.

        Raises:
          WorkdirError: nothing is trained there.
          ValueError: a class or a function of it cannot be found.
        """
        works = variants_in(workdir)
        self = cls.__new__(cls)
        self._configs = {name: work.config for name, work in works.items()}
        self._experiments = {name: work.experiment for name, work in works.items()}
        self._paths = {name: work.path for name, work in works.items()}
        self.workdir, self.variant = Path(workdir), next(iter(works)) if len(works) == 1 else None
        self.config, self._rows = next(iter(self._configs.values())), None
        self._grids = {name: work.grid for name, work in works.items()}
        return self

    def __getitem__(self, variant: str) -> "Training":
        """The same training, whose numbers and rows are of one variant."""
        if variant not in self._configs:
            raise ValueError(f"variant {variant!r}: one of {', '.join(self._configs)}")
        chosen = type(self).__new__(type(self))
        chosen.__dict__ |= {key: value for key, value in self.__dict__.items() if key != "dataset"}
        chosen.variant = variant
        return chosen

    # --- what is done ---

    def train(self) -> "Training":
        """Trains to the last step, or goes on where it stopped.

        Raises:
          WorkdirError: the folder holds another training, is in use by another process, or is damaged.
          ValueError: a model, a task or a row that cannot be trained.
        """
        self._forget()
        if "variants" in self.config:
            engine.train_variants(self.config, self.workdir, self._rows)
        else:  # opened: each with the config and rows that it has
            for name, path in self._paths.items():
                engine.train(self._configs[name], path, self._grids[name])
        return self

    def extend(self, **axes) -> "Training":
        """Trains more rows: more values of some axes, `seed=range(5, 8)` or `gamma=0.9`, beside all that the grid has.

        Everything that reads the training has all rows then. Asked for again, it goes on where it stopped.

        Raises:
          ValueError: no such axis; a value that is there beside some rows, is repeated, or cannot be trained; or
            several processes have joined.
          WorkdirError: nothing was trained here, another process is at work, or other numerics trained what is there.
        """
        names = [*self._paths] if self.variant is None else [self.variant]
        extend(self.workdir, names, **axes)
        self._forget()
        self._grids |= {name: united(self._paths[name]).grid for name in names}
        return self

    def measure(self, *names: str, **scope) -> "Training":
        """Takes measurements of the catalogue, of the rows and snapshots that have none yet.

        Args:
          names: such as `rank`, or `all` that apply; none: those that the study of the config stands on.
          scope: `snapshots` (`all`, `last` or `log`), `rows`, `precision`, `n`: see `lab.measuring.run.Selection`.

        Raises:
          ValueError, WorkdirError: as `lab.stages.analyze`.
        """
        self._forget()
        stages.analyze(self.workdir, list(names) or None, None if self.variant is None else [self.variant], **scope)
        return self

    def report(
        self, claims: Sequence[claim_values.Claim] = (), title: str = "", lead: str = LEAD, partial: bool = False
    ) -> "Report":
        """Evaluates the claims and writes the page; raises as `lab.stages.report`.

        Args:
          claims: of `lab.claim`; none: those of the study that the config names, if any.
          partial: what is not trained yet is left out.
        """
        known = self.config.study in studies.names() or self.config.study.endswith(".py")
        study = None
        if claims or not known:
            study = studies.Study(
                title=title or self.config.study, lead=lead, papers=(), measures=lambda experiment: [],
                claims=tuple(claims), target="", sections=lambda runs: [], name=self.config.study,
            )  # fmt: skip
        return Report(*stages.report(self.workdir, partial, study))

    def plan(self) -> Lines:
        """Memory, rows at once and speed on this device, in lines."""
        return _planned(self._configs, self._grids)

    # --- what there is to see ---

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """All numbers of the variant: see `lab.load`."""
        return load(self._paths[self._only()])

    @property
    def run(self) -> Run:
        """The numbers as claims and figures take them, the middle of every axis where none is said."""
        return Run(self.dataset)

    @property
    def experiment(self):
        return self._experiments[self._only()]

    def init_table(self) -> Lines:
        """Every leaf of the model: its number of inputs, its group, and its std at the ends of the grid."""
        return Lines("\n".join(self.experiment.init_table(self._grids[self._only()].columns, measure=True)))

    def phase_diagram(self, *metrics: str, rows: str = "weight_decay", **options):
        """Heatmaps gamma x `rows`, a panel a metric, as a Matplotlib figure: see `lab.report.figures.phase_diagram`."""
        return figures.phase_diagram(self.run, list(metrics) or self.metrics(), rows, **options)

    def curves(self, *metrics: str, **options):
        """The metrics over training, as a Matplotlib figure: see `lab.report.figures.training_curves`."""
        return figures.training_curves(self.run, list(metrics) or self.metrics(), **options)

    def metrics(self) -> list[str]:
        """The first score of every split, or its loss where it has none."""
        return first_scores(self.dataset.data_vars, self.experiment.task.splits)

    def row(self, **place) -> "Row":
        """One row, by as many of its hyperparameters as single it out; raises as `dataset.lab.row`."""
        return Row(self.dataset, self.dataset.lab.row(**place))

    def to_csv(self, path: str | Path, *names: str) -> Path:
        """Writes numbers as one tidy table, a line a row and step: `csv` of `lab.export`; returns the path.

        Args:
          names: of variables, or what stands before their dot; none: all that are not large.
        """
        return export(self.workdir, "csv", path, metrics=names or None, variants=self.variant and [self.variant])

    def __repr__(self) -> str:
        return "\n".join([f"Training in {self.workdir}", *(f"  {line}" for line in self._facts())])

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self._facts())
        models = "".join(map(shown, {experiment.model: 0 for experiment in self._experiments.values()}))
        return f"<div><b>Training</b> in <code>{html.escape(str(self.workdir))}</code><ul>{lines}</ul>{models}</div>"

    def _facts(self) -> list[str]:
        facts = []
        for name, config in self._configs.items():
            rows, experiment = self._grids[name], self._experiments[name]
            axes = ", ".join(f"{axis} {_short(values)}" for axis, values in (rows.axes or rows.columns).items())
            reached = max(files.steps(self._paths[name] / "checkpoints"), default=0)
            kinds = f"{type(experiment.model).__name__} on {config.study.partition(' on ')[2] or config.study}"
            facts.append(f"{name}: {kinds}, {len(rows)} rows ({axes}), step {reached:,} of {config.steps:,}")
        return facts

    def _only(self) -> str:
        if self.variant is None:
            first = next(iter(self._configs))
            raise ValueError(f"of which variant? There are {', '.join(self._configs)}: training[{first!r}]")
        return self.variant

    def _forget(self) -> None:
        self.__dict__.pop("dataset", None)

    def _name(self) -> str:
        """Of a folder: another for whatever changes the training."""
        own = [place["sha256"] for config in self._configs.values() for place in families.own(config)]
        said = json.dumps(
            [configs.to_json(self.config), [grid.to_json() for grid in self._grids.values()], own], sort_keys=True
        )
        words = "".join(c if c.isalnum() else "-" for c in self.config.study.replace(" on ", "-")).strip("-")
        return f"{words.lower()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
      page: the report, one HTML file.
      claims: a dict a claim, as claims.json has it: `id`, `verdict`, `value`, `interval`, `per_seed`, `margin`, ...
    """

    page: Path
    claims: list[dict]

    def __repr__(self) -> str:
        from lab.report import claims_table

        return "\n".join(filter(None, [claims_table.text(self.claims) if self.claims else "", f"report: {self.page}"]))


def train(config=None, workdir=None, **objects) -> Training:
    """`Training(...).train()`."""
    return Training(config, workdir, **objects).train()


def extend(workdir: str | Path, variants: Sequence[str] | None = None, **axes) -> None:
    """Trains more rows of the trainings in a folder, as `Training.extend`: `seed=range(5, 8)`.

    Args:
      variants: None: all in the folder.

    Raises:
      ValueError: no such variant; or as `Training.extend`.
      WorkdirError: as `Training.extend`.
    """
    engine.extend(workdir, configure.named_axes(axes), variants)


def analyze(workdir: str | Path, names: str | Sequence[str] | None = None, **scope) -> list[str]:
    """Takes measurements of a workdir, whoever trained it: arguments and errors are those of `lab.stages.analyze`."""
    return stages.analyze(Path(workdir), [names] if isinstance(names, str) else names, **scope)


def report(workdir: str | Path, partial: bool = False) -> Report:
    """Evaluates the claims of the study that a workdir is of, and writes its page.

    Args:
      partial: what is not trained or not measured yet is left out; claims that need it are open.

    Raises:
      WorkdirError: not trained to the end, or not analyzed.
    """
    return Report(*stages.report(Path(workdir), partial))


def plan(config, fresh: bool = False) -> Lines:
    """What a config (or its name, `composition:cpu`) needs on this device, in lines: see `lab.engine.plan.explain`."""
    return _planned(configs.variants(_config(config)), fresh=fresh)


def claim(
    id: str, statement: str, *, source: str = "this training", published: str = "-",
    threshold_from: str = claim_values.OURS, **bounds,
):  # fmt: skip
    """Makes a claim of a function `runs -> one number a seed`, a DataArray over `seed` of one training's `Run`.

    Args:
      id: unique in its report, such as `A1`.
      statement: a sentence.
      source, published: whose statement it is, and the published value in words.
      threshold_from: where the threshold comes from, in words.
      bounds: `quantity`, what the number is in a few words, and `at_least`, `above`, `at_most` or `below`, and further
        arguments of `lab.claims.claim`.

    Raises:
      ValueError: no bound, or two on one side.
    """
    said = dict(source=source, published=published, threshold_from=threshold_from)
    return claim_values.claim(id, statement, **said, **bounds)


def _planned(variants: Mapping[str, ConfigDict], grids: Mapping[str, Grid] = {}, fresh: bool = False) -> Lines:
    explained = {name: plans.explain(config, False, fresh, grids.get(name)) for name, config in variants.items()}
    return Lines("\n".join(f"{name}: {line}" for name, lines in explained.items() for line in lines))


def _config(given) -> ConfigDict:
    if isinstance(given, str):
        name, _, preset = given.partition(":")
        return base.load(name, preset or None)
    if not isinstance(given, Mapping | ConfigDict):
        raise ValueError(f"config: a {type(given).__name__}; expected a ConfigDict, or a name such as composition:cpu")
    return ConfigDict(given)


def _warn_of_unimportable(variants: Mapping[str, ConfigDict]) -> None:
    places = [place for config in variants.values() for place in families.own(config) if place["file"] is None]
    names = dict.fromkeys(f"{place['class']} of {place['module']}" for place in places)
    if names:
        warnings.warn(
            f"{', '.join(names)}: this process can train and look at it, another one cannot import it; to open the "
            f"training elsewhere, {user_code.WHAT_TO_DO}",
            stacklevel=3,
        )


def _short(values: Sequence) -> str:
    shown = [f"{value:g}" for value in dict.fromkeys(np.asarray(values).tolist())]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:5], "...", shown[-1]])
