"""One row too large for a device: batch and parameters spread over the mesh's `data` axis.

    python -m lab plan --config=configs/large.py:full --simulate=8    # compiled only: what each device holds
    python -m lab train --config=configs/large.py:reduced --workdir=runs/large

Expect `full`, 126 million parameters, to hold an eighth of its 1.5 GB of parameters and moments on each of 8 devices.
`reduced` trains the same program at a size for two cores; its losses are those of unsplit rows up to rounding.
"""

from ml_collections import ConfigDict

from lab.configs import composition

PRESETS = ("full", "reduced")


def get_config(preset: str = "reduced") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    config = composition.smoke()
    config.update(preset=preset, split_params=True, block_width=1)
    config.variants = {}
    if preset == "full":
        config.model.update(n_layers=10, n_heads=16, d_model=1024, d_head=64, d_ff=4096)
        config.update(data_devices=8, batch_size=512, steps=1000, eval_every=100, checkpoint_every=100)
        config.grid.update(gamma=(0.5,), weight_decay=(0.1,), seed=(0,))
    else:
        config.model.update(d_model=256, d_head=256, d_ff=512)
        config.data_devices = 2
        config.grid.update(gamma=(0.5, 0.8), weight_decay=(0.1,), seed=(0,))
    return config
