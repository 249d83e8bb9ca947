"""The paper's statements about NTP and CTP as differences above 0 and ratios above 1.

The paper prints no numbers, so a threshold is the direction of its statement and nothing more; where claims need a
protocol (the accuracy `LEARNT`, the level of a noise) it is ours and was written before the run. A claim's number is
taken per task and seed. The abstract's statements are claims of one task each (`by_task`); here the verdict is that of
the mean over tasks (geometric for ratios), and the note has every task's own. Unless it says otherwise a number is of
the last step, of the largest initial weights of the grid (gamma 0.5 is the usual scale, small ones are what N6 is
about), and of rows trained without injected noise. Weight decay and learning rate are each objective's own best
(`tuning`) where objectives are compared without noise (N1 to N4b), else the smallest decay and the middle rate.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from lab.analysis import statistics
from lab.claims import DIRECTION, OURS, claim
from lab.objective import CTP, NTP
from lab.report.objectives import by_objective, objective_gap
from lab.runs import MissingData, Run, Runs
from lab.studies.ntp_ctp.tuning import of_tuned
from lab.tasks.finetune import FIRST

PAPER = "arXiv 2502.02007"
LEARNT = 0.95  # training accuracy from which a row counts as converged
LABEL_NOISE, CONTEXT_NOISE = 0.2, 0.1
NOISES = ("label_noise", "context_noise", "sam_radius", "weight_noise")  # of training
USUAL = {"gamma": min, "weight_decay": min} | dict.fromkeys(NOISES, 0.0)
SHUFFLED = "shuffled"
REGULARIZERS = {
    "weight_decay": "decay", "label_noise": "label noise", "sam_radius": "SAM", "weight_noise": "weight noise",
}  # fmt: skip
CONTROLS = (SHUFFLED, *REGULARIZERS)  # of a task: variants `<task>_<control>`
EDGE = 0.5  # step along a random direction as long as the weights
OOD = "ood_accuracy"
SCORES = {"reasoning circuit": "flow.reasoning_score", "symmetric circuit": "flow.symmetric_score"}
KNOWN = f"{FIRST}train.accuracy"  # on the task that a variant's start had learnt

paper_claim = functools.partial(claim, source=PAPER, published="no number", threshold_from=DIRECTION)
control_claim = functools.partial(claim, source="control of ours", published="-", threshold_from=OURS)


class Controlled(NamedTuple):
    """A task's run, and those of its controls by what they control for, of `CONTROLS`."""

    name: str
    run: Run
    controls: Mapping[str, Run]

    def control(self, of: str) -> Run:
        """
        Raises:
          MissingData: it was not trained, or with other seeds.
        """
        variant = f"{self.name}_{of}"
        if of not in self.controls:
            raise MissingData(f"variant {variant}")
        if not np.array_equal(self.controls[of].values_of("seed"), self.run.values_of("seed")):
            raise MissingData(f"the seeds of {self.name} in variant {variant}")
        return self.controls[of]


def base_variants(runs: Runs) -> Runs:
    """The variants that start anew and are no control of another one."""
    controls = {f"{name}_{of}" for name in runs for of in CONTROLS}
    return runs.where(lambda name, run: KNOWN not in run and name not in controls)


def with_both_objectives(runs: Runs) -> Runs:
    """Of the base variants, those that were trained with both objectives."""
    return base_variants(runs).where(
        lambda name, run: "ntp_weight" in run.axes and {CTP, NTP} <= {*run.values_of("ntp_weight")}
    )


def controlled(runs: Runs) -> dict[str, Controlled]:
    """The base variants, each with its controls."""
    return {
        name: Controlled(name, run, {of: runs[f"{name}_{of}"] for of in CONTROLS if f"{name}_{of}" in runs})
        for name, run in base_variants(runs).items()
    }


def with_ood_accuracy(run: Run) -> Run:
    """With a variable `OOD`, the mean accuracy over the splits out of distribution, `ood...`.

    Raises:
      MissingData: there is no such split.
    """
    splits = [name for name in run.dataset if name.startswith("ood") and name.endswith(".accuracy")]
    if not splits:
        raise MissingData("a split out of distribution")
    return run.assign(**{OOD: sum(run.dataset[name] for name in splits) / len(splits)})


