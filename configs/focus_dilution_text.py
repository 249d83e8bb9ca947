"""Focus and dilution on real text: does attention go to the frequent tokens, and leave them again?

    python -m lab train --config=focus_dilution_text --config.task.path=FILE --workdir=runs/text

FILE is any text, plain, .xz or .gz, .jsonl or .parquet, or a folder of such (with files train and valid:
`--config.task.valid_share=0`); `--config.task.hf_id=Salesforce/wikitext:wikitext-2-v1` in its place downloads it (extra
`text`). Minutes for `one_layer` on two CPU cores, some five times as many for `two_layer`.

Expect of `one_layer` on 400,000 words of WikiText: attention to the most frequent token goes from its base rate, 0.15,
to 0.99 near step 120, to 0.3 at step 1000 and 0.1 at step 1900; its entropy over tokens goes 5.0, 0.1, 4.5, 3.3 nats.
Expect none of this of `two_layer`, where the residual can answer from the last token: attention stays at the base rate.

Papers: "Focus and Dilution" (arXiv 2605.01199), which prints no settings for text; `two_layer` and the preset `paper`
are of "From Condensation to Rank Collapse" (arXiv 2510.06954), whose appendix does.
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)


def smoke() -> ConfigDict:
    """Seconds on any text; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = base.shrink(cpu(), steps=40, batch_size=16)
    _resize(config, vocab_size=100, length=8, d_model=8)
    config.update(train_size=64, snapshot_every=0)
    return config


def cpu() -> ConfigDict:
    """Minutes on two CPU cores (one_layer); needs --config.task.path=FILE.

    Some 400,000 words, or as many as there are.

    Decides no claim: three seeds.
    """
    vocab_size, length, d_model = 4000, 64, 64
    return base.config(
        task=dict(
            family="text",
            path="",
            hf_id="",
            separator="line",  # TinyStories: endoftext
            tokenizer="word",  # TinyStories: bpe, which tells words from commas
            vocab_size=vocab_size,
            length=length,
            loss="last",
            valid_share=0.1,
            valid_path="",
            column="text",  # of a data set, .jsonl or .parquet
        ),
        model=dict(family="attention", vocab_size=vocab_size, d_model=d_model),
        optim=dict(schedule="constant", warmup_steps=50, start_factor=0.1, end_factor=0.1),
        grid=dict(gamma=(1.2,), weight_decay=(0.0,)),
        train_size=40_000,  # windows, drawn once: a little more than six epochs
        eval_every=50,
        snapshots=12,
        snapshot_every=25,  # focus comes and goes within a hundred steps
        variants=dict(
            one_layer=dict(),
            two_layer=dict(model=_two_layers(vocab_size, length, d_model, 4 * d_model)),
        ),
    )


def record() -> ConfigDict:
    """An hour on two CPU cores, four fifths of it for two_layer (estimated); needs --config.task.path=FILE.

    As `cpu`, with seeds that can bear a verdict.

    Decides all claims.
    """
    config = cpu()
    config.grid.seed = tuple(range(8))
    config.variants.two_layer.grid = dict(seed=tuple(range(5)))
    return config


def gpu() -> ConfigDict:
    """Minutes on one GPU (not yet timed).

    All of WikiText-2 or a part of TinyStories; three scales of the weights and three learning rates.

    Decides all claims.
    """
    config = cpu()
    _resize(config, vocab_size=8000, length=128, d_model=128)
    config.grid.update(gamma=(0.8, 1.0, 1.2), learning_rate=(2e-4, 6e-4, 2e-3), seed=(0, 1, 2, 3, 4))
    config.update(steps=10_000, batch_size=256, train_size=500_000, eval_every=100, eval_size=2048, snapshot_every=100)
    return config


def paper() -> ConfigDict:
    """Windows of 2048 tokens (not yet timed).

    WikiText as in arXiv 2510.06954, five epochs. How many windows there were is not said.
    Its vocabulary of 31,999 is some released tokenizer's; here words are counted.

    Decides no claim: three seeds.
    """
    config = cpu()
    _resize(config, vocab_size=31_999, length=2048, d_model=64)
    config.variants.two_layer.model.d_ff = 800
    train_size = 50_000  # a WikiText-103 of 103 million words, once
    steps_per_epoch = train_size // 500
    config.optim.update(schedule="warmup_cosine", warmup_steps=steps_per_epoch // 2)
    config.grid.learning_rate = (2e-4,)
    config.update(
        steps=5 * steps_per_epoch, batch_size=500, train_size=train_size, eval_every=10, eval_size=256, snapshot_every=5
    )
    return config


def _two_layers(vocab_size: int, length: int, d_model: int, d_ff: int) -> dict:
    return base.transformer(
        vocab_size=vocab_size, max_length=length, d_model=d_model, d_head=d_model, d_ff=d_ff, activation="gelu",
        norm="none", final_norm=False,
    )  # fmt: skip


def _resize(config: ConfigDict, vocab_size: int, length: int, d_model: int) -> None:
    """Task and models of one size."""
    config.task.update(vocab_size=vocab_size, length=length)
    config.model.update(vocab_size=vocab_size, d_model=d_model)
    config.variants.two_layer.model = _two_layers(vocab_size, length, d_model, 4 * d_model)
