"""The variants of study `icl_dual` by family, and numbers of them that claims and pictures share."""

import numpy as np
import xarray as xr

from lab.analysis import statistics
from lab.analysis.statistics import median_of
from lab.runs import MissingData, Run, Runs
from lab.tasks import Induction

USUAL = {"gamma": 0.5, "weight_decay": 0.0}  # induction has one decay
BY_SEED = ("seed",)  # at the usual gamma and decay
BY_POSITIONS = f"By positions alone, guessing the period, {Induction().positions_accuracy:.2f}."
FAMILIES = ("regularized", "augmented", "negative")
EXPLAINED, ACCURATE = 0.25, 0.5  # share of linear regression, and accuracy of induction, at which a plateau ends


def regressions(runs: Runs) -> dict[str, Run]:
    """The variants of linear regression, `plain` first."""
    return {"plain": runs["plain"]} | {name: run for name, run in runs.items() if name.partition("_")[0] in FAMILIES}


def of_family(runs: Runs, family: str) -> list[Run]:
    """
    Raises:
      MissingData: none was trained.
    """
    found = [run for name, run in runs.items() if name.startswith(f"{family}_")]
    if not found:
        raise MissingData(f"a variant {family}_*")
    return found


def best(runs: Runs, family: str) -> Run:
    """The setting of a family with the least error on `valid`, median over seeds; a seed that diverged has the largest.

    Raises:
      MissingData: as `of_family`.
    """
    return min(of_family(runs, family), key=lambda run: float(run.final("valid.loss", BY_SEED).fillna(np.inf).median()))


def chosen(runs: Runs) -> dict[str, Run]:
    """What it is -> the plain layer, and the best setting of each family that was trained."""
    families = [family for family in FAMILIES if any(name.startswith(f"{family}_") for name in runs)]
    return {setting(run): run for run in (runs["plain"], *(best(runs, family) for family in families))}


def ratios(runs: Runs, family: str) -> dict[str, xr.DataArray]:
    """What each setting of a family is -> its test error over the plain layer's of the same seed."""
    plain = runs["plain"].final("test.loss", BY_SEED)
    return {setting(run): run.final("test.loss", BY_SEED) / plain for run in of_family(runs, family)}


def setting(run: Run) -> str:
    """What a variant of linear regression changes, for people."""
    model = run.config["model"]
    parts = [f"alpha {model['alpha']:g}"] * bool(model["alpha"])
    parts += [f"beta {model['beta']:g} of {model['n_negatives']}"] * bool(model["beta"])
    return ", ".join(parts + [model["augment"]] * (model["augment"] != "none")) or "plain"


def plateau(run: Run, name: str, level: float) -> xr.DataArray:
    """Steps until a curve reaches a level, by gamma and seed; infinite where it never does.

    Raises:
      MissingData: one gamma alone.
    """
    if len(run.values_of("gamma")) < 2:
        raise MissingData("a second gamma")
    return statistics.crossing(run.over_time(name), level, "step")


def by_gamma(plateau_SxG: xr.DataArray) -> str:
    """Medians over seeds, and how many never get there, for people."""
    said = []
    for at in plateau_SxG.transpose("gamma", ...):
        steps = at.dropna("seed").values
        n_never = np.isinf(steps).sum()
        never = f" ({n_never} of {steps.size} seeds never)" if n_never else ""
        said += [f"{statistics.median(steps):.0f} at gamma {float(at.gamma):g}{never}"] * bool(steps.size)
    return ", ".join(said)


def other_decays(run: Run) -> list[float]:
    """The weight decays of a grid beside the usual one."""
    decays = run.values_of("weight_decay") if "weight_decay" in run.axes else ()
    return [float(decay) for decay in decays if decay != USUAL["weight_decay"]]


def median_loss(run: Run) -> float:
    return median_of(run.final("test.loss", BY_SEED))
