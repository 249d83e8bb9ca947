"""One row too large for a device: batch and parameters spread over the mesh's `data` axis.

    python -m lab plan --config=large:full --simulate=8    # compiled only: what each device holds
    python -m lab train --config=large:reduced --workdir=runs/large
    python -m lab plan --config=large:language --variants=small_512 --simulate=8 --config.task.path=FILE
    python -m lab plan --config=large:language_2b --simulate=64 --config.data_devices=64 --config.task.path=FILE

FILE is any text of 50,000 characters or more; tokens of a real training come from `--config.task.tokenizer=FILE.json`.
Expect `full`, 126 million parameters, to hold an eighth of its 1.5 GB of parameters and moments on each of 8 devices.
`reduced` trains the same program at a size for two cores; its losses are those of unsplit rows up to rounding.
"""

from ml_collections import ConfigDict

from lab.configs import base, composition

get_config = base.get_config(__name__)

# Decoders from 50 M to 2.4 B parameters with 32,000 tokens, embedding and head counted. The sizes are those of
# "Scalable Complexity Control" (arXiv 2505.23013); what they are made of is our choice: heads of 64, SwiGLU of 2.75 d.
SIZES = {
    "50m": dict(n_layers=6, n_heads=8, d_model=512, d_head=64, d_ff=1408),
    "100m": dict(n_layers=8, n_heads=12, d_model=768, d_head=64, d_ff=2112),
    "200m": dict(n_layers=10, n_heads=16, d_model=1024, d_head=64, d_ff=2816),
    "400m": dict(n_layers=16, n_heads=20, d_model=1280, d_head=64, d_ff=3520),
    "800m": dict(n_layers=18, n_heads=28, d_model=1792, d_head=64, d_ff=4928),
    "2b": dict(n_layers=28, n_heads=40, d_model=2560, d_head=64, d_ff=7040),
}
LARGE_VOCABULARY, WINDOW = 32000, 2048


def reduced() -> ConfigDict:
    """The same program at a size for two CPU cores (not yet timed)."""
    config = _split()
    config.model.update(d_model=256, d_head=256, d_ff=512)
    config.data_devices = 2
    config.grid.gamma = (0.5, 0.8)
    return config


def language() -> ConfigDict:
    """Decoders of 50 million to 0.8 billion parameters, 10^9 tokens each, on 8 devices (not yet timed).

    To plan by: in 3,815 steps the decay of the large arm hardly acts. To compare arms, take `scaling_law:paper`.
    """
    return _language([size for size in SIZES if size != "2b"], batch_size=128, tokens=10**9)


def full() -> ConfigDict:
    """126 million parameters, for 8 devices (not yet timed)."""
    config = _split()
    config.model.update(n_layers=10, n_heads=16, d_model=1024, d_head=64, d_ff=4096)
    config.update(data_devices=8, batch_size=512, steps=1000, eval_every=100, checkpoint_every=100)
    config.grid.gamma = (0.5,)
    return config


def language_2b() -> ConfigDict:
    """A pair of decoders of 2.4 billion parameters, 10^12 tokens, on 64 devices (not yet timed); see docs/engine.md."""
    return _language(["2b"], batch_size=512, tokens=10**12)


def _language(sizes, batch_size: int, tokens: int) -> ConfigDict:
    """Small and large complexity at every size: variants `<arm>_<width>`, as study scaling_law reads them."""
    steps = -(-tokens // (batch_size * WINDOW))
    text = dict(hf_id="", path="", separator="line", tokenizer="char", vocab_size=LARGE_VOCABULARY, column="text")
    arms = {"small": dict(gamma=(1.0,), weight_decay=(1.0,)), "large": dict(gamma=(0.5,), weight_decay=(0.1,))}
    return base.config(
        study="scaling_law",
        task=dict(family="text", length=WINDOW, loss="all", valid_share=0.1, valid_path="", **text),
        model=base.decoder(vocab_size=LARGE_VOCABULARY, max_length=WINDOW, remat=True, compute_dtype="bfloat16"),
        optim=dict(warmup_steps=min(2000, steps // 20), decay_mask="matrices", b2=0.95),
        grid=dict(learning_rate=(3e-4,), seed=(0,)),
        variants={
            f"{arm}_{SIZES[size]['d_model']}": dict(model=SIZES[size], grid=grid)
            for size in sizes
            for arm, grid in arms.items()
        },
        steps=steps,
        batch_size=batch_size,
        eval_every=max(1, steps // 1000),
        eval_size=batch_size,
        checkpoint_every=max(1, steps // 200),
        data_devices=8,
        split_params=True,
        block_width=1,
    )


def _split() -> ConfigDict:
    config = composition.smoke()
    config.update(study="composition", split_params=True)
    config.grid.update(weight_decay=(0.1,), seed=(0,))
    config.variants = {}
    return config
