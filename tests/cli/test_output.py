"""A reader who has seen enough does not disturb the work: `lab list | head -1`."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from lab import cli
from lab.cli import commands
def work(args, config_args):
    for line in range(20_000):
        print("line", line)
        print("remark", line, file=sys.stderr)
    open({done!r}, "w").close()
    {end}
commands.COMMANDS["list"] = work
cli.main(["list"])
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit(1)", 1), ("raise ValueError('no')", 2)])
def test_work_goes_on_to_its_own_exit_code_when_nobody_reads(tmp_path, end, code):
    done = tmp_path / "done"
    reading, writing = os.pipe()
    program = [sys.executable, "-c", SCRIPT.format(done=str(done), end=end)]
    with subprocess.Popen(program, stdout=writing, stderr=writing) as process:
        os.close(writing)
        assert os.read(reading, 4) in (b"line", b"rema")
        os.close(reading)
        assert process.wait(60) == code
    assert done.exists()


def test_nothing_is_said_of_the_reader_who_left(tmp_path):
    reading, writing = os.pipe()
    program = [sys.executable, "-c", SCRIPT.format(done=str(tmp_path / "done"), end="")]
    with subprocess.Popen(program, stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        os.close(writing)
        os.close(reading)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and said.splitlines() == [f"remark {line}" for line in range(20_000)]


def test_last_lines_are_not_lost(tmp_path):
    program = [sys.executable, "-c", SCRIPT.format(done=str(tmp_path / "done"), end="print('end', end='')")]
    said = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and said.stdout.splitlines()[-2:] == ["line 19999", "end"]
