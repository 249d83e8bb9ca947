"""Jobs train every variant to the bytes of a direct training, whatever happens to them; real processes throughout."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab import config as configs
from lab.cli import main
from lab.cluster import launch, status
from lab.disk.workdir import Workdir
from lab.engine import train

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).parents[1] / "toys/echo_config.py"
CONTINUING = re.compile("continuing at step (8|12)\n")  # the signal came while step 6 was written, in the background
VARIANTS = "wide+done+killed+preempted+warned+broken"


@pytest.fixture(scope="module", autouse=True)
def no_wait_for_a_network_disk():
    """submitit looks for a killed job's result for 15 seconds."""
    import submitit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submitit.Job, "_results_timeout_s", 0)
        yield


@pytest.fixture(scope="module")
def variants(echo):
    """The two different trainings of the config file."""
    return configs.variants(echo.config(variants={"plain": {}, "wide": {"model": {"d_ff": 12}}}))


@pytest.fixture(scope="module")
def direct(echo, variants, tmp_path_factory):
    """Digests of both, trained without any job."""
    root = tmp_path_factory.mktemp("direct")
    return {name: echo.digests(train.train(config, root / name)) for name, config in variants.items()}


@pytest.fixture(scope="module")
def launched(variants, direct, tmp_path_factory):
    """A launch in which everything happens: root, exit code, what was printed, and what was there before."""
    root = tmp_path_factory.mktemp("launched") / "w"
    train.train(variants["plain"], root / "done")
    before = written(root / "done")
    code, said = run("launch", f"--config={CONFIG}:{VARIANTS}", f"--workdir={root}", "--cluster=local")
    return root, code, said, before


