"""The pictures of the low-entropy study: entropy by size, depth and diagram; sparsity; spikes and dead neurons."""

import numpy as np
import xarray as xr

from lab.analysis import spikes
from lab.report import comparison, cycles, figures, maps, style
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.studies.low_entropy.instability import events
from lab.studies.low_entropy.sizes import by_size, n_parameters

LOWER = (
    "H(Q) - H(P) in nats of a string, exact by enumeration. A model that knows its training sample by heart has the "
    "entropy of the sample, which is below the target's; one that has not converged is above it. So the divergence "
    "KL(P||Q) stands beside the gap."
)
SPARSE = (
    "Active: hidden units above zero, averaged over tokens. Dead: units that no token of the probe turns on. "
    "Attention: norm of what it adds, as a share of the stream's. Means over layers; points are medians over seeds."
)
UNSTABLE = (
    "A large constant learning rate and no clipping. Spikes are losses above the median of the 50 steps before by 6 of "
    "their median absolute deviations."
)
DIAGRAM = "One finite sample, initial scale by weight decay: is low entropy what is learnt by heart?"
MOST_LAG = 400  # steps


def sections(runs: Runs) -> list[Section]:
    made, names = [], [*runs]
    if any(name.startswith("fixed_") for name in names):
        made.append(draw_section("Entropy by size", LOWER, runs, (by_parameters, against_divergence, by_depth)))
    if by_size(runs):
        made.append(draw_section("Sparsity by size", SPARSE, runs, (sparsity, sparsity_over_training)))
    for name, title, text, drawings in (
        ("unstable", "Spikes and dead neurons", UNSTABLE, (spikes_and_deaths, lags)),
        ("diagram", "Initial scale and decay", DIAGRAM, (diagram,)),
        ("fresh", "Fresh samples", "No string recurs but by chance: nothing can be learnt by heart.", (calibration,)),
    ):
        if name in names:
            made.append(draw_section(title, text, runs[name], drawings, name))
    return made


def by_parameters(runs: Runs) -> Picture:
    """Gap and divergence against the number of parameters, full models and attention alone, with the sample's own."""
    sizes = _strings(runs)
    alone = {"attention alone": [runs["attention"]]} if "attention" in runs else {}
    depths = sorted({depth for _, depth in sizes})
    lines = {_layers(depth): [run for (_, of), run in sizes.items() if of == depth] for depth in depths} | alone
    panels = {
        title: {label: _against_parameters(of, name) for label, of in lines.items()}
        for title, name in {"H(Q) - H(P)": "distribution.gap", "KL(P||Q)": "distribution.forward"}.items()
    }
    for label, name in {"the sample itself": "sample", "other samples": "sample_median"}.items():
        panels["H(Q) - H(P)"][label] = _sample_line([*sizes.values()], name)
    figure = comparison.curves(panels, "Entropy below the target's, by size", "parameters", xscale="log")
    return Picture("sizes", "Nats of a string. The sample's entropy is that of the training set counted out.", figure)


def _sample_line(of: list[Run], name: str) -> xr.DataArray:
    gap = [float((run.final(f"distribution.{name}", ("seed",)) - run.final("distribution.target", ("seed",))).median())
           for run in of]  # fmt: skip
    line = xr.DataArray(gap, {"parameters": [n_parameters(run) for run in of]}, "parameters")
    return line.sortby("parameters")


def _against_parameters(of: list[Run], name: str) -> xr.DataArray:
    values = [run.final(name, ("seed",)).assign_coords(parameters=n_parameters(run)) for run in of]
    return xr.concat(values, "parameters").transpose("seed", "parameters").sortby("parameters")


def against_divergence(runs: Runs) -> Picture:
    """Every row a dot: gap against divergence at the snapshots after the first."""
    points = {}
    for (width, depth), run in _strings(runs).items():
        gap, divergence = (
            run.over_time(f"distribution.{name}", ("seed",)).dropna("snapshot").isel(snapshot=slice(1, None))
            for name in ("gap", "forward")
        )
        points[f"{width} wide, {_layers(depth)}"] = (divergence.values.ravel(), gap.values.ravel())
    ends = [0, max(x.max(initial=0) for x, _ in points.values())]
    panel = {"x": "KL(P||Q), nats", "y": "H(Q) - H(P), nats", "points": points, "line": (ends, [0, 0]), "log": ""}
    figure = cycles.laws({"All snapshots but the first": panel}, "Underfit above, learnt by heart below")
    return Picture("divergence", "Every seed and snapshot is a dot; on the dashed line entropies are equal.", figure)


def by_depth(runs: Runs) -> Picture:
    sizes = _strings(runs)
    ends = dict.fromkeys((min(sizes, key=lambda size: n_parameters(sizes[size])),
                          max(sizes, key=lambda size: n_parameters(sizes[size]))))  # fmt: skip
    lines = {}
    for width, depth in ends:
        gap = sizes[width, depth].final("distribution.gap_at", ("seed",))
        lines[f"{width} wide, {_layers(depth)}"] = gap.assign_coords(depth=np.arange(1, gap.sizes["depth"] + 1))
    if "fresh" in runs:
        gap = runs["fresh"].final("distribution.gap_at", ("seed",))
        lines["fresh samples"] = gap.assign_coords(depth=np.arange(1, gap.sizes["depth"] + 1))
    figure = comparison.curves({"gap of the next symbol": lines}, "Where in the string is it lower?", "symbol")
    return Picture("depth", "Conditional entropy in the model's own contexts less the target's in its own.", figure)


