"""The report of the NTP-CTP study: a section a task, the two objectives side by side."""

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from lab.analysis import complexity
from lab.report import cycles, figures, measures
from lab.report.page import Picture, Section
from lab.studies.ntp_ctp import flow
from lab.studies.ntp_ctp.claims import CTP, NTP, PLAIN, SMALL, USUAL, accuracy, compared, rows

TITLE = "Why does next-token prediction reason better than training on answers?"
LEAD = (
    "One model, one training set, two objectives: next-token prediction (NTP) scores every token, critical token "
    "prediction (CTP) the answer alone. What surrounds the answer is mostly noise, and to predict it is said to "
    "regularize: slower training, flatter minima, more robust models, better answers out of distribution."
)
TASK = (
    "Lines are medians over seeds, bands run from the lowest to the highest. Accuracy out of distribution is the mean "
    "over the splits `ood...`. All curvature, flatness and noise is of the answer's loss on clean training sequences, "
    "for both objectives. A loss that has been driven to zero is flat whatever led there: sharpness is to be read "
    "beside the loss on training answers."
)
OBJECTIVES = {CTP: "CTP", NTP: "NTP"}
ACCURACIES = {"training": lambda ds: ds["train.accuracy"], "out of distribution": accuracy}
SHARPNESS = {"minimum.top": "sharpness", "minimum.trace": "trace of the Hessian", "minimum.sam": "SAM sharpness",
             "log_loss": "log10 of the loss on training answers"}  # fmt: skip
TERMS = {
    "ntp": "NTP loss", "answer": "answers", "start": "context at the start", "slope": "slope",
    "quadratic": "Fisher", "remainder": "remainder",
}  # fmt: skip
SUSPECTS = {
    "objective": lambda ds: ds["ntp_weight"].broadcast_like(ds["diverged_at"]),
    "sharpness": lambda ds: ds["minimum.top"],
    "Hessian trace": lambda ds: ds["minimum.trace"],
    "SAM sharpness": lambda ds: ds["minimum.sam"],
    "norm of the weights": lambda ds: ds["norm.log_frobenius_whole"].isel(snapshot=-1),
    "loss on training answers": lambda ds: ds["train.loss"].isel(step=-1),
}


def sections(datasets: Mapping[str, xr.Dataset]) -> list[Section]:
    """One for every variant that was trained with both objectives."""
    return [
        Section(f"Both objectives: {name}", TASK, _pictures(name, dataset))
        for name, dataset in compared(datasets).items()
    ]


def suspects(dataset: xr.Dataset) -> xr.Dataset:
    """`complexity.predictors` of accuracy out of distribution: does flatness, norm or the objective go with it?

    Beyond the knobs means among rows of the same scale, decay and noise: the objective is a suspect there, no knob.
    """
    knobs = [axis for axis in dataset["diverged_at"].dims if axis not in ("seed", "ntp_weight")]
    target = accuracy(dataset).isel(step=-1)
    return complexity.predictors(dataset, {label: of(dataset) for label, of in SUSPECTS.items()}, target, knobs)


def side_by_side(dataset: xr.Dataset, curves: Mapping[str, Callable]) -> xr.Dataset:
    """`<objective>, <label>` for every curve, with no axis of objectives; a pair diverged where one of it did."""
    made = {"diverged_at": dataset["diverged_at"].max("ntp_weight")}
    for objective, name in OBJECTIVES.items():
        one = dataset.sel(ntp_weight=objective, drop=True)
        made |= {f"{name}, {label}": of(one) for label, of in curves.items()}
    return xr.Dataset(made)


def _pictures(name: str, dataset: xr.Dataset) -> list[Picture]:
    plain = {axis: value for axis, value in PLAIN.items() if axis in dataset.dims}
    drawn = [_training(name, dataset, plain)]
    if "minimum.top" in dataset:
        drawn += [_sharpness(name, dataset, plain), _slices(name, dataset), _noise(name, dataset)]
    drawn += [_taught_noise(name, dataset, axis) for axis in PLAIN if dataset.sizes.get(axis, 1) > 1]
    if "expansion.ntp" in dataset:
        drawn.append(_expansion(name, dataset))
    if "flow.pattern" in dataset:
        drawn.append(flow.picture(name, dataset))
    if {"minimum.top", "norm.log_frobenius_whole"} <= set(dataset):
        drawn.append(_suspects(name, dataset))
    return drawn


