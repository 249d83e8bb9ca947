"""Progress of a long training: no silence, whole lines, the time of all variants; and no byte depends on it."""

import io
import itertools
import re
import sys
import threading
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import schedule
from lab.engine import parts, progress, train
from lab.engine.estimate import hours_and_minutes
from lab.engine.parts import Pace
from lab.engine.progress import Portion, Progress
from lab.engine.rows import Rows

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

MOST_SILENCE = 10.0  # seconds


class Screen(io.StringIO):
    """Standard error, and when each line was written to it."""

    def __init__(self, now=lambda: 0.0, in_terminal=False):
        super().__init__()
        self.now, self.in_terminal, self.lines, self.written = now, in_terminal, [], threading.Event()

    def isatty(self):
        return self.in_terminal

    def write(self, text):
        super().write(text)
        if text.endswith("\n"):
            self.lines.append((self.now(), self.getvalue().splitlines()[-1]))
            self.written.set()
        return len(text)


class Clock:
    """Time that passes only when it is told to, and a beat of `Progress` at every second of it."""

    def __init__(self, monkeypatch):
        self.now, self.ticks = 0.0, []
        monkeypatch.setattr(progress, "clock", lambda: self.now)
        monkeypatch.setattr(Progress, "_beat", lambda shown: self.ticks.append(shown.tick))

    def pass_by(self, seconds):
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, int(self.now) + 1.0)
            if self.ticks and self.now == int(self.now):
                self.ticks[-1]()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def listen(monkeypatch, clock, in_terminal=False):
    """Standard error; within a test, since pytest puts its own there before each."""
    screen = Screen(lambda: clock.now, in_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def take(monkeypatch, clock, seconds_a_step):
    """Devices that take so long for a step, and three seconds to compile it."""
    advance, wait, asked = Rows.advance, Rows.wait, []

    def and_count(rows, first, end):
        asked.append(3.0 * (not first) + (end - first) * seconds_a_step)
        return advance(rows, first, end)

    def and_pass(rows):
        wait(rows)
        clock.pass_by(sum(asked))
        asked.clear()

    monkeypatch.setattr(Rows, "advance", and_count)
    monkeypatch.setattr(Rows, "wait", and_pass)


def one_chunk(echo, steps, **changes):
    """A training that is evaluated and saved at its ends only."""
    return echo.config(steps=steps, eval_every=steps, checkpoint_every=steps, snapshots=2, **changes)


# --- lines ---


def test_log_of_a_long_chunk_moves_every_ten_seconds_and_tells_the_time_of_all_variants(
    echo, tmp_path, monkeypatch, clock
):
    """Two variants, 600 steps of half a second in one chunk each; the second has 4/3 as many parameters."""
    log = listen(monkeypatch, clock)
    take(monkeypatch, clock, 0.5)
    wide = {"model": {"d_ff": 12}, "block_width": 1}
    train.train_variants(one_chunk(echo, 600, variants={"plain": {}, "wide": wide}), tmp_path, then="the analysis")
    assert clock.now == 2 * (600 * 0.5 + 3)
    text = log.getvalue()
    assert "\r" not in text and text.endswith("\n") and len(text.splitlines()) == len(log.lines)

    times = [0.0, *(time for time, _ in log.lines), clock.now]
    assert max(b - a for a, b in itertools.pairwise(times)) <= MOST_SILENCE
    for name, later in (("plain", 3.5 + 600 * 0.5 * 4 / 3), ("wide", 0.0)):
        mine = [line for _, line in log.lines if line.startswith(f"{name}: ")]
        assert mine[0].startswith(f"{name}: compiling the training step")
        reached = [int(step) for line in mine for step in re.findall(r"step (\d+) of 600", line)]
        assert len(reached) >= 30 and reached[-1] == 600
        assert all(a < b for a, b in itertools.pairwise(reached))
        for line, step in zip(mine[-len(reached) :], reached, strict=True):
            left = (600 - step) * 0.5
            assert line.endswith(time_left(left, left + later)), line


def time_left(here, everything):
    if not everything:
        return " row-steps/s"
    if not here:
        return f", about {hours_and_minutes(everything)} left in all, then the analysis"
    in_all = f", {hours_and_minutes(everything)} in all" * (everything > here)
    return f", about {hours_and_minutes(here)} left{in_all}, then the analysis"


def test_what_takes_long_is_named_before_it_begins_or_as_soon_as_it_has_lasted(monkeypatch, clock):
    log = listen(monkeypatch, clock)
    with Progress() as shown:
        while not clock.ticks:  # the thread has begun
            pass
        shown.begin("main", 8)
        shown.doing("planning", at_once=True)
        clock.pass_by(25)
        shown.doing("evaluating")
        clock.pass_by(1)
        shown.doing("saving")
        clock.pass_by(8)
    assert log.lines == [
        (0.0, "main: planning"),
        (9.0, "main: planning (9 s)"),
        (18.0, "main: planning (18 s)"),
        (27.0, "main: saving"),
    ]


def test_thread_speaks_while_nothing_else_does(monkeypatch):
    """Here this test, which does not go on before it has."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.001)
    with progress.busy("drawing the report"):
        assert screen.written.wait(60)
    assert screen.lines[0][1] == "lab: drawing the report"
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_process_that_is_not_the_first_says_nothing(clock, capsys):
    with Progress(quiet=True) as shown:
        shown.begin("main", 2)
        shown.doing("planning", at_once=True)
        shown.say("a line")
        for _ in range(2):
            clock.pass_by(20)
            shown.advance(1)
        shown.end()
    assert capsys.readouterr() == ("", "")


def test_notebook_is_shown_a_bar(monkeypatch):
    class ZMQInteractiveShell:
        pass

    assert not progress.in_notebook()
    notebook = types.SimpleNamespace(get_ipython=lambda: ZMQInteractiveShell())
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert progress.in_notebook() and Progress()._in_terminal


def test_bar_of_a_terminal_moves_at_every_part_and_shows_what_is_done(monkeypatch, clock):
    screen = listen(monkeypatch, clock, in_terminal=True)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    with Progress() as shown:
        shown.expect({"main": Portion(400), "other": Portion(400)})
        shown.begin("main", 400)
        shown.doing("planning", at_once=True)
        assert screen.getvalue().endswith("| 0/400 steps [00:00, planning]")
        shown.begin("main", 400, 100)  # it continues there, in the same line
        for step in (200, 300, 400):
            clock.pass_by(5)
            shown.advance(100, "20 row-steps/s")
            assert f"| {step}/400 steps [" in screen.getvalue().split("\r")[-1]
        shown.end()
    assert screen.getvalue().endswith(", 20 row-steps/s, about 25 s left in all]\n")
    assert screen.getvalue().count("\n") == 1


# --- time left ---


@given(
    portions=st.lists(st.tuples(st.integers(2, 50), st.integers(0, 2), st.floats(0.1, 10)), min_size=1, max_size=5),
    speed=st.floats(0.1, 100),
)
def test_time_left_is_that_of_all_portions_at_the_present_rate(portions, speed):
    """Each has a total, a number that is done before, and a cost of one; a start takes three seconds."""
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "clock", lambda: now[0])
        shown = Progress(quiet=True)
        shown.expect({str(i): Portion(*given) for i, given in enumerate(portions)})
        for i, (total, done, cost) in enumerate(portions):
            shown.begin(str(i), total, done)
            for step in range(done, total):
                now[0] += 3.0 if step == done else cost / speed
                shown.advance(1)
                if step > done:
                    here = (total - step - 1) * cost / speed
                    due = [(n - before) * each / speed for n, before, each in portions[i + 1 :] if n > before]
                    later = 3.0 * len(due) + sum(due)
                    assert shown.left() == pytest.approx((here, here + later), rel=1e-6, abs=1e-6)
            shown.end()


# --- parts ---


@given(
    rate=st.floats(0.01, 1e5),
    known=st.sampled_from([None, 0.2, 1.0, 3.0]),
    chunks=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
)
def test_parts_take_seconds_whatever_the_rate_and_the_chunks(rate, known, chunks):
    """Devices of a constant rate, which the plan knew well, badly or not: after three parts none takes long, and there
    are no more parts than the time asks for, those of the first seconds and the last of each chunk aside."""
    pace, lengths = Pace(10**9, known and known * rate), []
    for n_steps in chunks:
        while n_steps:
            taken = min(pace.steps(), n_steps)
            pace.record(taken, taken / rate)
            lengths.append(taken)
            n_steps -= taken
    assert lengths[0] == 1
    assert max(lengths[3:], default=0) <= max(1, parts.PART_SECONDS * rate)
    assert len(lengths) <= 3 + 7 + len(chunks) + sum(chunks) / max(1, int(parts.PART_SECONDS * rate))


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [(100, (1,)), (100, (1, 2, 6, 3)), (5, (100,)), (5, (7, 1, 11))],
    ids=["single steps", "several", "several calls in one part", "calls cut short"],
)
def test_no_byte_depends_on_how_a_chunk_falls_into_parts(echo, undivided, tmp_path, monkeypatch, longest, lengths):
    assert leave(echo, tmp_path / "w", monkeypatch, longest, lengths) == undivided


@pytest.fixture(scope="module")
def undivided(echo, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return leave(echo, tmp_path_factory.mktemp("undivided") / "w", patch, 100, (100,))


def leave(echo, workdir, patch, longest, lengths):
    """What a training leaves whose parts have these lengths, in turn: metrics by the byte, weights by their hash."""
    turn = itertools.cycle(lengths)
    patch.setattr(schedule, "LONGEST_PART", longest)
    patch.setattr(Pace, "steps", lambda pace: next(turn))
    train.train(echo.config(steps=24, eval_every=12, checkpoint_every=20, snapshots=2), workdir)
    files = {path.name: path.read_bytes() for path in (workdir / "metrics").iterdir()}
    return files, echo.digests(workdir)
