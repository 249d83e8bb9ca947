"""A signal that a training gets at a step."""

import contextlib
import os
import signal

import pytest

from lab.engine.rows import Rows


@contextlib.contextmanager
def signalled_at(end, number=signal.SIGTERM):
    """This process gets a signal while the chunk that ends at step `end` is computed."""
    wait, advance, reached = Rows.wait, Rows.advance, [0]

    def and_remember(rows, first, last):
        reached.append(last)
        return advance(rows, first, last)

    def and_signal(rows):
        wait(rows)
        if reached[-1] == end:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "advance", and_remember)
        patch.setattr(Rows, "wait", and_signal)
        yield
