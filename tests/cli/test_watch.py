"""`lab watch` serves a workdir to this machine's browsers: what is on disk, as it comes, and nothing else."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from browser import browse, needs_chromium
from on_disk import AXES, SCHEDULE, write_training

from lab import grid
from lab.cli import watch
from lab.disk import files, lock, store
from lab.disk.load import load

pytestmark = pytest.mark.usefixtures("echo_is_a_task")
LAST = 16  # step


@pytest.fixture
def root(echo, tmp_path):
    """Two variants, trained to the end; `grow` takes chunks away and brings them back."""
    for name, data_seed in (("a", 5), ("b", 6)):
        rows = grid.product(AXES)
        write_training(tmp_path / "w" / name, echo.config(grid=AXES, data_seed=data_seed, **SCHEDULE), rows)
    return tmp_path / "w"


@pytest.fixture
def grow(root, tmp_path):
    """`grow(step)`: the metrics of variant `a` end there."""

    def to(step):
        for path in [*(root / "a" / "metrics").glob("*.npz"), *(tmp_path / "later").glob("*.npz")]:
            there = root / "a" / "metrics" if int(path.stem) <= step else tmp_path / "later"
            there.mkdir(exist_ok=True)
            shutil.move(path, there / path.name)

    return to


@pytest.fixture
def serve(monkeypatch):
    """Serves a folder until the test ends; returns a function that asks: (status, headers, text)."""
    monkeypatch.setattr(watch, "SHARE", 1e9)  # read at every request
    serving = []

    def begin(folder):
        server = watch.server(folder, 0)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        serving.append((server, thread))

        def ask(path, host="127.0.0.1", method="GET"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            connection.putrequest(method, path, skip_host=True)
            if host is not None:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

        ask.server = server
        return ask

    yield begin
    for server, thread in serving:
        server.shutdown()
        thread.join()
        server.server_close()


def told(ask, since=""):
    status, headers, text = ask(f"/data.json?since={since}")
    assert status == 200 and headers["Content-Type"].startswith("application/json")
    return json.loads(text)


def steps(answer, variant):
    return next(m["steps"] for m in answer["trainings"][variant]["metrics"] if m["name"] == "odd.accuracy")


# --- what is served ---


def test_data_grow_as_metrics_are_written_and_are_sent_once(root, grow, serve):
    grow(0)  # evaluated, and no step taken
    ask = serve(root)
    assert steps(told(ask), "a") == [0]
    grow(4)
    first = told(ask)
    assert steps(first, "a") == [0, 4] and steps(first, "b") == [0, 4, 8, 12, 16]
    same = told(ask, first["version"])
    assert same["version"] == first["version"] and "trainings" not in same
    grow(8)
    second = told(ask, first["version"])
    assert second["version"] != first["version"] and steps(second, "a") == [0, 4, 8]
    grow(LAST)
    last = told(ask, second["version"])["trainings"]["a"]
    assert last["axes"]["gamma"] == [*AXES["gamma"]] and last["n_rows"] == 12 and last["diverged_at"].count(5) == 1


def test_one_training_is_served_as_a_study_is(root, serve):
    ask = serve(root / "b")
    answer = told(ask)
    assert [*answer["trainings"]] == ["b"] == [line["variant"] for line in answer["progress"]]


def test_folder_without_a_training_waits_for_one(root, serve, tmp_path):
    (tmp_path / "new").mkdir()
    ask = serve(tmp_path / "new")
    empty = told(ask)
    assert (empty["trainings"], empty["progress"], empty["running"], empty["notes"]) == ({}, [], False, [])
    shutil.copytree(root / "a", tmp_path / "new" / "a")
    assert [*told(ask, empty["version"])["trainings"]] == ["a"]


def test_progress_is_that_of_the_files_and_the_heartbeat(root, grow, serve, monkeypatch):
    grow(12)
    for i, end in enumerate((4, 6, 8, 12)):  # 2, 2 and 4 steps in 4 seconds each; 6 is no evaluation
        os.utime(root / "a" / "metrics" / f"{end}.npz", (0, 1000 + 4 * i))
    ask = serve(root)
    line = told(ask)["progress"][0]
    assert (line["variant"], line["state"], line["rate"]) == ("a", "stopped", None)
    files.write_json(root / "a" / lock.WRITER, {"host": "another", "process": 1, "id": "x"})
    answer = told(ask)
    line = answer["progress"][0]
    assert (line["state"], line["step"], line["steps"], line["rows"]) == ("running", 12, LAST, 12) and answer["running"]
    assert 0 <= line["silence"] < lock.STALE_SECONDS
    assert line["rate"] == 0.5 and line["seconds_left"] == (LAST - 12) / 0.5 and line["diverged"] == 1


def test_what_is_damaged_is_said_and_what_was_read_before_stays(root, grow, serve):
    grow(8)
    ask = serve(root)
    before = told(ask)
    (root / "a" / "metrics" / "4.npz").unlink()
    after = told(ask)
    assert after["trainings"] == before["trainings"] and len(after["notes"]) == 1
    assert after["notes"][0].startswith("a: ") and "missing 4.npz" in after["notes"][0]


def test_rows_that_were_added_come_when_they_are_trained(echo, root, serve):
    more = {**AXES, "seed": (8,)}
    store.save(root / "a" / "checkpoints", LAST, {"x": np.zeros((1, 1), np.float32)})
    ask = serve(root)
    before = told(ask)
    config, added = echo.config(grid=AXES, data_seed=5, **SCHEDULE), root / "a" / "extensions" / "1"
    write_training(added, config, grid.product(more))
    files.write_json(added / lock.WRITER, {"host": "another", "process": 1, "id": "x"})
    for end in (4, 6, 8, 12, 16):  # half a step a second
        os.utime(added / "metrics" / f"{end}.npz", (0, 1000 + 2 * end))
    during = told(ask, before["version"])
    assert "trainings" not in during
    assert during["progress"][0]["rate"] == 0.5
    store.save(added / "checkpoints", LAST, {"x": np.zeros((1, 1), np.float32)})
    after = told(ask, before["version"])["trainings"]["a"]
    assert after["n_rows"] == 18 and after["axes"]["seed"] == [0, 7, 8]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("Out of range\nfloat values")])
def test_what_goes_wrong_is_said_to_the_page_in_one_line(root, serve, monkeypatch, capfd, error):
    ask = serve(root)

    def fail(root):
        raise error

    monkeypatch.setattr(watch, "progress", fail)
    status, headers, text = ask("/data.json")
    assert status == 500 and headers["Content-Type"].startswith("text/plain")
    assert text == " ".join(f"{type(error).__name__}: {error}".split()) and not capfd.readouterr().err


def test_training_of_one_row_has_no_map_and_says_so(echo, serve, tmp_path):
    axes = {axis: values[:1] for axis, values in AXES.items()}
    write_training(tmp_path / "one" / "main", echo.config(grid=axes, **SCHEDULE), grid.product(axes))
    answer = told(serve(tmp_path / "one"))
    assert answer["trainings"] == {} and answer["notes"] == ["main: one row: there is no grid to explore"]


def test_nothing_is_written_and_no_lock_is_touched(root, serve, monkeypatch):
    for name in ("locked", "held", "_flock"):
        monkeypatch.setattr(lock, name, None)
    for variant in "ab":
        (root / variant / ".lock").touch()

    def everything():
        return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}

    before = everything()
    ask = serve(root)
    for path in ("/", "/data.json", "/report", "/a/config.json"):
        ask(path)
    assert everything() == before


def test_large_training_is_read_less_often(root, grow, serve, monkeypatch):
    grow(4)
    ask = serve(root)
    monkeypatch.setattr(watch, "SHARE", 1e-9)
    first = told(ask)
    grow(8)
    second = told(ask)  # the first time was that of imports
    grow(12)
    assert second["version"] != first["version"] and told(ask)["version"] == second["version"]


# --- who is answered ---


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil", "[::1]x", "", None])
@pytest.mark.parametrize("path", ["/", "/data.json", "/report"])
def test_foreign_host_is_refused(root, serve, host, path):
    ask = serve(root)
    status, _, text = ask(path, host)
    assert status == 403 and text.startswith("lab watch answers http://127.0.0.1:") and "gamma" not in text


def test_loopback_alone_is_listened_on_and_other_paths_and_methods_are_none_of_it(root, serve):
    ask = serve(root)
    assert ask.server.server_address[0] == "127.0.0.1" and ask.server.socket.family == socket.AF_INET
    for host in ("127.0.0.1", "localhost", f"localhost:{ask.server.server_port}"):
        status, headers, _ = ask("/", host)
        assert status == 200 and "Access-Control-Allow-Origin" not in headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    for path in ("/a/config.json", "/../w/a/config.json", "//a/config.json", "/index.html", "/report", "/data.json/x"):
        assert ask(path)[0] == 404, path
    assert ask("/data.json", method="POST")[0] == 501


def test_report_is_the_one_that_was_written(root, serve):
    ask = serve(root)
    assert not told(ask)["reported"]
    (root / "report").mkdir()
    (root / "report" / "index.html").write_text('γ (<a href="figures/x.png">PNG</a>) <a href="#run">The run</a>')
    assert told(ask)["reported"]
    assert ask("/report")[2] == 'γ (PNG) <a href="#run">The run</a>'  # the pictures' files are not served


# --- in a browser, and as a process ---


@needs_chromium
def test_page_draws_what_is_served(root, serve, tmp_path):
    ask = serve(root)
    address = f"http://127.0.0.1:{ask.server.server_port}/#explore=b&metric=odd.accuracy&cell=0.5,0.1"
    dom, errors = browse(address, tmp_path / "profile", 1200)
    (reading,) = re.findall(r'<p class="reading"[^>]*><b>γ 0.5, weight decay 0.1</b><br>(.*?)</p>', dom)
    values = load(root, "b")["odd.accuracy"].sel(gamma=0.5, weight_decay=0.1, step=LAST).values.ravel()
    assert reading.startswith(f"odd.accuracy {np.median(values):.4g}, median of 2 [") and not errors
    assert re.findall(r"<h2>(\w)</h2>", dom) == ["a", "b"] and "Nothing trains here now" in dom


def test_process_says_its_address_and_ends_by_ctrl_c_without_complaint(tmp_path):
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # in a background shell, too
    program = f"{hears}; from lab.cli import main; main()"
    words = [sys.executable, "-c", program, "watch", str(tmp_path), "--port=0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    port = int(re.fullmatch(rf"watching {re.escape(str(tmp_path))}: http://127.0.0.1:(\d+)/ \(Ctrl-C .*\)\n", line)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/data.json")
    assert json.loads(connection.getresponse().read())["progress"] == []
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def test_port_that_is_taken_earns_one_line(root, refusal):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal("watch", str(root), f"--port={port}")
    assert said == f"lab: --port={port}: Address already in use; --port=0 takes a free one\n"
