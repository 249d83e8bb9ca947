"""The claims table as text for a terminal and as Markdown."""

from collections.abc import Mapping, Sequence

from lab import verdicts

Row = Mapping[str, object]


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal, headline claims first, and its foot."""
    lines, width = [], max([4, *(len(row["id"]) for row in rows)])
    for row in rows:
        lines.append(f"{row['id']:<{width}} {row['verdict']:<14} {interval(row):<24} {row['statement']}")
        needs = f"{row['quantity']} {row['threshold']}"
        about = f"{seeds(row)}, margin {margin(row)}, {row['scale']}" if row["measured"] is not None else row["scale"]
        lines.append(f"     {'headline; ' * row['headline']}needs: {needs} ({about}). {row['note']}".rstrip())
    return "\n".join([*lines, foot(rows)])


def markdown(rows: Sequence[Row]) -> str:
    """The table for a page of docs, headline claims first."""
    lines = [
        "| claim | published | measured: median [interval] | needs | margin | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"**{row['id']}** {row['statement']}" + " (headline)" * row["headline"]
        measured = f"{interval(row)}, {seeds(row)}" if row["measured"] is not None else "-"
        needs = f"{row['quantity']} {row['threshold']}"
        cells = (name, row["published"], measured, needs, margin(row), row["verdict"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", foot(rows)])


def interval(row: Row) -> str:
    """Three digits of each: some numbers are small, and a claim may be that they are not zero."""
    if row["measured"] is None:
        return "-"
    between = "" if row["exact"] else f" [{_number(row['low'])}, {_number(row['high'])}]"
    return _number(row["measured"]) + between


def seeds(row: Row) -> str:
    """How many seeds the number is of: `5 seeds, 1 missing`, or `exact`."""
    if row["exact"]:
        return "exact"
    missing = f", {row['n_missing']} missing" if row["n_missing"] else ""
    return f"{row['n_seeds']} seed{'s' * (row['n_seeds'] != 1)}{missing}"


def margin(row: Row) -> str:
    """Distance of the median to the threshold; negative on the wrong side."""
    return "-" if row["margin"] is None else f"{float(row['margin']):+.2g}"


def foot(rows: Sequence[Row]) -> str:
    """What a reader should know of all verdicts together."""
    counts = [f"{sum(row['verdict'] == verdict for row in rows)} {word}" for verdict, word in _WORDS.items()]
    return (
        f"{len(rows)} claims: {', '.join(counts)}. A verdict is of the median over at least {verdicts.FEWEST_SEEDS} "
        f"seeds, by its exact order-statistic interval; at most {verdicts.wrong_by_chance(rows):.1f} of them are "
        "expected to be wrong by chance."
    )


_WORDS = {verdicts.HOLDS: "hold", verdicts.FAILS: "do not hold", verdicts.OPEN: "open"}


def _number(value) -> str:
    return "-" if value is None else f"{float(value):.3g}"
