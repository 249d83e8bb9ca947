"""Runs a chunk of steps in parts of a few seconds each, so that the host hears of a chunk of any length."""

import itertools
from collections.abc import Callable

import jax
import numpy as np

from lab import schedule
from lab.disk.workdir import Workdir
from lab.engine import multihost, plan, progress
from lab.engine.rows import Rows
from lab.engine.shard import Layout

PART_SECONDS = 5.0
GROWTH = 8  # a part has at most so many times the steps of the longest so far: a short one is timed coarsely


class Pace:
    """How many steps a part has: one while the program is compiled, then as many as take `PART_SECONDS`."""

    def __init__(self, most_a_call: int, rate: float | None = None):
        """
        Args:
          most_a_call: steps that one call of the compiled program may take.
          rate: steps/s, if it is known.
        """
        self.most_a_call, self._rate = most_a_call, rate
        self._compiled, self._limit = False, float("inf") if rate else 1

    def steps(self) -> int:
        """Of the next part."""
        if not self._compiled or not self._rate:
            return 1
        return max(1, int(min(self._rate * PART_SECONDS, self._limit)))

    def record(self, n_steps: int, seconds: float) -> None:
        """What a part took; the first tells nothing, it compiles."""
        if self._compiled:
            self._rate = n_steps / max(seconds, 1e-9)
            self._limit = max(self._limit, GROWTH * n_steps)
        self._compiled = True


def pace(work: Workdir, layout: Layout) -> Pace:
    """Of a training, which knows its rate from the plan, if that measured this width."""
    planned = plan.recall(work.path)
    rate = planned and planned.rates.get(layout.width)
    return Pace(schedule.longest_part(work.config), rate and rate * jax.process_count() / layout.n_padded)


def advance(
    rows: Rows, first: int, end: int, pace: Pace, heard: Callable[[int, float], None] = lambda n_steps, seconds: None
) -> dict[str, np.ndarray] | None:
    """Trains from step `first` to `end`, and waits; the steps' metrics on the host, (rows, end - first); None of none.

    The states and the metrics are those of one call, to the bit, however the chunk falls into parts. Of several
    processes all take the same parts.

    Args:
      heard: is told of every part how many steps it had, and how many seconds they took.
    """
    if first == end:
        rows.wait()
        return None
    recorded = []
    while first < end:
        begun, part_end = progress.clock(), first + multihost.max_over_processes(min(pace.steps(), end - first))
        bounds = itertools.pairwise([*range(first, part_end, pace.most_a_call), part_end])
        calls = [(last - begin, rows.advance(begin, last)) for begin, last in bounds]
        rows.wait()
        for n_steps, metrics in calls:
            on_host = rows.layout.to_host(metrics)
            recorded.append({name: values[:, :n_steps] for name, values in on_host.items()})
        seconds = progress.clock() - begun
        pace.record(part_end - first, seconds)
        heard(part_end - first, seconds)
        first = part_end
    return {name: np.concatenate([part[name] for part in recorded], axis=1) for name in recorded[0]}
