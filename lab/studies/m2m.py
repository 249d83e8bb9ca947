"""Operators of different capacity behind a gate that a controller holds to a prior (arXiv 2410.11617).

The paper's text was not to be had, its abstract alone: no number of it is known, and thresholds are ours, written
before the runs. The paper's words are that the mixture is more accurate than single operators, and easier to read; V7
is of a number that the Fourier operator's table prints.

Variants: `fno`, one Fourier operator; `m2m`, the mixture of as many parameters with its controller; `free` and
`constant`, without a prior and with a constant weight of it; `halo`; `ns_...`, on Navier-Stokes; `gamma`, the mixture
over initial scale and weight decay.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lab import models
from lab.analysis.statistics import median_of
from lab.claims import DIRECTION, OURS, PRINTED, claim
from lab.experiment import Experiment
from lab.measuring.catalogue import operators
from lab.measuring.declare import Measure
from lab.report import comparison, figures, style
from lab.report.film import gif
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.studies import Study
from lab.tasks import Fields

PAPER = "arXiv 2410.11617"
BENCHMARK = {"viscosity": 1e-5, "size": 64, "frames": 10, "horizon": 10}  # of the printed error
SETTLED = 5  # a controller has a fifth of the training to reach its target
WINDOWS = 16  # of the rest: what is measured of a batch is noise
WORDS = {
    "fno": "one operator", "m2m": "mixture, PI", "free": "mixture, no prior", "constant": "mixture, constant weight",
    "halo": "mixture, PI, halo", "all_modes": "one operator, all modes", "ns_fno": "one operator",
    "ns_m2m": "mixture, PI",
}  # fmt: skip
FRAME_MS, FRAME_DPI = 500, 60

TITLE = "Who predicts which part of a field?"
LEAD = (
    "A field is cut into patches, and a gate sends each to one of several neural operators of different capacity. Left "
    "alone the gate mostly sends all to one. A controller doses how strongly it is pulled to a prior, by roughness; "
    "then each patch goes where it is predicted best, and the mixture beats one operator of as many parameters."
)
FIELDS = (
    "A scalar, smooth but in one quadrant of the torus, is carried by a uniform flow. Which quadrant is fine differs "
    "from field to field and is known to us; the operators read one frame and roll out the next ones."
)
VORTICITY = (
    "Vorticity of a two-dimensional flow on the torus, driven by the published forcing. Nothing is known of which part "
    "needs which expert; the operators roll out the next frames."
)
CONTROL = (
    "The divergence of the gate from its prior, in nats, and the weight that the controller gives it in the loss. Its "
    "target is the dashed line. A constant weight is whatever it is."
)


def measures(experiment: Experiment) -> list[Measure]:
    """Errors of the roll-out; of a mixture also where its gate sends patches.

    Raises:
      ValueError: the task is not `fields`, or the model no operator.
    """
    if not isinstance(experiment.task, Fields) or not isinstance(experiment.model, models.FNO2D | models.M2M):
        given = f"{type(experiment.model).__name__} on {type(experiment.task).__name__}"
        raise ValueError(f"m2m measures Fourier operators and mixtures of operators on fields, not {given}")
    if isinstance(experiment.model, models.FNO2D):
        return [operators.rollout(experiment)]
    return [operators.rollout(experiment), operators.routing(experiment)]


@claim(
    "V1a", "On fields of two scales the mixture errs less than one operator of as many parameters", headline=True,
    quantity="error over that of the single operator", source=f"{PAPER}, abstract", published="lower error; no numbers",
    at_most=0.9, threshold_from=OURS,
)  # fmt: skip
def mixture_beats_one(runs: Runs):
    single, mixture = _errors(runs, "fno"), _errors(runs, "m2m")
    note = f"Errors of the roll-out: {median_of(mixture):.3f} and {median_of(single):.3f}."
    beside = [
        f"{WORDS[name]}: {median_of(_errors(runs, name)):.3f}" for name in ("all_modes", "halo", "free") if name in runs
    ]
    note += f" Beside it {'; '.join(beside)}." if beside else ""
    return mixture / single, note


@claim(
    "V1b", "On Navier-Stokes it errs no more than one operator", headline=True,
    quantity="error over that of the single operator", source=f"{PAPER}, abstract", published="lower error; no numbers",
    at_most=1.0, threshold_from=OURS,
)  # fmt: skip
def mixture_is_no_worse_on_navier_stokes(runs: Runs):
    single, mixture = _errors(runs, "ns_fno"), _errors(runs, "ns_m2m")
    return mixture / single, f"Errors of the roll-out: {median_of(mixture):.3f} and {median_of(single):.3f}."


@claim(
    "V2a", "With the controlled prior patches go to the expert that they need", headline=True,
    quantity="routing accuracy", source=f"{PAPER}, abstract", published="better interpretability; no numbers",
    at_least=0.9, threshold_from=OURS,
)  # fmt: skip
def prior_routes(runs: Runs):
    return _final(runs["m2m"], "routing.accuracy"), "Fine patches to expert 0, others to another: 0.5 by chance."


@claim(
    "V2b", "Without a prior they do not", quantity="routing accuracy", source=f"{PAPER}, abstract",
    published="better interpretability; no numbers", at_most=0.6, threshold_from=OURS,
)  # fmt: skip
def nothing_routes_without_a_prior(runs: Runs):
    run = runs["free"]
    largest = median_of(_final(run, "routing.largest_share"))
    return _final(run, "routing.accuracy"), f"The expert that gets most gets {largest:.2f} of all patches."


@claim(
    "V3a", "The controller holds its target after a fifth of the training",
    quantity="mean distance from the target, in shares of it", source=f"{PAPER}, PI controller",
    published="not known", at_most=0.1, threshold_from=OURS,
)  # fmt: skip
def controller_holds_its_target(runs: Runs):
    weight = _after_settling(runs["m2m"].over_time("coefficient", ("seed",)))
    bounds = [float(of(weight)) for of in (np.min, np.max)]
    return _miss(runs["m2m"]), f"Weights from {bounds[0]:.3f} to {bounds[1]:.3f}."


@claim(
    "V3b", "A constant weight misses that target by more",
    quantity="its distance from the target less that of the controller", source=f"{PAPER}, PI controller",
    published="not known", above=0, threshold_from=DIRECTION,
)  # fmt: skip
def constant_misses_by_more(runs: Runs):
    constant = runs["constant"]
    miss = _miss(constant)
    note = f"Weight {constant.config['controller']['control_constant']:g}, distance {median_of(miss):.2f}."
    return miss - _miss(runs["m2m"]), note


@claim(
    "V4", "The borders of patches are predicted at most twice as badly as the rest",
    quantity="error on borders over that inside", source="control", published="-", at_most=2.0, threshold_from=OURS,
)  # fmt: skip
def borders_are_not_much_worse(runs: Runs):
    others = [name for name in ("fno", "halo") if name in runs]
    said = ", ".join(f"{WORDS[name]} {median_of(_final(runs[name], 'rollout.seam')):.2f}" for name in others)
    return _final(runs["m2m"], "rollout.seam"), f"Beside it: {said}." if said else ""


@claim(
    "V5", "The gain of the mixture sits in the high band", quantity="ratio of errors there less that in the low band",
    source=f"{PAPER}, multi-scale", published="not known", below=0, threshold_from=DIRECTION,
)  # fmt: skip
def gain_is_in_the_high_band(runs: Runs):
    ratio = _final(runs["m2m"], "rollout.by_band") / _final(runs["fno"], "rollout.by_band")
    said = ", ".join(f"{band} {median_of(ratio.sel(band=band)):.2f}" for band in ratio["band"].values)
    return ratio.sel(band="high", drop=True) - ratio.sel(band="low", drop=True), f"Ratios: {said}."


@claim(
    "V6", "The init rate decides how well operators predict, too",
    quantity="largest error over gamma, over the smallest", source="ours", published="-", at_least=1.5,
    threshold_from=OURS,
)  # fmt: skip
def gamma_decides(runs: Runs):
    run = runs["gamma"]
    if len(run.values_of("gamma")) < 3:
        raise MissingData("a third gamma")
    error, share = (run.final(name) for name in ("rollout.error", "routing.largest_share"))
    said = ", ".join(
        f"{float(gamma):g}: {median_of(error.sel(gamma=gamma)):.3f} and {median_of(share.sel(gamma=gamma)):.2f}"
        for gamma in error["gamma"]
    )
    note = f"Error, and the largest share of patches of an expert, by gamma: {said}."
    return error.max("gamma", skipna=False) / error.min("gamma", skipna=False), note


@claim(
    "V7", "The Fourier operator has its published error on Navier-Stokes at viscosity 1e-5", quantity="error",
    source="arXiv 2010.08895, table 1", published="0.1556", at_least=0.136, at_most=0.176, threshold_from=PRINTED,
)  # fmt: skip
def operator_has_its_published_error(runs: Runs):
    run = runs["ns_fno"]
    if any(run.config["task"][name] != value for name, value in BENCHMARK.items()):
        raise MissingData("Navier-Stokes at viscosity 1e-5, 64 x 64, ten frames from ten")
    return run.final("test.error", ("seed",))


def _final(run: Run, name: str) -> xr.DataArray:
    return run.final(name, ("seed",))


def _errors(runs: Runs, variant: str) -> xr.DataArray:
    return _final(runs[variant], "rollout.error")


def _after_settling(values: xr.DataArray) -> xr.DataArray:
    steps = values["train_step"]
    return values.where(steps >= float(steps.max()) / SETTLED, drop=True)


def _miss(run: Run) -> xr.DataArray:
    """Mean distance of what is controlled, averaged over a window at a time, from the target, in shares of that."""
    target = run.config["controller"]["control_target"]
    measured = _after_settling(run.over_time("controlled", ("seed",))).transpose("train_step", "seed")
    windows = np.array_split(measured.values, min(WINDOWS, len(measured)))
    distance_WxS = np.abs(np.stack([window.mean(axis=0) for window in windows]) - target) / target
    return xr.DataArray(distance_WxS.mean(axis=0), {"seed": measured["seed"]}, ("seed",))


# --- pictures ---


def sections(runs: Runs) -> list[Section]:
    groups = {"Fields of two scales": (FIELDS, ""), "Navier-Stokes": (VORTICITY, "ns_")}
    parts = []
    for title, (text, prefix) in groups.items():
        if {f"{prefix}fno", f"{prefix}m2m"} & {*runs}:
            chosen = runs.where(lambda name, run, of_flow=bool(prefix): name.startswith("ns_") == of_flow)
            parts.append(draw_section(title, text, chosen, (beside, film, spectra, frames), title.split()[0]))
    steered = runs.where(lambda name, run: name in ("m2m", "constant", "free"))
    if len(steered):
        parts.append(draw_section("The controller", CONTROL, steered, (control, training), "control"))
    if "gamma" in runs:
        text = "Errors of the roll-out, and the largest share of patches that one expert gets."
        parts.append(draw_section("Initial scale and weight decay", text, runs["gamma"], (phases,), "gamma"))
    return parts


def beside(runs: Runs) -> Picture:
    """What is true, what is predicted and where it is wrong, frame by frame, with the map of experts."""
    caption = (
        "First test field, first seed: the frame that is read, then those that are predicted. Errors are drawn on the "
        "scale of the field. Patches by expert: dark, expert 0, that of the most modes."
    )
    return Picture("fields", caption, _montage(*_shown(runs)))


def film(runs: Runs) -> Picture:
    shown, choice = _shown(runs)
    n_frames = next(iter(shown.values())).shape[0]
    moving = gif((_montage(shown, choice, [frame]) for frame in range(n_frames)), FRAME_MS, FRAME_DPI)
    return Picture("film", "The same, as it goes.", _montage(shown, choice, [n_frames - 1]), film=moving)


def _shown(runs: Runs) -> tuple[dict, np.ndarray | None]:
    """Row's label -> (frame, N, N) of the first test field and seed, and the choices (frame, P) where there is a gate.

    Raises:
      MissingData: no roll-out was measured.
    """
    picked = {name: run for name, run in runs.items() if name.removeprefix("ns_") in ("fno", "m2m")}
    rows, choice = {}, None
    for name, run in picked.items():
        said, true = (run.final(f"rollout.{of}", (), seed=min).isel(example=0).values for of in ("said", "true"))
        rows.setdefault("true", true)
        rows |= {WORDS[name]: said, f"error, {WORDS[name]}": said - true}
        if "routing.choice" in run:
            choice = run.final("routing.choice", (), seed=min).isel(example=0).values
    return rows, choice


@style.paper()
def _montage(rows: dict, choice, frames=None) -> Figure:
    frames = range(next(iter(rows.values())).shape[0]) if frames is None else frames
    labels = [*rows] + ["experts"] * (choice is not None)
    scale = float(np.nanmax(np.abs(rows["true"])))
    wide = len(labels) if len(frames) == 1 else len(frames)
    high = 1 if len(frames) == 1 else len(labels)
    figure = Figure(figsize=(1.5 * wide + 1.2, 1.5 * high + 0.6), layout="constrained")
    when = f", at t + {frames[0]}" if len(frames) == 1 else ""
    figure.suptitle(f"Fields, predictions, errors and who predicts{when}", x=0.02, ha="left", weight="bold")
    axes = figure.subplots(high, wide, squeeze=False)
    axes = axes.T if len(frames) == 1 else axes
    for ax_row, label in zip(axes, labels, strict=True):
        for ax, frame in zip(ax_row, frames, strict=True):
            ax.set(xticks=[], yticks=[])
            style.as_image(ax)
            if label != "experts":
                ax.imshow(rows[label][frame], cmap="RdBu_r", vmin=-scale, vmax=scale)
            elif frame:
                side = round(choice.shape[1] ** 0.5)
                ax.imshow(choice[frame - 1].reshape(side, side), cmap="cividis", vmin=0, vmax=max(1, choice.max()))
            if len(frames) == 1:
                ax.set_title(label, fontsize=8)
            elif label == labels[0]:
                ax.set_title(f"t + {frame}" if frame else "read", fontsize=9)
        if len(frames) > 1:
            ax_row[0].set_ylabel(label.replace(", ", ",\n"), fontsize=8)
    return figure


def spectra(runs: Runs) -> Picture:
    """Power by wavenumber: of the field, of what is predicted, and of the error."""
    named = {WORDS[name]: run for name, run in runs.items() if name.removeprefix("ns_") in ("fno", "m2m", "free")}
    panels = {"field": {}, "error": {}}
    for label, run in named.items():
        panels["field"].setdefault("true", _final(run, "rollout.true_power").isel(wavenumber=slice(1, None)))
        panels["field"][label] = _final(run, "rollout.said_power").isel(wavenumber=slice(1, None))
        panels["error"][label] = _final(run, "rollout.error_power").isel(wavenumber=slice(1, None))
    figure = comparison.curves(panels, "Which waves are predicted?", "wavenumber", ylabel="mean square", yscale="log")
    return Picture("spectra", "Mean square in the last frame, by wavenumber, of the field and of the error.", figure)


def frames(runs: Runs) -> Picture:
    named = {WORDS[name]: _final(run, "rollout.by_frame") for name, run in runs.items() if name in WORDS}
    if not named:
        raise MissingData("rollout.by_frame")
    figure = comparison.curves({"relative error": named}, "How the error grows", "frame")
    return Picture("frames", "Relative L2 error of each frame that is predicted.", figure)


@style.paper()
def control(runs: Runs) -> Picture:
    """Divergence from the prior and its weight over training."""
    figure, (left, right) = style.panels(2, 5.1, 3.1, "What is controlled, and the weight it takes")
    strokes = style.strokes([WORDS[name] for name in runs])
    for (name, run), stroke in zip(runs.items(), strokes, strict=True):
        for ax, what in ((left, "controlled"), (right, "coefficient")):
            values = run.over_time(what, ("seed",)).transpose("train_step", "seed")
            width = max(1, len(values) // 100)
            smooth = values.rolling(train_step=width, min_periods=1).mean()
            x = smooth["train_step"].values
            ax.plot(x, smooth.median("seed"), **stroke, gid=name, label=WORDS[name])
            ax.fill_between(x, smooth.min("seed"), smooth.max("seed"), color=stroke["color"], alpha=0.15, lw=0)
    targets = {run.config["controller"]["control_target"] for name, run in runs.items() if name == "m2m"}
    for target in targets:
        left.axhline(target, color=style.GREY, ls=(0, (4, 3)), lw=1.2, gid="target")
    left.set_title("KL(gate, prior), nats", loc="left")
    right.set_title("weight in the loss", loc="left")
    for ax in (left, right):
        ax.set_xlabel("step")
    style.legend_below(figure, left.get_legend_handles_labels()[0][: len(runs)])
    return Picture("traces", "Medians and ranges over seeds, running means over a hundredth of the training.", figure)


def training(runs: Runs) -> Picture:
    panels = {
        words: {WORDS[name]: run.over_time(metric, ("seed",)) for name, run in runs.items()}
        for words, metric in {"training fields": "train.error", "test fields": "test.error"}.items()
    }
    figure = comparison.curves(panels, "Error over training", "step", yscale="log")
    return Picture("training", "Relative L2 error of the roll-out; first choices of the gate alone.", figure)


def phases(run: Run) -> Picture:
    metrics = {"rollout.error": "error of the roll-out", "routing.largest_share": "largest share of an expert"}
    figure = figures.phase_diagram(run, metrics, title="Initial scale and weight decay")
    return Picture("phases", "Medians over seeds. 0.5 of two experts is the smallest share that there is.", figure)


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER, "arXiv 2010.08895"),
    measures=measures,
    claims=(
        mixture_beats_one, mixture_is_no_worse_on_navier_stokes, prior_routes, nothing_routes_without_a_prior,
        controller_holds_its_target, constant_misses_by_more, borders_are_not_much_worse, gain_is_in_the_high_band,
        gamma_decides, operator_has_its_published_error,
    ),
    target="test.error",
    usual={"weight_decay": 0.01, "gamma": 0.5},
    sections=sections,
    published_sizes=False,
)  # fmt: skip
