"""How fast the step is, against an earlier commit's, in one run.

    python benchmarks/against_commit.py 02cc8b7 --sizes=small,demo

Two processes, one of this working tree and one of the commit, train the same experiment through their own
`lab.engine.train` (see `step_worker.py`), on the devices that the command line uses, and are timed in turn. Nothing
is written while they are timed, and nothing compiled.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import checkouts
import harness
import numpy as np
from workload import BATCH_SIZE, MODELS, SINCE_LONG, TASKS, cores

from lab.cli.arguments import positive

WORKER = Path(__file__).with_name("step_worker.py")
TARGETS = {"small": 1.5}  # size -> times the commit's rate


def measure(sides: Mapping[str, Path], name: str, args) -> tuple[dict[str, harness.Team], dict[str, list[float]]]:
    """Teams, closed, and their row-steps a second in every round.

    Raises:
      harness.Failed: a side cannot train.
    """
    widths = (args.widths[0], args.widths[-1])
    told = {"task": TASKS[name], "model": MODELS[name], "batch_size": BATCH_SIZE, "rows": args.rows}
    with tempfile.TemporaryDirectory() as cache:
        everyone = {}
        for (side, folder), width in zip(sides.items(), widths, strict=True):
            environment = checkouts.environment(folder, Path(cache) / str(len(everyone)))
            message = told | {"chunk": args.chunk, "width": width}
            everyone[side] = harness.Team([harness.Worker(WORKER, message, environment, folder)])
        with harness.ready(everyone) as (teams, failures):
            if failures:
                raise harness.Failed("; ".join(f"{side}: {why}" for side, why in failures.items()))
            return teams, harness.rounds(teams, args.rounds, args.seconds)


def show(name: str, teams: Mapping[str, harness.Team], rates: Mapping[str, list[float]], target: float | None) -> None:
    """Prints a size: both rates, their ratio, and whether both train the same."""
    facts = next(iter(teams.values())).facts
    print(f"\n{name}: {facts['n_rows']} rows on {facts['n_devices']} devices ({facts['device']})")
    for side in rates:
        low, rate, high = harness.quartiles(rates[side])
        print(f"  {side:16}{rate:10.4g} row-steps/s  [{low:.4g}, {high:.4g}]")
    mine, theirs = rates.values()
    low, ratio, high = harness.quartiles(np.divide(mine, theirs))
    disturbance = np.median([team.disturbance for team in teams.values()])
    quiet = disturbance < harness.QUIET
    verdict = "not judged" if not quiet else "met" if ratio >= (target or 0) else "missed"
    aim = "" if target is None else f"   target >= {target:g}: {verdict}"
    print(f"  here over it    {ratio:10.3g}  [{low:.3g}, {high:.3g}], median and quartiles of {len(mine)} rounds{aim}")
    if not quiet:
        print(f"  disturbed: other programs took {disturbance:.0%} of the machine meanwhile")
    print(
        f"  training loss after {facts['chunk']} steps: {compare(*(team.facts['losses'] for team in teams.values()))}"
    )


def compare(mine: list[float] | None, theirs: list[float] | None) -> str:
    """Two lists of losses, in words."""
    if mine is None or theirs is None:
        return "not compared: a side keeps its metrics otherwise"
    if mine == theirs:
        return "the same bits in every row"
    return f"up to {np.max(np.abs(np.subtract(mine, theirs))):.2g} nats apart"


def parse(argv: list[str] | None):
    """(parser, options); ends the program for a wrong one."""
    parser = harness.Parser(__doc__)
    parser.add_argument("commit", help="as git names it")
    parser.add_argument("--sizes", default="small,demo", help="comma-separated (default: small,demo)")
    parser.add_argument("--rows", type=positive(int), default=2 * cores(), help="in all (default: two a core)")
    parser.add_argument(
        "--widths", type=harness.positives, default=(1,), help="rows at once; or HERE,COMMIT (default: 1)"
    )
    parser.add_argument("--chunk", type=positive(int), default=50, help="steps of one call (default: 50)")
    parser.add_argument("--rounds", type=positive(int), default=9, help="of each size (default: 9)")
    parser.add_argument("--seconds", type=positive(float), default=1.0, help="of a side in a round (default: 1)")
    parser.add_json()
    args = parser.parse_args(argv)
    args.sizes = args.sizes.split(",")
    for name in args.sizes:
        if name not in SINCE_LONG:
            parser.error(f"--sizes: {name!r} is not among {', '.join(SINCE_LONG)}")
    if len(args.widths) > 2:
        parser.error(f"--widths: {len(args.widths)} numbers, expected one, or two: here's and the commit's")
    return parser, args


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    try:
        with checkouts.copies(args.commit) as sides:
            machine, results = harness.machine(("jax", "jaxlib")), {}
            for name in args.sizes:
                print(f"{name}: starting", file=sys.stderr)
                teams, rates = measure(sides, name, args)
                show(name, teams, rates, TARGETS.get(name))
                results[name] = {side: team.facts | {"rates": rates[side]} for side, team in teams.items()}
                if args.json:
                    report = {"machine": machine, "commit": args.commit, "sizes": results}
                    args.json.write_text(json.dumps(report, indent=1) + "\n")
    except (harness.Failed, checkouts.UnknownCommit) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
