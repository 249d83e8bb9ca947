"""How long the command line takes to answer what needs no computing: help, list, claims, status, and `import lab`.

    python benchmarks/questions.py
    python benchmarks/questions.py --against=02cc8b7 --workdir=runs/composition-cpu

Each in a process of its own, in turn; a Python that does nothing stands beside them. `status` is asked of a workdir
that is given, else of a training of preset `smoke` that is begun for the purpose.
"""

import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import checkouts
import first_step
import harness
import numpy as np

from lab.cli.arguments import positive

NOTHING = "python -c pass"
IMPORT = "import lab"
MOST_SECONDS, MOST_OF_IMPORT = 1.0, 0.1  # targets: of a command, and of the import above a Python that does nothing


def questions(workdir: Path) -> dict[str, list[str]]:
    """What is asked -> the arguments of Python."""
    lab = ("--help", "list", "list composition", "claims", f"status --workdir={shlex.quote(str(workdir))}")
    asked = {NOTHING: ["-c", "pass"], IMPORT: ["-c", IMPORT]}
    return asked | {f"lab {words.partition(' --workdir')[0]}": ["-m", "lab", *shlex.split(words)] for words in lab}


def ask(side: Path, words: Sequence[str], cache: Path) -> dict[str, float]:
    """Seconds, CPU seconds and printed lines of one process.

    Raises:
      harness.Failed: it says no.
    """
    environment = checkouts.environment(side, cache)
    cpu, begun = harness.children_seconds(), time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=side, env=environment, capture_output=True, text=True)
    seconds, cpu = time.perf_counter() - begun, harness.children_seconds() - cpu
    if done.returncode:
        last = (done.stderr.strip() or "it wrote nothing").splitlines()[-1]
        raise harness.Failed(f"python {shlex.join(words)}: code {done.returncode}: {last}")
    return {"seconds": seconds, "cpu": cpu, "lines": done.stdout.count("\n")}


def begin_training(side: Path, folder: Path) -> Path:
    """The workdir of a training of preset `smoke` that has done one step.

    Raises:
      harness.Failed: it does not get that far.
    """
    workdir = folder / "run"
    command = ["train", "--config=composition:smoke", "--variants=unseen"]
    words = [sys.executable, first_step.CHILD, folder / "times.json", *command, f"--workdir={workdir}"]
    environment = checkouts.environment(side, folder / "cache")
    done = subprocess.run(words, cwd=side, env=environment, capture_output=True, text=True)
    if not workdir.is_dir():
        raise harness.Failed(f"lab {shlex.join(command)}: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return workdir


def measure(sides: Mapping[str, Path], workdir: Path | None, rounds: int) -> dict[tuple[str, str], list[dict]]:
    """(side, question) -> what `ask` found in every round. A question asked once before warms the disk's cache."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {side: Path(folder) / str(i) for i, side in enumerate(sides)}
        for each in folders.values():
            each.mkdir()
        asked = {side: questions(workdir or begin_training(sides[side], folders[side])) for side in sides}
        found = {(side, name): [] for name in next(iter(asked.values())) for side in sides}
        for i, (side, name) in itertools.product(range(rounds + 1), found):
            one = ask(sides[side], asked[side][name], folders[side] / "cache")
            if i > 0:
                found[side, name].append(one)
    return found


def show(found: Mapping[tuple[str, str], Sequence[Mapping]], disturbance: float) -> None:
    """Prints a table, a line for each question and side; targets are judged only if the machine was quiet."""
    quiet = disturbance < harness.QUIET
    medians = {key: np.median([one["seconds"] for one in each]) for key, each in found.items()}
    print(f"median and quartiles of {len(next(iter(found.values())))} runs:")
    print(f"{'':34}{'seconds':>9}{'[quartiles]':>18}{'CPU':>8}{'lines':>7}")
    for (side, name), each in found.items():
        low, middle, high = harness.quartiles([one["seconds"] for one in each])
        cpu, lines = (np.median([one[what] for one in each]) for what in ("cpu", "lines"))
        most, above = (MOST_OF_IMPORT, medians[side, NOTHING]) if name == IMPORT else (MOST_SECONDS, 0.0)
        verdict = "not judged" if not quiet else "met" if middle - above <= most else "missed"
        aim = f"   target <= {most:g}{f' above {NOTHING}' * (name == IMPORT)}: {verdict}"
        spread = f"[{low:.2f}, {high:.2f}]"
        print(
            f"{name + ', ' + side:34}{middle:9.2f}{spread:>18}{cpu:8.2f}{lines:7.0f}"
            f"{aim * (side == 'here' and name != NOTHING)}"
        )
    if not quiet:
        print(f"disturbed: other programs took {disturbance:.0%} of the machine meanwhile")


def parse(argv: list[str] | None):
    """(parser, options); ends the program for a wrong one."""
    parser = harness.Parser(__doc__)
    parser.add_argument("--against", metavar="COMMIT", help="ask this commit, too, in turn")
    parser.add_argument("--workdir", type=Path, help="whose status is asked (default: of a training begun for it)")
    parser.add_argument("--rounds", type=positive(int), default=5, help="default: 5")
    parser.add_json()
    args = parser.parse_args(argv)
    if args.workdir and not args.workdir.is_dir():
        parser.error(f"--workdir={args.workdir}: no such folder")
    args.workdir = args.workdir and args.workdir.absolute()
    return parser, args


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    try:
        with checkouts.copies(args.against) as sides:
            machine = harness.machine(("jax", "jaxlib"))
            with harness.Disturbance() as disturbance:
                found = measure(sides, args.workdir, args.rounds)
    except (harness.Failed, checkouts.UnknownCommit) as error:
        parser.error(str(error))
    show(found, disturbance.share)
    if args.json:
        answers = {f"{name}, {side}": each for (side, name), each in found.items()}
        report = {"machine": machine, "disturbance": disturbance.share, "questions": answers}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
