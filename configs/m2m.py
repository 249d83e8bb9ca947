"""Operators of different capacity behind a gate that a controller holds to a prior, on fields of two scales.

    python -m lab reproduce m2m --preset=cpu        # 6 minutes on two CPU cores

Expect the mixture at three quarters of the single operator's error on fields that are fine in one quadrant, and its
gate right about which one; without its prior the gate mostly sends all patches to one expert. At `record` an operator
of all modes errs less than either, and on Navier-Stokes the mixture fails (V1b does not hold).

Paper: "M2M: Learning controllable Multi of experts and multi-scale operators are the Partial Differential Equations
need" (arXiv 2410.11617). What it leaves open, and what we chose: docs/m2m.md.
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)

FIVE, EIGHT = (1, 2, 3, 4, 5), tuple(range(1, 9))  # the trials that chose preset `cpu` were of seed 0
TWO_SCALES = dict(
    family="fields", equation="advection_diffusion", flow="uniform", start="two_scales", size=32, refine=2, frames=1,
    horizon=4, interval=0.02, step=0.01, viscosity=2e-4, low=2, high=12, skip=0, n_train=160, n_test=64,
)  # fmt: skip
NAVIER_STOKES = dict(
    equation="navier_stokes", start="gaussian", refine=1, interval=1.0, step=0.02, viscosity=1e-4, skip=5
)
FNO = base.fno2d(width=8, modes=8, n_layers=3, projection=16, horizon=4, residual=True, activation="gelu_tanh")
M2M = base.m2m(
    patches=2, widths=(8, 8), modes=(7, 4), n_layers=3, projection=16, horizon=4, residual=True,
    resolution=16, activation="gelu_tanh",
)  # fmt: skip
PI = dict(
    controller=base.controller(
        signal="gate/kl", least=-0.2, most=0.5, control_target=0.1, control_gain_p=2.0, control_gain_i=0.02
    )
)
CONSTANT = dict(controller=base.controller(family="constant", control_constant=0.1, control_target=0.1))
FREE = dict(
    controller=base.controller(family="constant", control_constant=0.0)
)  # the prior is known and counts nothing


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = base.shrink(record(), steps=8, batch_size=4)
    config.train_size = 8
    config.task.update(size=16, high=5, low=1, refine=1, horizon=2, n_train=8, n_test=8)
    for name in ("constant", "halo", "all_modes", "ns_fno", "ns_m2m"):  # `free` is of the constant law, too
        del config.variants[name]
    config.model.update(widths=(2, 2), modes=(3, 2), n_layers=1, projection=4, horizon=2, resolution=8)
    config.variants.fno.model.update(width=2, modes=3, n_layers=1, projection=4, horizon=2)
    config.variants.gamma.grid = dict(gamma=(0.4, 0.6))
    return config


def cpu() -> ConfigDict:
    """6 minutes on two CPU cores.

    Fields of two scales, 32 x 32: a single operator, the mixture with its controller, and the mixture without a prior.

    Decides V1a, V2a, V2b, V3a, V4, V5.
    """
    return base.config(
        task=TWO_SCALES,
        model=M2M,
        optim=dict(warmup_steps=20),
        grid=dict(learning_rate=(5e-3,), seed=FIVE),
        steps=240,
        batch_size=8,
        train_size=160,
        eval_every=40,
        eval_size=64,
        snapshots=3,
        checkpoint_every=120,
        variants=dict(fno=_single(), m2m=PI, free=FREE),
    )


def record() -> ConfigDict:
    """10 minutes on two CPU cores.

    As `cpu` with eight seeds and controls: a constant weight, patches with a halo, a single operator of all modes;
    beside it Navier-Stokes, and the mixture over initial scale and weight decay.

    Decides V1a, V1b, V2a, V2b, V3a, V3b, V4, V5, V6.
    """
    config = cpu()
    config.grid.seed = EIGHT
    config.variants = {
        "fno": _single(),
        "m2m": PI,
        "free": FREE,
        "constant": CONSTANT,
        "halo": PI | dict(model=dict(halo=2, resolution=20)),
        "all_modes": _single(width=4, modes=16),
        "ns_fno": _single() | dict(task=NAVIER_STOKES),
        "ns_m2m": PI | dict(task=NAVIER_STOKES),
        "gamma": PI | dict(grid=dict(gamma=(0.3, 0.5, 0.7), weight_decay=(0.01, 0.3), seed=FIVE)),
    }
    return config


def gpu() -> ConfigDict:
    """Minutes on one GPU (not yet timed).

    64 x 64, operators of the published width, patches at the resolution of the field, as published.

    Decides V1a, V1b, V2a, V2b, V3a, V3b, V4, V5, V6.
    """
    config = record()
    config.task.update(size=64, refine=1, high=20, horizon=8, n_train=1000, n_test=200)
    config.update(steps=10_000, batch_size=16, train_size=1000, eval_every=500, eval_size=200, checkpoint_every=2500)
    config.optim.warmup_steps = 300
    config.grid.update(learning_rate=(1e-3,), seed=FIVE)
    config.model.update(widths=(20, 20), modes=(11, 5), n_layers=4, projection=128, horizon=8, resolution=64)
    single = dict(width=20, modes=12, n_layers=4, projection=128, horizon=8)
    for name in ("fno", "ns_fno"):
        config.variants[name].model.update(single)
    config.variants.all_modes.model.update(single | dict(width=10, modes=24))
    config.variants.halo.model = dict(halo=4, resolution=64)
    config.variants.gamma.grid.update(gamma=(0.3, 0.4, 0.5, 0.6, 0.7), weight_decay=(0.01, 0.1, 0.3))
    return config


def paper() -> ConfigDict:
    """Days on one GPU (not yet timed).

    The Fourier operator's benchmark, Navier-Stokes at viscosity 1e-5: ten frames in, ten out, 64 x 64 of a solution on
    256 x 256, 1,000 trajectories, 500 epochs, and an operator of the parameters of its table, with ReLU. Not as
    published: the norm is over a field (there over a batch), the learning rate falls by a cosine (there by half every
    100 epochs), the loss is of whole trajectories (there a sum over frames), decay is AdamW's (there Adam's),
    gradients are clipped, weights are drawn at gamma = 1/2, the solver is ours. And a mixture of that width on it:
    M2M's own sizes are not known.
    `--config.task.path=FILE --config.task.skip=0` reads the published file, whose first time is 1.

    Decides V1b, V7.
    """
    task = dict(
        family="fields", equation="navier_stokes", start="gaussian", size=64, refine=4, frames=10, horizon=10,
        interval=1.0, step=0.005, viscosity=1e-5, skip=1, n_train=1000, n_test=200, path="",
    )  # fmt: skip
    single = base.fno2d(instance_norm=True, activation="relu")
    experts = base.m2m(resolution=64, activation="relu")
    return base.config(
        task=task,
        model=experts,
        optim=dict(warmup_steps=0),
        grid=dict(weight_decay=(1e-4,), learning_rate=(2.5e-3,), seed=FIVE),
        steps=500 * 50,
        batch_size=20,
        train_size=1000,
        eval_every=1000,
        eval_size=200,
        snapshots=3,
        checkpoint_every=2500,
        variants=dict(ns_fno=dict(model=single), ns_m2m=PI),
    )


def _single(**changes) -> dict:
    """A variant: one Fourier operator of as many parameters."""
    return dict(model=FNO | changes)