def sparsity(runs: Runs) -> Picture:
    panels = {"|attention| / |stream|": "ratio", "active share": "active", "dead share": "dead"}
    sizes = by_size(runs)
    drawn = {title: {} for title in panels}
    for depth in sorted({depth for _, depth in sizes}):
        for title, name in panels.items():
            values = [
                run.final(f"sparsity.{name}", ("seed",)).mean("layer").assign_coords(width=width)
                for (width, of), run in sizes.items() if of == depth
            ]  # fmt: skip
            drawn[title][_layers(depth)] = xr.concat(values, "width").transpose("seed", "width")
    figure = comparison.curves(drawn, "Sparsity by width and depth", "width", xscale="log")
    return Picture("sparsity", "At the end of training.", figure)


def sparsity_over_training(runs: Runs) -> Picture:
    panels = {"|attention| / |stream|": "ratio", "active share": "active", "dead share": "dead"}
    drawn = {
        title: {
            f"{width} wide, {_layers(depth)}": run.over_time(f"sparsity.{name}", ("seed",)).mean("layer")
            for (width, depth), run in by_size(runs).items()
        }
        for title, name in panels.items()
    }
    figure = comparison.curves(drawn, "Sparsity over training", "step")
    return Picture("sparsity-training", "At the snapshots.", figure)


def spikes_and_deaths(run: Run) -> Picture:
    """Loss and dead share of the first seed, at every learning rate."""
    panels, times = {}, {}
    seed = run.values_of("seed")[0]
    for rate in run.values_of("learning_rate"):
        loss = run.over_time("train_loss", (), seed=seed, learning_rate=rate)
        spike_T, _ = events(run, seed, rate)
        dead = run.over_time("sparsity.dead", (), seed=seed, learning_rate=rate).dropna("snapshot", how="all")
        name = f"loss, rate {rate:g}"
        panels[name] = {"loss": loss.values, "spikes": np.where(spike_T, loss.values, np.nan)}
        times[name] = np.arange(loss.size)
        name = f"dead share, rate {rate:g}"
        panels[name] = {f"layer {layer}": dead.isel(layer=layer).values for layer in range(dead.sizes["layer"])}
        times[name] = dead.snapshot.values
    return Picture("spikes", "First seed.", _steps(times, panels, "Spikes of the loss and dead neurons"))


@style.paper()
def _steps(times, panels, title):
    figure, axes = style.panels(len(panels), 4.2, 2.6, title)
    for ax, (name, curves) in zip(axes, panels.items(), strict=True):
        for stroke, (label, values) in zip(style.strokes([*curves]), curves.items(), strict=True):
            dots = {"ls": "", "marker": "x", "ms": 5} if label == "spikes" else {"ls": stroke["ls"], "lw": 1.1}
            ax.plot(times[name], values, color=stroke["color"], label=label, **dots)
        ax.set_title(name, loc="left")
        ax.set_xlabel("step")
        ax.legend(fontsize=7)
    return figure


def lags(run: Run) -> Picture:
    """Correlation of spikes with rises of dead neurons, by lag, of every learning rate; seeds averaged in the band."""
    lines = {}
    for rate in run.values_of("learning_rate"):
        curves = []
        for seed in run.values_of("seed"):
            spike_T, _ = events(run, seed, rate)
            dead = run.over_time("sparsity.dead", (), seed=seed, learning_rate=rate).mean("layer").dropna("snapshot")
            step_N = dead.snapshot.values
            spacing = int(np.median(np.diff(step_N)))
            counts_M = np.add.reduceat(spike_T.astype(float), step_N[:-1])
            most = min(MOST_LAG // spacing, counts_M.size // 2)
            curves.append(spikes.lagged_correlation(counts_M, np.diff(dead.values), most))
        lag = spacing * np.arange(-most, most + 1)
        seeds = run.values_of("seed")
        lines[f"rate {rate:g}"] = xr.DataArray(np.array(curves), {"seed": seeds, "lag": lag}, ("seed", "lag"))
    figure = comparison.curves({"correlation": lines}, "Do neurons die when the loss spikes?", "lag in steps")
    return Picture("lags", "Positive lags: neurons die after the spike.", figure)


def diagram(run: Run) -> Picture:
    names = {"H(Q) - H(P)": "distribution.gap", "KL(P||Q)": "distribution.forward"}
    keep = ("seed", "weight_decay", "gamma")
    found = {title: run.final(name, keep).median("seed") for title, name in names.items()}
    axes = [list(map(style.short, run.values_of(axis))) for axis in keep[1:]]
    panels = {title: values.transpose(*keep[1:]).values for title, values in found.items()}
    figure = maps.heatmap(panels, *axes, "nats", "Initial scale by weight decay", "weight decay", "init rate γ")
    return Picture("diagram", "Medians over seeds at the last step. Smaller initial weights to the right.", figure)


def calibration(run: Run) -> Picture:
    scores = {"test.entropy": "entropy of answers", "test.law_loss": "loss", "test.excess": "excess over the target"}
    figure = figures.training_curves(run, scores, title="Entropy of answers and loss, fresh samples")
    return Picture("calibration", "Nats of a symbol.", figure)


def _layers(depth: int) -> str:
    return "1 layer" if depth == 1 else f"{depth} layers"


def _strings(runs: Runs) -> dict[tuple[int, int], Run]:
    """
    Raises:
      MissingData: nothing was trained on a finite sample.
    """
    sizes = {size: run for size, run in by_size(runs).items() if "distribution.gap" in run}
    if not sizes:
        raise MissingData("variants fixed_<width>x<layers>")
    return sizes
