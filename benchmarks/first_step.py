"""How long a command takes to its first training step, with empty caches and again, and how much it compiles till then.

    python benchmarks/first_step.py                                   # of: reproduce composition --preset=cpu
    python benchmarks/first_step.py --against=02cc8b7 --their-command='reproduce composition --preset=cpu'

A round starts every side twice, with a new workdir each time: cold, with an empty folder for caches, and warm, with
what the first start left there. The clock runs from the start of the process until the devices have done one step;
then it is stopped (see `until_first_step.py`). Bytecode is compiled before.
"""

import itertools
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import checkouts
import harness
import numpy as np

from lab.cli.arguments import positive

CHILD = Path(__file__).with_name("until_first_step.py")
COMMAND = "reproduce composition --preset=cpu"
STARTS = ("cold", "warm")
COMPILED = re.compile(r"Finished XLA compilation of (.+?) in ([\d.e+-]+) sec")  # what jax_log_compiles writes
REUSED = re.compile(r"Persistent compilation cache hit for")
MOST_SECONDS = 1800  # of one start


def start(side: Path, command: Sequence[str], cache: Path, times: Path) -> dict[str, float]:
    """Starts the command once: seconds until training begins and until its first step is done, CPU seconds, and how
    many programs are compiled till then, how many of them read from a cache, and the seconds of all.

    Raises:
      harness.Failed: it ends before its first step, or takes longer than `MOST_SECONDS`.
    """
    environment = checkouts.environment(side, cache) | {"JAX_LOG_COMPILES": "1"}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        words = [sys.executable, CHILD, times, *command, f"--workdir={folder}/run"]
        cpu, begun = harness.children_seconds(), time.time()
        try:
            subprocess.run(words, stdout=said, stderr=said, env=environment, cwd=side, timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            raise harness.Failed(f"no step within {MOST_SECONDS} s: lab {shlex.join(command)}") from None
        said.seek(0)
        text = said.read()
    if not times.exists():
        last = (text.strip() or "it wrote nothing").splitlines()[-1]
        raise harness.Failed(f"it ended before its first step: lab {shlex.join(command)}: {last}")
    clock = json.loads(times.read_text())
    times.unlink()
    compilations = COMPILED.findall(text)
    return {
        "begun": clock["begun"] - begun,
        "done": clock["done"] - begun,
        "cpu": harness.children_seconds() - cpu,
        "programs": len(compilations),
        "reused": len(REUSED.findall(text)),
        "compiling": sum(float(seconds) for _, seconds in compilations),
    }


def measure(sides: Mapping[str, Path], commands: Mapping[str, Sequence[str]], rounds: int) -> dict[tuple, list[dict]]:
    """(side, start) -> what `start` found in every round."""
    found = {key: [] for key in itertools.product(sides, STARTS)}
    for i in range(rounds):
        order = list(sides)[i % len(sides) :] + list(sides)[: i % len(sides)]
        for side in order:
            with tempfile.TemporaryDirectory() as folder:
                for which in STARTS:
                    one = start(sides[side], commands[side], Path(folder) / "cache", Path(folder) / "times.json")
                    found[side, which].append(one)
                    print(f"round {i + 1} of {rounds}: {side}, {which}: {one['done']:.1f} s", file=sys.stderr)
    return found


def show(found: Mapping[tuple, Sequence[Mapping]], commands: Mapping[str, Sequence[str]], disturbance: float) -> None:
    """Prints a table, a line for each side and start."""
    rounds = len(next(iter(found.values())))
    print(f"seconds from the command to its first step, median and quartiles of {rounds} rounds:")
    heads = ("first step", "[quartiles]", "CPU", "programs", "reused", "compiling", "step")
    print(f"{'':24}{heads[0]:>11}{heads[1]:>18}{heads[2]:>8}{heads[3]:>10}{heads[4]:>8}{heads[5]:>11}{heads[6]:>8}")
    for (side, which), each in found.items():
        low, middle, high = harness.quartiles([one["done"] for one in each])
        cpu, programs, reused, compiling = (
            np.median([one[name] for one in each]) for name in ("cpu", "programs", "reused", "compiling")
        )
        step = np.median([one["done"] - one["begun"] for one in each])
        print(
            f"{side + ', ' + which:24}{middle:11.1f}{f'[{low:.1f}, {high:.1f}]':>18}{cpu:8.1f}{programs:10.0f}"
            f"{reused:8.0f}{compiling:11.1f}{step:8.2f}"
        )
    for side, command in commands.items():
        print(f"{side}: lab {shlex.join(command)}")
    print(
        "programs: that XLA compiled or a cache gave (reused); compiling: their seconds; step: the first one with what "
        "it had yet to compile; CPU: until the process ended"
    )
    if disturbance >= harness.QUIET:
        print(f"disturbed: other programs took {disturbance:.0%} of the machine meanwhile")


def parse(argv: list[str] | None):
    """(parser, options); ends the program for a wrong one."""
    parser = harness.Parser(__doc__)
    parser.add_argument("--command", type=shlex.split, default=COMMAND, help=f"what is started (default: {COMMAND})")
    parser.add_argument("--against", metavar="COMMIT", help="do the same at this commit, in turn")
    parser.add_argument("--their-command", type=shlex.split, help="what is started there (default: --command)")
    parser.add_argument("--rounds", type=positive(int), default=3, help="default: 3")
    parser.add_json()
    args = parser.parse_args(argv)
    if args.their_command and not args.against:
        parser.error("--their-command: of --against=COMMIT, which is missing")
    return parser, args


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    try:
        with checkouts.copies(args.against) as sides:
            commands = {side: args.command if side == "here" else args.their_command or args.command for side in sides}
            machine = harness.machine(("jax", "jaxlib"))
            with harness.Disturbance() as disturbance:
                found = measure(sides, commands, args.rounds)
    except (harness.Failed, checkouts.UnknownCommit) as error:
        parser.error(str(error))
    show(found, commands, disturbance.share)
    if args.json:
        sides = {f"{side}, {which}": each for (side, which), each in found.items()}
        report = {"machine": machine, "commands": commands, "disturbance": disturbance.share, "starts": sides}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
