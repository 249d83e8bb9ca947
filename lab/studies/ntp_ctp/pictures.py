"""Pictures of the two objectives side by side, a section a task."""

import itertools
from collections.abc import Callable

import numpy as np
import xarray as xr

from lab.analysis import complexity
from lab.objective import NTP
from lab.report import cycles, figures, measures, objectives, portraits
from lab.report.objectives import OBJECTIVES
from lab.report.page import Picture, Section, draw_section
from lab.runs import Run, Runs, words
from lab.studies.ntp_ctp.claims import NOISES, OOD, SCORES, with_both_objectives, with_ood_accuracy

TEXT = (
    "Lines are medians over seeds, bands run from the lowest to the highest. Accuracy out of distribution is the mean "
    "over the splits `ood...`. All curvature, flatness and noise is of the answer's loss on clean training sequences, "
    "for both objectives. A loss that has been driven to zero is flat whatever led there: sharpness is to be read "
    "beside the loss on training answers."
)
SHARPNESS = {"minimum.top": "sharpness", "minimum.trace": "trace of the Hessian", "minimum.sam": "SAM sharpness",
             "log_loss": "log10 of the loss on training answers"}  # fmt: skip
TERMS = {
    "ntp": "NTP loss", "answer": "answers", "start": "context at the start", "slope": "slope",
    "quadratic": "Fisher", "remainder": "remainder",
}  # fmt: skip
PREDICTORS = {
    "minimum.top": "sharpness", "minimum.trace": "Hessian trace", "minimum.sam": "SAM sharpness",
    "norm.log_frobenius_whole": "norm of the weights", "train.loss": "loss on training answers",
}  # fmt: skip
ENDS = (min, max)  # gamma: initial weights of the usual scale, and the smallest


def sections(runs: Runs) -> list[Section]:
    """One for every variant that was trained with both objectives."""
    made = []
    for name, run in with_both_objectives(runs).items():
        noises = [axis for axis in NOISES if axis in run.axes and len(run.values_of(axis)) > 1]
        drawings = (training, sharpness, slices, robustness, *map(after_noise, noises), expansion, flow, predictors)
        made.append(draw_section(f"Both objectives: {name}", TEXT, run, drawings, name))
    return made


def training(run: Run) -> Picture:
    curves = {"train.accuracy": "training", OOD: "out of distribution"}
    title = "Training, and questions out of distribution"
    figure = objectives.training_curves(with_ood_accuracy(run), curves, title)
    return Picture("training", "Trained without injected noise.", figure, "Accuracy over training")


def sharpness(run: Run) -> Picture:
    run = run.assign(log_loss=np.log10(run["train.loss"]))
    title = "Sharpness of the answer's loss by objective"
    caption = "At the last step; ntp weight 0 is CTP, 1 is NTP. SAM: rise of the loss after a step of length 0.05 up."
    figure = figures.curves_against_gamma(run, SHARPNESS, hue="ntp_weight", title=title)
    return Picture("sharpness", caption, figure)


def slices(run: Run) -> Picture:
    lines = lines_by_objective(run, "minimum.line", ENDS)
    figure = measures.lines_with_error(
        run.dataset["alpha"], lines, "step along the direction", "rise of the loss (nats)"
    )
    caption = "Mean over seeds of the mean over random directions, each tensor's part as long as its weights."
    return Picture("slices", caption, figure, "Slices of the landscape")


def robustness(run: Run) -> Picture:
    lines = {
        f"{label}, noise in {where}": line
        for where, name in (("weights", "minimum.weight_accuracy"), ("embeddings", "minimum.input_accuracy"))
        for label, line in lines_by_objective(run, name).items()
    }
    x = run.dataset["sigma"]
    figure = measures.lines_with_error(x, lines, "noise, relative to the RMS", "accuracy of answer tokens")
    return Picture("noise", "On training sequences; mean over seeds.", figure, "Robustness")


