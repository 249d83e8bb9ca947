"""Complexity control on SCAN and COGS: initial scale x weight decay x number of training items.

    python -m lab reproduce complexity_control_language --config.task.path=FOLDER                      # SCAN
    python -m lab reproduce complexity_control_language --preset=cpu_cogs --config.task.path=FOLDER    # COGS

FOLDER holds the released files, plain, .xz or .gz, itself or in folders; `--config.task.hf_id=NAME` in its place
downloads them (extra `text`).

The published protocol (arXiv 2501.08537) is preset `paper`. Of its quirks these are options here: embeddings of a fixed
scale (grid.gamma_embed), no decay on biases (optim.decay_mask; norms are spared with them), residual projections
divided by sqrt(2 L) (init=authors), the loss on all tokens (grid.ntp_weight=1). Three are not: norms that are not
trained, an output projection of fixed scale 0.02 / sqrt(2 L), and a "fan-in" that is d_out for query, key, value and
the first MLP matrix. Of the last, queries and keys can be had for one gamma at a time, by grid.gamma_qk with
d_model^-gamma_qk = (3 d_model)^-gamma.
"""

import math

from ml_collections import ConfigDict

PRESETS = ("smoke", "cpu", "gpu", "paper")
TASKS = {
    "scan": dict(family="scan", path="", hf_id="", variant="addprim_turn_left", length=64, vocab_size=32),
    "cogs": dict(
        family="cogs", path="", hf_id="", target_form="variable_free", evaluated=("test", "gen"), length=208,
        vocab_size=840,  # words of either form
    ),
}  # fmt: skip


def get_config(preset: str = "cpu") -> ConfigDict:
    """A size, of SCAN, or with `_cogs` at its end of COGS."""
    size, _, task = preset.partition("_")
    if size not in PRESETS or task not in ("", "cogs"):
        raise ValueError(f"preset {preset!r}: one of {', '.join(PRESETS)}, for COGS with _cogs at its end")
    config = {"smoke": smoke, "cpu": cpu, "gpu": gpu, "paper": paper}[size](task or "scan")
    config.preset = preset
    return config


def cpu(task: str) -> ConfigDict:
    """Two layers and two data sizes: both corners of the grid fit the training items."""
    of = TASKS[task]
    return ConfigDict(
        dict(
            study="complexity_control_language",
            preset="cpu",
            task=of,
            objective=dict(ntp_weight=0.0, label_noise=0.0, context_noise=0.0, shuffle_context=False),
            model=dict(
                family="transformer",
                vocab_size=of["vocab_size"],
                max_length=of["length"],
                n_layers=2,
                n_heads=4,
                d_model=64,
                d_head=16,
                d_ff=256,
                activation="gelu_tanh",
                norm="pre",
                use_bias=True,
                head_bias=False,
                final_norm=True,
                tied_head=False,
                readout="all",  # answers are of several tokens
                compute_dtype="float32",
            ),
            init="paper",
            start=dict(variant="", row=dict()),  # weights are drawn anew
            optim=dict(
                family="adamw",
                schedule="warmup_cosine",
                warmup_steps=200,
                start_factor=0.04,
                end_factor=0.04,
                clip_norm=1.0,
                decay="scaled",
                decay_mask="matrices",  # none on biases, as published
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                momentum=0.0,  # read by sgd only
                frozen=(),
            ),
            grid=dict(
                gamma=(0.4, 0.8),
                weight_decay=(0.01, 1.0),
                learning_rate=(2e-3,),
                train_items=(4000, 20_000),
                seed=(0, 1, 2),
            ),
            steps=3000,
            batch_size=64,
            train_size=0,  # drawn with replacement from a row's own training items
            data_order="row",  # another seed: other weights and another order
            data_seed=0,
            eval_every=500,
            eval_size=512,
            snapshots=2,
            snapshot_every=0,
            checkpoint_every=1000,
            block_width=0,  # as many rows at once as a measurement on this device says
            data_devices=1,
            split_params=False,
            deterministic=False,
            variants={task: dict()},
        )
    )


def smoke(task: str) -> ConfigDict:
    """Seconds: every part runs, nothing is learnt."""
    config = cpu(task)
    config.model.update(n_layers=1, n_heads=2, d_model=16, d_head=8, d_ff=32)
    config.optim.warmup_steps = 2
    config.grid.update(train_items=(16, 64), seed=(0, 1))
    config.update(steps=6, batch_size=8, eval_every=3, eval_size=16, checkpoint_every=6, block_width=1)
    return config


def gpu(task: str) -> ConfigDict:
    """Four layers; the whole grid."""
    config = cpu(task)
    config.model.update(n_layers=4, n_heads=8, d_model=256, d_head=32, d_ff=1024)
    config.grid.update(
        gamma=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8), weight_decay=(0.0, 0.01, 0.1, 1.0), learning_rate=(5e-4,),
        train_items=(2000, 5000, 10_000, 20_000),
    )  # fmt: skip
    config.update(steps=10_000, batch_size=128, eval_every=1000, eval_size=2048)
    return config


def paper(task: str) -> ConfigDict:
    """GPT-2 small: AdamW at a constant 5e-5, 20 items on each of 7 devices, embeddings at 0.02. Nothing is cut."""
    config = cpu(task)
    d_model = 768
    config.model.update(n_layers=12, n_heads=12, d_model=d_model, d_head=64, d_ff=3072, tied_head=True)
    config.init = "authors"
    config.optim.update(schedule="constant", warmup_steps=0, start_factor=1.0, end_factor=1.0)
    config.grid.update(
        gamma=(0.3, 0.5, 0.8), weight_decay=(0.0, 0.01, 0.1, 1.0), learning_rate=(5e-5,),
        gamma_embed=(math.log(1 / 0.02) / math.log(d_model),), train_items=(5000, 10_000, 20_000),
    )  # fmt: skip
    config.update(steps=350_000, batch_size=140, eval_every=5000, eval_size=2048, checkpoint_every=5000)
    return config
