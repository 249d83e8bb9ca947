"""Standard output and error whose reader may go away: `lab list | head -1`."""

import contextlib
import os
import sys
from collections.abc import Iterator


class Stream:
    """A text stream; what is written after its reader has gone is lost, and nobody is told."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._unheard():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unheard():
            self._stream.flush()

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # What is still in the stream's buffer goes there, too, also when the interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Work goes on after the reader of its output has gone, to the exit code that it earns."""
    with contextlib.ExitStack() as stack:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            if getattr(sys, name) is not None:
                stream = Stream(getattr(sys, name))
                stack.enter_context(redirect(stream))
                stack.callback(stream.flush)
        yield
