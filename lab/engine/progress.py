"""Progress of trainings and analyses: a bar in a terminal, whole lines in a log, and the time left over all variants.

A log hears of the work at least every ten seconds, whatever it is busy with.
"""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from lab.engine import estimate

clock = time.monotonic
BEAT_SECONDS = 1.0  # between two looks at whether a line is due
BAR_SECONDS = 0.1  # at least, between two states of a bar
LINE_SECONDS = 9.0  # a line is due so long after the last one: with a beat, ten at most pass between two
LONG_SECONDS = 2.0  # what takes longer is said with its duration
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}{postfix}]"


@dataclasses.dataclass
class Portion:
    """The work on one variant.

    Attributes:
      total, done: steps of a training, rows of an analysis.
      cost: of one of them, in a unit that all portions share.
    """

    total: int
    done: int = 0
    cost: float = 1.0

    @property
    def left(self) -> float:
        """What is still to be paid."""
        return self.cost * (self.total - self.done)


class Progress:
    """Says how far the work is, which consists of portions that are done one after the other.

    Within `with`, a thread says it where nothing else does for a while: what takes long is always named.
    """

    def __init__(self, unit: str = "step", quiet: bool = False, then: str = ""):
        """
        Args:
          unit: what is counted.
          quiet: nothing is ever said, as in all processes of a training but the first.
          then: what comes after all portions, and takes nobody knows how long.
        """
        self.unit, self.quiet, self.then = unit, quiet, then
        self.portions: dict[str, Portion] = {}
        self._name, self._doing, self._speed = "", "", ""
        self._now = Portion(0)
        self._in_terminal = sys.stderr.isatty() or in_notebook()
        self._bar: tqdm | None = None
        self._lock, self._ended, self._thread = threading.RLock(), threading.Event(), None
        self._begun = self._doing_since = self._heard = clock()
        self._measured_since: float | None = None  # since the first steps, which compile
        self._start_seconds, self._paid, self._rate = 0.0, 0.0, 0.0  # of a portion until then; since then; a second

    def __enter__(self):
        self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self._close()

    def expect(self, portions: Mapping[str, Portion]) -> None:
        """The portions to come, in order."""
        self.portions = dict(portions)

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """The next portion, or the same once more from another state."""
        with self._lock:
            if name != self._name:
                self._close()
                self._begun = clock()
            self._now = self.portions.setdefault(name, Portion(total))
            self._now.total, self._now.done = total, done
            self._name, self._speed, self._measured_since, self._paid = name, "", None, 0.0
            if self._bar is None:
                self._open()
            else:
                self._bar.total, self._bar.n, self._bar.last_print_n = total, done, done

    def doing(self, what: str, at_once: bool = False) -> None:
        """Names what is done until the next `advance`.

        Args:
          at_once: it may take long: a line of a log says so before it begins.
        """
        with self._lock:
            self._doing, self._doing_since = what, clock()
            if self._bar is None:
                self._open()
            if at_once:
                self._show()

    def advance(self, n: int, speed: str = "") -> None:
        """`n` more are done.

        Args:
          speed: of the last ones, for people.
        """
        with self._lock:
            now, portion = clock(), self._now
            portion.done += n
            self._doing, self._speed = "", speed
            if self._measured_since is None:
                self._measured_since, self._start_seconds = now, now - self._begun
            else:
                self._paid += n * portion.cost
                self._rate = self._paid / max(now - self._measured_since, 1e-9)
            if self._bar is not None:
                self._bar.update(n)
            self.tick()

    def end(self) -> None:
        """The portion is done, or given up; how far it came stays to be read."""
        with self._lock:
            self._doing = ""
            if self._measured_since is not None:
                self._show()
            self._close()
            self._name, self._now, self._measured_since = "", Portion(0), None

    def say(self, line: str) -> None:
        """A line on standard output that is no progress."""
        if not self.quiet:
            tqdm.write(line)
            sys.stdout.flush()  # a log shall hear it now

    def tick(self) -> None:
        """Shows how far the work is, if nothing was said for a while."""
        with self._lock:
            known = self._doing or self._measured_since is not None
            if known and clock() - self._heard >= (BAR_SECONDS if self._in_terminal else LINE_SECONDS):
                self._show()

    def left(self) -> tuple[float, float] | None:
        """Seconds until this portion and until all of them are done, as far as the portions so far tell; None: unknown.

        A portion that is not begun takes as long to start as the last one that did.
        """
        if not self._rate:
            return None
        names = list(self.portions)
        first = names.index(self._name) + 1 if self._name else 0
        later = [self.portions[name] for name in names[first:] if self.portions[name].left > 0]
        here = self._now.left / self._rate
        return here, here + sum(self._start_seconds + portion.left / self._rate for portion in later)

    def line(self) -> str:
        """How far the work is, in words."""
        reached = f"{self.unit} {self._now.done:,} of {self._now.total:,}" if self._measured_since is not None else ""
        return f"{self._name or 'lab'}: {', '.join(filter(None, (reached, *self._remarks())))}"

    def _remarks(self) -> list[str]:
        seconds = clock() - self._doing_since
        lasting = f" ({estimate.hours_and_minutes(seconds)})" if seconds >= LONG_SECONDS else ""
        return list(filter(None, (self._speed, self._doing and self._doing + lasting, self._time_left())))

    def _time_left(self) -> str:
        left = self.left()
        if left is None or not left[1]:
            return ""
        here, everything = map(estimate.hours_and_minutes, left)
        text = f"about {here} left" if left[0] == left[1] else f"about {here} left, {everything} in all"
        text = text if left[0] else f"about {everything} left in all"
        return f"{text}, then {self.then}" if self.then else text

    def _show(self) -> None:
        if self.quiet:
            return
        self._heard = clock()
        if not self._in_terminal:
            tqdm.write(self.line(), file=sys.stderr)
        elif self._bar is not None and self._now.total:
            self._bar.set_postfix_str(", ".join(self._remarks()))
        elif self._bar is not None:
            self._bar.set_description_str(self.line())

    def _open(self) -> None:
        """A bar; one that counts nothing shows what is done, if it takes a second, and leaves no trace."""
        if self.quiet or not self._in_terminal:
            return
        total = self._now.total
        look = {"bar_format": BAR} if total else {"bar_format": "{desc}", "delay": BEAT_SECONDS, "leave": False}
        self._bar = tqdm(total=total, initial=self._now.done, unit=self.unit, desc=self._name, **look)
        self._bar.ncols = self._bar.ncols or None  # a terminal that says it has no columns would be shown nothing

    def _close(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            self._bar, self._doing = None, ""

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self.tick()


def in_notebook() -> bool:
    """Whether a notebook shows what this process writes: it moves a bar as a terminal does."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Names what is done meanwhile, if it takes long."""
    with Progress() as progress:
        progress.doing(what)
        yield
