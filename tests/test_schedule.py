"""Training pauses where something is due, and nowhere else."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from lab import schedule


@given(
    steps=st.integers(1, 500), eval_every=st.integers(1, 600), snapshots=st.integers(2, 12),
    snapshot_every=st.integers(0, 600), checkpoint_every=st.integers(1, 600),
)  # fmt: skip
def test_boundaries_cut_training_where_something_is_due(steps, eval_every, snapshots, snapshot_every, checkpoint_every):
    config = ConfigDict(
        dict(
            steps=steps, eval_every=eval_every, snapshots=snapshots, snapshot_every=snapshot_every,
            checkpoint_every=checkpoint_every,
        )
    )  # fmt: skip
    ends, evaluated, kept = schedule.boundaries(config)
    assert ends[0] == 0 and ends[-1] == steps
    assert all(a < b for a, b in itertools.pairwise(ends))
    assert {0, steps} <= evaluated <= set(ends) and {0, steps} <= kept <= set(ends)
    due = [step for step in range(steps) if step % eval_every == 0]
    assert evaluated == {*due, steps}
    assert {step for step in range(steps) if step % checkpoint_every == 0} <= set(ends)
    even = {step for step in range(steps) if snapshot_every and step % snapshot_every == 0}
    assert even <= kept
    config.snapshot_every = 0
    kept, both = schedule.boundaries(config)[2], kept
    assert both == kept | even
    assert len(kept) <= max(snapshots, 2)
    # log-spaced: a snapshot is about half of the next; rounding moves each by one half at most
    positive = sorted(kept - {0})
    assert all(abs(b / 2 - a) <= 0.75 for a, b in itertools.pairwise(positive))
    if steps >= 2**snapshots:  # far enough apart to be different
        assert len(kept) == max(snapshots, 2)
    # and nowhere else
    assert all(end in evaluated or end in both or end % checkpoint_every == 0 for end in ends)


@given(steps=st.integers(1, 200), eval_every=st.integers(1, 250), checkpoint_every=st.integers(1, 250))
def test_chunks_take_every_step_once_and_end_at_every_boundary(steps, eval_every, checkpoint_every):
    config = ConfigDict(
        dict(steps=steps, eval_every=eval_every, snapshots=3, snapshot_every=0, checkpoint_every=checkpoint_every)
    )
    ends, _, _ = schedule.boundaries(config)
    chunks = schedule.chunks(config)
    assert list(chunks) == ends
    assert [step for chunk in chunks.values() for step in chunk] == list(range(steps))
    assert all(chunk.stop == end for end, chunk in chunks.items())
    longest = schedule.longest_chunk(config)
    assert longest == max(b - a for a, b in itertools.pairwise(ends))
    assert schedule.longest_part(config) == (longest if longest < schedule.LONGEST_PART else schedule.LONGEST_PART)


@given(steps=st.integers(1, 200), checkpoint_every=st.integers(1, 250))
def test_checkpoints_are_due_at_their_multiples_and_at_the_end(steps, checkpoint_every):
    config = ConfigDict(
        dict(steps=steps, eval_every=7, snapshots=2, snapshot_every=0, checkpoint_every=checkpoint_every)
    )
    due = {step for step in range(1, steps + 1) if step % checkpoint_every == 0 or step == steps}
    assert schedule.checkpointed(config) == sorted(due)
