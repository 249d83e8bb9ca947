"""Stages after training: `analyze` takes measurements, `report` evaluates claims and writes the page."""

import contextlib
import functools
import json
import shlex
from collections.abc import Container, Sequence
from pathlib import Path

import xarray as xr
from ml_collections import ConfigDict

from lab import claims, limits, studies
from lab import config as configs
from lab.configs import base
from lab.disk import claims_file
from lab.disk.files import WorkdirError, write_json
from lab.disk.load import load
from lab.disk.workdir import Workdir, chosen, variants_in
from lab.engine import numerics
from lab.engine.progress import Portion, Progress, busy
from lab.measuring import catalogue, run
from lab.measuring.declare import Measure, in_float32, summary
from lab.measuring.run import Selection
from lab.report import catalogue as catalogue_pages
from lab.report import explore
from lab.report.page import Page, write_page
from lab.runs import MissingData, Run, Runs, first_scores

PAGE = Path("report") / "index.html"
SIZES = (("layers", "model", "n_layers"), ("d_model", "model", "d_model"), ("steps", "steps"),
         ("sequences a step", "batch_size"))  # fmt: skip
NO_STUDY = "Trained by a config that belongs to no study: pictures of what was measured, and no claims."
LEFT_OUT = "stale: measured by an older version of the code; `python -m lab analyze` takes them again by name"
NOT_TRAINED = "rows that were added and are not trained to their end"
KEPT_CLAIMS = "as an earlier report from Python evaluated them; this one was given none"


def analyze(
    root: Path, names: Sequence[str] | None = None, variants: Sequence[str] | None = None, **scope
) -> list[str]:
    """Takes measurements; returns those of which something was not there yet, as `variant/measure`.

    Args:
      names: of measurements, or `["all"]`; None: those the study's claims and report stand on.
      variants: None: all.
      scope: which snapshots and rows, and how exactly: see `Selection`.

    Raises:
      ValueError: no such measurement, variant or row; nothing has been measured then.
      WorkdirError: nothing trained, or not to the end.
    """
    selection = Selection(**scope)
    with Progress("row") as progress:
        progress.doing("looking for what is not measured yet")
        trained = _trained(root, variants)
        due = _due(trained, names)
        for work in trained.values():
            run.refuse_unknown_rows(work, selection)
        # refuses what is asked for and not there
        counts = {name: run.n_missing(work, due[name], selection) for name, work in trained.items()}
        progress.expect({name: Portion(count) for name, count in counts.items()})
        taken = {name: run.measure(work, due[name], selection, progress) for name, work in trained.items()}
    return [f"{name}/{measured}" for name, names in taken.items() for measured in names]


@numerics.fixed()
@busy("evaluating the claims and drawing the report")
def report(root: Path, partial: bool = False, study: studies.Study | None = None) -> tuple[Path, list[dict]]:
    """Evaluates the claims, writes `claims.json` and the page; returns the page's path and the claims table.

    Measurements that other code took are left out, and the page says so: see `stale`. Where there are no claims to
    evaluate, those that an earlier report evaluated stay, and the page says that, too.

    Args:
      partial: what is not trained or not analyzed yet is left out, too. Claims that need it are open and name it.
      study: whose claims and pictures they are; None: the study that the config names.

    Raises:
      WorkdirError: not trained to the end, or not analyzed; with `partial`: nothing is trained to its end.
    """
    trained, absent = _ended(root) if partial else (_trained(root), {})
    study = study or study_of(trained)
    without = stale(root)
    left_out = {name: f"{', '.join(names)} ({LEFT_OUT})" for name, names in without.items()}
    for name, work in trained.items():
        due = [measure.name for measure in run.missing(work, _own(work, study))]
        if due and not partial:
            command = f"python -m lab analyze {shlex.quote(str(root))}"
            raise WorkdirError(f"{work.path}: variant {name} is not analyzed; run `{command}` first")
        if due:
            without[name] = [*without.get(name, ()), *due]
            left_out[name] = "; ".join(filter(None, [left_out.get(name), f"{', '.join(due)} (not analyzed yet)"]))
        if work.unfinished:
            rows = f"{', '.join(folder.name for folder in work.unfinished)} ({NOT_TRAINED})"
            left_out[name] = "; ".join(filter(None, [left_out.get(name), rows]))
    runs = Runs({name: load(work.path, without=without.get(name, ())) for name, work in trained.items()}, study.usual)
    parts = [part for work in trained.values() for part in work.parts]
    command = "; ".join(dict.fromkeys(part.read_json("config.json")["command"] for part in parts))
    table = claims.table(study.claims, runs.without(absent), command, _scale(study, trained))
    kept = [] if study.claims else _claims_there(root)
    table |= {"claims": kept} if kept else {}
    target = target_of(study, next(iter(trained.values())), next(iter(runs.values())).dataset)
    sections = catalogue_pages.sections(runs, target)
    try:
        sections = study.sections(runs) + sections
    except MissingData as missing:
        if not partial:
            raise
        left_out["pictures"] = f"of the study (this run lacks {missing})"
    commands = [command, f"python -m lab claims --workdir={shlex.quote(str(root))}"]
    facts = _facts(trained) | {f"left out {name}": why for name, why in (absent | left_out).items()}
    facts |= {"claims": KEPT_CLAIMS} if kept else {}
    explorable = [name for name, work in trained.items() if len(work.grid) > 1]
    explored = {name: explored_data(trained[name], study, runs[name], len(runs)) for name in explorable}
    page = Page(study.title, study.lead, facts, table["claims"], sections, commands, explored)
    write_json(root / claims_file.NAME, table)
    return write_page(root / PAGE.parent, page), table["claims"]


