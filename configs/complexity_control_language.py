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

from lab.configs import base

get_config = base.get_config(__name__)

TASKS = {
    "scan": dict(family="scan", path="", hf_id="", variant="addprim_turn_left", length=64, vocab_size=32),
    "cogs": dict(
        family="cogs", path="", hf_id="", target_form="variable_free", evaluated=("test", "gen"), length=208,
        vocab_size=840,  # words of either form
    ),
}  # fmt: skip


def smoke() -> ConfigDict:
    """Seconds; needs --config.task.path=FOLDER with the files of SCAN.

    Decides no claim: two seeds.
    """
    return _smoke("scan")


def cpu() -> ConfigDict:
    """SCAN: 35 minutes on two CPU cores (estimated); needs --config.task.path=FOLDER.

    Decides no claim: three seeds.
    """
    return _cpu("scan")


def record() -> ConfigDict:
    """SCAN: an hour and a half on two CPU cores (estimated).

    As `cpu`, with seeds that can bear a verdict.

    Decides L1-scan, L2-scan, L1, L2.
    """
    return _record("scan")


def gpu() -> ConfigDict:
    """SCAN on one GPU (not yet timed).

    Decides no claim: three seeds.
    """
    return _gpu("scan")


def paper() -> ConfigDict:
    """SCAN by GPT-2 small, as published (not yet timed).

    Decides no claim: three seeds.
    """
    return _paper("scan")


def smoke_cogs() -> ConfigDict:
    """As smoke, with the files of COGS.

    Decides no claim: two seeds.
    """
    return _smoke("cogs")


def cpu_cogs() -> ConfigDict:
    """As cpu, COGS: an hour (estimated).

    Decides no claim: three seeds.
    """
    return _cpu("cogs")


def record_cogs() -> ConfigDict:
    """COGS: an afternoon on two CPU cores (estimated).

    As published in what matters: embeddings of std 0.02 outside the decay, a constant rate, some fifty passes.

    Decides L1-cogs, L2-cogs, L1, L2.
    """
    config = _record("cogs")
    config.grid.update(gamma_embed=(math.log(1 / 0.02) / math.log(config.model.d_model),), train_items=(2500, 5000))
    config.optim.update(schedule="constant", decay_mask="kernels")
    config.steps = 50 * 5000 // config.batch_size  # of the larger set; a hundred of the smaller one
    return config


def gpu_cogs() -> ConfigDict:
    """As gpu, COGS.

    Decides no claim: three seeds.
    """
    return _gpu("cogs")


def paper_cogs() -> ConfigDict:
    """As paper, COGS.

    Decides no claim: three seeds.
    """
    return _paper("cogs")


def _smoke(task: str) -> ConfigDict:
    config = _cpu(task)
    config.model.update(n_layers=1, n_heads=2)
    config = base.shrink(config, steps=6, batch_size=8, checkpoints=1)
    config.grid.train_items = (16, 64)
    return config


def _cpu(task: str) -> ConfigDict:
    """Two layers and two data sizes: both corners of the grid fit the training items."""
    options = TASKS[task]
    return base.config(
        task=options,
        model=base.transformer(
            vocab_size=options["vocab_size"],
            max_length=options["length"],
            n_heads=4,
            d_head=16,
            d_ff=256,
            activation="gelu_tanh",
            use_bias=True,
            readout="all",  # answers are of several tokens
        ),
        optim=dict(warmup_steps=200, decay_mask="matrices"),  # no decay on biases, as published
        grid=dict(gamma=(0.4, 0.8), weight_decay=(0.01, 1.0), train_items=(4000, 20_000)),
        steps=3000,
        batch_size=64,
        train_size=0,  # drawn with replacement from a row's own training items
        eval_every=500,
        eval_size=512,
        snapshots=2,
        variants={task: dict()},
    )


def _record(task: str) -> ConfigDict:
    config = _cpu(task)
    config.grid.seed = tuple(range(8))
    return config


def _gpu(task: str) -> ConfigDict:
    """Four layers; the whole grid."""
    config = _cpu(task)
    config.model.update(n_layers=4, n_heads=8, d_model=256, d_head=32, d_ff=1024)
    config.grid.update(
        gamma=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8), weight_decay=(0.0, 0.01, 0.1, 1.0), learning_rate=(5e-4,),
        train_items=(2000, 5000, 10_000, 20_000),
    )  # fmt: skip
    config.update(steps=10_000, batch_size=128, eval_every=1000, eval_size=2048)
    return config


def _paper(task: str) -> ConfigDict:
    """GPT-2 small: AdamW at a constant 5e-5, 20 items on each of 7 devices, embeddings at 0.02. Nothing is cut."""
    config = _cpu(task)
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
