"""Concept graphs: a diffusion model is asked for combinations of shape, colour and size that it never saw.

    python -m lab reproduce concept_graph --preset=cpu        # 15 minutes on two CPU cores (estimated)

Expect trained combinations drawn cleanly from gamma 0.7 on (score 0.9 to 1), and mostly trained ones in place of unseen
ones (0 to 0.25); from gamma 0.3 neither.

Paper: "Complexity Control Facilitates Reasoning-Based Compositional Generalization" (arXiv 2501.08537), image
generation, in the setting of "Compositional Abilities Emerge Multiplicatively" (arXiv 2310.09336).
"""

from ml_collections import ConfigDict

PRESETS = ("smoke", "cpu", "gpu", "paper")


def get_config(preset: str = "cpu") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    return {"smoke": smoke, "cpu": cpu, "gpu": gpu, "paper": paper}[preset]()


def cpu() -> ConfigDict:
    """16 x 16 pixels and 50 times."""
    return ConfigDict(
        dict(
            study="concept_graph",
            preset="cpu",
            task=dict(
                family="shapes",
                size=16,
                n_times=50,
                images_per_class=280,
                trained=("000", "100", "010", "111"),
            ),
            objective=dict(ntp_weight=0.0, label_noise=0.0, context_noise=0.0, shuffle_context=False),
            model=dict(family="unet", base_width=16),
            init="paper",
            start=dict(variant="", row=dict()),  # weights are drawn anew
            optim=dict(
                family="adamw",
                schedule="warmup_cosine",  # published: linear to 0
                warmup_steps=100,
                start_factor=0.1,
                end_factor=0.0,
                clip_norm=1.0,
                decay="scaled",
                decay_mask="all",
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                momentum=0.0,  # read by sgd only
                frozen=(),
            ),
            grid=dict(gamma=(0.3, 0.5, 0.7, 0.9), weight_decay=(0.0,), learning_rate=(2e-3,), seed=(0, 1, 2)),
            steps=2000,
            batch_size=32,
            train_size=0,  # pictures are kept by the task, which noises them anew
            data_order="row",  # another seed: other weights and another order
            data_seed=0,
            eval_every=200,
            eval_size=128,
            snapshots=3,
            snapshot_every=0,
            checkpoint_every=1000,
            block_width=0,  # as many rows at once as a measurement on this device says
            data_devices=1,
            split_params=False,
            deterministic=False,
            variants=dict(main=dict()),
        )
    )


def smoke() -> ConfigDict:
    """Seconds: every part runs, nothing is learnt."""
    config = cpu()
    config.preset = "smoke"
    config.task.update(size=8, n_times=20, images_per_class=4)
    config.model.base_width = 8
    config.optim.warmup_steps = 2
    config.grid.update(gamma=(0.5, 0.9), seed=(0,))
    config.update(
        steps=10, batch_size=8, eval_every=5, eval_size=16, snapshots=2, checkpoint_every=10, block_width=1,
    )  # fmt: skip
    return config


def gpu() -> ConfigDict:
    """32 x 32 pixels, the published number of times."""
    config = cpu()
    config.preset = "gpu"
    config.task.update(size=32, n_times=500)
    config.model.base_width = 64
    config.grid.update(gamma=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), learning_rate=(5e-4,), seed=(0, 1, 2, 3, 4))
    config.update(steps=10_000, batch_size=64, eval_every=500, eval_size=256, checkpoint_every=2500)
    return config


def paper() -> ConfigDict:
    """As published: 300 epochs of 5,000 pictures drawn at random, Adam at 1e-4, no decay. Which gammas is not said."""
    config = gpu()
    config.preset = "paper"
    config.task.size = 64
    config.model.base_width = 256
    config.optim.update(warmup_steps=0, clip_norm=float("inf"))
    config.grid.learning_rate = (1e-4,)
    config.update(steps=300 * 5000 // 64, eval_every=1000, checkpoint_every=5000)
    return config
