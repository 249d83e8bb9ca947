"""The command line's words: its commands and options, and how configs are read with their overrides.

What cannot be taken is refused by name, with what would be accepted.
"""

import argparse
import ast
import difflib
import re
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

AXIS = re.compile(r"--config\.grid\.(\w+)=(.*)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lab", description="Which solution does initialization pick?", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, text, workdir=True, config=False, **options):
        text += "; any option of the config can be set: --config.grid.gamma='(0.3,0.5)'" * config
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        first = workdir == "required" and not config  # else `--config.name value` would be taken for it
        if first:
            sub.add_argument("folder", nargs="?", type=Path, metavar="WORKDIR", help="or --workdir=WORKDIR")
        if workdir:
            required = workdir == "required" and not first
            sub.add_argument("--workdir", required=required, type=Path, help="folder of the results")
        for option, settings in options.items():
            words = option.replace("_", "--", 1).replace("_", "-") if option.startswith("_") else option
            sub.add_argument(words, **settings)
        known = [word for action in sub._actions for word in action.option_strings] + ["--config"] * config
        sub.set_defaults(command=name, takes_config=config, options=known, needs_folder=first)

    only = {"_variants": {"help": "only these variants, comma-separated (default: all of the config)"}}
    exact = {
        "_deterministic": {"action": "store_true", "help": "the same bits every time on a GPU too; says what it costs"},
    }
    processes = {
        "_distributed": {"action": "store_true", "help": "join the processes that SLURM or a TPU pod started"},
        "_coordinator": {"metavar": "HOST:PORT", "help": "join processes started by hand: where the first one listens"},
        "_processes": {"type": positive(int), "help": "how many there are"},
        "_process": {"type": int, "help": "which one this is, from 0"},
    }
    command("list", "studies, presets with their cost, claims, and measurements", workdir=False)
    command(
        "train",
        "train the grid of --config=FILE[:PRESET]",
        workdir="required",
        config=True,
        **only,
        **exact,
        **processes,
    )
    command(
        "plan",
        "say what the grid of --config=FILE[:PRESET] needs: memory, rows at once, rate",
        workdir=False,
        config=True,
        **only,
        _simulate={
            "type": positive(int),
            "metavar": "N",
            "help": "compile for N devices that are not there, run nothing",
        },
        _fresh={"action": "store_true", "help": "measure again what is remembered from before"},
    )
    command(
        "launch",
        "train the grid of --config=FILE[:PRESET] in jobs of a cluster, one a variant",
        workdir="required",
        config=True,
        **only,
        _cluster={"required": True, "choices": ("slurm", "local"), "help": "local: processes here, all at once"},
        _time={"type": positive(int), "help": "minutes of a job, saved and queued again when it needs more (slurm)"},
        _gpus={"type": positive(int), "help": "GPUs of a job, on each of its nodes"},
        _partition={"help": "the cluster's partition (slurm)"},
        _cpus={"type": positive(int), "help": "CPU cores of a job (slurm)"},
        _memory={"type": positive(float), "help": "GB of a job, on each of its nodes (slurm)"},
        _nodes={"type": positive(int), "help": "nodes that a job trains on together (slurm; default 1)"},
        _detach={"action": "store_true", "help": "submit and return; the jobs are not followed"},
    )
    command("status", "how far the trainings of a workdir are", workdir="required")
    command(
        "analyze",
        "take measurements in a workdir: the study's, or those named",
        workdir="required",
        **only,
        _measure={"metavar": "NAMES", "help": "comma-separated, see `list`, or `all`"},
        _snapshots={"choices": ("all", "last", "log"), "help": "which snapshots (default: as each measurement says)"},
        _rows={"type": row_numbers, "metavar": "I,J-K", "help": "only these rows, from 0, in the order of grid.json"},
        _precision={"choices": ("float32", "float64"), "default": "float32", "help": "default: float32"},
    )
    command("report", "evaluate the claims of a workdir and write its report", workdir="required")
    command("verify", "check every file of a workdir and say what is damaged", workdir="required")
    command(
        "verify-row",
        "train one row again, alone, and say how far it is from what the grid left",
        workdir="required",
        _row={"type": int, "required": True, "metavar": "I", "help": "its number, from 0, in the order of grid.json"},
        _variant={"help": "of which variant, where the workdir holds several"},
        _steps={"type": positive(int), "help": "stop at the first chunk that ends here or later (default: all steps)"},
    )
    command(
        "reproduce",
        "train, analyze and report a study, skipping what is done",
        config=True,
        study={"help": "see `list`"},
        _preset={"default": "cpu", "help": "size of the study, see `list` (default: cpu)"},
        **only,
        **exact,
    )
    command(
        "claims",
        "the claims table: of a workdir, or what the studies claim",
        _json={"action": "store_true", "help": "as JSON"},
        _markdown={"action": "store_true", "help": "as a table for a README; with --workdir"},
    )
    return parser


