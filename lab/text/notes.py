"""What a user should know of the text that was read, though nothing is wrong: lines on standard error."""

import functools
import sys


@functools.cache
def say(line: str) -> None:
    """Once in the life of the process, however many tasks read the same."""
    print(f"lab: {line}", file=sys.stderr)
