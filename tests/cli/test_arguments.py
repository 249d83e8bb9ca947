"""What the command line takes, and what it refuses: one line that says what was given and what would do."""

import functools
import re
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.cli import arguments, commands
from lab.configs import base, composition
from lab.engine import train

SMALL = "--config=composition:smoke"
MISTAKES = [  # what is typed, W for a workdir -> what is said: what was given, what is accepted, what is nearest
    ("reproduce compo W", r"unknown study 'compo'; did you mean 'composition'\? There are .*complexity_control, "),
    ("reproduce zzz W", "unknown study 'zzz'; there are .*complexity_control, "),
    (
        "reproduce composition W --preset=huge",
        "unknown preset 'huge' of composition; one of smoke, cpu, cpu_full, record, gpu, paper$",
    ),
    ("reproduce composition W --preset=smoke --config.grid.gama=(0.3,)", "grid.gama: .*; did you mean 'gamma'"),
    ("reproduce composition W --preset=smoke --variants=unsen", "'unsen' is not a variant; one of unseen, wrong"),
    (
        "reproduce composition W --config=ntp_ctp:smoke",
        "--config=ntp_ctp:smoke: reproduce takes the study's own config",
    ),
    ("reproduce composition W --config ntp_ctp", "--config: reproduce takes the study's own config"),
    (f"train {SMALL}y W", "unknown preset 'smokey' of composition; one of smoke, cpu, cpu_full, record, gpu, paper$"),
    (f"train --config={composition.__file__}:smokey W", "unknown preset 'smokey' of composition; one of smoke, cpu"),
    ("train --config=nowhere.py W", "--config=nowhere.py: no such file, and no config of that name; there are .*large"),
    ("train --config=composit:cpu W", r"--config=composit: no such file, .*; did you mean 'composition'\? There are"),
    ("train --config=studies W", "--config=studies: no such file"),
    ("train W", r"--config=FILE\[:PRESET\] is missing, e.g. --config=composition:cpu"),
    ("train --config W", r"--config=FILE\[:PRESET\] is missing"),
    ("train --config= W", r"--config=FILE\[:PRESET\] is missing"),
    (f"train --config={Path(base.__file__).with_name('__init__.py')} W", "__init__: no preset, a public function"),
    (f"train {SMALL} W --config.grid.gama=(0.3,)", "gama.*gamma"),
    (f"train {SMALL} W --config.steps=abc", "steps=abc: invalid literal for int"),
    (f"train {SMALL} W --config.step=3", "steps"),
    (f"train {SMALL} W --config.model.norm=batch", "model.norm='batch': one of pre, post, none"),
    *(
        (f"train {SMALL} W --config.model.{size}={value}", rf"model\.{size}={value}: expected an integer of at least 1")
        for size, value in (("n_heads", 0), ("d_head", -4), ("d_model", 0), ("n_layers", -1))
    ),
    (f"train {SMALL} W --config.model.d_ff=-1", r"model\.d_ff=-1: expected an integer of at least 0"),
    (f"train {SMALL} W --config.model.max_length=-1", r"model\.max_length=-1: expected an integer of at least 0"),
    (f"train {SMALL} W --config.model.max_length=8", "model.max_length=8: the task needs at least 9"),
    (f"train {SMALL} W --config.model.vocab_size=200", "model.vocab_size=200: the task needs at least 201"),
    (f"train {SMALL} W --config.grid.seed=(0,0)", r"grid.seed=\(0, 0\): a value is repeated"),
    (f"train {SMALL} W --config.data_seed=4294967296", r"data_seed=4294967296: must be an integer in \[0, 2\^31\)"),
    (f"train {SMALL} W --config.data_seed=-1", r"data_seed=-1: must be an integer in \[0, 2\^31\)"),
    (f"train {SMALL} W --config.grid.seed=(2147483648,)", r"2147483648 is not an integer in \[0, 2\^31\)"),
    (f"train {SMALL} W --config.grid.gamma=('a',)", "'a' is not a number"),
    (f"train {SMALL} W --config.grid.gamma=0.3", "grid.gamma=0.3: expected a tuple of numbers"),
    (f"train {SMALL} W --config.grid.sam_radius=(-1,)", "-1 is negative"),
    (f"train {SMALL} W --config.grid.label_noise=(0,2)", "a row of the grid: objective.label_noise=2.0: a number from"),
    (f"train {SMALL} W --config.optim.warmup_steps=40", r"warmup_steps=40: must lie in \[0, steps=40\)"),
    (f"train {SMALL} W --config.task.setting=43", "task.setting='43': one of 34_wrong, 34_unseen, all_pairs"),
    (f"train {SMALL} W --config.eval_size=31", "n=31 must be even"),
    (f"train {SMALL} W --variants=wrong,right", "'right' is not a variant; one of unseen, wrong"),
    (f"train {SMALL} W --wrkdir=x", "unexpected argument '--wrkdir=x'; did you mean --workdir"),
    (f"train {SMALL} W now", "unexpected argument 'now'"),
    ("analyze W", "no training here"),
    ("analyze W --rows=0-3", "no training here"),
    ("report W", "no training here"),
    ("claims W", "no claims table"),
    ("claims --markdown", "--markdown: the table of a --workdir, and not together with --json"),
    ("claims W --markdown --json", "--markdown: the table of a --workdir, and not together with --json"),
    ("report W --partial", "no training here"),
    ("export W --to=csv", "no training here"),
    ("export W --to=csv --rows=0-3", "no training here"),
    ("prune W --keep-checkpoints=1", "no training here"),
    ("watch W", "w: no such folder"),
    ("prune W", "what may go\\? --keep-checkpoints=N, --keep-snapshots=log or --keep-snapshots=last, or both"),
    (f"train {SMALL} W --config.task.family=mine:Task", "task.family='mine:Task': No module named 'mine'"),
    ("analyze W --config.steps=3", "unexpected argument '--config.steps=3'"),
]


