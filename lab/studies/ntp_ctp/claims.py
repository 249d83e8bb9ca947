"""The claims of the NTP-CTP study: the paper's statements as differences above 0 and ratios above 1.

The paper prints no numbers, so a threshold is the direction of its statement and nothing more; where claims need a
protocol (95 % accuracy, the level of a noise) it is ours and was written before the run. A claim's number is taken per
task and seed; the verdict is that of its mean over tasks (geometric for ratios), the note has every task's own.
Unless it says otherwise a number is of the last step, of the largest initial weights of the grid (gamma 0.5 is the
usual scale, small ones are what N6 is about), the smallest weight decay, and of rows trained without injected noise.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from lab.studies.claims import Claim, Lacking, Measured
from lab.tasks.finetune import FIRST

PAPER = "arXiv 2502.02007"
CONTROL = "control of ours"
CTP, NTP = 0.0, 1.0
LEARNT = 0.95  # training accuracy from which a row counts as converged
LABEL_NOISE, CONTEXT_NOISE = 0.2, 0.1
PLAIN = {"label_noise": 0.0, "context_noise": 0.0, "sam_radius": 0.0, "weight_noise": 0.0}
USUAL, SMALL = 0, -1  # index of gamma: initial weights of the usual scale, and the smallest
SHUFFLED = "shuffled"
CONTROLS = (SHUFFLED, "weight_decay", "label_noise", "sam_radius", "weight_noise")  # `<task>_<of>`: variants of a task
EDGE = 0.5  # step along a random direction as long as the weights

Datasets = Mapping[str, xr.Dataset]


def rows(dataset: xr.Dataset, objective: float, gamma: int = USUAL, **at: float) -> xr.Dataset:
    """The rows, one a seed, of an objective (`ntp_weight`); NaN for those that diverged.

    Args:
      gamma: index into the sorted rates. at: values of other axes, which else are without noise, at the smallest weight
        decay and the middle learning rate.

    Raises:
      Lacking: a value that the grid does not have.
    """
    axes = [axis for axis in dataset["diverged_at"].dims if axis != "seed"]
    wanted = {"ntp_weight": objective, "weight_decay": float(dataset.weight_decay.min()), **at}
    place = {"gamma": gamma, "learning_rate": dataset.sizes["learning_rate"] // 2}
    for name, value in (PLAIN | wanted).items():
        if name not in axes and value == PLAIN.get(name):
            continue
        (index,) = np.nonzero(np.isclose(dataset[name].values, value)) if name in axes else ((),)
        if not len(index):
            raise Lacking(f"{name.replace('_', ' ')} {value:g}")
        place[name] = index[0]
    ordered = dataset.sortby("gamma")
    chosen = ordered.isel({axis: place.get(axis, 0) for axis in axes})
    return chosen.where(chosen["diverged_at"] < 0)


def accuracy(chosen: xr.Dataset) -> xr.DataArray:
    """Accuracy out of distribution (step, seed), the mean of the splits `ood...`."""
    names = [name for name in chosen if name.startswith("ood") and name.endswith(".accuracy")]
    if not names:
        raise Lacking("a split out of distribution")
    return sum(chosen[name] for name in names) / len(names)


def final(values: xr.DataArray) -> np.ndarray:
    """By seed, at the last time."""
    for time in {"step", "snapshot"} & set(values.dims):
        values = values.isel({time: -1})
    return values.values


def both(dataset: xr.Dataset, **at) -> tuple[xr.Dataset, xr.Dataset]:
    """Rows of CTP, and of NTP."""
    return rows(dataset, CTP, **at), rows(dataset, NTP, **at)


def measured(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """
    Raises:
      Lacking: it was not measured.
    """
    if name not in dataset:
        raise Lacking(name)
    return dataset[name]


def pooled(of_task: Callable[[xr.Dataset], np.ndarray], ratio: bool, datasets: Datasets) -> Measured:
    """`over_tasks` of the tasks that have the number, an array by seed.

    Raises:
      Lacking: no task has it.
    """
    of_tasks, lacking = {}, None
    for name, dataset in datasets.items():
        try:
            of_tasks[name] = np.asarray(of_task(dataset), float)
        except Lacking as missing:
            lacking = lacking or missing
    if not of_tasks:
        raise lacking or Lacking("a task")
    return over_tasks(of_tasks, ratio)


def over_tasks(of_tasks: Mapping[str, np.ndarray], ratio: bool) -> Measured:
    """The mean over tasks, seed by seed: geometric, and to be above 1, of ratios; else to be above 0.

    A task that has the number in no seed (NTP is nowhere ahead in it, say) is named and left out.
    """
    value_TxS = np.stack([*of_tasks.values()])
    has_T = ~np.isnan(value_TxS).all(axis=1)
    value_TxS = value_TxS[has_T] if has_T.any() else value_TxS
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_S = np.exp(np.log(value_TxS).mean(axis=0)) if ratio else value_TxS.mean(axis=0)
    threshold = 1.0 if ratio else 0.0
    listed = "; ".join(_task(name, Measured(tuple(one), threshold, strictly=True)) for name, one in of_tasks.items())
    return Measured(tuple(mean_S.tolist()), threshold, f"{listed}.", strictly=True)


def steps_to_learn(chosen: xr.Dataset) -> np.ndarray:
    """First evaluation, by seed, with a training accuracy of `LEARNT`; infinite where none is, NaN if diverged."""
    accuracy_TxS = chosen["train.accuracy"].transpose("step", "seed").values
    reached_TxS = accuracy_TxS >= LEARNT
    steps_S = np.where(reached_TxS.any(axis=0), chosen.step.values[reached_TxS.argmax(axis=0)], np.inf)
    return np.where(np.isnan(accuracy_TxS[-1]), np.nan, steps_S)


def slower(dataset: xr.Dataset) -> np.ndarray:
    """NTP's steps over CTP's. One that does not get there counts with all its steps; NaN where neither does, or one
    diverged."""
    ctp_S, ntp_S = (steps_to_learn(chosen) for chosen in both(dataset))
    all_steps = float(dataset.step[-1])
    ratio_S = np.minimum(ntp_S, all_steps) / np.minimum(ctp_S, all_steps)
    return np.where(np.isinf(ctp_S) & np.isinf(ntp_S), np.nan, ratio_S)


def gap(dataset: xr.Dataset, gamma: int = USUAL) -> np.ndarray:
    """NTP's accuracy out of distribution minus CTP's."""
    return lead(*both(dataset, gamma=gamma))


def lead(ctp: xr.Dataset, ntp: xr.Dataset) -> np.ndarray:
    """As `gap`, of rows of the two objectives."""
    return final(accuracy(ntp)) - final(accuracy(ctp))


def gap_at_equal_loss(dataset: xr.Dataset) -> np.ndarray:
    """`gap`, of the objective with the lower loss on training answers at its first evaluation as low as the other's."""
    ctp, ntp = both(dataset)
    loss_S = np.maximum(*(final(chosen["train.loss"]) for chosen in (ctp, ntp)))
    return _when_as_low(ntp, loss_S) - _when_as_low(ctp, loss_S)


