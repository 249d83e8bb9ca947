"""`lab watch`: the report's interactive part of a workdir, for browsers of this machine, while training runs.

Nothing is written, and no lock is taken: a training does not notice that it is looked at.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import statistics
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lab.disk import lock
from lab.disk.files import WorkdirError, reason
from lab.disk.metrics import metric_files
from lab.disk.workdir import Workdir, variants_in

ADDRESS = "127.0.0.1"
POLL_SECONDS = 3  # between two questions of a page
SHARE = 0.1  # of the time that may go into reading: a large training is read less often
PACE = 20  # chunks over which the speed is measured
REPORT = Path("report") / "index.html"
FIGURE_LINK = re.compile(r'<a href="figures/[^"]*">(\w+)</a>')  # of a report: those files are not served
NAMES = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?")  # other hosts may be a foreign page that points its name here
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


def server(root: Path, port: int) -> ThreadingHTTPServer:
    """Listens on the loopback interface alone; port 0: on one that is free. It answers once it is told to serve.

    Raises:
      ValueError: there is no such folder, or the port cannot be had.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    handler = type("Handler", (_Handler,), {"watched": Watched(root)})
    try:
        return ThreadingHTTPServer((ADDRESS, port), handler)
    except OSError as error:
        raise ValueError(f"--port={port}: {reason(error)}; --port=0 takes a free one") from error


class Watched:
    """What a page is told of a workdir, read again where its files have changed."""

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._seen: dict[str, str] = {}  # variant -> the state of its files when it was read
        self._trainings: dict[str, dict] = {}
        self._notes: dict[str, str] = {}  # variant -> why it cannot be read now
        self._next: float | None = None  # on the monotonic clock: not to be read before

    def answer(self, since: str = "") -> dict:
        """Progress, and where the version is not `since` the data of every variant for explore.js."""
        with self._lock:
            self._read()
            version = hashlib.sha256(json.dumps(self._seen).encode()).hexdigest()[:16]
            lines = progress(self.root)
            answer = {
                "version": version,
                "clock": time.strftime("%H:%M:%S"),
                "progress": lines,
                "running": any(line["state"] == "running" for line in lines),
                "notes": [f"{name}: {why}" for name, why in self._notes.items()],
                "reported": (self.root / REPORT).is_file(),
            }
            return answer | ({} if version == since else {"trainings": self._trainings})

    def _read(self) -> None:
        began = time.monotonic()
        if self._next is not None and began < self._next:
            return
        works = {}
        with contextlib.suppress(WorkdirError):  # nothing begun yet
            works = variants_in(self.root)
        for name, work in works.items():
            state = _state(work)
            if state and state != self._seen.get(name):
                try:
                    self._trainings[name] = explored(work, len(works))
                    self._seen[name] = state
                    self._notes.pop(name, None)
                except Exception as error:  # of the disk, or of a user's own task; what was read before stays
                    self._notes[name] = str(error) or type(error).__name__
        ended = time.monotonic()
        imported = self._next is None  # which takes longer than to read, once
        self._next = ended if imported else ended + (ended - began) / SHARE


def explored(work: Workdir, n_variants: int) -> dict:
    """The data of one variant; raises as `lab.load`, and ValueError for a grid of one row."""
    from lab import stages
    from lab.disk.load import load
    from lab.runs import Run

    if len(work.grid) == 1:
        raise ValueError("one row: there is no grid to explore")
    try:
        study = stages.study_of({work.path.name: work})
    except ValueError:  # the file of a user's own study is not here
        study = stages.without_claims(work.config)
    return stages.explored_data(work, study, Run(load(work.path), study.usual), n_variants)


def progress(root: Path) -> list[dict]:
    """As `lab status` has it, by heartbeats and not by locks; `rate`, in steps a second, `seconds_left`, and `silence`:
    seconds since the last heartbeat. What is no longer `running` has None for these.
    """
    from lab.cluster import status

    try:
        lines = status.study(root, running=lock.heard)
    except WorkdirError:
        return []
    single = len(lines) == 1 and not (root / lines[0].variant).is_dir()
    told = []
    for line in lines:
        work = Workdir(root if single else root / line.variant)
        at_work = [part for part in (work, *work.extensions) if line.state == "running" and lock.heard(part.path)]
        rate = _rate(at_work[-1]) if at_work else None
        left = (line.steps - line.step) / rate if rate and line.steps else None
        silence = lock.silence(at_work[-1].path) if at_work else None
        told.append(dataclasses.asdict(line) | {"rate": rate, "seconds_left": left, "silence": silence})
    return told


def _rate(work: Workdir) -> float | None:
    """Steps a second, the median over the last chunks: an interruption between two of them does not count."""
    with contextlib.suppress(OSError):  # a chunk that is about to be written again
        ends = [(int(path.stem), path.stat().st_mtime) for path in metric_files(work.metrics)[1:][-PACE:]]
        rates = [(step - s) / (at - t) for (s, t), (step, at) in itertools.pairwise(ends) if at > t]
        return statistics.median(rates) if rates else None
    return None


def _state(work: Workdir) -> str:
    """Of the files that the data is made of; empty before there are metrics."""
    main, stats = Workdir(work.path), []
    for part in (main, *filter(_ended, work.extensions)):
        for path in [*metric_files(part.metrics), *sorted(part.analysis.glob("[!.]*.json"))]:
            with contextlib.suppress(OSError):
                stats.append(f"{path.relative_to(main.path)} {path.stat().st_mtime_ns}")
    if stats and _ended(main):  # from then on added rows are read
        stats.append("ended")
    return hashlib.sha256("\n".join(stats).encode()).hexdigest() if stats else ""


def _ended(work: Workdir) -> bool:
    """Whether it is trained to its end; also where that cannot be told, and reading it tells why."""
    with contextlib.suppress(WorkdirError):
        return work.trained()
    return True


class _Handler(BaseHTTPRequestHandler):
    """Three paths, to browsers that were told the loopback address: what else asks is refused."""

    watched: Watched

    def do_GET(self):
        try:
            answer = self._answer(*self.path.partition("?")[::2])
        except Exception as error:  # of the disk, or of what it holds: the page says it, and asks again
            answer = 500, " ".join(f"{type(error).__name__}: {error}".split())
        self._send(*answer)

    def _answer(self, path: str, query: str) -> tuple[int, str] | tuple[int, str, str]:
        if not NAMES.fullmatch(self.headers.get("Host", "")):
            return 403, f"lab watch answers http://{ADDRESS}:{self.server.server_port}/ alone"
        if path == "/":
            from lab.report.page import fill

            title = f"Watching {self.watched.root.resolve().name}"
            return (
                200,
                fill("watch.html.j2", title=title, seconds=POLL_SECONDS, beat=1.5 * lock.BEAT_SECONDS),
                "text/html",
            )
        if path == "/data.json":
            since = urllib.parse.parse_qs(query).get("since", [""])[0]
            return 200, json.dumps(self.watched.answer(since), allow_nan=False), "application/json"
        if path == "/report" and (self.watched.root / REPORT).is_file():
            page = (self.watched.root / REPORT).read_text(encoding="utf-8")
            return 200, FIGURE_LINK.sub(r"\1", page), "text/html"
        return 404, "lab watch has /, /data.json and, once it is written, /report"

    def _send(self, code: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the page was closed
            self.wfile.write(body)

    def version_string(self) -> str:
        return "lab"

    def log_message(self, *args) -> None:
        """Nothing: a line every few seconds tells nobody anything."""