@pytest.mark.parametrize(("typed", "message"), MISTAKES)
def test_mistake_earns_one_line_that_says_what_would_do(tmp_path, refusal, typed, message):
    folder = tmp_path / "w"
    line = refusal(*(f"--workdir={folder}" if word == "W" else word for word in typed.split()))
    assert re.search(message, line), line
    assert not folder.exists()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (f"train {SMALL}", "--workdir"),
        ("reproduce", "study"),
        ("reproduc", "reproduce"),
        ("export w --to=exel", r"--to: invalid choice: 'exel' \(choose from"),
        ("export w", "required: --to"),
        ("export w --to=csv --rows=al", r"--rows: invalid list of rows, e\.g\. 0,3,8-11, or `all`, value: 'al'"),
        ("diff w", "required: B"),
        ("watch w --port=65536", "--port: invalid port value: '65536'"),
        ("watch w --port=-1", "--port: invalid port value: '-1'"),
        ("analyze w --n=al", r"--n: invalid number of sequences, or `all`, value: 'al'"),
        ("analyze w --n=0", r"--n: invalid number of sequences"),
        ("prune w --keep-snapshots=some", r"--keep-snapshots: invalid choice: 'some'"),
        *((f"analyze w --rows={words}", r"--rows: invalid list of rows, e\.g\. 0,3,8-11, value")
          for words in ("0,x", "3-1", "-2", "1,,2", "1-2-3", "", "9" * 5000)),
    ],
)  # fmt: skip
def test_words_that_no_command_has_are_named(capsys, run, typed, message):
    with pytest.raises(SystemExit) as stopped:
        run(*typed.split())
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, None), (signal.SIGINT, 130)])
def test_training_asked_to_stop_ends_with_the_code_of_who_asked(capsys, run, monkeypatch, tmp_path, number, code):
    def stopped(*_):
        raise train.Interrupted("w: stopped at step 3 as asked", number)

    monkeypatch.setattr(train, "train_variants", stopped)
    typed = functools.partial(run, "train", SMALL, f"--workdir={tmp_path / 'w'}")
    if code is None:
        typed()
    else:
        with pytest.raises(SystemExit) as ended:
            typed()
        assert ended.value.code == code
    assert capsys.readouterr().out == "w: stopped at step 3 as asked\n"


@pytest.mark.parametrize(("command", "goes_on"), [("train", True), ("reproduce", True), ("verify", False)])
def test_stopped_command_says_that_it_continues_where_it_does(capsys, run, monkeypatch, command, goes_on):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, command, stopped)
    with pytest.raises(SystemExit) as ended:
        run(command, *["composition"] * (command == "reproduce"), "--workdir=w")
    said = capsys.readouterr().err
    assert ended.value.code == 130 and said.startswith("\nlab: stopped")
    assert said.endswith("; the same command continues from the last checkpoint\n") == goes_on


def test_every_command_is_a_function_and_takes_what_it_says():
    assert list(arguments.COMMANDS) == list(commands.COMMANDS)
    for name, command in arguments.COMMANDS.items():
        words = ["x"] if "study" in command.options else []
        words += ["--cluster=local"] if "--cluster" in command.options else []
        words += ["--row=1"] if "--row" in command.options else []
        words += ["--to=csv"] if "--to" in command.options else []
        words += ["x", "y"] if "a" in command.options else []
        words += ["--workdir=w"] if command.workdir != "none" else []
        args, rest = arguments.parser().parse_known_args([name, *words])
        assert (args.command == name and rest == [] and {"--config"} <= set(args.known)) or not command.takes_config


# --- rows ---


ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted), min_size=1, max_size=4)


@given(ranges=ROWS, n_rows=st.integers(13, 20))
def test_ranges_are_the_rows_they_name_each_once_and_in_order(ranges, n_rows):
    typed = ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in ranges)
    named = {row for first, last in ranges for row in range(first, last + 1)}
    assert arguments.expand(arguments.row_ranges(typed), n_rows) == tuple(sorted(named))


@given(ranges=ROWS, n_rows=st.integers(1, 12))
def test_smallest_row_that_is_not_there_stays_to_be_refused(ranges, n_rows):
    typed = ",".join(f"{first}-{last}" for first, last in ranges)
    named = {row for first, last in ranges for row in range(first, last + 1)}
    expanded = arguments.expand(arguments.row_ranges(typed), n_rows)
    absent = {row for row in named if row >= n_rows}
    assert {row for row in expanded if row < n_rows} == named - absent
    assert min(absent, default=None) == min((row for row in expanded if row >= n_rows), default=None)


def test_range_of_any_length_takes_no_memory():
    assert arguments.expand(arguments.row_ranges(f"6-{10**18},2"), 8) == (2, 6, 7, 8)
    assert arguments.expand(arguments.row_ranges(f"{10**18}"), 8) == (10**18,)