def _training(name: str, dataset: xr.Dataset, plain: Mapping[str, float]) -> Picture:
    curves = side_by_side(dataset, ACCURACIES)
    labels = {label: label for label in curves if label != "diverged_at"}
    figure = figures.training_curves(curves, labels, title="Training, and questions out of distribution", **plain)
    return Picture(f"{name}-training", "Accuracy over training", "Trained without injected noise.", figure)


def _sharpness(name: str, dataset: xr.Dataset, plain: Mapping[str, float]) -> Picture:
    title = "Sharpness of the answer's loss by objective"
    dataset = dataset.assign(log_loss=np.log10(dataset["train.loss"]))
    figure = figures.curves_against_gamma(dataset, SHARPNESS, hue="ntp_weight", title=title, **plain)
    caption = "At the last step; ntp weight 0 is CTP, 1 is NTP. SAM: rise of the loss after a step of length 0.05 up."
    return Picture(f"{name}-sharpness", "Sharpness against objective", caption, figure)


def _slices(name: str, dataset: xr.Dataset) -> Picture:
    figure = measures.lines_with_error(
        dataset.alpha.values,
        _over_seeds(dataset, "minimum.line"),
        "step along the direction",
        "rise of the loss (nats)",
    )
    caption = "Mean over seeds of the mean over random directions, each tensor's part as long as its weights."
    return Picture(f"{name}-slices", "Slices of the landscape", caption, figure)


def _noise(name: str, dataset: xr.Dataset) -> Picture:
    lines = {
        f"{label}, noise in {of}": line
        for of, variable in (("weights", "weight"), ("embeddings", "input"))
        for label, line in _over_seeds(dataset, f"minimum.{variable}_accuracy", gammas=(USUAL,)).items()
    }
    x = dataset.sigma.values
    figure = measures.lines_with_error(x, lines, "noise, relative to the RMS", "accuracy of answer tokens")
    return Picture(f"{name}-noise", "Robustness", "On training sequences; mean over seeds.", figure)


def _taught_noise(name: str, dataset: xr.Dataset, axis: str) -> Picture:
    noise = axis.replace("_", " ")
    figure = figures.curves_against_gamma(
        dataset.assign(ood=accuracy(dataset)), {"ood": "accuracy out of distribution"}, hue=axis, over="ntp_weight",
        title=f"Accuracy out of distribution after training with {noise}",
        **{other: value for other, value in PLAIN.items() if other in dataset.dims and other != axis},
    )  # fmt: skip
    caption = "Evaluated on clean sequences; ntp weight 0 is CTP, 1 is NTP."
    return Picture(f"{name}-{axis.replace('_', '-')}", noise.capitalize(), caption, figure)


def _expansion(name: str, dataset: xr.Dataset) -> Picture:
    panels = {}
    for gamma in dict.fromkeys((USUAL, SMALL)):
        chosen = rows(dataset, NTP, gamma)
        medians = {label: chosen[f"expansion.{term}"].median("seed").values for term, label in TERMS.items()}
        panels[f"NTP, γ = {float(chosen.gamma):g} (nats)"] = medians
    figure = cycles.stages(dataset.snapshot.values, panels, (), "The loss of NTP, term by term")
    caption = (
        "NTP loss = answers + context at the start + slope + Fisher + remainder: an expansion around the start, which "
        "the theory says is good while Fisher is much larger than slope and remainder. Medians over seeds."
    )
    return Picture(f"{name}-expansion", "What noise adds to the loss", caption, figure)


def _suspects(name: str, dataset: xr.Dataset) -> Picture:
    title = "What goes with accuracy out of distribution?"
    caption = (
        "Spearman's rank correlation over all rows, and among rows of the same scale, decay and noise, where the "
        "objective is what differs. If flatness explained the gap it would correlate there as the objective does."
    )
    return Picture(f"{name}-suspects", title, caption, measures.predictors(suspects(dataset), title=title))


def _over_seeds(dataset: xr.Dataset, variable: str, gammas=(USUAL, SMALL)) -> dict[str, tuple]:
    """`<objective>, γ`: mean over seeds and its standard error, without injected noise."""
    found = {}
    for objective, label in OBJECTIVES.items():
        for gamma in dict.fromkeys(gammas):
            chosen = rows(dataset, objective, gamma)
            values_SxX = chosen[variable].transpose("seed", ...).values
            n = np.isfinite(values_SxX).all(axis=1).sum()
            spread = (
                np.nanstd(values_SxX, axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.full(values_SxX.shape[1], np.nan)
            )
            found[f"{label}, γ = {float(chosen.gamma):g}"] = np.nanmean(values_SxX, axis=0), spread
    return found