def over_tasks(number: Callable, tasks: Mapping[str, object], ratio: bool = False) -> tuple[xr.DataArray, str]:
    """The mean over tasks, seed by seed, and a note of every task's own number; geometric for ratios.

    A task that has the number in no seed (NTP is nowhere ahead in it, say) is named and left out.

    Args:
      number: a task's run, or what else `tasks` holds -> one number a seed; or a pair of that and a remark.

    Raises:
      MissingData: no task has the data, or the number in any seed.
    """
    numbers, remarks, lacking = {}, [], None
    for name, task in tasks.items():
        try:
            found = number(task)
        except MissingData as missing:
            lacking = lacking or missing
        else:
            values, remark = found if isinstance(found, tuple) else (found, "")
            numbers[name] = values.reset_coords(drop=True).astype(float)
            remarks += [f"{name}: {remark}."] if remark else []
    if not numbers:
        raise lacking or MissingData("a task")
    listed = "; ".join(f"{name} {_in_words(values.values)}" for name, values in numbers.items())
    note = " ".join([f"{listed}.", *remarks])
    values = xr.concat(numbers.values(), "task", join="outer", coords="minimal", compat="override")
    if values.isnull().all():
        raise MissingData(f"a seed that has the number: {note.removesuffix('.')}")
    values = values.dropna("task", how="all")
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.exp(np.log(values).mean("task", skipna=False)) if ratio else values.mean("task", skipna=False)
    return mean, note


def mean_over_tasks(number: Callable[[Run], xr.DataArray]) -> Callable[[Runs], tuple[xr.DataArray, str]]:
    """`over_tasks` of the base variants."""
    return lambda runs: over_tasks(number, base_variants(runs))


def mean_ratio_over_tasks(number: Callable[[Run], xr.DataArray]) -> Callable[[Runs], tuple[xr.DataArray, str]]:
    """As `mean_over_tasks`, of ratios."""
    return lambda runs: over_tasks(number, base_variants(runs), ratio=True)


def mean_over_tuned_tasks(number: Callable[[Run], xr.DataArray]) -> Callable[[Runs], tuple[xr.DataArray, str]]:
    """As `mean_over_tasks`, of each objective at its own decay and rate."""
    return mean_over_tasks(of_tuned(number))


def mean_ratio_over_tuned_tasks(number: Callable[[Run], xr.DataArray]) -> Callable[[Runs], tuple[xr.DataArray, str]]:
    """As `mean_over_tuned_tasks`, of ratios."""
    return mean_ratio_over_tasks(of_tuned(number))


def _in_words(values_S: np.ndarray) -> str:
    known_S = values_S[~np.isnan(values_S)]
    if not known_S.size:
        return "-"
    interval = statistics.median_interval(known_S)
    missing = f" ({values_S.size - known_S.size} seeds missing)" if known_S.size < values_S.size else ""
    return f"{statistics.median(known_S):.2f} [{interval.low:.2f}, {interval.high:.2f}]{missing}"


def convergence_ratio(run: Run) -> xr.DataArray:
    """NTP's steps to `LEARNT` over CTP's. One that does not get there counts with all its steps; NaN where neither
    does, or one diverged."""
    ctp, ntp = (
        statistics.first_reached(values, LEARNT) for values in by_objective(run.over_time, "train.accuracy")
    )  # fmt: skip
    all_steps = float(run.dataset["step"][-1])
    return (np.minimum(ntp, all_steps) / np.minimum(ctp, all_steps)).where(np.isfinite(ctp) | np.isfinite(ntp))


def ood_gap(run: Run, **at) -> xr.DataArray:
    """NTP's accuracy out of distribution minus CTP's."""
    return objective_gap(with_ood_accuracy(run).final, OOD, **at)


@paper_claim(
    "N1", "NTP converges more slowly on training data", above=1,
    quantity=f"steps to {LEARNT:.0%} training accuracy, NTP over CTP",
)  # fmt: skip
def converges_more_slowly(runs: Runs):
    return over_tasks(of_tuned(convergence_ratio), base_variants(runs), ratio=True)


@paper_claim("N2", "NTP generalizes better out of distribution, mean over tasks", quantity="NTP minus CTP", above=0)
def generalizes_better(runs: Runs):
    return over_tasks(of_tuned(ood_gap), base_variants(runs))


