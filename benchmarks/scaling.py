"""How the speed of a grid grows with rows and devices, and falls with the width and depth of the model.

    python benchmarks/scaling.py --preset=cpu --out=runs/scaling        # 4 minutes on two cores

Writes scaling.json, scaling.png and scaling.svg. The model is the one of composition:cpu_full, with one thing
changed at a time; the points of a panel are timed in turn, in one run, each in a process of its own.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import harness
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from workload import Workload, cores

from lab.report import style

LABELS = {
    "rows": "rows on each device",
    "d_model": "width of the model",
    "n_layers": "layers",
    "devices": "devices (of a CPU: cores)",
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """What is varied; `widths` are the vmaps with which the model's width and depth are.

    `chunk`: steps of one call.
    """

    accelerator: str
    config: str
    batch_size: int
    chunk: int
    rows: tuple[int, ...]
    widths: tuple[int, ...]
    d_model: tuple[int, ...]
    n_layers: tuple[int, ...]
    devices: tuple[int, ...]
    repeats: int
    seconds: float


UP_TO_CORES = tuple(2**k for k in range(cores().bit_length()))
PRESETS = {
    "cpu": Preset(
        "cpu", "cpu_full", batch_size=128, chunk=10, rows=(1, 2, 4), widths=(1,), d_model=(32, 64, 128, 256),
        n_layers=(1, 2, 4), devices=UP_TO_CORES, repeats=5, seconds=0.5,
    ),
    "gpu": Preset(
        "gpu", "cpu_full", batch_size=128, chunk=10, rows=(1, 4, 16, 64, 256, 1024), widths=(1, 64),
        d_model=(32, 64, 128, 256, 512), n_layers=(1, 2, 4, 8), devices=(1, 2, 4, 8), repeats=5, seconds=0.5,
    ),
    "smoke": Preset(
        "cpu", "smoke", batch_size=32, chunk=5, rows=(1, 2), widths=(1,), d_model=(16,),
        n_layers=(1,), devices=(1,), repeats=3, seconds=0.05,
    ),
}  # fmt: skip


def panels(preset: Preset) -> dict[str, dict[tuple[str, int], Workload]]:
    """What is varied -> (line of the picture, value) -> how it is trained."""

    def workload(rows, width, n_devices=0, **changes):
        shared = (preset.accelerator, preset.config, "unseen", changes, preset.batch_size)
        return Workload("grid", *shared, rows, width, preset.chunk, n_devices)

    def vmap(width):
        return f"{width} rows in a vmap" if width > 1 else "one row at a time"

    rows = {(vmap(1), n): workload(n, 1) for n in preset.rows}
    rows |= {("all rows in a vmap", n): workload(n, n) for n in preset.rows if n > 1}
    widths = {
        (vmap(width), d): workload(width, width, d_model=d, d_head=d, d_ff=2 * d)
        for width in preset.widths
        for d in preset.d_model
    }
    depths = {(vmap(width), n): workload(width, width, n_layers=n) for width in preset.widths for n in preset.n_layers}
    width = preset.widths[-1]
    devices = {(vmap(width), n): workload(width, width, n) for n in preset.devices}
    return {"rows": rows, "d_model": widths, "n_layers": depths, "devices": devices}


def measure(preset: Preset) -> list[dict]:
    """Every point: panel, line, value, quartiles of row-steps a second, the rate of the products computed, and the
    share of the machine that other programs took.

    Raises:
      harness.Failed: no point of a panel runs.
    """
    points = []
    for panel, workloads in panels(preset).items():
        print(f"{panel}: {len(workloads)} points", file=sys.stderr)
        with harness.started({key: [workload] for key, workload in workloads.items()}) as (teams, failures):
            if not teams:
                raise harness.Failed("; ".join(sorted(set(failures.values()))))
            rates = harness.rounds(teams, preset.repeats, preset.seconds)
        for (line, value), reason in failures.items():
            print(f"left out: {panel} {value}, {line}: {reason}")
        for (line, value), team in teams.items():
            quartiles = harness.quartiles(rates[line, value])
            flops = quartiles[1] * team.facts["computed"]
            point = {"panel": panel, "line": line, "value": value, "row_steps": quartiles, "flops": flops}
            points.append(point | {"disturbance": float(np.median(team.disturbance))})
    return points


def show(points: list[dict]) -> None:
    """Prints a table."""
    print(f"{'':12}{'':>6}  {'':26}{'row-steps/s':>12}{'[quartiles]':>20}{'GFLOP/s':>10}{'others':>9}")
    for point in points:
        low, rate, high = point["row_steps"]
        print(
            f"{point['panel']:12}{point['value']:>6}  {point['line']:26}{rate:12.4g}{f'[{low:.4g}, {high:.4g}]':>20}"
            f"{point['flops'] / 1e9:10.3g}{point['disturbance']:9.0%}"
        )


@style.paper()
def draw(points: list[dict], preset: Preset):
    """A panel for each thing varied; bars from the first to the third quartile."""
    title = "Training speed of a grid, one thing changed at a time"
    notes = [
        f"model of the composition demo, batch {preset.batch_size}; medians of {preset.repeats} rounds, bars are "
        "quartiles; grey: in proportion to the devices"
    ]
    worst = max(point["disturbance"] for point in points)
    if worst >= harness.QUIET:
        notes.append(f"disturbed: other programs took up to {worst:.0%} of the machine meanwhile")
    names = list(dict.fromkeys(point["panel"] for point in points))
    figure, axes = style.panels(len(names), 4.8, 2.9, title, notes)
    lines = list(dict.fromkeys(point["line"] for point in points))
    strokes = dict(zip(lines, style.strokes(lines), strict=True))
    for ax, name in zip(axes, names, strict=True):
        here = [point for point in points if point["panel"] == name]
        for line in dict.fromkeys(point["line"] for point in here):
            _draw_line(ax, [point for point in here if point["line"] == line], strokes[line])
        if name == "devices":
            first, last = here[0], here[-1]["value"]
            ax.plot([1, last], [first["row_steps"][1], last * first["row_steps"][1]], color=style.GREY, ls="--", lw=1.2)
        values = sorted({point["value"] for point in here})
        ax.set_xscale("log")
        ax.set_xticks(values, [style.short(value) for value in values])
        ax.minorticks_off()
        style.fit_scale(ax, np.array([point["row_steps"] for point in here]))
        ax.yaxis.set_minor_formatter(NullFormatter())
        if ax.get_yscale() == "linear":
            ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
        ax.set(xlabel=LABELS[name], ylabel="row-steps/s")
    style.legend_below(figure, [Line2D([], [], label=line, marker="o", ms=4, **strokes[line]) for line in lines])
    return figure


def _draw_line(ax, points: list[dict], stroke: Mapping) -> None:
    low, rate, high = np.array([point["row_steps"] for point in points]).T
    values = [point["value"] for point in points]
    ax.errorbar(values, rate, yerr=(rate - low, high - rate), marker="o", ms=4, capsize=2, lw=1.8, **stroke)


def main(argv: list[str] | None = None) -> None:
    parser = harness.Parser(__doc__, PRESETS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers and the picture")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out={args.out}: {error.strerror}")
    preset = PRESETS[args.preset]
    try:
        points = measure(preset)
    except harness.Failed as error:
        parser.error(f"preset {args.preset}: {error}")
    show(points)
    (args.out / "scaling.json").write_text(json.dumps({"preset": args.preset, "points": points}, indent=1) + "\n")
    with style.paper():
        figure = draw(points, preset)
        figure.savefig(args.out / "scaling.png", dpi=style.PNG_DPI)
        figure.savefig(args.out / "scaling.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