def run(*argv):
    """Exit code and output of one command, as if typed in a shell."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lab", *argv])
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        try:
            main(list(argv))
        except SystemExit as stopped:
            return stopped.code, "\n".join(lines)
    return 0, "\n".join(lines)


def written(root):
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def last_table(said):
    """Rows of the last table printed, by variant, and the lines below it."""
    lines = said.rpartition("variant ")[2].splitlines()[1:]
    rows = {words[0]: words[1:] for words in (line.split() for line in lines) if not words[0].endswith(":")}
    return rows, [line for line in lines if line.split()[0].endswith(":")]


def log_of(root, variant):
    job = status.launched(root)[variant]["job"]
    return (root / "jobs" / f"{job}_0_log.out").read_text()


# --- what becomes of the jobs ---


@pytest.mark.parametrize("variant", ["wide", "done", "preempted", "warned"])
def test_variants_are_trained_to_the_bytes_of_a_direct_training(echo, launched, direct, variant):
    root, _, said, _ = launched
    assert last_table(said)[0][variant] == ["trained", "24/24", "3", "1"]
    assert echo.digests(root / variant) == direct["wide" if variant == "wide" else "plain"]


def test_trained_variant_is_not_trained_again(launched):
    root, _, said, before = launched
    assert "done: trained already, not launched" in said.splitlines()
    assert written(root / "done") == before and "done" not in status.launched(root)


def test_failed_jobs_say_why_in_a_line_and_stop_no_other(launched):
    _, code, said, _ = launched
    rows, notes = last_table(said)
    assert code == 1
    assert [name for name, row in rows.items() if row[0] != "trained"] == ["broken", "killed"]
    # a checkpoint at 6, and nothing whole after it
    assert rows["killed"] == rows["broken"] == ["failed", "6/24", "3", "1"]
    broken, _, killed = notes
    assert killed.startswith("killed: it was killed") and broken.startswith("broken: RuntimeError: no more; log: ")
    assert "RuntimeError: no more\nof this" in Path(broken.rpartition("log: ")[2]).read_text()


def test_preempted_job_saves_and_is_queued_again(launched):
    log = log_of(launched[0], "preempted")
    assert log.count("Loading pickle") == 2 and "Requeued job" in log and CONTINUING.search(log)


def test_warned_job_saves_and_goes_on_in_the_same_process(launched):
    log = log_of(launched[0], "warned")
    assert log.count("Loading pickle") == 1 and CONTINUING.search(log)


def test_table_is_printed_when_something_has_changed_and_then_only(launched):
    tables = launched[2].split("\n\n")
    assert len(tables) > 1 and all(a != b for a, b in itertools.pairwise(tables))
    assert last_table(tables[0])[0]["wide"][:2] == ["queued", "0/24"]


def test_folders_say_how_far_they_are_and_what_was_typed(launched):
    root, *_ = launched
    _, said = run("status", f"--workdir={root}")
    rows, notes = last_table(said)
    assert (rows["wide"][0], rows["killed"][:2], notes) == ("trained", ["stopped", "6/24"], [])
    command = Workdir(root / "wide").read_json("config.json")["command"]
    assert command.startswith("python -m lab launch --config=") and command.endswith("--cluster=local")


def test_killed_job_launched_again_continues_to_the_same_bytes(echo, launched, direct):
    root, *_ = launched
    code, said = run("launch", f"--config={CONFIG}:killed", f"--workdir={root}", "--cluster=local")
    assert (code, last_table(said)[0]) == (0, {"killed": ["trained", "24/24", "3", "1"]})
    assert echo.digests(root / "killed") == direct["plain"]
    assert "continuing at step 6" in log_of(root, "killed")


# --- SLURM, acted by four scripts ---

SLURM = {  # in a folder with the scripts submitted (`script.<job>`), the states (`state.<job>`) and the `next` number
    "sbatch": """
        job=$(cat next); echo $((job + 1)) > next; cp "$1" script.$job; echo PENDING > state.$job
        echo "Submitted batch job $job"
        [ -n "$SLURM_IS_BUSY" ] && exit
        export SLURM_JOB_ID=$job SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
        (
            echo RUNNING > state.$job
            script=$PWD/script.$job
            until (cd "$OLDPWD" && bash "$script"); do
                grep -q REQUEUED state.$job || { echo FAILED > state.$job; exit; }
                echo RUNNING > state.$job
            done
            echo COMPLETED > state.$job
        ) > /dev/null 2>&1 &
    """,
    "srun": """
        while :; do
            case $1 in
                --output) exec >> "$(echo "$2" | sed "s/%j/$SLURM_JOB_ID/; s/%t/0/")"; shift 2 ;;
                --error) exec 2>> "$(echo "$2" | sed "s/%j/$SLURM_JOB_ID/; s/%t/0/")"; shift 2 ;;
                -*) shift ;;
                *) cd "$OLDPWD"; exec "$@" ;;
            esac
        done
    """,
    "scontrol": '[ "$1" = requeue ] && echo REQUEUED > "state.$2"',
    "sacct": """
        echo "JobID|State|NodeList"
        for state in state.*; do echo "${state#state.}|$(cat $state)|"; done
    """,
}
NUMBERS = itertools.count(700, 100)  # submitit remembers what became of a job


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster; the folder of its scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in SLURM.items():
        (folder / name).write_text(f'#!/bin/bash\ncd "$(dirname "$0")"\n{script}\n')
        (folder / name).chmod(0o755)
    (folder / "next").write_text(str(next(NUMBERS)))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurms_job_saves_when_preempted_and_is_requeued_and_continues(echo, slurm, direct, tmp_path, monkeypatch):
    monkeypatch.setitem(launch.SECONDS_BETWEEN_LOOKS, "slurm", 0.5)
    root = tmp_path / "w"
    code, said = run("launch", f"--config={CONFIG}:preempted", f"--workdir={root}", "--cluster=slurm", "--time=60")
    assert (code, last_table(said)[0]) == (0, {"preempted": ["trained", "24/24", "3", "1"]})
    assert echo.digests(root / "preempted") == direct["plain"]
    log = log_of(root, "preempted")
    assert log.count("Loading pickle") == 2 and "Requeued job" in log and CONTINUING.search(log)


def sbatch_options(script):
    lines = [line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


def test_slurm_gets_a_job_a_variant_with_what_is_given_and_no_more(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_IS_BUSY", "1")
    root, first = tmp_path / "w", int((slurm / "next").read_text())
    command = ("launch", f"--config={CONFIG}:one+two", f"--workdir={root}", "--cluster=slurm", "--time=90", "--detach")
    code, said = run(*command, "--partition=long", "--gpus=2", "--cpus=4", "--memory=1.5")
    waiting = ["queued", "0/24", "3", "?"]
    assert code == 0 and last_table(said)[0] == {"one": waiting, "two": waiting}
    one, two = (sbatch_options(slurm / f"script.{first + i}") for i in (0, 1))
    given = {"partition": "long", "time": "90", "gpus-per-node": "2", "cpus-per-task": "4", "mem": "1536MB"}
    assert given.items() <= one.items() and "ntasks-per-node" not in one
    assert (one["job-name"], two["job-name"]) == ("echo-one", "echo-two")

    (slurm / f"state.{first + 1}").write_text("CANCELLED by 0")
    code, said = run(*command, "--nodes=3")
    assert code == 0 and f"one: job {first} has it, not launched again" in said and "two: " not in said
    again = sbatch_options(slurm / f"script.{first + 2}")
    assert not {"partition", "gpus-per-node", "mem"} & again.keys()
    assert (again["job-name"], again["nodes"], again["ntasks-per-node"]) == ("echo-two", "3", "1")
    assert "--kill-on-bad-exit=1" in (slurm / f"script.{first + 2}").read_text()
    assert (slurm / "next").read_text().strip() == str(first + 3)

    _, said = run("status", f"--workdir={root}")
    waiting = ["not", "started", "0/24", "3", "?"]
    assert last_table(said)[0] == {"one": waiting, "two": waiting}


def test_tasks_of_one_job_train_on_the_devices_of_all():
    script = "import jax; from lab.cluster import job; job._join_other_tasks()"
    script += "; print(jax.process_count(), jax.device_count())"
    shared = os.environ | {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_JOB_ID": str(os.getpid()),
        "JAX_NUM_CPU_DEVICES": "3", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=shared | {"SUBMITIT_LOCAL_GLOBALID": rank}, stdout=subprocess.PIPE
        )
        for rank in ("0", "1")
    ]
    assert [task.communicate(timeout=120)[0].split() for task in tasks] == [[b"2", b"6"]] * 2


def test_what_slurm_refuses_is_said_in_its_words(slurm, tmp_path, capsys):
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no partition long' >&2\nexit 1\n")
    lines = refusal(capsys, tmp_path, ":one", "--cluster=slurm", "--time=9", "--partition=long", n_lines=2)
    assert lines.endswith("lab: echo-one: the cluster refused the job: sbatch: error: no partition long\n")


# --- what is refused ---


def refusal(capsys, tmp_path, preset, *argv, n_lines=1):
    """What a mistake earns, one line; nothing is trained for it."""
    argv = ["launch", f"--config={CONFIG}{preset}", f"--workdir={tmp_path / 'w'}", *argv]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lab", *argv])
        with pytest.raises(SystemExit) as stopped:
            main(argv)
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", n_lines), said
    assert not list((tmp_path / "w").glob("*/.lock"))
    return said.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((":plain", "--cluster=slrm"), "argument --cluster: invalid choice: 'slrm'"),
        ((":plain",), "--cluster"),
        ((":plain", "--cluster=slurm", "--time=0"), "argument --time: invalid positive int value: '0'"),
        ((":plain", "--cluster=local", "--memory=8"), "--memory: unknown to --cluster=local, which takes gpus"),
        ((":plain", "--cluster=slurm"), "--time=MINUTES is missing"),
        ((":plain+wide", "--cluster=local", "--config.batch_size=0"), "batch_size=0"),
        ((":plain", "--cluster=local", "--detatch"), "unexpected argument '--detatch'; did you mean --detach"),
    ],
)
def test_mistake_earns_one_line_and_starts_no_job(capsys, tmp_path, argv, message):
    assert message in refusal(capsys, tmp_path, *argv)
    assert not (tmp_path / "w").exists()


def test_slurm_where_there_is_none_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert 'Could not detect "srun"' in refusal(capsys, tmp_path, ":plain", "--cluster=slurm", "--time=9")


def test_missing_submitit_is_one_line_that_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "pip install 'gammalab[cluster]'" in refusal(capsys, tmp_path, ":plain", "--cluster=local")
    assert not (tmp_path / "w").exists()


# --- whatever the folder is called ---


@pytest.mark.parametrize("name", ["plain", "two words", "la %j unch", "50%", "%A_%a/%t", "%%", 'quo\'te "s"'])
def test_jobs_lie_in_the_workdir_whatever_its_name(tmp_path, name):
    from submitit.core.utils import JobPaths

    root = tmp_path / "%u" / name
    for _ in range(2):  # a second launch finds the link of the first
        folder = launch._jobs_folder(root)
        paths = JobPaths(folder, "123", 0)
        assert "%" not in str(folder)
        assert paths.stdout.resolve() == root / status.JOBS / "123_0_log.out"
        assert JobPaths.get_first_id_independent_folder(folder) == folder
    plain = tmp_path / "plain"
    assert launch._jobs_folder(plain) == plain / status.JOBS and not plain.exists()
