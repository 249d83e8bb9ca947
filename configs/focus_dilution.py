"""Focus and dilution: the attention learning cycle, on Markov chains whose exact limit is known.

    python -m lab reproduce focus_dilution --preset=cpu        # minutes on two CPU cores

Papers: "Focus and Dilution" (arXiv 2605.01199), and for variant `collapse` its companion "From Condensation to Rank
Collapse" (arXiv 2510.06954). The first gives neither width nor optimizer nor initial scale: those here are ours.
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)

EXACT_ALONE = dict(batch_size=2, eval_size=64)  # claims of the exact limit need nothing that is trained on samples


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = base.shrink(cpu(), steps=60, batch_size=16)
    config.task.length = 16
    config.snapshot_every = 10
    config.variants.escape.grid.delta = (0.0, 0.01, 0.02)
    config.variants.six.steps = 60
    config.variants.collapse.optim.warmup_steps = 5
    for name in ("collapse", "descent"):
        config.variants[name].model.update(d_model=16, d_ff=32)
        config.variants[name].update(steps=40, eval_every=20, snapshot_every=10)
    return config


def cpu() -> ConfigDict:
    """Up to 15 minutes on two CPU cores (estimated).

    Decides all claims.
    """
    return base.config(
        task=dict(
            family="markov",
            stationary=(0.75, 0.19, 0.05, 0.01),
            asymmetry=(),
            delta=0.0,
            stay=0.5,
            transition=(),
            length=128,
        ),
        model=dict(family="attention", vocab_size=4, d_model=16),
        optim=dict(
            family="sgd", schedule="constant", warmup_steps=0, start_factor=1.0, end_factor=1.0, clip_norm=float("inf")
        ),
        grid=dict(
            gamma=(1.661, 2.4914, 3.3219),  # initial std d_model^-gamma: 1e-2, 1e-3 and 1e-4
            weight_decay=(0.0,),
            learning_rate=(0.5,),
            seed=(0, 1, 2, 3, 4),
        ),
        steps=20_000,
        batch_size=64,
        eval_every=500,
        eval_size=4096,
        snapshots=8,
        snapshot_every=100,
        checkpoint_every=10_000,
        variants=dict(
            cycle=dict(),
            escape=dict(
                batch_size=32,
                task=dict(stationary=(0.7, 0.1, 0.1, 0.1), asymmetry=(0.0, 1.0, 0.0, -1.0)),
                grid=dict(gamma=(2.4914,), delta=(0.0, 0.01, 0.02, 0.04)),
            ),
            six=dict(
                EXACT_ALONE,
                steps=12_000,
                task=dict(stationary=(0.6, 0.15, 0.1, 0.07, 0.05, 0.03), stay=0.6, length=2),
                model=dict(vocab_size=6),
                grid=dict(gamma=(1.661,), learning_rate=(0.25,)),
            ),
            collapse=_collapse(),
            descent=_descent(),
        ),
    )


def record() -> ConfigDict:
    """40 minutes on two CPU cores, half of them for the variant `sampled` (estimated).

    A chain on which the exact gradient flow has more than one cycle, by steps that follow it. `sampled` is trained on
    contexts so long that a token's own count, 1 / (1 - stay) more than its frequency says, tells little. The companion
    at the published exponent and twice the width of `cpu`.

    Decides all claims.
    """
    config = cpu()
    config.task.update(stay=0.6, length=2)
    config.grid.update(gamma=(1.661,), learning_rate=(0.25,), seed=tuple(range(8)))
    config.update(EXACT_ALONE, steps=10_000, eval_every=1000)
    config.variants.stages = dict(steps=6000, grid=dict(gamma=(3.3219,)))
    config.variants.sampled = dict(batch_size=64, eval_size=512, task=dict(length=1024))
    config.variants.escape.update(EXACT_ALONE, steps=20_000)
    config.variants.escape.grid.update(learning_rate=(0.5,))
    config.variants.collapse.model.update(d_model=128, d_ff=256)
    config.variants.collapse.grid.update(gamma=(0.85,))
    config.variants.collapse.update(steps=2000, snapshot_every=50)
    return config


def gpu() -> ConfigDict:
    """Minutes on one GPU (not yet timed).

    More scales, more ways to stay, more seeds; the companion at twice the width.

    Decides all claims.
    """
    config = cpu()
    config.grid.seed = tuple(range(10))
    config.update(batch_size=1024, eval_size=16_384)
    config.variants.cycle = dict(grid=dict(gamma=(1.25, 1.661, 2.076, 2.4914, 2.907), stay=(0.3, 0.5, 0.7)))
    config.variants.collapse.model.update(d_model=128, d_ff=256)
    config.variants.collapse.update(steps=4000, batch_size=1000)
    return config


def paper() -> ConfigDict:
    """Longer sequences, wider models, the companion as published (not yet timed).

    Its number of sequences is not published: 10^5 here.

    Decides all claims.
    """
    config = gpu()
    config.task.length = 1024
    config.update(steps=40_000, snapshot_every=100)
    steps_per_epoch = 100
    config.variants.collapse.model.update(d_model=640, d_ff=1280)
    config.variants.collapse.optim.update(
        schedule="warmup_cosine", warmup_steps=10 * steps_per_epoch, start_factor=1 / 15, end_factor=1 / 15
    )
    config.variants.collapse.grid.update(gamma=(0.85,), learning_rate=(1.5e-4,))
    config.variants.collapse.update(steps=30 * steps_per_epoch, train_size=100_000, batch_size=1000, snapshot_every=10)
    return config


def _collapse() -> dict:
    """The companion's anchor task at a width two cores train: the paper's is 640, d_ff 1280, with gamma 0.85."""
    return dict(
        task=dict(
            family="anchor",
            anchors=(1, 2, 3, 4),
            shifts=(1, 0, 1, 0),
            low=5,
            high=100,
            length=10,
            vocab_size=201,
        ),
        model=dict(family="attention_mlp", vocab_size=201, d_model=64, d_ff=128, activation="tanh"),
        optim=dict(family="adamw", warmup_steps=150, start_factor=1 / 15, clip_norm=1.0, frozen=("embed", "head")),
        grid=dict(gamma=(0.85, 1.4), gamma_embed=(0.5,), gamma_head=(0.5,), learning_rate=(1e-3,)),
        steps=1200,
        batch_size=256,
        eval_every=100,
        snapshot_every=10,
    )


def _descent() -> dict:
    """`collapse` by plain gradient descent, the law that its theory is written for: what does it conserve?"""
    config = _collapse()
    config["optim"].update(family="sgd", warmup_steps=0, clip_norm=float("inf"))
    config["grid"].update(gamma=(1.0,), learning_rate=(0.5,))  # longer steps conserve less: drift 0.06 at 2
    return config | dict(steps=4000, snapshot_every=40)
