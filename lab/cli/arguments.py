"""The command line's words: its commands and their options.

What cannot be taken is refused by name, with what would be accepted.
"""

import argparse
import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path

from lab import sinks


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def positive(kind: type):
    """For argparse: a number above 0."""

    def number(text: str):
        if not kind(text) > 0:
            raise ValueError
        return kind(text)

    number.__name__ = f"positive {kind.__name__}"
    return number


def port(text: str) -> int:
    """For argparse: a TCP port, or 0."""
    if not 0 <= int(text) < 2**16:
        raise ValueError
    return int(text)


def row_ranges(text: str) -> tuple[range, ...]:
    """For argparse: `0,3,8-11` as the ranges it names, of any length."""
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    if not all(len(pair) in (1, 2) and pair[0] <= pair[-1] for pair in ends):
        raise ValueError
    return tuple(range(pair[0], pair[-1] + 1) for pair in ends)


def rows(text: str) -> tuple[range, ...] | str:
    """For argparse: `row_ranges`, or `all`."""
    return text if text == "all" else row_ranges(text)


def sequences(text: str) -> int | str:
    """For argparse: a number above 0, or `all`."""
    return text if text == "all" else positive(int)(text)


sequences.__name__ = "number of sequences, or `all`,"
row_ranges.__name__ = "list of rows, e.g. 0,3,8-11,"
rows.__name__ = f"{row_ranges.__name__} or `all`,"


def expand(ranges: tuple[range, ...], n_rows: int) -> tuple[int, ...]:
    """The numbers in the ranges, each once and in order; of those above `n_rows` - 1 only the smallest of each range.

    So that a range of any length takes no memory, and what there is no row for is still in it, to be refused.
    """
    return tuple(sorted({row for each in ranges for row in each[: max(n_rows - each.start, 0) + 1]}))


@dataclasses.dataclass(frozen=True)
class Command:
    """
    Attributes:
      text: what it does, for `--help`.
      options: option, or positional argument -> settings for `add_argument`.
      workdir: `required`, `optional` or `none`. Without a config a required one may be given as the first word.
      takes_config: `--config` and overrides of the config's options.
      computes: on JAX's devices, which take a while to start.
      takes_axes: `--grid.NAME=VALUES`.
    """

    text: str
    options: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    workdir: str = "required"
    takes_config: bool = False
    computes: bool = True
    takes_axes: bool = False

    @property
    def takes_folder(self) -> bool:
        return self.workdir == "required" and not self.takes_config  # else `--config.name value` would be taken for it


