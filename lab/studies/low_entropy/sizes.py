"""Which variants of the low-entropy study are of which size."""

import re

from lab.runs import MissingData, Run, Runs

NAMED = re.compile(r"(?:fixed|text)_(\d+)x(\d+)")


def by_size(runs: Runs) -> dict[tuple[int, int], Run]:
    """(width, layers) -> the run of a finite sample, or of a text, of the sizes there are, in order."""
    named = ((NAMED.fullmatch(name), name) for name in runs)
    return dict(sorted((tuple(map(int, match.groups())), runs[name]) for match, name in named if match))


def two_depths(runs: Runs) -> dict[tuple[int, int], Run]:
    """As `by_size`, of the widths that have two depths.

    Raises:
      MissingData: there are none.
    """
    sizes = by_size(runs)
    widths = [width for width, _ in sizes]
    found = {size: run for size, run in sizes.items() if widths.count(size[0]) > 1}
    if not found:
        raise MissingData("variants fixed_<width>x<layers> of two depths")
    return found


def n_parameters(run: Run) -> int:
    """Of the matrices: embeddings, blocks and head."""
    model = run.config["model"]
    width = model["d_model"]
    block = 4 * width * model["n_heads"] * model["d_head"] + 2 * width * model["d_ff"]
    return width * (2 * model["vocab_size"] + model["max_length"]) + model["n_layers"] * block
