"""How fast a grid's sharpness is measured, against PyTorch's packages at equal accuracy, all in one run.

    python benchmarks/sharpness.py --preset=cpu            # 10 minutes on two cores

Rows of the composition demo are trained for a while; then every way is given the same weights and the same sequences,
and asked for five eigenvalues of the answer loss's Hessian and for its trace. A long Lanczos run in float64 is the
judge: a way whose worst eigenvalue is off by more than `TOLERANCE` of itself gets no ratio. The two Lanczos ways take
the same number of products, the smallest listed at which both pass on every row; all traces average as many probes.
All ways compute in float32, without TF32. Compilation is not in the rates.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import harness
import numpy as np
from workload import Workload, cores

from lab.cli.arguments import positive

TOLERANCE = 0.01  # of an eigenvalue
TRACES_APART = 5.0  # standard errors of two traces' difference; of 16 rows one is further apart once in 2,000 runs
LABELS = {
    "ours": "our grid",
    "eigenthings": "hessian-eigenthings: Lanczos, row by row",
    "pyhessian": "PyHessian: power iteration, row by row",
}
PACKAGES = ("jax", "torch", "hessian-eigenthings", "PyHessian")


@dataclasses.dataclass(frozen=True)
class Preset:
    """What is measured.

    Attributes:
      config: preset of configs/composition.py whose model it is, variant `unseen`.
      rows: sizes of the grids, one after the other.
      steps: of training.
      sequences: of the loss.
      matvecs: products of a Lanczos run, tried in turn until both ways are accurate.
      change: of an eigenvalue, relative, at which PyHessian's power iteration stops.
      reference: products of the run in float64.
      rows_a_round: that the others do, in turn, while ours does all.
      threads: of PyTorch; 0 for one a core.
    """

    accelerator: str
    config: str
    rows: tuple[int, ...]
    steps: int
    sequences: int
    matvecs: tuple[int, ...]
    change: float
    reference: int
    probes: int
    rows_a_round: int
    rounds: int
    threads: int


PRESETS = {
    "cpu": Preset("cpu", "cpu_full", (16,), 300, 256, (32, 40, 48, 64), 1e-5, 80, 16, 2, 8, 0),
    "gpu": Preset("gpu", "cpu_full", (16, 256), 300, 256, (32, 40, 48, 64), 1e-5, 80, 16, 2, 8, 0),
    "smoke": Preset("cpu", "smoke", (2,), 20, 16, (48,), 1e-4, 64, 4, 1, 2, 1),
}


class Way:
    """What `harness.rounds` times: `run(rows)`, of `n` more rows in every round, in turn.

    Attributes:
      found: (rows, what `run` gave) of every round.
      disturbance: of every round, the share of the machine's cores that other programs took meanwhile.
    """

    def __init__(self, run: Callable[[Sequence[int]], object], n: int, n_rows: int):
        self.run, self.n, self.n_rows = run, n, n_rows
        self.found, self.disturbance = [], []
        self.next = 0

    def settle(self, seconds: float) -> None:
        """One row, which warms up."""
        self.run([0])

    def rate(self) -> float:
        """Rows a second."""
        rows = [(self.next + i) % self.n_rows for i in range(self.n)]
        self.next += self.n
        begun, busy, own = time.perf_counter(), harness.busy_seconds(), time.process_time()
        self.found.append((rows, self.run(rows)))
        seconds = time.perf_counter() - begun
        others = harness.busy_seconds() - busy - (time.process_time() - own)
        self.disturbance.append(max(0.0, others) / (seconds * os.cpu_count()))
        return self.n / seconds


def measure(preset: Preset, n_rows: int) -> dict:
    """Rates, errors and costs of every way on a grid of `n_rows`, and why others are missing."""
    import our_curvature as our

    workload = Workload("grid", preset.accelerator, preset.config, "unseen", {"readout": "last"}, 128)
    problem = our.trained(workload, n_rows, preset.steps, preset.sequences, preset.probes)
    reference = our.reference(problem, preset.reference)
    side, failures = their_side(problem, preset)
    n_matvecs, program = accurate(preset, problem, reference, side)

    def of_ours(one: our.Program) -> Way:
        return Way(lambda rows: one.call(), n_rows, n_rows)

    costs = {"ours/gradient": our.gradients(problem), "ours/product": our.products(problem)}
    ways = {"ours": of_ours(program)} | {name: of_ours(cost) for name, cost in costs.items()}
    memory = {"ours": program.memory}
    if side:
        of_theirs = {
            "eigenthings": lambda rows: side.eigenthings(n_matvecs, rows),
            "pyhessian": lambda rows: side.pyhessian(preset.change, rows),
        }
        memory["eigenthings"] = side.memory(of_theirs["eigenthings"])
        memory["pyhessian"] = side.memory(lambda rows: side.pyhessian(0.5, rows))  # more iterations take no more
        of_theirs |= {
            "theirs/gradient": side.gradients,
            "eigenthings/product": side.products,
            "pyhessian/product": side.products_on_graph,
        }
        ways |= {name: Way(run, preset.rows_a_round, n_rows) for name, run in of_theirs.items()}
    rates = harness.rounds(ways, preset.rounds, seconds=0.0)
    return {
        "n_rows": n_rows,
        "n_parameters": problem.n_parameters,
        "n_matvecs": n_matvecs,
        "n_products": our.n_products(n_matvecs, preset.probes),
        "reference_residual": reference.residual,
        "n_devices": program.n_devices,
        "rows_at_once": program.rows_at_once,
        "compile_seconds": program.compile_seconds,
        "memory": memory,
        "rates": rates,
        "errors": {name: worst(ways[name].found, reference, name) for name in LABELS if name in ways},
        "traces": {name: trace(ways[name].found, ways["ours"].found) for name in LABELS if name in ways},
        "disturbance": {name: way.disturbance for name, way in ways.items()},
        "failures": failures,
    }


def their_side(problem, preset: Preset):
    """`(side, failures)`: theirs, or None and why."""
    try:
        import torch
        import torch_curvature
    except ModuleNotFoundError:
        return None, {name: "pip install 'gammalab[bench]'" for name in LABELS if name != "ours"}
    if preset.accelerator == "gpu" and not torch.cuda.is_available():
        return None, {name: "PyTorch sees no GPU" for name in LABELS if name != "ours"}
    return torch_curvature.side(problem, preset.accelerator, preset.threads or cores()), {}


def accurate(preset: Preset, problem, reference, side):
    """`(products, our program)` of the shortest Lanczos runs that are accurate on every row; the longest if none is."""
    import our_curvature as our

    rows = range(problem.n_rows)
    for n_matvecs in preset.matvecs:
        program = our.spectra(problem, n_matvecs)
        off = worst([(rows, program.call())], reference, "ours")
        if side and off <= TOLERANCE:
            off = worst([(rows, side.eigenthings(n_matvecs, rows))], reference, "eigenthings")
        if off <= TOLERANCE:
            break
    return n_matvecs, program


def worst(found, reference, name: str) -> float:
    """The largest error of an eigenvalue, relative, over all rounds. PyHessian is asked for other eigenvalues."""
    wanted_RxK = reference.magnitude_RxK if name == "pyhessian" else reference.largest_RxK
    pairs = [(one.value_RxK, wanted_RxK[np.array(rows)]) for rows, one in found]
    return float(max(np.max(np.abs(value_RxK / wanted_RxK - 1)) for value_RxK, wanted_RxK in pairs))


def trace(found, ours) -> dict[str, float]:
    """Standard error of a row's trace, relative, the median; the most standard errors that a row is apart from ours."""
    ((_, expected),) = ours[:1]
    relative, apart = [], [0.0]
    for rows, one in found:
        at = np.array(rows)
        relative += list(one.error_R / np.abs(one.trace_R))
        if found is not ours:
            apart += list(np.abs(one.trace_R - expected.trace_R[at]) / np.hypot(one.error_R, expected.error_R[at]))
    return {"relative_error": float(np.median(relative)), "apart": float(max(apart))}


