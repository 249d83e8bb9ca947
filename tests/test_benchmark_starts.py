"""Benchmarks that start laboratories in other processes time what they say; the GPU script asks what can be done."""

import functools
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab import config as configs
from lab import schedule
from lab.cli import arguments
from lab.cli import config as config_words
from lab.engine.rows import Rows
from lab.engine.train import train

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# A laboratory of which only that is there which benchmarks may ask of any commit. Its clock is a file of calls.
TOY = {
    "lab/__init__.py": "",
    "lab/cli/__init__.py": """
        import sys
        def main():
            if sys.argv[1] == "list":
                sys.exit("lab: nothing is trained")
            for word in ("one", "two"):
                print(f"Finished XLA compilation of jit({word}) in 0.25 sec", file=sys.stderr)
            print("Persistent compilation cache hit for 'jit_one' with key 'x'")
            from lab.engine import train
            train.train(None, sys.argv[-1])
    """,
    "lab/cli/devices.py": "def use_cores(): pass",
    "lab/configs/__init__.py": "",
    "lab/configs/base.py": "config = dict\ndef transformer(**changes): return changes",
    "lab/configs/composition.py": "TASK = {}",
    "lab/engine/__init__.py": "",
    "lab/engine/rows.py": """
        import os
        class Rows:
            def advance(self, first, end):
                with open(os.environ["CALLS"], "a") as file:
                    print(first, end, file=file)
                return "metrics"
            def wait(self): pass
    """,
    "lab/engine/train.py": """
        from lab.engine.rows import Rows
        def train(config, workdir):
            rows = Rows()
            for first in range(0, 100, 10):
                rows.advance(first, first + 10)
    """,
}


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The modules of benchmarks/ by the names they call each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy's folder; its calls are in `calls`, in the folder above."""
    for name, text in TOY.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(inspect.cleandoc("\n" + text))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "toy"


def test_a_copy_of_the_working_tree_comes_before_what_is_installed(tmp_path):
    import checkouts

    side = checkouts.copy(None, tmp_path / "copy")
    program = "import lab, lab.configs as c; print(lab.__file__, c.__file__)"
    environment = checkouts.environment(side, tmp_path / "cache")
    done = subprocess.run([sys.executable, "-c", program], cwd=side, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(side / "lab" / "__init__.py"), str(side / "lab" / "configs" / "__init__.py")]


def test_a_command_is_timed_until_one_step_is_done_and_its_compilations_are_counted(toy, tmp_path):
    import first_step
    import harness

    start = functools.partial(first_step.start, toy, cache=tmp_path / "cache", times=tmp_path / "times")
    found = start(["reproduce"])
    assert (tmp_path / "calls").read_text() == "0 1\n"
    assert 0 < found["begun"] <= found["done"] and found["cpu"] > 0
    assert (found["programs"], found["reused"], found["compiling"]) == (2, 1, 0.5)
    with pytest.raises(harness.Failed, match="nothing is trained"):
        start(["list"])


def test_a_step_worker_trains_as_many_steps_as_it_is_asked(toy, tmp_path):
    import checkouts
    import harness
    import step_worker

    told = {"task": {}, "model": {}, "batch_size": 8, "rows": 3, "width": 1, "chunk": 20}
    environment = checkouts.environment(toy, tmp_path / "cache")
    team = harness.Team([harness.Worker(Path(step_worker.__file__), told, environment, toy)])
    with harness.ready({"toy": team}) as (teams, failures):
        assert list(teams) == ["toy"] and not failures
        team.steps = 40
        assert team.rate() > 0
    assert (tmp_path / "calls").read_text().split("\n") == ["0 20", "20 40", "40 60", ""]
    assert team.facts["losses"] is None and team.facts["n_rows"] == 3