def lines_by_objective(run: Run, name: str, gammas=(min,)) -> dict[str, tuple]:
    """`<objective>, γ`: mean over seeds and its standard error, NaN for a single seed."""
    lines = {}
    for (objective, ntp_weight), gamma in itertools.product(OBJECTIVES.items(), gammas):
        values = run.final(name, ("seed",), ntp_weight=ntp_weight, gamma=gamma)
        n = values.dropna("seed").sizes["seed"]
        mean = values.mean("seed")
        error = values.std("seed", ddof=1) / np.sqrt(n) if n > 1 else xr.full_like(mean, np.nan)
        lines[f"{objective}, γ = {float(values.gamma):g}"] = mean, error
    return lines


def after_noise(axis: str) -> Callable[[Run], Picture]:
    """The drawing of accuracy after training with a noise, an axis of the grid."""

    def accuracy_after_noise(run: Run) -> Picture:
        title = f"Accuracy out of distribution after training with {words(axis)}"
        metric = {OOD: "accuracy out of distribution"}
        figure = figures.curves_against_gamma(with_ood_accuracy(run), metric, hue=axis, over="ntp_weight", title=title)
        caption = "Evaluated on clean sequences; ntp weight 0 is CTP, 1 is NTP."
        return Picture(axis.replace("_", "-"), caption, figure, words(axis).capitalize())

    return accuracy_after_noise


def expansion(run: Run) -> Picture:
    panels = {}
    for gamma in ENDS:
        medians = {
            label: run.over_time(f"expansion.{term}", ("seed",), ntp_weight=NTP, gamma=gamma).median("seed")
            for term, label in TERMS.items()
        }
        panels[f"NTP, γ = {float(medians['slope'].gamma):g} (nats)"] = medians
    figure = cycles.stages(run.dataset["snapshot"], panels, (), "The loss of NTP, term by term")
    caption = (
        "NTP loss = answers + context at the start + slope + Fisher + remainder: an expansion around the start, which "
        "the theory says is good while Fisher is much larger than slope and remainder. Medians over seeds."
    )
    return Picture("expansion", caption, figure, "What noise adds to the loss")


def flow(run: Run) -> Picture:
    """Attention of both objectives on one sequence with (4,3), at the usual initial scale, first seed."""
    panels = {}
    for objective, ntp_weight in OBJECTIVES.items():
        row = {"seed": min, "ntp_weight": ntp_weight}
        scores = (f"{circuit} {float(run.final(name, (), **row)):.2f}" for circuit, name in SCORES.items())
        panels[f"{objective}: {', '.join(scores)}"] = run.rows((), **row)
    figure = portraits.attention_flow(panels, title="Where attention carries key and anchors, by objective")
    caption = (
        "One sequence with (4,3), averaged over heads. Steps kept apart (reasoning): the first layer copies the key to "
        "each anchor, the second gathers the anchors. Anchors merged early (symmetric): the first layer brings both to "
        "the last position, the second the key. Scores, 0 to 1, are means over sequences."
    )
    return Picture("flow", caption, figure, "Information flow")


def predictors(run: Run) -> Picture:
    title = "What goes with accuracy out of distribution?"
    caption = (
        "Spearman's rank correlation over all rows, and among rows of the same scale, decay and noise, where the "
        "objective is what differs. If flatness explained the gap it would correlate there as the objective does."
    )
    figure = measures.predictors(predictor_correlations(run), title=title)
    return Picture("suspects", caption, figure)


def predictor_correlations(run: Run) -> xr.Dataset:
    """`complexity.predictors` of accuracy out of distribution: flatness, norm and the objective.

    Beyond the knobs means among rows of the same scale, decay and noise: the objective is a predictor there, no knob.
    """
    knobs = [axis for axis in run.axes if axis not in ("seed", "ntp_weight")]
    columns = {"objective": run.dataset["ntp_weight"].broadcast_like(run.dataset["diverged_at"])}
    columns |= {label: run.final(name, run.axes) for name, label in PREDICTORS.items()}
    target = with_ood_accuracy(run).final(OOD, run.axes)
    return complexity.predictors(run.dataset, columns, target, knobs)