def gap_at_equal_supervision(dataset: xr.Dataset) -> np.ndarray:
    """`gap`, NTP at the evaluation by which it had seen as many targets as CTP at the end answers."""
    ctp, ntp = both(dataset)
    share = float(measured(ctp, "expansion.answer_share").mean())
    early = accuracy(ntp).sel(step=share * float(dataset.step[-1]), method="nearest")
    return early.values - final(accuracy(ctp))


def gap_by_noise_alone(datasets: Datasets) -> Measured:
    """`gap` with NTP on contexts shuffled between sequences, a variant `<task>_shuffled`.

    Raises:
      Lacking: there is no such variant with the task's seeds.
    """
    of_tasks = {}
    for name, dataset in tasks(datasets).items():
        noise = datasets.get(f"{name}_{SHUFFLED}")
        if noise is not None and np.array_equal(noise["seed"], dataset["seed"]):
            of_tasks[name] = lead(rows(dataset, CTP), rows(noise, NTP))
    if not of_tasks:
        raise Lacking("a variant with shuffled contexts")
    return over_tasks(of_tasks, ratio=False)


def flatter(name: str, dataset: xr.Dataset) -> np.ndarray:
    """CTP's value of a measure over NTP's; NaN where one is not positive."""
    ctp_S, ntp_S = (final(measured(chosen, name)) for chosen in both(dataset))
    positive_S = (ctp_S > 0) & (ntp_S > 0)
    return np.where(positive_S, ctp_S / np.where(positive_S, ntp_S, 1), np.nan)