def stale(root: Path) -> dict[str, list[str]]:
    """Variant -> measurements that it holds as other code took them; only variants that have some.

    Raises:
      WorkdirError: nothing trained.
    """
    found = {name: run.stale(work, _known(work, _held(work))[0].values()) for name, work in variants_in(root).items()}
    return {name: measures for name, measures in found.items() if measures}


def _held(work: Workdir) -> set[str]:
    """Names of the measurements that a training holds, whole or not."""
    return {path.stem for part in work.parts for path in part.analysis.glob("*.json")}


def listed(study: studies.Study) -> tuple[dict[str, str], dict[str, str]]:
    """What each measurement is, by name, for the smallest preset: of the study's own, and of the catalogue's.

    None for a variant that cannot be built without the user's data.
    """
    config = base.load(study.name, next(iter(base.presets(study.name))))
    own, general = {}, {}
    for variant in configs.variants(config).values():
        with contextlib.suppress(ValueError):
            experiment = configs.experiment(variant)
            general |= {measure.name: summary(measure) for measure in catalogue.measures(experiment)}
            own |= {measure.name: summary(measure) for measure in study.measures(experiment)}
    return {name: text for name, text in own.items() if name not in general}, general


def reported(root: Path) -> bool:
    """Whether the report is there and newer than everything it is made of."""
    page = root / PAGE
    found = [part for work in variants_in(root).values() for part in (work, *work.extensions)]
    sources = [path for part in found for path in (*part.analysis.glob("*.json"), part.path / "config.json")]
    return page.is_file() and all(path.stat().st_mtime <= page.stat().st_mtime for path in sources if path.is_file())


def _trained(root: Path, variants: Sequence[str] | None = None) -> dict[str, Workdir]:
    works = chosen(root, variants)
    for name, work in works.items():
        if not work.trained():
            raise WorkdirError(f"{work.path}: variant {name} is not trained to its last step; train first")
    return works


def _ended(root: Path) -> tuple[dict[str, Workdir], dict[str, str]]:
    """The variants that are trained to their end, and of all others why they are not here.

    Raises:
      WorkdirError: there is none of the former.
    """
    found = variants_in(root)
    trained = {name: work for name, work in found.items() if work.trained()}
    if not trained:
        raise WorkdirError(f"{root}: no variant is trained to its last step; train first")
    config = next(iter(trained.values())).config
    planned = {}
    with contextlib.suppress(ValueError):  # a user's own config: nothing says what else there was to be
        planned = base.load(config.study, config.preset).variants
    absent = {name: "not trained to its last step" for name in found.keys() - trained.keys()}
    if root.resolve().name not in found:  # a training's own folder holds no other variants
        absent |= {name: "not trained yet" for name in planned if name not in found}
    return trained, absent


def study_of(trained: dict[str, Workdir]) -> studies.Study:
    """The study that was trained; one that claims nothing for a config of the user's that belongs to none."""
    config = next(iter(trained.values())).config
    return studies.get(config.study) if _belongs(config) else without_claims(config)


def _belongs(config: ConfigDict) -> bool:
    """Whether a training is one of a study."""
    return config.study in studies.names() or config.study.endswith(".py")


def without_claims(config: ConfigDict) -> studies.Study:
    """Of a config of the user's that belongs to no study, or to one whose file is not here."""
    return studies.Study(
        title=config.study, lead=NO_STUDY, papers=(), measures=lambda experiment: [], claims=(), target="",
        sections=lambda runs: [], name=config.study,
    )  # fmt: skip


