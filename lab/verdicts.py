"""The words of verdicts, and what a table of them says as a whole; `lab.claims.Threshold.verdict` decides one.

Apart from `lab.claims`, so that reading a table imports nothing heavy.
"""

VERSION = 2  # of claims.json
FEWEST_SEEDS = 5
HOLDS, FAILS, OPEN = "holds", "does not hold", "open"


def wrong_by_chance(rows: list[dict]) -> float:
    """How many of the verdicts, at most, are expected to be wrong by chance alone.

    A verdict is wrong where the median lies beyond the far end of its interval: probability (1 - coverage) / 2.
    """
    decided = [row for row in rows if row["verdict"] != OPEN and not row["exact"]]
    return sum((1 - (row["coverage"] or 0)) / 2 for row in decided)
