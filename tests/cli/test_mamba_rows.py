"""`lab analyze` on rows of a Mamba: what any model has, what stands in for attention, and why not the rest."""

import numpy as np
import pytest

import lab
from lab import config as configs
from lab.configs import mamba_asymmetry
from lab.engine.train import train
from lab.measuring.catalogue import loss, state_space


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("mamba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_space, "SEQUENCES", 16)
        patch.setattr(state_space, "CUT", 16)
        for name, few in dict(SEQUENCES=16, MINIBATCH=16, EIGENVALUES=1, MATVECS=3, TRACE_PROBES=2).items():
            patch.setattr(loss, name, few)
        config = configs.variants(mamba_asymmetry.get_config("smoke"))["mamba_2"]
        config.grid.update(gamma=(0.5,), seed=(0,))
        config.optim.warmup_steps = 1
        config.update(steps=2, eval_every=1, checkpoint_every=1, snapshots=2)
        train(config, root / "mamba_2")
        yield root


def test_ranks_and_condensation_are_measured_and_flow_reads_s(trained, run, standard_promotion):
    run("analyze", str(trained), "--snapshots=last")
    run("analyze", str(trained), "--measure=directions", "--snapshots=last")
    found = lab.load(trained / "mamba_2")
    ranks, groups = found["rank.stable"], found["directions.n_groups"]
    assert {"block_0/ssm/B/kernel", "block_1/ssm/out/kernel", "head/kernel"} <= {*ranks["matrix"].values}
    assert "block_0/ssm/x/kernel" in groups["kernel"].values
    assert (ranks.isel(snapshot=-1) >= 1).all() and (groups.isel(snapshot=-1) >= 1).all()
    pattern = found["flow.pattern"]
    np.testing.assert_allclose(pattern.sum("position"), 1, rtol=0, atol=1e-5)
    assert np.array_equal(np.triu(pattern.squeeze().isel(layer=0), 1), np.zeros((8, 8)))


@pytest.mark.long
def test_sharpness_is_measured(trained, run, standard_promotion):
    run("analyze", str(trained), "--measure=sharpness", "--snapshots=last")
    found = lab.load(trained / "mamba_2")
    for name in ("sharpness.top", "sharpness.bottom", "sharpness.trace"):
        assert np.isfinite(found[name].isel(snapshot=-1, missing_dims="ignore")).all(), name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("focus", "it is of a transformer's attention, this model is Mamba2"),
        ("edges", "it is of a transformer's attention, this model is Mamba2"),
        ("attribution", "it is of a transformer's attention, this model is Mamba2"),
    ],
)
def test_what_does_not_apply_says_why(trained, name, why, refusal):
    assert f"no measurement '{name}': {why}. There are " in refusal("analyze", str(trained), f"--measure={name}")