def explored_data(work: Workdir, study: studies.Study, run: Run, n_variants: int) -> dict:
    """What the interactive part draws one of so many variants from."""
    return explore.data(run, target_of(study, work, run.dataset), explore.MOST // n_variants)


def target_of(study: studies.Study, work: Workdir, dataset: xr.Dataset) -> str:
    """The metric that a study is about; of a training that belongs to no study the first score of the last split."""
    scores = first_scores(dataset.data_vars, work.experiment.task.splits[-1:])
    return study.target or next(iter(scores), "")


def _claims_there(root: Path) -> list[dict]:
    """Of an earlier report; none where there is none, or another version wrote it."""
    with contextlib.suppress(WorkdirError):
        return claims_file.read(root)
    return []


def _due(trained: dict[str, Workdir], names: Sequence[str] | None) -> dict[str, list[Measure]]:
    """Variant -> the measurements that are asked of it.

    Raises:
      ValueError: a variant does not have them; the message says which ones do.
    """
    found, refused = {}, {}
    for variant, work in trained.items():
        try:
            found[variant] = _measures(work, names)
        except ValueError as error:
            refused[variant] = error
    if not refused:
        return found
    variant, error = next(iter(refused.items()))
    others = f". Variant {variant} does not have it; those that do: --variants={','.join(found)}"
    raise ValueError(f"{error}{others if found and names else ''}") from error


def _measures(work: Workdir, names: Sequence[str] | None) -> list[Measure]:
    if names is None:
        if not _belongs(work.config):
            raise ValueError(f"name measurements, or all: {work.path} belongs to no study that says which")
        return _own(work)
    known, refusal = _known(work, None if "all" in names else names)
    for name in names:
        if name not in {*known, "all"}:
            known, refusal = _known(work)
            near = limits.nearest(name, known) or _about(name, known)
            reason = catalogue.absent(work.experiment).get(name, "" if near else refusal)
            hint = f": {reason}." if reason else near or "."
            raise ValueError(f"no measurement {name!r}{hint} There are {', '.join(sorted(known))}, or all")
    return [measure for name, measure in known.items() if name in names or "all" in names]


def _about(word: str, known: dict[str, Measure]) -> str:
    """`; see directions.`, for the end of a message: measurements whose summary has the word."""
    found = [name for name, measure in known.items() if word and word.lower() in summary(measure).lower()]
    return f"; see {', '.join(found)}." if found else ""


def _own(work: Workdir, study: studies.Study | None = None) -> list[Measure]:
    with numerics.fixed():
        return (study or studies.get(work.config.study)).measures(in_float32(work.experiment))


def _known(work: Workdir, names: Container[str] | None = None) -> tuple[dict[str, Measure], str]:
    """The catalogue's measurements of these names (None: all) and the study's, by name; and why the study measures
    nothing here, if so.
    """
    known = {measure.name: measure for measure in catalogue.measures(in_float32(work.experiment), names)}
    if not _belongs(work.config):
        return known, ""
    try:
        return known | {measure.name: measure for measure in _own(work)}, ""
    except ValueError as error:
        return known, str(error)


def _preset(trained: dict[str, Workdir]) -> str:
    return next(iter(trained.values())).config.preset


def _scale(study: studies.Study, trained: dict[str, Workdir]) -> str:
    """The size of a training beside that of the study's preset `paper`, e.g. `reduced: 2 of 10 layers`."""
    if not study.published_sizes or not _published(study.name):
        return "no published size"
    papers = configs.variants(base.load(study.name, "paper"))
    sizes = {_beside(work.config, papers.get(name, next(iter(papers.values())))) for name, work in trained.items()}
    return sizes.pop() if len(sizes) == 1 else "reduced (sizes by variant: see the run)"


def _beside(config: ConfigDict, paper: ConfigDict) -> str:
    sizes = []
    for words, *path in SIZES:
        ours, theirs = (functools.reduce(lambda part, name: part.get(name), path, one) for one in (config, paper))
        if ours != theirs and None not in (ours, theirs):
            sizes.append(f"{ours:,} of {theirs:,} {words}")
    return f"reduced: {', '.join(sizes)}" if sizes else "published"


def _published(study: str) -> bool:
    known = study in base.names() or study.endswith(".py")
    return known and "paper" in base.presets(study)


def _facts(trained: dict[str, Workdir]) -> dict[str, object]:
    """What was run, per variant."""
    facts = {"preset": _preset(trained)}
    for name, work in trained.items():
        experiment, grid = work.experiment, work.grid
        facts[f"variant {name}"] = (
            f"{len(grid)} rows, {experiment.steps} steps of {experiment.batch_size} sequences, "
            + ", ".join(f"{axis} {_values(values)}" for axis, values in (grid.axes or grid.columns).items())
        )
        facts[f"model {name}"] = " ".join(f"{option}={_one_line(value)}" for option, value in work.config.model.items())
    identity = work.read_json("config.json")
    facts["devices"] = ", ".join(identity["devices"])
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in identity["versions"].items())
    return facts


def _one_line(value) -> str:
    return json.dumps(value.to_dict()) if isinstance(value, ConfigDict) else str(value)


def _values(values) -> str:
    return ", ".join(f"{value:g}" for value in values)
