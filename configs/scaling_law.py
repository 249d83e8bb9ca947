"""Scaling laws under complexity control: language models of several widths, one pass over a text.

    python -m lab reproduce scaling_law --preset=cpu --config.task.path=FILE        # 5 minutes on two CPU cores

At `record` small complexity costs 0.08 nats and saves no tokens (SL2a and SL3 do not hold); its queries are of lower
rank (SL5a holds), and its lag is smaller at width 128 than at 16 (SL2b holds), not than at 40.

FILE is any text, plain, .xz or .gz, .jsonl or .parquet, or a folder of such; `--config.task.hf_id=NAME` in its place
downloads it (extra `text`). Of TinyStories a document is `--config.task.separator=endoftext`.

Paper: "Scalable Complexity Control" (arXiv 2505.23013), whose layer tables, learning rates, batches and corpus were not
to be had, and its successor (arXiv 2606.17945). What we chose: docs/scaling_law.md.

Variants are named `<arm>_<width>`, `eps_<width>` (small complexity with an epsilon of 1e-5 in norms) and `tune_<arm>`.
"""

from ml_collections import ConfigDict

from lab.configs import base, large

get_config = base.get_config(__name__)

FIVE, EIGHT = (1, 2, 3, 4, 5), tuple(range(1, 9))  # learning rates were chosen with seed 0
DECAYS = {"small": 1.0, "large": 0.1, "sigma": 0.1}  # arm -> weight decay
# arm -> learning rate at width 8: that of the lowest loss, see docs/scaling_law.md; the same for all, as it turned out
RATES = {"small": 1e-2, "large": 1e-2, "sigma": 1e-2}
TUNED = (0.5, 1.0, 2.0)  # what variants `tune_<arm>` multiply it by
COARSE_EPS = 1e-5
TEXT = dict(
    family="text",
    path="",
    hf_id="",
    separator="line",
    tokenizer="char",
    vocab_size=64,
    length=64,
    loss="all",
    valid_share=0.1,
    valid_path="",
    column="text",
    windows="packed",
)


def smoke() -> ConfigDict:
    """Seconds, on any text of some thousand characters; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = _sized((4, 8, 12), steps=8, batch_size=2, length=16, seeds=(0, 1), tuned=TUNED[:2])
    config.optim.least_decay = 0.0
    config.update(eval_every=2, eval_size=16)
    config.variants.eps_12 = _coarse(config.variants.small_12)
    return config


def cpu() -> ConfigDict:
    """5 minutes on two CPU cores; needs --config.task.path=FILE.

    Of 1.2 million characters or more. Widths 8 to 64 and a million characters, 800 to 12 a parameter: directions only.

    Decides SL1, SL2a, SL2b, SL3, SL5a, SL5b, SL6.
    """
    return _sized((8, 16, 24, 40, 64), steps=8000, batch_size=2, length=64, seeds=FIVE, tuned=TUNED)


def record() -> ConfigDict:
    """26 minutes on two CPU cores; needs --config.task.path=FILE of 2.5 million characters or more.

    Widths 16 to 128 and two million characters, 400 to 6 a parameter.

    Decides SL1, SL2a, SL2b, SL3, SL4b, SL5a, SL5b, SL6.
    """
    rates = {arm: rate / 2 for arm, rate in RATES.items()}  # at width 16
    config = _sized((16, 24, 40, 64, 128), 16_000, 2, 64, EIGHT, TUNED, rates)
    config.variants.eps_64 = _coarse(config.variants.small_64)
    return config


def gpu() -> ConfigDict:
    """Hours on one GPU (not yet timed); needs --config.task.path=FILE of some 100 MB.

    Widths 64 to 1024 and 20 million tokens of a small vocabulary; TinyStories is long enough. Rates are a guess.

    Decides all claims.
    """
    rates = dict.fromkeys(DECAYS, 4e-3)
    config = _sized((64, 128, 256, 512, 1024), 40_000, 4, 128, FIVE, TUNED, rates, n_layers=4, vocab_size=4096)
    for width in (64, 256):
        config.variants[f"eps_{width}"] = _coarse(config.variants[f"small_{width}"])
    return config


def paper() -> ConfigDict:
    """50 million to 0.8 billion parameters, 10^9 tokens (not yet timed): days on several GPUs.

    Layers, batch and learning rate are not published: ours. 16 GB of memory hold the training windows.

    Decides no claim: three seeds.
    """
    sizes = {options["d_model"]: options for name, options in large.SIZES.items() if name != "2b"}
    rates = dict.fromkeys(DECAYS, 1e-3)
    config = _sized(tuple(sizes), 35_000, 14, large.WINDOW, (1, 2, 3), (), rates, vocab_size=large.LARGE_VOCABULARY)
    for variant in config.variants.values():
        variant.model.update(sizes[variant.model.d_model])
    config.model.update(compute_dtype="bfloat16", remat=True)
    return config


def _sized(
    widths, steps: int, batch_size: int, length: int, seeds, tuned, rates=RATES, n_layers=2, vocab_size=64
) -> ConfigDict:
    """Every arm at every width, one pass over steps x batch_size x length tokens.

    Args:
      tuned: by what its rate is multiplied in further trainings of the smallest width, by seed 0; (): there are none.
      rates: arm -> learning rate at the smallest width; it falls as 1 / width.
      vocab_size: from that of bytes on, pieces of words; below, characters.
    """
    config = base.config(
        task=TEXT | dict(length=length, vocab_size=vocab_size, tokenizer="bpe" if vocab_size > 256 else "char"),
        model=base.decoder(vocab_size=vocab_size, max_length=length, n_layers=n_layers),
        optim=dict(warmup_steps=max(1, steps // 20), decay_mask="matrices", least_decay=1.0),
        grid=dict(seed=seeds),
        steps=steps,
        batch_size=batch_size,
        train_size=steps * batch_size,
        eval_every=max(1, steps // 10),
        eval_size=256,
        snapshots=2,
        checkpoint_every=steps,
    )
    smallest, variants = min(widths), {}
    for arm, rate in rates.items():
        for width in widths:
            grid = _arm(arm, max(widths), (rate * smallest / width,))
            variants[f"{arm}_{width}"] = dict(model=_model(width), grid=grid)
        if tuned:
            grid = _arm(arm, max(widths), tuple(factor * rate for factor in tuned)) | dict(seed=(0,))
            variants[f"tune_{arm}"] = dict(model=_model(smallest), grid=grid)
    config.variants = ConfigDict(variants)
    return config


def _arm(arm: str, widest: int, learning_rate: tuple) -> dict:
    start = {"small": dict(gamma=(1.0,)), "large": dict(gamma=(0.5,))}
    # one std at all widths: that of the large arm at the largest, where both are the same
    sigma = dict(gamma=(), sigma=(widest**-0.5,))
    return start.get(arm, sigma) | dict(weight_decay=(DECAYS[arm],), learning_rate=learning_rate)


def _model(width: int) -> dict:
    """Heads of some 16 channels, of 64 in wide models; 10 width^2 parameters a layer."""
    n_heads = width // 64 if width > 256 else max(1, width // 16)
    return dict(d_model=width, n_heads=n_heads, d_head=width // n_heads, d_ff=2 * width)


def _coarse(variant: ConfigDict) -> ConfigDict:
    """With an epsilon of 1e-5 in norms."""
    changed = ConfigDict(variant.to_dict())
    changed.model.norm_eps = COARSE_EPS
    return changed
