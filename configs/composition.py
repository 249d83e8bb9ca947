"""Which solution does initialization pick? The two-anchor composition task over a gamma x weight-decay grid.

    python -m lab reproduce composition --preset=cpu        # 5 minutes on two CPU cores

Expect claims C1, C2, C3 and C5 to hold: reasoning on (4,3) from 0.0 to 0.95 over gamma at weight decay 0.01 in
`34_unseen`; in `34_wrong` symmetric at gamma 0.45, reasoning at 0.65. C4 lies at its threshold; C6 to C8 miss theirs
(docs/composition.md says why).

Papers: "Initialization is Critical to Whether Transformers Fit Composite Functions by Reasoning or Memorizing"
(arXiv 2405.05409) and "Complexity Control Facilitates Reasoning-Based Compositional Generalization" (arXiv 2501.08537).
"""

from ml_collections import ConfigDict

PRESETS = ("smoke", "cpu", "gpu", "paper")


def get_config(preset: str = "cpu") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    return {"smoke": smoke, "cpu": cpu, "gpu": gpu, "paper": paper}[preset]()


def cpu() -> ConfigDict:
    """Both settings at a size that two CPU cores train in minutes."""
    return ConfigDict(
        dict(
            study="composition",
            preset="cpu",
            task=dict(
                family="composition",
                setting="34_unseen",
                n_anchors=4,
                modulus=9,
                noise_groups=0,
                low=20,
                high=99,
                length=9,
                vocab_size=201,
            ),
            objective=dict(ntp_weight=0.0, label_noise=0.0, context_noise=0.0, shuffle_context=False),
            model=dict(
                family="transformer",
                vocab_size=201,
                max_length=9,
                n_layers=2,
                n_heads=1,
                d_model=64,
                d_head=64,
                d_ff=128,
                activation="relu",
                norm="pre",
                use_bias=False,
                head_bias=False,
                final_norm=True,
                tied_head=False,
                readout="last",  # the loss reads one position, so nothing else is computed in the last block
                compute_dtype="float32",
            ),
            init="paper",
            start=dict(variant="", row=dict()),  # weights are drawn anew
            optim=dict(
                family="adamw",
                schedule="warmup_cosine",
                warmup_steps=100,
                start_factor=0.04,  # warm-up multiplies the learning rate by 25, as published
                end_factor=0.04,
                clip_norm=1.0,
                decay="scaled",
                decay_mask="all",
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                momentum=0.0,  # read by sgd only
                frozen=(),
            ),
            grid=dict(
                gamma=(0.35, 0.45, 0.78),
                weight_decay=(0.01, 1.0),
                learning_rate=(2e-3,),
                seed=(0, 1, 2),
            ),
            steps=2200,
            batch_size=128,
            train_size=0,  # an endless stream
            data_order="row",  # another seed: other weights and other data
            data_seed=0,
            eval_every=250,
            eval_size=1024,
            snapshots=5,
            snapshot_every=0,
            checkpoint_every=1000,
            block_width=0,  # as many rows at once as a measurement on this device says
            data_devices=1,
            split_params=False,
            deterministic=False,
            variants=dict(
                unseen=dict(),
                # Width and learning rate are chosen in docs/composition.md.
                wrong=dict(
                    task=dict(setting="34_wrong"),
                    model=dict(d_model=128, d_head=64),
                    grid=dict(gamma=(0.45, 0.65), weight_decay=(0.01,), learning_rate=(1e-3,)),
                ),
            ),
        )
    )


def smoke() -> ConfigDict:
    """Seconds: every part runs, nothing is learnt."""
    config = cpu()
    config.preset = "smoke"
    config.model.update(d_model=16, d_head=16, d_ff=32)
    del config.variants.wrong.model
    config.optim.warmup_steps = 5
    config.grid.update(gamma=(0.45, 0.65), seed=(0, 1))
    config.update(steps=40, batch_size=32, eval_every=20, eval_size=64, snapshots=3, checkpoint_every=20, block_width=1)
    return config


def gpu() -> ConfigDict:
    """The whole phase diagram at the small size: 220 + 105 rows, too many for two cores, a few too little for a GPU."""
    config = cpu()
    config.preset = "gpu"
    config.grid.update(
        gamma=(0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8),
        weight_decay=(0.0, 0.01, 0.1, 1.0),
        seed=(0, 1, 2, 3, 4),
    )
    config.update(steps=4000, batch_size=256, eval_every=200, eval_size=2048, snapshots=8)
    config.variants.wrong.grid.update(gamma=(0.4, 0.45, 0.5, 0.6, 0.65, 0.7, 0.8), learning_rate=(3e-4, 5e-4, 1e-3))
    return config


def paper() -> ConfigDict:
    """As published. Base and variant `unseen`: arXiv 2501.08537, ten layers; variants `wrong*`: arXiv 2405.05409."""
    config = cpu()
    config.preset = "paper"
    config.model.update(
        max_length=20,
        n_layers=10,
        n_heads=10,
        d_model=640,
        d_head=64,
        d_ff=1280,
        activation="gelu",
        use_bias=True,
        head_bias=True,
    )
    config.init = "authors"
    steps_per_epoch = 157_500 // 2048  # 76
    config.optim.update(warmup_steps=50 * steps_per_epoch, start_factor=1 / 3, end_factor=1 / 3)
    config.grid = dict(
        gamma=(0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8),
        weight_decay=(0.0, 0.01, 0.1, 1.0),
        learning_rate=(3e-5,),
        seed=(1, 2, 3),
    )
    config.update(
        steps=1050 * steps_per_epoch,
        batch_size=2048,
        train_size=157_500,
        eval_every=30 * steps_per_epoch,
        eval_size=1250,
        snapshots=12,
        checkpoint_every=10 * steps_per_epoch,
    )
    depths = {
        "wrong": 2,
        "wrong_3_layers": 3,
        "wrong_4_layers": 4,
        "wrong_5_layers": 5,
        "wrong_6_layers": 6,
        "wrong_7_layers": 7,
    }
    config.variants = {"unseen": {}, **{name: _first_paper(depth) for name, depth in depths.items()}}
    return config


def _first_paper(n_layers: int) -> dict:
    """arXiv 2405.05409: post-norm, ReLU, one head; every depth at nine peak learning rates."""
    steps_per_epoch = 759_375 // 2048  # 370
    return dict(
        task=dict(setting="34_wrong", modulus=7),
        model=dict(
            n_layers=n_layers,
            n_heads=1,
            d_model=400,
            d_head=200,
            d_ff=1200,
            activation="relu",
            norm="post",
            use_bias=False,
            final_norm=False,
        ),
        init="paper",
        optim=dict(warmup_steps=10 * steps_per_epoch, start_factor=0.04, end_factor=0.04),
        grid=dict(
            gamma=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
            weight_decay=(0.01,),
            learning_rate=(1e-4, 1.25e-4, 1.5e-4, 1.75e-4, 2e-4, 2.25e-4, 2.5e-4, 2.75e-4, 3e-4),
        ),
        steps=210 * steps_per_epoch,
        train_size=759_375,
        eval_every=10 * steps_per_epoch,
        checkpoint_every=2 * steps_per_epoch,
    )
