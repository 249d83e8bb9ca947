"""What is trained and how, as plain values that travel to a worker process, and what the worker makes of them."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

MOST_STEPS = 1000  # of one call
# Two sizes of the two-anchor task and its transformer (9 tokens, 2 layers, 1 head), written out so that no preset of a
# study moves them; what is not said is as in `composition.TASK` and `base.transformer`.
BATCH_SIZE = 128
TASKS = {
    "small": {"low": 20, "high": 59, "vocab_size": 80},
    "demo": {"low": 20, "high": 99, "vocab_size": 201},
    "mamba": {"family": "inverse_matching"},
    "mamba_transformer": {"family": "inverse_matching"},
}
MODELS = {
    "small": {"vocab_size": 80, "d_model": 32, "d_head": 32, "d_ff": 64},
    "demo": {"vocab_size": 201, "d_model": 64, "d_head": 64, "d_ff": 128},
    # two layers of 43,000 parameters each, on the same sequences of 29 tokens; of a family, so all options are said
    "mamba": {
        "family": "mamba2", "vocab_size": 201, "max_length": 29, "n_layers": 2, "d_model": 64, "d_inner": 128,
        "d_state": 128, "n_heads": 1, "n_taps": 4, "conv": "learned", "past_conv": "none", "taps_follow_gamma": False,
        "has_positions": True, "norm": "pre", "final_norm": True, "readout": "last",
    },
    "mamba_transformer": {
        "family": "transformer", "vocab_size": 201, "max_length": 29, "n_layers": 2, "n_heads": 1, "d_model": 64,
        "d_head": 64, "d_ff": 207, "activation": "relu", "norm": "pre", "use_bias": False, "head_bias": False,
        "final_norm": True, "tied_head": False, "readout": "last",
    },
}  # fmt: skip

SINCE_LONG = ("small", "demo")  # sizes that earlier commits know, too


@dataclasses.dataclass(frozen=True)
class Workload:
    """One model of `configs/composition.py`, and one way of training it.

    Attributes:
      way: a name in `worker.WAYS`.
      accelerator: `cpu` or `gpu`.
      preset, variant: of the config; `changes` are made to its model, `task` to its task.
      batch_size: sequences a step, from an endless stream whatever the config says.
      rows, width: of way `grid`: rows on each device, and how many of them a vmap holds at once.
      chunk: steps that one call of a compiled program of ours trains; batches are drawn for a chunk at once.
      n_devices: of way `grid`, on a CPU one a core; 0 for all there are.
      threads: of a PyTorch process; 0 for PyTorch's default.
    """

    way: str
    accelerator: str
    preset: str
    variant: str
    changes: Mapping
    batch_size: int
    rows: int = 1
    width: int = 1
    chunk: int = 1
    n_devices: int = 0
    threads: int = 0
    task: Mapping = dataclasses.field(default_factory=dict)


class Way(NamedTuple):
    """A workload, ready to be timed.

    Attributes:
      n_rows: models that one step trains.
      run: trains `n` more steps, at most `MOST_STEPS`, waits for the device and returns the last loss.
      peak: floating-point operations a second of one large matrix product, in the same process and precision.
      chunk: `n` is rounded up to a multiple of it.
      device, n_devices: the name of its kind, and how many compute.
      memory: bytes that the program of its steps holds on one device, as XLA predicts; None: nobody says.
    """

    n_rows: int
    run: Callable[[int], float]
    peak: Callable[[], float]
    device: str
    n_devices: int
    chunk: int = 1
    memory: int | None = None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
