"""Claims on a second task, on grids written by hand, and that every preset's second task starts where it can."""

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lab import config as configs
from lab.configs import base
from lab.configs import ntp_ctp as config
from lab.engine import init_from
from lab.studies import claims
from lab.studies.ntp_ctp import transfer
from lab.studies.ntp_ctp.claims import CTP, NTP, anew
from lab.tasks import Finetune

SEEDS, STEPS = (0, 1, 2), (0, 25, 50, 100)
GARBAGE = -77.0  # in every place that no claim may read


def dataset(**accuracies):
    """A variant that is known by these, (CTP, NTP) each of shape (step, seed): of gamma 0.5; of 0.8 nobody asks."""
    coords = {"ntp_weight": [CTP, NTP], "gamma": [0.5, 0.8], "weight_decay": [0.01], "learning_rate": [1e-3]}
    coords |= {"seed": list(SEEDS)}
    sizes = [len(values) for values in coords.values()]
    made = xr.Dataset({"diverged_at": (tuple(coords), np.full(sizes, -1))}, coords | {"step": list(STEPS)})
    for name, values in accuracies.items():
        name = name.replace("__", ".")
        made[name] = (("step", *coords), np.full((len(STEPS), *sizes), GARBAGE))
        for objective, of_step in zip((CTP, NTP), values, strict=True):
            made[name].loc[{"ntp_weight": objective, "gamma": 0.5, "weight_decay": 0.01, "learning_rate": 1e-3}] = (
                np.broadcast_to(np.asarray(of_step, float), (len(STEPS), len(SEEDS)))
            )
    return made


def by_step(*values):
    """The same for every seed."""
    return np.repeat(np.array(values)[:, None], len(SEEDS), axis=1)


def learning(*at_steps):
    """An accuracy that is 1 from a step on, a step for every seed."""
    return np.array([[float(step >= start) for start in at_steps] for step in STEPS])


def measure(name, **datasets):
    (claim,) = [claim for claim in transfer.CLAIMS if claim.id == name]
    return claims._measure(claim, datasets)


PRETRAINED = dataset(train__accuracy=(learning(25, 25, 25), learning(100, 100, 100)))


def test_n7_is_a_ratio_of_steps_of_second_tasks_alone():
    known = by_step(1, 1, 1, 1)
    made = dataset(train__accuracy=(learning(25, 25, 50), learning(50, 100, 50)), first_train__accuracy=(known, known))
    found = measure("N7", first=PRETRAINED, second=made)  # that of the first task alone would be 4
    assert found.per_seed == pytest.approx((2, 4, 1)) and found.verdict == "does not hold"
    assert list(anew({"first": PRETRAINED, "second": made})) == ["first"]


def test_n8_is_what_ntp_loses_more_from_the_start_to_the_end():
    made = dataset(
        first_train__accuracy=(by_step(1, 0.9, 0.8, 0.6), by_step(1, 0.7, 0.5, 0.3)),
    )
    assert measure("N8", second=made).per_seed == pytest.approx((0.3, 0.3, 0.3))  # 0.4 lost, and 0.7
    # of 0, 0.1, 0.2, 0.4 and of 0, 0.3, 0.5, 0.7
    assert measure("N8b", second=made).per_seed == pytest.approx((0.2, 0.2, 0.2))


def test_rows_that_diverged_count_nowhere():
    made = dataset(train__accuracy=(1, 1), first_train__accuracy=(by_step(1, 1, 1, 0.9), by_step(1, 1, 1, 0.2)))
    made["diverged_at"].loc[{"seed": 1, "ntp_weight": NTP}] = 0
    found = measure("N8", second=made).per_seed
    assert found[0] == pytest.approx(0.7) and math.isnan(found[1])


def test_study_without_a_second_task_says_what_is_missing():
    for claim in transfer.CLAIMS:
        found = measure(claim.id, first=PRETRAINED)
        assert found.verdict == "not measured" and "starts from the weights of a first one" in found.note
    assert transfer.sections({"first": PRETRAINED}) == []


def test_every_objective_and_task_has_its_curve():
    made = dataset(train__accuracy=(0.1, 0.2), first_train__accuracy=(0.3, 0.4))
    ((section,), name) = transfer.sections({"first": PRETRAINED, "second": made}), "second-transfer"
    (picture,) = section.pictures
    assert picture.name == name
    drawn = {line.get_ydata()[0] for line in picture.figure.axes[0].lines if line.get_gid() == "median"}
    assert drawn == {0.1, 0.2, 0.3, 0.4}


@pytest.mark.parametrize("preset", base.presets(config))
def test_second_task_starts_from_rows_of_the_first_at_both_objectives(preset):
    resolved = configs.variants(config.get_config(preset))
    names = [name for name, variant in resolved.items() if variant.start.variant]
    assert "composition_then_other_keys" in names
    for name in names:
        starts_from_ntp(resolved[name], resolved["composition"])


def starts_from_ntp(variant, source):
    grid, held = configs.grid(variant), configs.grid(source)
    init_from.check(Path("nowhere"), variant, grid, (source, held))
    found = [held.row(row) for row in init_from.matched(variant.start, grid, held)]
    for row, at in zip(range(len(grid)), found, strict=True):
        asked = grid.row(row)
        assert (at["ntp_weight"], at["label_noise"], at.get("context_noise", 0)) == (NTP, 0, 0)
        assert (at["gamma"], at["seed"]) == (asked["gamma"], asked["seed"])
    assert {CTP, NTP} <= set(grid.columns["ntp_weight"])
    task = configs.experiment(variant).task
    assert isinstance(task, Finetune) and task.first == configs.experiment(source).task
