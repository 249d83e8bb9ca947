"""From a trained workdir to its measurements, claims and report."""

import json
from pathlib import Path

from lab import grid as grids
from lab import studies
from lab.analysis import measure
from lab.engine import table
from lab.engine.store import write_json
from lab.engine.workdir import Workdir, WorkdirError, variants_in
from lab.report.page import Page, write_page
from lab.studies import claims

PAGE = Path("report") / "index.html"
CLAIMS = "claims.json"


def analyze(root: Path) -> list[str]:
    """Takes the study's measurements in every variant; returns those that were not there yet, as `variant/measure`.

    Raises:
      WorkdirError: nothing trained, or not to the end.
    """
    trained = _trained(root)
    study = _study(trained)
    return [
        f"{v}/{name}" for v, work in trained.items() for name in measure.measure(work, study.measures(work.experiment))
    ]


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