@control_claim("N2b", "also at equal loss on training answers", quantity="NTP minus CTP", above=0)
@mean_over_tuned_tasks
def gap_at_equal_loss(run: Run) -> xr.DataArray:
    """`ood_gap`, of the objective with the lower loss on training answers at its first evaluation as low as the
    other's at the end."""
    losses = by_objective(run.over_time, "train.loss")
    level = np.maximum(*(loss.isel(step=-1, drop=True) for loss in losses))
    found = []
    for loss, accuracy in zip(losses, by_objective(with_ood_accuracy(run).over_time, OOD), strict=True):
        ends_lower = loss.isel(step=-1, drop=True) < level  # of the one that sets the level the end counts
        as_low = (loss <= level) & (ends_lower | (loss["step"] == loss["step"][-1]))
        found.append(accuracy.isel(step=as_low.argmax("step")).where(as_low.any("step")))
    ctp, ntp = found
    return ntp - ctp


@control_claim("N2c", "also at equal supervised tokens", quantity="NTP minus CTP", above=0)
@mean_over_tuned_tasks
def gap_at_equal_supervision(run: Run) -> xr.DataArray:
    """`ood_gap`, NTP at the evaluation by which it had seen as many targets as CTP at the end answers."""
    share, _ = by_objective(run.over_time, "expansion.answer_share")
    ctp, ntp = by_objective(with_ood_accuracy(run).over_time, OOD)
    enough = float(share.mean()) * float(run.dataset["step"][-1])
    return ntp.sel(step=enough, method="nearest") - ctp.isel(step=-1)


@control_claim(
    "N2d", "also where contexts are shuffled: noise without structure", quantity="NTP minus CTP", above=0
)  # fmt: skip
def gap_of_shuffled_contexts(runs: Runs):
    def gap_to_shuffled(task: Controlled):
        shuffled, run = (with_ood_accuracy(run) for run in (task.control(SHUFFLED), task.run))
        return shuffled.final(OOD, ("seed",), ntp_weight=NTP) - run.final(OOD, ("seed",), ntp_weight=CTP)

    return over_tasks(gap_to_shuffled, controlled(runs))


def ratio_of_positives(ctp: xr.DataArray, ntp: xr.DataArray) -> xr.DataArray:
    """CTP's value over NTP's; NaN where one is not positive."""
    return ctp.where(ctp > 0) / ntp.where(ntp > 0)


def sharpness_ratio(run: Run, name: str) -> xr.DataArray:
    """CTP's value of a measure over NTP's; NaN where one is not positive."""
    return ratio_of_positives(*by_objective(run.final, name))


flatness_claim = functools.partial(paper_claim, quantity="CTP over NTP", above=1)


@flatness_claim("N3a", "NTP minima are flatter, mean over tasks: largest eigenvalue of the Hessian")
@mean_ratio_over_tuned_tasks
def eigenvalue_ratio(run: Run):
    return sharpness_ratio(run, "minimum.top")


@flatness_claim("N3b", "NTP minima are flatter, mean over tasks: its trace")
@mean_ratio_over_tuned_tasks
def trace_ratio(run: Run):
    return sharpness_ratio(run, "minimum.trace")


@flatness_claim("N3c", "NTP minima are flatter, mean over tasks: rise of the loss after one step up (SAM)")
@mean_ratio_over_tuned_tasks
def sam_ratio(run: Run):
    return sharpness_ratio(run, "minimum.sam")


def line_ratio_of(run: Run) -> xr.DataArray:
    """As `sharpness_ratio`, of the loss's mean rise at both ends of random lines."""
    lines = by_objective(run.final, "minimum.line")
    return ratio_of_positives(*(line.sel(alpha=[-EDGE, EDGE]).mean("alpha") for line in lines))


@flatness_claim("N3d", "NTP minima are flatter, mean over tasks: rise along random directions")
@mean_ratio_over_tuned_tasks
def line_ratio(run: Run) -> xr.DataArray:
    return line_ratio_of(run)


@control_claim(
    "N3e", "also by the largest eigenvalue in units of the weights' own length", quantity="CTP over NTP", above=1
)
@mean_ratio_over_tuned_tasks
def normalized_eigenvalue_ratio(run: Run) -> xr.DataArray:
    """Times the squared norm of all weights: what a step of their relative size meets."""
    square = [np.exp(2 * norm) for norm in by_objective(run.final, "norm.log_frobenius_whole")]
    tops = by_objective(run.final, "minimum.top")
    return ratio_of_positives(*(top * norm for top, norm in zip(tops, square, strict=True)))


def robustness_gap(run: Run, noise: str) -> xr.DataArray:
    """CTP's loss of accuracy under noise minus NTP's: of answer tokens on training sequences, mean over levels."""
    under_noise = objective_gap(run.final, f"minimum.{noise}_accuracy").mean("sigma")
    return under_noise - objective_gap(run.final, "minimum.accuracy")