def flatter_along_lines(dataset: xr.Dataset) -> np.ndarray:
    """As `flatter`, of the loss's mean rise at both ends of random lines."""
    ends = measured(dataset, "minimum.line").sel(alpha=[-EDGE, EDGE]).mean("alpha")
    return flatter("ends", dataset.assign(ends=ends))


def steadier(noise: str, dataset: xr.Dataset) -> np.ndarray:
    """CTP's loss of accuracy under noise minus NTP's: of answer tokens on training sequences, mean over levels."""
    drops = []
    for chosen in both(dataset):
        under_noise = measured(chosen, f"minimum.{noise}_accuracy").mean("sigma")
        drops.append(final(measured(chosen, "minimum.accuracy")) - final(under_noise))
    return drops[0] - drops[1]


def steadier_labels(dataset: xr.Dataset) -> np.ndarray:
    """CTP's loss of accuracy out of distribution by label noise in training, minus NTP's."""
    lost = [
        final(accuracy(rows(dataset, objective))) - final(accuracy(rows(dataset, objective, label_noise=LABEL_NOISE)))
        for objective in (CTP, NTP)
    ]
    return lost[0] - lost[1]


def recovered(at: Mapping[str, float], dataset: xr.Dataset) -> np.ndarray:
    """What CTP's accuracy out of distribution gains; NaN where NTP is not ahead and there is nothing to recover."""
    gain_S = final(accuracy(rows(dataset, CTP, **at))) - final(accuracy(rows(dataset, CTP)))
    return np.where(gap(dataset) > 0, gain_S, np.nan)


def narrower(dataset: xr.Dataset) -> np.ndarray:
    """`gap` at the largest initial weights minus that at the smallest."""
    if dataset.sizes["gamma"] < 2:
        raise Lacking("a second gamma")
    return gap(dataset) - gap(dataset, SMALL)


def fisher_dominates(dataset: xr.Dataset) -> np.ndarray:
    """The Fisher term over the formula's error, at the first snapshot after the start, smallest initial weights."""
    ntp = rows(dataset, NTP, gamma=SMALL)
    terms = {
        name: measured(ntp, f"expansion.{name}").isel(snapshot=1).values for name in ("quadratic", "slope", "remainder")
    }
    return terms["quadratic"] / np.abs(terms["slope"] + terms["remainder"])


def anew(datasets: Datasets) -> Datasets:
    """Without the variants that start from another's weights: those are claims of `lab.studies.ntp_ctp.transfer`."""
    return {name: dataset for name, dataset in datasets.items() if f"{FIRST}train.accuracy" not in dataset}


def tasks(datasets: Datasets) -> Datasets:
    """Of those, the variants that are no control of another one."""
    controls = {f"{name}_{of}" for name in datasets for of in CONTROLS}
    return {name: dataset for name, dataset in anew(datasets).items() if name not in controls}


def compared(datasets: Datasets) -> Datasets:
    """Of `tasks`, those that were trained with both objectives."""
    return {
        name: dataset
        for name, dataset in tasks(datasets).items()
        if {CTP, NTP} <= set(np.atleast_1d(dataset.get("ntp_weight", CTP)).tolist())
    }


