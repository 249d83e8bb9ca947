"""How fast a grid trains, against one row at a time in JAX and one model at a time in PyTorch, all in one run.

    python benchmarks/throughput.py --preset=cpu            # 12 minutes on two cores

Every way trains the same model from the same parameters with the same batch size, optimizer, schedule and clipping on
data of the same distribution: ours draws its batches inside the step, PyTorch's are drawn before the clock starts and
lie in memory. Both compute in float32, on a GPU with TF32 products. Compilation is not in the times.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping

import harness
import numpy as np
from workload import BATCH_SIZE, MODELS, TASKS, Workload, cores

from lab.cli.arguments import positive

LABELS = {
    "a": "our grid",
    "b": "our step, one row at a time",
    "c": "PyTorch eager",
    "c'": "PyTorch eager, last position only",
    'c"': "PyTorch eager, processes side by side",
    "d": "torch.compile",
    "d'": "torch.compile, last position only, fused AdamW",
}
LEGEND = """
GFLOP/s `computed` are those of the matrix products really computed, `of peak` their share of the device's peak: tabled
for a GPU, else the rate of one large product in the same process. `full model` counts the products of the model that
answers at every position, which (c) and (d) really compute, whether or not the way computes them. `MB` are what the
program of a step holds on one device, all of its rows there, as XLA predicts; of PyTorch nobody says.""".strip()
PACKAGES = ("jax", "torch")
MOST_PROCESSES = 8  # of way c"; with more cores each takes several
# dense, of one chip, FLOP/s; what float32 products run at by default on it
GPU_PEAKS = {"H100": 495e12, "H200": 495e12, "A100": 156e12}


@dataclasses.dataclass(frozen=True)
class Size:
    """A model of configs/composition.py, and how much of it is trained at once.

    Attributes:
      sized: its task and model are changed to those of this size of `workload`; empty: not changed.
      chunk: steps of one call of our programs.
      widths: rows in a vmap; each is a grid of its own, and the fastest is compared with the other ways.
      rows: rows on each device, unless a vmap holds more.
      repeats: rounds.
    """

    preset: str
    variant: str
    batch_size: int
    chunk: int
    widths: tuple[int, ...]
    rows: int
    repeats: int
    sized: str = ""


@dataclasses.dataclass(frozen=True)
class Preset:
    """Where, for how many `seconds` a way is timed in a round, and at which sizes."""

    accelerator: str
    seconds: float
    sizes: Mapping[str, Size]


WIDTHS_OF_A_GPU = tuple(2**k for k in range(11))  # 1 to 1024
PRESETS = {
    "cpu": Preset(
        "cpu",
        1.0,
        {
            "small": Size("cpu_full", "unseen", BATCH_SIZE, 50, (1, 2, 4), 2, 9, "small"),
            "demo": Size("cpu_full", "unseen", BATCH_SIZE, 50, (1, 2, 4), 2, 9, "demo"),
            "first": Size("paper", "wrong", 256, 1, (1, 2), 1, 5),
            "second": Size("paper", "unseen", 32, 1, (1,), 1, 5),
            "mamba": Size("cpu_full", "unseen", BATCH_SIZE, 5, (1, 2), 1, 5, "mamba"),
            "mamba_transformer": Size("cpu_full", "unseen", BATCH_SIZE, 5, (1, 2), 1, 5, "mamba_transformer"),
        },
    ),
    "gpu": Preset(
        "gpu",
        1.0,
        {
            "small": Size("cpu_full", "unseen", BATCH_SIZE, 50, WIDTHS_OF_A_GPU, 1, 7, "small"),
            "demo": Size("cpu_full", "unseen", BATCH_SIZE, 50, WIDTHS_OF_A_GPU, 1, 7, "demo"),
            "first": Size("paper", "wrong", 2048, 10, (1, 2, 4, 8, 16), 1, 7),
            "second": Size("paper", "unseen", 2048, 5, (1, 2), 1, 7),
        },
    ),
    "smoke": Preset("cpu", 0.05, {"demo": Size("smoke", "unseen", 32, 10, (2,), 2, 5)}),
}

# (preset, size) -> way: our grid shall be at least so many times as fast
TARGETS = {
    ("cpu", "small"): {'c"': 4.0},
    ("cpu", "demo"): {"b": 1.25, "c": 3.0, 'c"': 2.4},
    ("cpu", "mamba"): {"c'": 2.0},
    ("gpu", "demo"): {"c": 100.0, "d": 10.0},
    ("gpu", "second"): {"d": 1.3},
}


def ways(preset: Preset, size: Size) -> dict[str, list[Workload]]:
    """Name -> the processes it takes; grids are named by their width, `a/4`."""

    def workload(way, readout="last", **options):
        changes = MODELS.get(size.sized, {}) | {"readout": readout}
        shared = (preset.accelerator, size.preset, size.variant, changes, size.batch_size)
        return Workload(way, *shared, chunk=size.chunk, task=TASKS.get(size.sized, {}), **options)

    named = {f"a/{width}": [workload("grid", rows=max(size.rows, width), width=width)] for width in size.widths}
    named |= {"b": [workload("lone")], "c": [workload("eager", "all")], "c'": [workload("eager")]}
    if preset.accelerator == "cpu":
        processes = min(cores(), MOST_PROCESSES)
        named['c"'] = [workload("eager", "all", threads=cores() // processes)] * processes
    return named | {"d": [workload("compiled", "all")], "d'": [workload("compiled_fused")]}


def measure(preset: Preset, size: Size) -> dict:
    """Rates of every way in every round, what is known of the ways, and why the others are missing.

    Raises:
      harness.Failed: no way runs.
    """
    with harness.started(ways(preset, size)) as (teams, failures):
        if not teams:
            raise harness.Failed("; ".join(sorted(set(failures.values()))))
        peaks = {name: peak(team) for name, team in teams.items()}
        rates = harness.rounds(teams, size.repeats, preset.seconds)
        measured = {name: team.facts | {"rates": rates[name], "steps": team.steps} for name, team in teams.items()}
        for name, team in teams.items():
            measured[name] |= {"loss": team.loss, "peak": max(peaks[name], peak(team)), "disturbance": team.disturbance}
    return {"ways": measured, "failures": failures}


def peak(team: harness.Team) -> float:
    """FLOP/s of the devices a team has."""
    known = [chip_peak for chip, chip_peak in GPU_PEAKS.items() if chip in team.facts["device"]]
    if known:
        return team.facts["n_devices"] * known[0]
    return sum(answer["peak"] for answer in team.ask({"peak": True}))


def best_grid(measured: Mapping) -> str | None:
    """The name of the fastest grid; None if none ran."""
    grids = {name: np.median(facts["rates"]) for name, facts in measured.items() if name.startswith("a/")}
    return max(grids, key=grids.get, default=None)


def compare(measured: Mapping, targets: Mapping[str, float]) -> list[dict]:
    """Ratios of the fastest grid to every other way, taken round by round, beside their targets."""
    grid = best_grid(measured)
    others = [name for name in measured if grid and not name.startswith("a/")]
    ratios = {name: np.divide(measured[grid]["rates"], measured[name]["rates"]) for name in others}
    return [
        {"ratio": f"a/{name}", "quartiles": harness.quartiles(ratios[name]), "target": targets.get(name)}
        for name in others
    ]


def show(name: str, result: Mapping) -> None:
    """Prints one size: the ways, those that are missing, and the ratios."""
    measured = result["ways"]
    size = next(iter(measured.values()))
    print(
        f"\n{name}: {size['n_parameters']:,} parameters, {size['n_tokens']:,} tokens a step, {size['full'] / 1e9:.3g} "
        "GFLOP a row-step if every position is answered"
    )
    heads = ("row-steps/s", "[quartiles]", "ms", "tokens/s", "computed", "of peak", "full model", "MB")
    columns = zip(heads, (12, 18, 9, 11, 9, 9, 12, 9), strict=True)
    print(" " * 55 + "".join(f"{head:>{width}}" for head, width in columns))
    for way, facts in measured.items():
        low, rate, high = harness.quartiles(facts["rates"])
        spread = f"[{low:.4g}, {high:.4g}]"
        computed, full = rate * facts["computed"], rate * facts["full"]
        held = "-" if facts["memory"] is None else f"{facts['memory'] / 1e6:.3g}"
        print(
            f"{describe(way, facts):55}{rate:12.4g}{spread:>18}{1e3 / rate:9.3g}{rate * facts['n_tokens']:11.3g}"
            f"{computed / 1e9:9.3g}{computed / facts['peak']:9.1%}{full / 1e9:12.3g}{held:>9}"
        )
    for reason in dict.fromkeys(result["failures"].values()):
        without = [f"({way})" for way, why in result["failures"].items() if why == reason]
        print(f"left out: {', '.join(without)}: {reason}")
    if result["ratios"]:
        show_ratios(measured, result["ratios"])


def show_ratios(measured: Mapping, ratios: list[dict]) -> None:
    """Prints the ratios; targets are judged only if the machine was quiet."""
    rounds = len(next(iter(measured.values()))["rates"])
    print(f"row-steps/s of {best_grid(measured)} over each other way's, median and quartiles of {rounds} rounds:")
    disturbance = np.median([facts["disturbance"] for facts in measured.values()])
    quiet = disturbance < harness.QUIET
    if not quiet:
        print(f"  disturbed: other programs took {disturbance:.0%} of the machine meanwhile; no target is judged")
    for entry in ratios:
        low, ratio, high = entry["quartiles"]
        target = entry["target"]
        verdict = "not judged" if not quiet else "met" if ratio >= (target or 0) else "missed"
        aim = "" if target is None else f"   target >= {target:g}: {verdict}"
        print(f"  {entry['ratio']:5}{ratio:8.3g}  [{low:.3g}, {high:.3g}]{aim}")


def describe(way: str, facts: Mapping) -> str:
    """A way in words."""
    letter, _, width = way.partition("/")
    rows = f", {facts['n_rows']} rows, {width} in a vmap" if width else ""
    return f"{way:6}{LABELS[letter]}{rows}"


def parse(argv: list[str] | None):
    """(parser, options); ends the program for a wrong one."""
    parser = harness.Parser(__doc__, PRESETS)
    parser.add_json()
    parser.add_argument(
        "--sizes",
        help="comma-separated, of small, demo, first, second, mamba, mamba_transformer (default: all of the preset)",
    )
    parser.add_argument("--widths", type=harness.positives, help="comma-separated (default: of the preset)")
    parser.add_argument("--rounds", type=positive(int), help="of every size (default: of the preset)")
    parser.add_argument("--seconds", type=positive(float), help="of a way in a round (default: of the preset)")
    args = parser.parse_args(argv)
    known = PRESETS[args.preset].sizes
    args.sizes = list(known) if args.sizes is None else args.sizes.split(",")
    for name in args.sizes:
        if name not in known:
            parser.error(f"--sizes: {name!r} is not among {', '.join(known)}, the sizes of preset {args.preset}")
    return parser, args


def chosen(args) -> Preset:
    """The preset, with the widths, rounds and seconds that were asked for."""
    preset = PRESETS[args.preset]
    changes = {"widths": args.widths, "repeats": args.rounds}
    changes = {name: value for name, value in changes.items() if value is not None}
    sizes = {name: dataclasses.replace(preset.sizes[name], **changes) for name in args.sizes}
    return dataclasses.replace(preset, seconds=args.seconds or preset.seconds, sizes=sizes)


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    preset = chosen(args)
    machine = harness.machine(PACKAGES)
    print(LEGEND, flush=True)
    results = {}
    for name in args.sizes:
        print(f"{name}: starting {len(ways(preset, preset.sizes[name]))} ways", file=sys.stderr)
        try:
            results[name] = measure(preset, preset.sizes[name])
        except harness.Failed as error:
            parser.error(f"preset {args.preset}: {error}")
        results[name]["ratios"] = compare(results[name]["ways"], TARGETS.get((args.preset, name), {}))
        show(name, results[name])
        if args.json:
            report = {"preset": args.preset, "machine": machine, "sizes": results}
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