def read_config(config_args: list[str], options: list[str]) -> ConfigDict:
    """The config named by `--config=FILE[:PRESET]` with its `--config.name=value` overrides.

    What is overridden for the whole config is taken out of the variants, so that the user's word counts everywhere. An
    axis of the grid may be one that the file does not vary: `lab.grid` knows the names.
    """
    refuse([arg for arg in config_args if not arg.startswith("--config")], options)
    for path in (arg.removeprefix("--config=") for arg in config_args if arg.startswith("--config=")):
        if not Path(path.partition(":")[0]).is_file():
            raise ValueError(f"--config={path}: no such file; e.g. --config=configs/composition.py:cpu")
    axes = {found[1]: found[2] for arg in config_args if (found := AXIS.fullmatch(arg))}
    config_args = [arg for arg in config_args if not AXIS.fullmatch(arg)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["lab", *config_args])
    try:
        values(["lab", *config_args])
        # A copy, not locked: variants are taken out of it. It fails where the file could not be read.
        config = None if values.config is None else ConfigDict(values.config.to_dict())
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, OSError) as error:
        raise ValueError(_one_line(error)) from error
    if config is None:
        raise ValueError("--config=FILE[:PRESET] is missing, e.g. --config=configs/composition.py:cpu")
    for name, text in axes.items():
        config.grid[name] = _numbers(name, text)
    for name in (*config_flags.get_override_values(values["config"]), *(f"grid.{axis}" for axis in axes)):
        for variant in () if name.startswith("variants.") else config.variants.values():
            _forget(variant, name.split("."))
    return config


def config_file(config_args: list[str]) -> str:
    """The file of the last `--config=FILE[:PRESET]`, the one that counts."""
    paths = [arg.removeprefix("--config=") for arg in config_args if arg.startswith("--config=")]
    return str(Path(paths[-1].partition(":")[0]).absolute())


def chosen_variants(config: ConfigDict, names: str | None) -> ConfigDict:
    """The config with only the named variants."""
    if names and not config.variants:
        raise ValueError(f"--variants={names}: this config has no variants, leave the option out")
    chosen = names.split(",") if names else list(config.variants)
    for name in chosen:
        if name not in config.variants:
            raise ValueError(f"--variants={names}: {name!r} is not a variant; one of {', '.join(config.variants)}")
    for name in set(config.variants) - set(chosen):
        del config.variants[name]
    return config


def _numbers(axis: str, text: str) -> tuple:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, tuple | list):
        raise ValueError(f"--config.grid.{axis}={text}: expected a tuple of numbers, e.g. '(0.5,)'")
    return tuple(value)


def _forget(variant, path: list[str]) -> None:
    *sections, last = path
    for section in sections:
        if section not in variant:
            return
        variant = variant[section]
    if last in variant:
        del variant[last]


def refuse(unknown: list[str], options: list[str]) -> None:
    """
    Raises:
      ValueError: there is something that no option took; names the nearest one.
    """
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], options, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unexpected argument {unknown[0]!r}{hint} (see --help)")


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    text = text.replace("\\n", "\n").replace("\\'", "'").strip()
    text = text[1:-1] if text[:1] == text[-1:] == "'" else text  # a KeyError quotes its message
    if "Traceback" in text:  # ml_collections quotes a whole traceback of the config file; its last line is the reason
        text = text.splitlines()[-1].partition(": ")[2]
    bare = text.strip("'\" ")
    if bare.isidentifier():
        text = f"{bare!r} is not an option of this part of the config (a variant has only the options it changes)"
    return " ".join(text.split())


def one_folder(first: Path | None, named: Path | None) -> Path:
    """
    Raises:
      ValueError: the folder of the results is not given, or given twice.
    """
    if first and named:
        raise ValueError(f"two folders of results, {first} and {named}: one at a time")
    if not first and not named:
        raise ValueError("which folder of results? --workdir=WORKDIR is missing")
    return first or named


def row_numbers(text: str) -> tuple[int, ...]:
    """For argparse: `0,3,8-11` as the numbers it names, each once and in order."""
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    if not all(len(pair) in (1, 2) and pair[0] <= pair[-1] for pair in ends):
        raise ValueError
    return tuple(sorted({row for pair in ends for row in range(pair[0], pair[-1] + 1)}))


row_numbers.__name__ = "list of rows, e.g. 0,3,8-11,"


def positive(kind: type):
    """For argparse: a number above 0."""

    def number(text: str):
        if not kind(text) > 0:
            raise ValueError
        return kind(text)

    number.__name__ = f"positive {kind.__name__}"
    return number
