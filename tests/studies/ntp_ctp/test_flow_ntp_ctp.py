"""Which circuit each objective uses: the claim on scores written by hand, the measurement on a model, the picture."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from lab import config as configs
from lab.configs import ntp_ctp as config
from lab.studies import claims
from lab.studies.ntp_ctp import flow
from lab.studies.ntp_ctp.claims import CTP, NTP

AXES = {"ntp_weight": (CTP, NTP), "gamma": (0.5, 0.8), "weight_decay": (0.01,), "learning_rate": (1e-3,),
        "seed": (0, 1, 2)}  # fmt: skip
LENGTH = 9


def dataset(ctp, ntp):
    """Scores (reasoning, symmetric) by seed of both objectives at the usual scale; NaN elsewhere."""
    coords = {axis: list(values) for axis, values in AXES.items()} | {"snapshot": [100]}
    sizes = tuple(map(len, AXES.values()))
    made = xr.Dataset({"diverged_at": (tuple(AXES), np.full(sizes, -1))}, coords)
    for i, name in enumerate(flow.SCORES.values()):
        values = np.full((1, *sizes), np.nan)
        values[0, :, 0, 0, 0] = np.array([ctp[i], ntp[i]], float)
        made[name] = (("snapshot", *AXES), values)
    pattern = np.tile(np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None], (1, *sizes, 2, 1, 1))
    made["flow.pattern"] = (("snapshot", *AXES, "layer", "query", "position"), pattern)
    tokens = np.broadcast_to([50, 60, 4, 3, 70, 71, 72, 73, 74], (1, *sizes, LENGTH))
    made["flow.tokens"] = (("snapshot", *AXES, "position"), tokens)
    return made


def verdict(**datasets):
    (row,) = claims.evaluate(flow.CLAIMS, datasets, "c")
    return row


def test_n10_is_how_much_further_ntp_is_from_the_symmetric_circuit():
    apart = dataset(ctp=([0.1] * 3, [0.4] * 3), ntp=([0.5, 0.6, 0.7], [0.2, 0.1, 0.0]))
    assert flow.apart(apart) == pytest.approx((0.6, 0.8, 1.0))
    found = verdict(composition=apart)
    assert (found["verdict"], found["measured"]) == ("holds", pytest.approx(0.8))
    # both use the reasoning circuit, CTP more so: a high score of NTP alone is not enough
    assert verdict(composition=dataset(([0.9] * 3, [0] * 3), ([0.8] * 3, [0] * 3)))["verdict"] == "does not hold"
    assert verdict(composition=apart.drop_vars("flow.reasoning_score"))["verdict"] == "not measured"
    assert verdict(composition=apart.sel(ntp_weight=[NTP]))["verdict"] == "not measured"
    assert verdict(addition=apart.drop_vars(list(flow.SCORES.values())), composition=apart)["verdict"] == "holds"


def test_picture_has_a_panel_an_objective_with_its_scores():
    made = flow.picture("composition", dataset(([0.1] * 3, [0.4] * 3), ([0.5] * 3, [0.2] * 3)))
    titles = [ax.get_title(loc="left") for ax in made.figure.axes]
    assert titles == [
        "CTP: reasoning circuit 0.10, symmetric circuit 0.40", "NTP: reasoning circuit 0.50, symmetric circuit 0.20"
    ]  # fmt: skip
    assert made.name == "composition-flow"


def test_only_composition_in_two_blocks_has_the_circuits():
    experiment = configs.experiment(configs.variants(config.smoke())["composition"])
    (one,) = flow.measures(experiment)
    assert one.name == "flow" and set(flow.SCORES.values()) <= {f"flow.{name}" for name in one.units}
    shallow = dataclasses.replace(experiment, model=experiment.model.clone(n_layers=1))
    addition = configs.experiment(configs.variants(config.cpu())["addition"])
    assert flow.measures(shallow) == flow.measures(addition) == []