def refused(result: Mapping, name: str) -> str | None:
    """Why there is no ratio of ours to a way; None if there is."""
    for way in ("ours", name):
        if not result["errors"][way] <= TOLERANCE:
            return f"an eigenvalue of {way} is off by {result['errors'][way]:.2g} of itself, above {TOLERANCE:g}"
    if not result["reference_residual"] <= TOLERANCE / 10:
        return f"the reference may itself be off by {result['reference_residual']:.2g}"
    if not result["traces"][name]["apart"] <= TRACES_APART:
        return f"a trace is {result['traces'][name]['apart']:.1f} standard errors from ours"
    return None


def ratios(result: Mapping) -> dict[str, tuple[float, float, float] | str]:
    """Quartiles over rounds of our rate over each other way's, or why not."""
    rates = result["rates"]
    others = [name for name in result["errors"] if name != "ours"]
    return {name: refused(result, name) or harness.quartiles(np.divide(rates["ours"], rates[name])) for name in others}


def product_costs(result: Mapping) -> dict[str, tuple[float, float, float]]:
    """Quartiles over rounds of a Hessian product in gradients of the same library."""
    rates = result["rates"]
    gradient = {"ours": "ours/gradient", "eigenthings": "theirs/gradient", "pyhessian": "theirs/gradient"}
    return {
        name: harness.quartiles(np.divide(rates[gradient[name]], rates[f"{name}/product"])) for name in result["errors"]
    }


