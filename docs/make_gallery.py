"""Writes docs/claims.md and docs/gallery.md from the results that are kept in docs/results.

python docs/make_gallery.py
"""

import collections
import json
import re
from pathlib import Path

from lab import studies, verdicts
from lab.report import claims_table

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"


def pages() -> dict[str, str]:
    """File name in docs -> its text."""
    folders = sorted(path.parent for path in RESULTS.glob("*/README.md") if [*path.parent.glob("*.png")])
    return {"claims.md": _claims(folders), "gallery.md": _gallery(folders)}


def _claims(folders: list[Path]) -> str:
    parts = [
        "# Claims as measured\n\nWritten by `python docs/make_gallery.py` from the results that are kept; headline "
        "claims first. *Holds* and *does not hold*: the exact interval of the median over at least five seeds lies on "
        "one side of the threshold; *open*: it straddles, there are fewer seeds, or data are missing.",
        _headlines(folders),
    ]
    for folder in folders:
        for file, command in _commands(folder).items():
            about = f"`{command}`, commit {_fact(folder, 'commit')}, {_fact(folder, 'hardware')}"
            title = ": ".join(filter(None, (_title(folder), _part(file))))
            table = claims_table.markdown(_rows(file))
            parts.append(f"## {title}\n\n{about}; [kept here](results/{folder.name}).\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _headlines(folders: list[Path]) -> str:
    """How many headline claims hold, by study: each by the kept run that decides it, preset `record` before others."""
    kept = {}
    for folder in sorted(folders, key=lambda folder: folder.name.endswith("record")):
        for row in (row for file in sorted(folder.glob("*claims.json")) for row in _rows(file)):
            if (row["exact"] or row["n_seeds"] >= verdicts.FEWEST_SEEDS) and (
                row["verdict"] != verdicts.OPEN or row["id"] not in kept
            ):
                kept[row["id"]] = row["verdict"]
    lines, totals = [], collections.Counter()
    for name in studies.names():
        ids = [claim.id for claim in studies.get(name).claims if claim.headline]
        of_study = {verdict: [id for id in ids if kept.get(id) == verdict] for verdict in _VERDICTS}
        counts = {verdict: len(found) for verdict, found in of_study.items()} | {
            None: sum(id not in kept for id in ids)
        }
        totals.update(counts)
        cells = [str(counts[verdicts.HOLDS])] + [", ".join(of_study[verdict]) for verdict in _VERDICTS[1:]]
        lines.append(f"| {name} | {' | '.join([*cells, str(counts[None])])} |")
    lines.append(f"| all | {' | '.join(str(totals[verdict]) for verdict in (*_VERDICTS, None))} |")
    head = (
        "## Headline claims\n\nSentences of the abstracts, one a task where a sentence is of several; each by the kept "
        "run that decides it, preset `record` before others.\n\n"
        "| study | hold | do not hold | open | not run with five seeds |\n|---|---|---|---|---|"
    )
    return "\n".join([head, *lines])


_VERDICTS = (verdicts.HOLDS, verdicts.FAILS, verdicts.OPEN)


def _gallery(folders: list[Path]) -> str:
    parts = [
        "# Gallery\n\nThe pictures that are kept, the command that draws each, and the claims of its run. Written by "
        "`python docs/make_gallery.py`."
    ]
    for folder in folders:
        commands, lines = [], []
        for file, command in _commands(folder).items():
            part = f"{_part(file)}: " if _part(file) else ""
            commands.append(f"{part}`{command}`")
            lines += [
                f"- {part}{row['id']} ({row['verdict']}) {row['statement']}"
                for row in _rows(file)
                if row["headline"] and (row["exact"] or row["n_seeds"])
            ]
        pictures = [
            f"![{path.stem}](results/{folder.name}/{path.name})\n\n*{path.stem.replace('-', ' ')}*"
            for path in sorted(folder.glob("*.png"))
        ]
        head = f"## {_title(folder)}"
        about = commands or [f"`{_fact(folder, 'command')}`"]
        parts.append("\n\n".join([head, *about, *(["\n".join(lines)] if lines else []), *pictures]))
    return "\n\n".join(parts) + "\n"


def _rows(file: Path) -> list[dict]:
    return json.loads(file.read_text())["claims"]


def _commands(folder: Path) -> dict[Path, str]:
    """Claims table -> the command of its run: as the README has it, or as the rows do where there are several."""
    files = sorted(folder.glob("*claims.json"))
    own = {file: _rows(file)[0]["command"] for file in files}
    return own if len({*own.values()}) > 1 else dict.fromkeys(files, _fact(folder, "command"))


def _title(folder: Path) -> str:
    return (folder / "README.md").read_text().splitlines()[0].removeprefix("# ")


def _part(file: Path) -> str:
    """What of a folder a claims table is of, as its name says: data sets by their names."""
    part = file.stem.removesuffix("claims").strip("-")
    return {"scan": "SCAN", "cogs": "COGS"}.get(part, part)


def _fact(folder: Path, name: str) -> str:
    """A line of the table that a result's README opens with."""
    found = re.search(rf"^\| {name}[^|]*\| (.*) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    return re.sub(r"`", "", found[1]) if found else "see there"


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text)
