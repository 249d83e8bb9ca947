"""The steps at which chunks end, evaluations run, and snapshots and checkpoints are written."""

import itertools

import ml_collections

KEPT_CHECKPOINTS = 2  # the newest ones
LONGEST_PART = 128  # steps: what a program records, and draws ahead, has a fixed length


def boundaries(config: ml_collections.ConfigDict) -> tuple[list[int], set[int], set[int]]:
    """The steps at which chunks end, those of them that are evaluated, and those at which a snapshot is kept.

    Evaluations at 0, every `eval_every` steps and the end; `snapshots` many snapshots at 0, the end, and the end
    halved again and again: log-spaced, as learning is. And one every `snapshot_every` steps, if that is not 0.
    """
    total = config.steps
    evaluated = {*range(0, total, config.eval_every), total}
    kept = {0, total} | {round(total / 2**k) for k in range(config.snapshots - 1)}
    kept |= {*range(0, total, config.snapshot_every)} if config.snapshot_every else set()
    return sorted(evaluated | kept | {0, *checkpointed(config)}), evaluated, kept


def checkpointed(config: ml_collections.ConfigDict) -> list[int]:
    """The steps at which a checkpoint is due, whether or not anybody asks to stop."""
    return [*range(config.checkpoint_every, config.steps, config.checkpoint_every), config.steps]


def chunks(config: ml_collections.ConfigDict) -> dict[int, range]:
    """The training steps of every chunk, by the step at which it ends; the first has none."""
    ends, _, _ = boundaries(config)
    return {0: range(0)} | {end: range(begin, end) for begin, end in itertools.pairwise(ends)}


def longest_chunk(config: ml_collections.ConfigDict) -> int:
    """The most steps between two boundaries."""
    return max(map(len, chunks(config).values()))


def longest_part(config: ml_collections.ConfigDict) -> int:
    """The most steps that a compiled program is asked for at once; longer chunks are run in parts."""
    return min(longest_chunk(config), LONGEST_PART)


def chosen(steps: list[int], choice: str) -> list[int]:
    """`all` snapshots, the `last`, or a `log`-spaced part: the first, the last, and the last halved again and again."""
    if choice == "log":
        wanted = {steps[-1] >> k for k in range(steps[-1].bit_length())}
        near = {min(steps, key=lambda step, want=want: abs(step - want)) for want in wanted}
        return sorted(near | {steps[0]})
    return steps if choice == "all" else steps[-1:]