def test_the_engine_has_what_a_step_worker_asks_of_every_commit():
    import step_worker
    from workload import MODELS, SINCE_LONG, TASKS

    assert list(inspect.signature(Rows.advance).parameters) == ["self", "first", "end"]
    assert list(inspect.signature(Rows.wait).parameters) == ["self"]
    assert list(inspect.signature(train).parameters)[:2] == ["config", "workdir"]
    for size in SINCE_LONG:
        told = {"task": TASKS[size], "model": MODELS[size], "batch_size": 128, "rows": 4, "width": 2, "chunk": 50}
        config = step_worker.config_of(told)
        experiment = configs.experiment(config)
        assert (experiment.model.d_model, len(configs.grid(config))) == (MODELS[size]["d_model"], 4)
        ends, _, _ = schedule.boundaries(config)
        assert ends[:3] == [0, 50, 100] and schedule.longest_chunk(config) == 50


@pytest.mark.parametrize(
    ("mine", "theirs", "says"),
    [
        ([1.0, 2.0], [1.0, 2.0], "the same bits"),
        ([1.0, 2.0], [1.0, 2.25], "0.25 nats"),
        (None, [1.0], "not compared"),
    ],
)
def test_losses_of_two_commits_are_compared_in_words(mine, theirs, says):
    import against_commit

    assert says in against_commit.compare(mine, theirs)


@pytest.fixture
def on_gpu(tmp_path):
    """`run(*words, **environment) -> (process, commands)` of the script, with a Python that notes what it is asked for
    and fails at curvature."""
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"print(json.dumps(sys.argv[1:]), file=open({str(calls)!r}, 'a'))\n"
        "sys.exit(3 * ('sharpness' in ' '.join(sys.argv)))\n"
    )
    stub.chmod(0o755)

    def run(*words, **changes):
        calls.write_text("")
        environment = os.environ | {"PYTHON": str(stub), "OUT": str(tmp_path / "out")} | changes
        command = ["bash", BENCHMARKS / "on_gpu.sh", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        commands = [json.loads(line) for line in calls.read_text().splitlines()]
        return done, [words for words in commands if words[0] != "-c"]

    return run


@pytest.mark.parametrize("words", [(), ("--cut",)], ids=["all", "cut"])
def test_the_script_for_a_gpu_asks_every_part_for_what_it_can_do(words, on_gpu, tmp_path):
    import sharpness
    import throughput

    done, (demo, large, curvature, phases) = on_gpu(*words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "log.txt").read_text() == done.stdout
    limits = [int(seconds) for seconds in re.findall(r"at most (\d+) s", done.stdout)]
    assert len(limits) == 4 and (words or sum(limits) <= 540)
    assert "c: sharpness: failed with code 3; the rest goes on\n" in done.stdout

    sizes = []
    for program, *options in (demo, large):
        assert program == "benchmarks/throughput.py"
        sizes += throughput.chosen(throughput.parse(options)[1]).sizes.values()
    assert words or (sizes[0].widths[0], sizes[0].widths[-1], sizes[1].preset) == (1, 1024, "paper")
    assert curvature[0] == "benchmarks/sharpness.py"
    sharpness.parse(curvature[1:])

    assert phases[:3] == ["-P", "-m", "lab"]
    args, config_args = arguments.parser().parse_known_args(phases[3:])
    config = config_words.read([f"--config={args.study}:{args.preset}", *config_args], args.known)
    (variant,) = configs.variants(config_words.chosen_variants(config, args.variants)).values()
    assert configs.experiment(variant).steps == (4 if words else 2000)
    assert words or variant.block_width == len(configs.grid(variant))


def test_the_script_for_a_gpu_leaves_out_what_there_is_no_time_for(on_gpu):
    done, commands = on_gpu(ALL_SECONDS="5")
    assert commands == []
    assert done.stdout.count("left out, no time is left\n") == 4
    done, _ = on_gpu("--cat")
    assert done.returncode == 2 and done.stderr == "on_gpu.sh: unknown option --cat; there is --cut\n"
