"""The claims of a study as a table: text for a terminal, markdown for a README."""


def table_text(rows: list[dict]) -> str:
    """The claims as text for a terminal."""
    lines = []
    for row in rows:
        lines.append(f"{row['id']:<4} {row['verdict']:<14} {_interval(row):<24} {row['statement']}")
        lines.append(f"     needs: {row['threshold']} ({row['n_seeds']} seeds). {row['note']}")
    return "\n".join(lines)


def table_markdown(rows: list[dict]) -> str:
    """The claims as a table for a README."""
    lines = ["| claim | published | measured: median, range over seeds | needs | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (
            f"**{row['id']}** {row['statement']}",
            row["published"],
            _interval(row),
            row["threshold"],
            row["verdict"],
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _interval(row: dict) -> str:
    """Three digits of each: some numbers are small, and a claim may be that they are not zero."""
    return "-" if row["measured"] is None else f"{row['measured']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