def show(result: Mapping) -> None:
    """Prints one grid."""
    print(
        f"\n{result['n_rows']} rows, {result['n_parameters']:,} parameters: Lanczos runs of {result['n_matvecs']} "
        f"products, reference within {result['reference_residual']:.1g}"
    )
    heads = ("rows/s", "[quartiles]", "worst error", "trace s.e.", "product, gradients", "MB")
    print(f"{'':44}{heads[0]:>9}{heads[1]:>18}{heads[2]:>13}{heads[3]:>12}{heads[4]:>20}{heads[5]:>7}")
    costs = product_costs(result)
    for name, error in result["errors"].items():
        low, rate, high = harness.quartiles(result["rates"][name])
        print(
            f"{LABELS[name]:44}{rate:9.3g}{f'[{low:.3g}, {high:.3g}]':>18}{error:13.2g}"
            f"{result['traces'][name]['relative_error']:12.1%}{costs[name][1]:20.2f}{result['memory'][name] / 1e6:7.0f}"
        )
    print(
        f"ours: {result['rows_at_once']} rows at once on each of {result['n_devices']} devices, MB of one of them; "
        f"{result['n_products']} products a row; compiled in {result['compile_seconds']:.1f} s"
    )
    _, product, _ = harness.quartiles(result["n_products"] * np.divide(result["rates"]["ours"], product_rates(result)))
    print(f"ours: products alone would take {product:.0%} of the time")
    for reason in dict.fromkeys(result["failures"].values()):
        print(f"left out: {', '.join(name for name, why in result['failures'].items() if why == reason)}: {reason}")
    if len(result["errors"]) > 1:
        show_ratios(result)


def product_rates(result: Mapping):
    """Products a second of ours, in every round."""
    from our_curvature import LOOP

    return LOOP * np.array(result["rates"]["ours/product"])


def show_ratios(result: Mapping) -> None:
    print(f"rows/s of ours over each other's, median and quartiles of {len(result['rates']['ours'])} rounds:")
    disturbance = np.median([share for shares in result["disturbance"].values() for share in shares])
    if disturbance >= harness.QUIET:
        print(f"  disturbed: other programs took {disturbance:.0%} of the machine meanwhile")
    for name, ratio in ratios(result).items():
        print(f"  ours/{name}: ", end="")
        print(f"no ratio: {ratio}" if isinstance(ratio, str) else f"{ratio[1]:.3g}  [{ratio[0]:.3g}, {ratio[2]:.3g}]")


def parse(argv: list[str] | None):
    """(parser, options, the preset with what was asked for); ends the program for a wrong one."""
    parser = harness.Parser(__doc__, PRESETS)
    parser.add_json()
    parser.add_argument("--rows", type=harness.positives, help="sizes of the grids (default: of the preset)")
    parser.add_argument("--rounds", type=positive(int), help="of every grid (default: of the preset)")
    args = parser.parse_args(argv)
    preset = PRESETS[args.preset]
    preset = dataclasses.replace(preset, rows=args.rows or preset.rows, rounds=args.rounds or preset.rounds)
    return parser, args, preset


def main(argv: list[str] | None = None) -> None:
    parser, args, preset = parse(argv)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch shares the GPU
    parser.use_jax(preset.accelerator)
    machine = harness.machine(PACKAGES)
    results = []
    for n_rows in preset.rows:
        print(f"{n_rows} rows: training, and the reference", file=sys.stderr)
        results.append(measure(preset, n_rows))
        show(results[-1])
        if args.json:
            args.json.write_text(json.dumps({"preset": args.preset, "machine": machine, "grids": results}, indent=1))


if __name__ == "__main__":
    main()
