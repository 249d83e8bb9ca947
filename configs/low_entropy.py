"""Less than they are shown: do transformers say strings of lower entropy than their target, and do neurons fall silent?

    python -m lab reproduce low_entropy --preset=record        # 13 minutes on two CPU cores; cpu: 10

Claims E1 to E3: models that are trained on a finite sample say strings of lower entropy than the target, the more so
the larger they are, and the MLP drives it. At `record` the last two hold, and the finite sample explains what is lower.

Paper: "Revisiting Transformers through the Lens of Low Entropy and Dynamic Sparsity" (arXiv 2504.18929), of which only
the abstract was at hand: all sizes and thresholds are ours (docs/low_entropy.md).
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)

LENGTH = 6
FIVE, EIGHT = (1, 2, 3, 4, 5), tuple(range(1, 9))  # the trials that chose preset `cpu` were of seed 0
UNSTABLE = dict(schedule="constant", warmup_steps=20, clip_norm=float("inf"))


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = base.shrink(cpu(), steps=80, batch_size=8)
    config.update(train_size=64, block_width=2)
    config.task.update(alphabet=3, length=3, order=2)
    small, sizes = dict(vocab_size=3, max_length=3), ((4, 1), (8, 1))
    config.variants = {
        **{f"fixed_{width}x{depth}": dict(model=_model(width, depth) | small) for width, depth in sizes},
        "attention": dict(model=_attention_alone(8, 1) | small),
        "fresh": dict(model=_model(8, 1) | small, train_size=0),
        "unstable": dict(
            model=_model(8, 1) | small, train_size=0, optim=UNSTABLE, snapshot_every=10,
            grid=dict(learning_rate=(1e-2, 1e-1)),
        ),
        "diagram": dict(model=_model(4, 1) | small, grid=dict(gamma=(0.3, 0.5, 0.8), weight_decay=(0.01, 1.0))),
    }  # fmt: skip
    return config


def cpu() -> ConfigDict:
    """10 minutes on two CPU cores.

    A random table of 4^6 strings; 1,000 of them are trained on, 256 times each. Three widths by two depths, attention
    alone, fresh samples, two large learning rates, and initial scale by decay.

    Decides all claims.
    """
    config = base.config(
        task=dict(
            family="strings",
            alphabet=4,
            length=LENGTH,
            order=LENGTH - 1,  # a random table of all conditional laws; smaller: a chain
            concentration=0.3,
            law_seed=0,
        ),
        model=_model(32, 2),
        optim=dict(warmup_steps=20),
        grid=dict(gamma=(0.5,), weight_decay=(0.01,), learning_rate=(2e-3,), seed=FIVE),
        steps=2000,
        batch_size=128,
        train_size=1000,
        eval_every=200,
        eval_size=1024,
        snapshots=4,
        checkpoint_every=1000,
    )
    config.variants = _sizes((8, 16, 32), (1, 2)) | {
        "attention": dict(model=_attention_alone(32, 2)),
        "fresh": dict(train_size=0, steps=4000),
        "unstable": dict(
            train_size=0, optim=UNSTABLE, snapshot_every=20, checkpoint_every=2000,
            grid=dict(learning_rate=(1e-2, 3e-2)),
        ),
        "diagram": dict(model=_model(32, 1), grid=dict(gamma=(0.3, 0.5, 0.8), weight_decay=(0.01, 1.0))),
    }  # fmt: skip
    return config


def record() -> ConfigDict:
    """13 minutes on two CPU cores.

    As `cpu` with eight seeds, 3,000 of 6^6 strings, widths to 64 and twice the steps.

    Decides all claims.
    """
    config = cpu()
    config.grid.seed = EIGHT
    config.update(steps=4000, eval_every=400, checkpoint_every=2000, train_size=3000, model=_model(64, 2, 6))
    config.task.alphabet = 6
    config.variants = _sizes((16, 32, 64), (1, 2), 6) | {
        "attention": dict(model=_attention_alone(64, 2, 6)),
        "fresh": dict(train_size=0),
        "unstable": dict(
            train_size=0, optim=UNSTABLE, snapshot_every=20, checkpoint_every=4000,
            grid=dict(learning_rate=(1e-2, 3e-2)),
        ),
        "diagram": dict(model=_model(32, 1, 6), grid=dict(gamma=(0.3, 0.5, 0.8), weight_decay=(0.01, 1.0))),
    }  # fmt: skip
    return config


def gpu() -> ConfigDict:
    """Hours on one GPU (not yet timed).

    Widths to 128, depths to 4, samples of 30,000 strings beside those of 3,000, three learning rates.

    Decides all claims.
    """
    config = record()
    config.grid.seed = FIVE
    config.update(steps=10_000, batch_size=256, eval_every=500, checkpoint_every=5000, model=_model(128, 4, 6))
    config.grid.learning_rate = (1e-3,)
    config.optim.warmup_steps = 100
    config.variants = _sizes((16, 32, 64, 128), (1, 2, 4), 6) | {
        "attention": dict(model=_attention_alone(128, 4, 6)),
        "more_strings": dict(train_size=30_000),
        "fresh": dict(train_size=0),
        "unstable": dict(
            train_size=0, optim=UNSTABLE, snapshot_every=50, grid=dict(learning_rate=(3e-3, 1e-2, 3e-2)),
        ),
        "diagram": dict(
            model=_model(64, 2, 6),
            grid=dict(gamma=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0), weight_decay=(0.0, 0.01, 0.1, 1.0)),
        ),
    }  # fmt: skip
    return config


def text() -> ConfigDict:
    """5 minutes on two CPU cores; needs --config.task.path=FILE, such as TinyStories-valid.txt.

    Sparsity alone: the entropy of a text is not known. FILE is of the data set roneneldan/TinyStories; where there is a
    network, `--config.task.hf_id=roneneldan/TinyStories` in its place downloads it (extra `text`).

    Decides E5a, E5b, E5c, E5d.
    """
    vocab_size, length = 2000, 64
    config = base.config(
        task=dict(
            family="text",
            path="",
            hf_id="",
            separator="endoftext",
            tokenizer="bpe",
            vocab_size=vocab_size,
            length=length,
            loss="all",
            valid_share=0.1,
            valid_path="",
            column="text",
        ),
        model=_model(32, 2) | dict(vocab_size=vocab_size, max_length=length),
        grid=dict(learning_rate=(2e-3,), seed=FIVE),
        steps=1000,
        batch_size=16,
        eval_every=200,
        eval_size=64,
        snapshots=6,
        checkpoint_every=500,
    )
    texts = dict(vocab_size=vocab_size, max_length=length)
    config.variants = {
        f"text_{width}x{depth}": dict(model=_model(width, depth) | texts) for width in (16, 32, 64) for depth in (1, 2)
    }
    return config


def paper() -> ConfigDict:
    """The grid that we would take in the paper's place, which prints none: days on one GPU (not yet timed).

    Decides no claim: three seeds.
    """
    config = gpu()
    config.grid.seed = (0, 1, 2)
    config.update(steps=50_000, batch_size=1024, eval_every=1000, checkpoint_every=5000, model=_model(512, 8, 6))
    config.optim.warmup_steps = 500
    large = dict(model=_attention_alone(512, 8, 6))
    config.variants = _sizes((32, 64, 128, 256, 512), (1, 2, 4, 8), 6) | {
        "attention": large, "fresh": dict(train_size=0),
        "unstable": dict(
            train_size=0, optim=UNSTABLE, snapshot_every=50, grid=dict(learning_rate=(3e-3, 1e-2, 3e-2)),
        ),
    }  # fmt: skip
    return config


def _sizes(widths, depths, alphabet: int = 4) -> dict:
    return {
        f"fixed_{width}x{depth}": dict(model=_model(width, depth, alphabet)) for width in widths for depth in depths
    }


def _model(width: int, n_layers: int, alphabet: int = 4) -> dict:
    return base.transformer(
        vocab_size=alphabet, max_length=LENGTH, n_layers=n_layers, d_model=width, d_head=width, d_ff=4 * width,
        readout="all", use_bias=True,
    )  # fmt: skip


def _attention_alone(width: int, n_layers: int, alphabet: int = 4) -> dict:
    """Three heads of the model's width have as many parameters as one and an MLP of four widths."""
    return _model(width, n_layers, alphabet) | dict(n_heads=3, d_ff=0)
