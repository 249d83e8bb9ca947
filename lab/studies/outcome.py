"""From a trained workdir to its measurements, claims and report."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

from lab import grid as grids
from lab import studies
from lab.analysis import catalogue, measure
from lab.analysis.measure import Measure, Scope
from lab.engine import table
from lab.engine.store import write_json
from lab.engine.workdir import Workdir, WorkdirError, variants_in
from lab.report.page import Page, write_page
from lab.studies import claims, measured

PAGE = Path("report") / "index.html"
CLAIMS = "claims.json"


def analyze(
    root: Path, names: Sequence[str] | None = None, variants: Sequence[str] | None = None, **scope
) -> list[str]:
    """Takes measurements; returns those of which something was not there yet, as `variant/measure`.

    Args:
      names: of measurements, or `["all"]`; None: those the study's claims and report stand on.
      variants: None: all.
      scope: which snapshots and rows, and how exactly: see `Scope`.

    Raises:
      ValueError: no such measurement, or no such variant.
      WorkdirError: nothing trained, or not to the end.
    """
    of = Scope(**scope)
    trained = _trained(root)
    study = _study(trained)
    for variant in variants or ():
        if variant not in trained:
            raise ValueError(f"variant {variant!r}: {root} has {', '.join(trained)}")
    chosen = {name: work for name, work in trained.items() if name in (variants or trained)}
    due = {name: _measures(study, work, names) for name, work in chosen.items()}
    return [f"{variant}/{name}" for variant, work in chosen.items() for name in measure.measure(work, due[variant], of)]


def report(root: Path) -> tuple[Path, list[dict]]:
    """Evaluates the claims, writes `claims.json` and the page; returns the page's path and the claims table.

    Raises:
      WorkdirError: not trained to the end, or not analyzed.
    """
    trained = _trained(root)
    study = _study(trained)
    for name, work in trained.items():
        if measure.missing(work, study.measures(work.experiment)):
            raise WorkdirError(f"{work.path}: variant {name} is not analyzed; run `python -m lab analyze` first")
    datasets = {name: table.load(work.path).sortby([*grids.CORE]) for name, work in trained.items()}
    command = "; ".join(dict.fromkeys(work.read_json("config.json")["command"] for work in trained.values()))
    rows, sections = claims.evaluate(study.claims, datasets, command), study.sections(datasets)
    sections += measured.sections(datasets, study.target)
    commands = [command, f"python -m lab claims --workdir={root}"]
    page = Page(study.title, study.lead, _facts(trained), rows, sections, commands)
    write_json(root / CLAIMS, rows)
    return write_page(root / PAGE.parent, page), rows


def reported(root: Path) -> bool:
    """Whether the report is there and newer than everything it is made of."""
    page = root / PAGE
    sources = [*root.glob("*/analysis/*.json"), *root.glob("*/config.json")]
    return page.is_file() and all(path.stat().st_mtime <= page.stat().st_mtime for path in sources)


def read_claims(root: Path) -> list[dict]:
    """
    Raises:
      WorkdirError: there is no claims table.
    """
    try:
        return json.loads((root / CLAIMS).read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(
            f"{root}: no claims table ({error}); `python -m lab report --workdir={root}` makes it"
        ) from error


def table_text(rows: list[dict]) -> str:
    """The claims as text for a terminal."""
    lines = []
    for row in rows:
        measured = "-" if row["measured"] is None else f"{row['measured']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        lines.append(f"{row['id']:<4} {row['verdict']:<14} {measured:<20} {row['statement']}")
        lines.append(f"     needs: {row['threshold']} ({row['n_seeds']} seeds). {row['note']}")
    return "\n".join(lines)


def _trained(root: Path) -> dict[str, Workdir]:
    found = variants_in(root)
    for name, work in found.items():
        if not work.trained():
            raise WorkdirError(f"{work.path}: variant {name} is not trained to its last step; train first")
    return found


def _study(trained: dict[str, Workdir]) -> studies.Study:
    return studies.get(next(iter(trained.values())).config.study)


def _measures(study: studies.Study, work: Workdir, names: Sequence[str] | None) -> list[Measure]:
    own = {one.name: one for one in study.measures(work.experiment)}
    if names is None:
        return [*own.values()]
    there = {one.name: one for one in catalogue.measures(work.experiment)} | own
    for name in names:
        if name not in {*there, "all"}:
            near = difflib.get_close_matches(name, there, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no measurement {name!r}{hint} There are {', '.join(sorted(there))}, or all")
    return [one for name, one in there.items() if name in names or "all" in names]


def _preset(trained: dict[str, Workdir]) -> str:
    return next(iter(trained.values())).config.preset


def _facts(trained: dict[str, Workdir]) -> dict[str, object]:
    """What was run, per variant."""
    facts = {"preset": _preset(trained)}
    for name, work in trained.items():
        experiment, grid = work.experiment, work.grid
        facts[f"variant {name}"] = (
            f"{len(grid)} rows, {experiment.steps} steps of {experiment.batch_size} sequences, "
            + ", ".join(f"{axis} {_values(values)}" for axis, values in (grid.axes or grid.columns).items())
        )
        facts[f"model {name}"] = " ".join(f"{option}={value}" for option, value in work.config.model.items())
    identity = work.read_json("config.json")
    facts["devices"] = ", ".join(identity["devices"])
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in identity["versions"].items())
    return facts


def _values(values) -> str:
    return ", ".join(f"{value:g}" for value in values)