CONFIG = "--config=NAME[:PRESET] or --config=FILE[:PRESET]"
ONLY = {"--variants": {"help": "only these variants, comma-separated (default: all of the config)"}}
EXACT = {
    "--deterministic": {"action": "store_true", "help": "the same bits every time on a GPU too; says what it costs"},
}
PROCESSES = {
    "--distributed": {"action": "store_true", "help": "join the processes that SLURM or a TPU pod started"},
    "--coordinator": {"metavar": "HOST:PORT", "help": "join processes started by hand: where the first one listens"},
    "--processes": {"type": positive(int), "help": "how many there are"},
    "--process": {"type": int, "help": "which one this is, from 0"},
}
PLANNING = {
    "--simulate": {
        "type": positive(int),
        "metavar": "N",
        "help": "compile for N devices that are not there, run nothing",
    },
    "--fresh": {"action": "store_true", "help": "measure again what is remembered from before"},
}
JOBS = {
    "--cluster": {"required": True, "choices": ("slurm", "local"), "help": "local: processes here, all at once"},
    "--time": {"type": positive(int), "help": "minutes of a job, saved and queued again when it needs more (slurm)"},
    "--gpus": {"type": positive(int), "help": "GPUs of a job, on each of its nodes"},
    "--partition": {"help": "the cluster's partition (slurm)"},
    "--cpus": {"type": positive(int), "help": "CPU cores of a job (slurm)"},
    "--memory": {"type": positive(float), "help": "GB of a job, on each of its nodes (slurm)"},
    "--nodes": {"type": positive(int), "help": "nodes that a job trains on together (slurm; default 1)"},
    "--detach": {"action": "store_true", "help": "submit and return; the jobs are not followed"},
}
SCOPE = {
    "--measure": {"metavar": "NAMES", "help": "comma-separated, see `list`, or `all`"},
    "--snapshots": {"choices": ("all", "last", "log"), "help": "which snapshots (default: as each measurement says)"},
    "--rows": {"type": row_ranges, "metavar": "I,J-K", "help": "only these rows, from 0, in the order of `lab.load`"},
    "--n": {"type": sequences, "metavar": "N|all", "help": "of how many sequences (default: as each measurement says)"},
    "--precision": {"choices": ("float32", "float64"), "default": "float32", "help": "default: float32"},
}
ROW = {
    "--row": {"type": int, "required": True, "metavar": "I", "help": "its number, from 0, in the order of `lab.load`"},
    "--variant": {"help": "of which variant, where the workdir holds several"},
    "--steps": {"type": positive(int), "help": "stop at the first chunk that ends here or later (default: all steps)"},
}
STUDY = {
    "study": {"help": "see `list`"},
    "--preset": {"default": "cpu", "help": "size of the study, see `list` (default: cpu)"},
}
LISTED = {"study": {"nargs": "?", "metavar": "STUDY", "help": "its name, or its file"}}
PRUNING = {
    "--keep-checkpoints": {"type": int, "metavar": "N", "help": "the newest N; at least 1 (default: all)"},
    "--keep-snapshots": {
        "choices": ("all", "log", "last"),
        "default": "all",
        "help": "log: a log-spaced part; last: the first and the last (default: all)",
    },
    "--dry-run": {"action": "store_true", "help": "say what would go, drop nothing"},
}
PARTIAL = {"--partial": {"action": "store_true", "help": "of what is trained and analyzed so far; the rest is open"}}
EXPORTED = {
    "--to": {
        "required": True,
        "choices": tuple(sinks.SINKS),
        "help": "what it is for; wandb stays offline; safetensors: weights, a checkpoint a row, of a model that is a "
        "GPT-2, GPT-NeoX, Llama or Qwen-3",
    },
    "--rows": {
        "type": rows,
        "metavar": "I,J-K|all",
        "help": f"only these, from 0, in the order of `lab.load`; trackers and safetensors take {sinks.RUNS} at most "
        "unasked",
    },
    "--metrics": {
        "metavar": "NAMES",
        "help": "comma-separated: variables, splits, measurements (default: all, not large)",
    },
    "--out": {"metavar": "PLACE", "help": "file or folder, of trackio the project (default: in the workdir's export)"},
}
COMPARED = {side: {"type": Path, "metavar": side.upper(), "help": "a folder of results"} for side in ("a", "b")}
COMPARED |= {"--json": {"action": "store_true", "help": "as JSON, with every place and metric"}}
WATCH = {"--watch": {"action": "store_true", "help": "print it again every few seconds, until Ctrl-C"}}
SERVED = {
    "--port": {"type": port, "default": 8427, "help": "on 127.0.0.1; 0: any that is free (default: 8427)"},
}
FORMAT = {
    "--json": {"action": "store_true", "help": "as JSON"},
    "--markdown": {"action": "store_true", "help": "as a table for a README; with --workdir"},
}
COMMANDS = {
    "list": Command(
        "the studies; of one its presets with their cost, claims and measurements", LISTED, "none", False, False
    ),
    "train": Command(f"train the grid of {CONFIG}", ONLY | EXACT | PROCESSES, takes_config=True),
    "plan": Command(
        f"say what the grid of {CONFIG} needs: memory, rows at once, rate", ONLY | PLANNING, "none", takes_config=True
    ),
    "extend": Command(
        "add values to axes of the trainings of a workdir, and train these rows alone: --grid.seed='(5,6,7)'",
        ONLY,
        takes_axes=True,
    ),
    "launch": Command(
        f"train the grid of {CONFIG} in jobs of a cluster, one a variant", ONLY | JOBS, takes_config=True
    ),
    "status": Command("how far the trainings of a workdir are", WATCH, computes=False),
    "watch": Command("show a workdir in a browser of this machine while it trains", SERVED, computes=False),
    "analyze": Command("take measurements in a workdir: the study's, or those named", ONLY | SCOPE),
    "report": Command("evaluate the claims of a workdir and write its report", PARTIAL),
    "verify": Command("check every file of a workdir and say what is damaged"),
    "export": Command("write the numbers or weights of a workdir for another tool", EXPORTED | ONLY, computes=False),
    "diff": Command(
        "what differs between two trainings, or studies, and how far their metrics are apart",
        COMPARED,
        "none",
        False,
        False,
    ),
    "prune": Command("drop checkpoints and snapshots by rule; what training and measuring need stays", PRUNING),
    "verify-row": Command("train one row again, alone, and say how far it is from what the grid left", ROW),
    "reproduce": Command(
        "train, analyze and report a study, skipping what is done",
        STUDY | ONLY | EXACT,
        "optional",
        takes_config=True,
        computes=False,  # not where nothing is to be done
    ),
    "claims": Command("the claims table: of a workdir, or what the studies claim", FORMAT, "optional", computes=False),
}


def parser() -> argparse.ArgumentParser:
    """Of all commands; what it leaves over is for `lab.cli.config` or `refuse`."""
    parser = Parser(
        prog="lab", description="Trains grids of initial scales, measures, tests claims.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = command.text
        if command.takes_config:
            text += "; any option of the config can be set: --config.grid.gamma='(0.3,0.5)'"
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if command.takes_folder:
            sub.add_argument("folder", nargs="?", type=Path, metavar="WORKDIR", help="or --workdir=WORKDIR")
        if command.workdir != "none":
            required = command.workdir == "required" and not command.takes_folder
            sub.add_argument("--workdir", required=required, type=Path, help="folder of the results")
        for option, settings in command.options.items():
            sub.add_argument(option, **settings)
        known = [word for action in sub._actions for word in action.option_strings]
        sub.set_defaults(command=name, known=known + ["--config"] * command.takes_config)
    return parser


def refuse(unknown: list[str], options: list[str]) -> None:
    """
    Raises:
      ValueError: there is something that no option took; names the nearest one.
    """
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], options, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unexpected argument {unknown[0]!r}{hint} (see --help)")


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
