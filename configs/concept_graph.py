"""Concept graphs: a diffusion model is asked for combinations of shape, colour and size that it never saw.

    python -m lab reproduce concept_graph --preset=cpu        # 15 minutes on two CPU cores (estimated)

Expect trained combinations drawn cleanly from gamma 0.7 on (score 0.9 to 1), and mostly trained ones in place of unseen
ones (0 to 0.25); from gamma 0.3 neither.

Paper: "Complexity Control Facilitates Reasoning-Based Compositional Generalization" (arXiv 2501.08537), image
generation, in the setting of "Compositional Abilities Emerge Multiplicatively" (arXiv 2310.09336).
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: one seed.
    """
    config = base.shrink(cpu(), steps=10, batch_size=8, checkpoints=1)
    config.task.update(size=8, n_times=20, images_per_class=4)
    config.model.base_width = 8
    config.grid.update(gamma=(0.5, 0.9), seed=(0,))
    return config


def cpu() -> ConfigDict:
    """15 minutes on two CPU cores (estimated).

    16 x 16 pixels and 50 times.

    Decides no claim: three seeds.
    """
    return base.config(
        task=dict(family="shapes", size=16, n_times=50, images_per_class=280, trained=("000", "100", "010", "111")),
        model=dict(family="unet", base_width=16),
        optim=dict(start_factor=0.1, end_factor=0.0),  # published: linear to 0
        grid=dict(gamma=(0.3, 0.5, 0.7, 0.9), weight_decay=(0.0,)),
        batch_size=32,
        train_size=0,  # pictures are kept by the task, which noises them anew
        eval_size=128,
        snapshots=3,
        variants=dict(main=dict()),
    )


def record() -> ConfigDict:
    """An hour and a half on two CPU cores (estimated).

    Initial rates from which `cpu` draws trained combinations, for twice as long: without that the unseen ones tell
    nothing.

    Decides all claims.
    """
    config = cpu()
    config.grid.update(gamma=(0.5, 0.6, 0.7, 0.8, 0.9), seed=tuple(range(8)))
    config.steps = 4000
    return config


def gpu() -> ConfigDict:
    """Minutes on one GPU (not yet timed).

    32 x 32 pixels, the published number of times.

    Decides all claims.
    """
    config = cpu()
    config.task.update(size=32, n_times=500)
    config.model.base_width = 64
    config.grid.update(gamma=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), learning_rate=(5e-4,), seed=(0, 1, 2, 3, 4))
    config.update(steps=10_000, batch_size=64, eval_every=500, eval_size=256, checkpoint_every=2500)
    return config


def paper() -> ConfigDict:
    """64 x 64 pictures, base width 256 (not yet timed).

    As published: 300 epochs of 5,000 pictures drawn at random, Adam at 1e-4, no decay. Which gammas is not said.

    Decides all claims.
    """
    config = gpu()
    config.task.size = 64
    config.model.base_width = 256
    config.optim.update(warmup_steps=0, clip_norm=float("inf"))
    config.grid.learning_rate = (1e-4,)
    config.update(steps=300 * 5000 // 64, eval_every=1000, checkpoint_every=5000)
    return config
