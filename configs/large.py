"""One row too large for a device: batch and parameters spread over the mesh's `data` axis.

    python -m lab plan --config=large:full --simulate=8    # compiled only: what each device holds
    python -m lab train --config=large:reduced --workdir=runs/large

Expect `full`, 126 million parameters, to hold an eighth of its 1.5 GB of parameters and moments on each of 8 devices.
`reduced` trains the same program at a size for two cores; its losses are those of unsplit rows up to rounding.
"""

from ml_collections import ConfigDict

from lab.configs import base, composition

get_config = base.get_config(__name__)


def reduced() -> ConfigDict:
    """The same program at a size for two CPU cores (not yet timed)."""
    config = _split()
    config.model.update(d_model=256, d_head=256, d_ff=512)
    config.data_devices = 2
    config.grid.gamma = (0.5, 0.8)
    return config


def full() -> ConfigDict:
    """126 million parameters, for 8 devices (not yet timed)."""
    config = _split()
    config.model.update(n_layers=10, n_heads=16, d_model=1024, d_head=64, d_ff=4096)
    config.update(data_devices=8, batch_size=512, steps=1000, eval_every=100, checkpoint_every=100)
    config.grid.gamma = (0.5,)
    return config


def _split() -> ConfigDict:
    config = composition.smoke()
    config.update(study="composition", split_params=True)
    config.grid.update(weight_decay=(0.1,), seed=(0,))
    config.variants = {}
    return config
