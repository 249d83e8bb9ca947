"""Provenance for `config.json`: whatever beside config and grid may change the numbers."""

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

import jax

import lab

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
GPU_DEFAULT = "default (a GPU multiplies float32 as TF32, a TPU as bfloat16; a CPU in float32)"


def provenance() -> dict:
    """Command, versions, devices, and how JAX multiplies and draws."""
    return {
        "command": _command(),
        "versions": {"gammalab": lab.__version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **numerics(),
    }


def numerics() -> dict:
    """What must be the same for a training to continue in the same numbers, beside config and grid."""
    precision = jax.config.jax_default_matmul_precision
    return {
        "device_kind": jax.devices()[0].device_kind,
        "matmul_precision": GPU_DEFAULT if precision in (None, "default") else precision,
        "random_bits": {"impl": "threefry2x32", "partitionable": jax.config.jax_threefry_partitionable},
    }


def _command() -> str:
    """What a user would type to run this process again."""
    program = Path(sys.argv[0])
    if program.name == "lab" or program.parts[-2:] == ("lab", "__main__.py"):
        return shlex.join(["python", "-m", "lab", *sys.argv[1:]])
    return f"from Python ({program.name})"