robustness_claim = functools.partial(paper_claim, above=0, quantity="CTP's loss of accuracy minus NTP's")


@robustness_claim("N4a", "NTP is more robust to noise in the weights, mean over tasks")
@mean_over_tuned_tasks
def weight_noise_gap(run: Run):
    return robustness_gap(run, "weight")


@robustness_claim("N4b", "NTP is more robust to noise in the embeddings, mean over tasks")
@mean_over_tuned_tasks
def embedding_noise_gap(run: Run):
    return robustness_gap(run, "input")


@robustness_claim(
    "N4c", f"NTP is more robust to training with {LABEL_NOISE:.0%} wrong answers",
    quantity="CTP's loss of accuracy out of distribution minus NTP's",
)  # fmt: skip
@mean_over_tasks
def label_noise_gap(run: Run) -> xr.DataArray:
    """CTP's loss of accuracy out of distribution by label noise in training, minus NTP's."""
    return ood_gap(run, label_noise=LABEL_NOISE) - ood_gap(run)


def recovered_accuracy(run: Run, **at) -> xr.DataArray:
    """What CTP's accuracy out of distribution gains; NaN where NTP is not ahead and there is nothing to recover.

    Args:
      at: the noise of training.
    """
    run = with_ood_accuracy(run)
    noisy, plain = (run.final(OOD, ("seed",), ntp_weight=CTP, **noise) for noise in (at, {}))
    return (noisy - plain).where(ood_gap(run) > 0)


recovery_claim = functools.partial(
    paper_claim, quantity="gain of CTP out of distribution, where NTP is ahead", above=0
)  # fmt: skip


@recovery_claim("N5a", "Injected noise lets CTP recover part of the gap: noise in the context")
@mean_over_tasks
def recovered_by_context_noise(run: Run):
    return recovered_accuracy(run, context_noise=CONTEXT_NOISE)


@recovery_claim("N5b", "Injected noise lets CTP recover part of the gap: noise in the answers")
@mean_over_tasks
def recovered_by_label_noise(run: Run):
    return recovered_accuracy(run, label_noise=LABEL_NOISE)


@paper_claim(
    "N6", "Small initial weights narrow the gap", quantity="gap at the usual scale minus that at the smallest", above=0
)
@mean_over_tasks
def gap_change(run: Run) -> xr.DataArray:
    """`ood_gap` at the largest initial weights minus that at the smallest."""
    if len(run.values_of("gamma")) < 2:
        raise MissingData("a second gamma")
    return ood_gap(run, gamma=min) - ood_gap(run, gamma=max)


@claim(
    "N9", "Near a small start NTP is CTP plus a quadratic form of the Fisher information",
    quantity="that form over the error of the formula, at the first snapshot", source=f"{PAPER}, later version",
    published="no number", above=1, threshold_from=OURS,
)  # fmt: skip
@mean_ratio_over_tasks
def fisher_ratio(run: Run) -> xr.DataArray:
    """The Fisher term over the formula's error, at the first snapshot after the start, smallest initial weights."""
    quadratic, slope, remainder = (
        run.over_time(f"expansion.{term}", ("seed",), ntp_weight=NTP, gamma=max).isel(snapshot=1)
        for term in ("quadratic", "slope", "remainder")
    )
    return quadratic / abs(slope + remainder)


@paper_claim(
    "N10", "NTP keeps key-anchor steps separate, CTP merges anchors early",
    quantity="reasoning minus symmetric circuit score, NTP minus CTP", above=0,
)  # fmt: skip
@mean_over_tasks
def circuit_gap(run: Run) -> xr.DataArray:
    """NTP's reasoning score less its symmetric score, minus CTP's; from -2 to 2."""
    reasoning, symmetric = (objective_gap(run.final, name) for name in SCORES.values())
    return reasoning - symmetric


CLAIMS = (
    converges_more_slowly, generalizes_better, gap_at_equal_loss, gap_at_equal_supervision, gap_of_shuffled_contexts,
    eigenvalue_ratio, trace_ratio, sam_ratio, line_ratio, normalized_eigenvalue_ratio,
    weight_noise_gap, embedding_noise_gap, label_noise_gap,
    recovered_by_context_noise, recovered_by_label_noise, gap_change, fisher_ratio, circuit_gap,
)  # fmt: skip