def _when_as_low(chosen: xr.Dataset, loss_S: np.ndarray) -> np.ndarray:
    low_TxS = chosen["train.loss"].transpose("step", "seed").values <= loss_S
    accuracy_TxS = accuracy(chosen).transpose("step", "seed").values
    found_S = accuracy_TxS[low_TxS.argmax(axis=0), np.arange(len(loss_S))]
    found_S = np.where(low_TxS.any(axis=0), found_S, np.nan)
    return np.where(final(chosen["train.loss"]) == loss_S, final(accuracy(chosen)), found_S)  # this one sets the level


def _task(name: str, of_task: Measured) -> str:
    return f"{name} {of_task.median:.2f} [{of_task.low:.2f}, {of_task.high:.2f}] {of_task.verdict}"


def _claim(name: str, statement: str, threshold: str, of_task: Callable, *, ratio: bool, source: str = PAPER) -> Claim:
    published = "-" if source == CONTROL else "no number"
    return Claim(
        name, statement, source, published, threshold, lambda datasets: pooled(of_task, ratio, tasks(datasets))
    )


def _flatter(name: str, words: str, variable: str) -> Claim:
    return _claim(
        name, f"NTP minima are flatter: {words}", "CTP over NTP above 1", functools.partial(flatter, variable),
        ratio=True,
    )  # fmt: skip


def _recovered(name: str, words: str, **at: float) -> Claim:
    return _claim(
        name, f"Injected noise lets CTP recover part of the gap: {words}",
        "gain of CTP out of distribution above 0, where NTP is ahead", functools.partial(recovered, at), ratio=False,
    )  # fmt: skip


CLAIMS = (
    _claim(
        "N1", "NTP converges more slowly on training data", "steps to 95 % training accuracy, NTP over CTP, above 1",
        slower, ratio=True,
    ),
    _claim(
        "N2", "NTP generalizes better out of distribution", "NTP minus CTP above 0", gap, ratio=False,
    ),
    _claim(
        "N2b", "also at equal loss on training answers", "NTP minus CTP above 0", gap_at_equal_loss, ratio=False,
        source=CONTROL,
    ),
    _claim(
        "N2c", "also at equal supervised tokens", "NTP minus CTP above 0", gap_at_equal_supervision, ratio=False,
        source=CONTROL,
    ),
    Claim(
        "N2d", "also where contexts are shuffled: noise without structure", CONTROL, "-", "NTP minus CTP above 0",
        gap_by_noise_alone,
    ),
    _flatter("N3a", "largest eigenvalue of the Hessian", "minimum.top"),
    _flatter("N3b", "its trace", "minimum.trace"),
    _flatter("N3c", "rise of the loss after one step up (SAM)", "minimum.sam"),
    _claim(
        "N3d", "NTP minima are flatter: rise along random directions", "CTP over NTP above 1", flatter_along_lines,
        ratio=True,
    ),
    _claim(
        "N4a", "NTP is more robust to noise in the weights", "CTP's loss of accuracy minus NTP's above 0",
        functools.partial(steadier, "weight"), ratio=False,
    ),
    _claim(
        "N4b", "NTP is more robust to noise in the embeddings", "CTP's loss of accuracy minus NTP's above 0",
        functools.partial(steadier, "input"), ratio=False,
    ),
    _claim(
        "N4c", f"NTP is more robust to training with {LABEL_NOISE:.0%} wrong answers",
        "CTP's loss of accuracy out of distribution minus NTP's above 0", steadier_labels, ratio=False,
    ),
    _recovered("N5a", "noise in the context", context_noise=CONTEXT_NOISE),
    _recovered("N5b", "noise in the answers", label_noise=LABEL_NOISE),
    _claim(
        "N6", "Small initial weights narrow the gap", "gap at the usual scale minus that at the smallest above 0",
        narrower, ratio=False,
    ),
    _claim(
        "N9", "Near a small start NTP is CTP plus a quadratic form of the Fisher information",
        "that form over the error of the formula, at the first snapshot, above 1", fisher_dominates, ratio=True,
        source=f"{PAPER}, later version",
    ),
)  # fmt: skip
