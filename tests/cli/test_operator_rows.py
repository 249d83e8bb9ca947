"""`lab analyze` on rows of operators: what any model has, of spectral weights, too, what stands in for sharpness."""

import numpy as np
import pytest

import lab
from lab import config as configs
from lab import stages
from lab.configs import m2m
from lab.engine.train import train
from lab.measuring.catalogue import loss, operators

SPECTRAL = {f"mixture/expert_{e}/block_0_spectral/spectrum" for e in (0, 1)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("operators")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAMMALAB_CACHE", str(root.parent / "cache"))
        for name, few in dict(FIELDS=4, CURVED=4, AT_ONCE=4).items():
            patch.setattr(operators, name, few)
        for name, few in dict(EIGENVALUES=1, MATVECS=3, TRACE_PROBES=2).items():
            patch.setattr(loss, name, few)
        config = configs.variants(m2m.get_config("smoke"))["m2m"]
        config.grid.seed = (0,)
        config.optim.warmup_steps = 1
        config.model.gate_width = 2
        config.update(steps=2, eval_every=1, checkpoint_every=1, snapshots=2)
        train(config, root / "m2m")
        yield root


def test_ranks_and_condensation_of_spectral_weights_are_measured(trained, run):
    run("analyze", str(trained), "--measure=rank,directions", "--snapshots=last")
    found = lab.load(trained / "m2m")
    for name in ("rank.stable", "rank.effective", "directions.n_groups"):
        values = found[name].isel(snapshot=-1, missing_dims="ignore")
        of_spectral = values.sel({values.dims[-1]: sorted(SPECTRAL)})
        assert ((of_spectral >= 1) & (of_spectral <= 2)).all(), name  # of two channels


@pytest.mark.long
def test_sharpness_of_the_roll_out_loss_is_measured(trained, run):
    run("analyze", str(trained), "--measure=curvature", "--snapshots=last")
    found = lab.load(trained / "m2m")
    for name in ("curvature.top", "curvature.bottom", "curvature.trace"):
        assert np.isfinite(found[name].isel(snapshot=-1, missing_dims="ignore")).all(), name


def test_sharpness_of_cross_entropy_does_not_apply_and_says_why(trained):
    why = "no measurement 'sharpness': it is of cross-entropy, and Fields has its own loss. There are curvature, "
    with pytest.raises(ValueError, match=f"^{why}"):
        stages.analyze(trained, ["sharpness"])
