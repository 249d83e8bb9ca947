"""Reads trained weights from elsewhere; `lab.models.pretrained` says what becomes of them."""

import json
from pathlib import Path

import numpy as np

from lab.models import pretrained
from lab.models.pretrained import FLOATS, NUMBERS

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def gpt2(folder, readout: str = "all"):
    """`(model, params)` of the GPT-2 in `folder`: `model.safetensors` and `config.json`, as Hugging Face lays them out.

    What they are is said at `lab.models.pretrained.gpt2`. Text becomes ids elsewhere, for instance with the package
    `tokenizers` and the `tokenizer.json` beside the weights.

    Raises:
      ValueError: a file is missing or is not what its name says; the package safetensors is not installed; or, with the
        folder's name, what `lab.models.pretrained.gpt2` refuses.
    """
    folder = Path(folder)
    config, tensors = _config(_file(folder, CONFIG)), _tensors(_file(folder, WEIGHTS))
    try:
        return pretrained.gpt2(config, tensors, readout)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        holds = f"it holds {', '.join(found) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"no {name} in {folder}: {holds}; accepted: a folder with {WEIGHTS} (one file) and {CONFIG}")
    return folder / name


def _config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # undecodable text too
        raise ValueError(f"{path} is not JSON ({error}); accepted: GPT-2's {CONFIG}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; accepted: an object with {', '.join(NUMBERS)}")
    return config


def _tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ValueError("reading GPT-2 needs safetensors: pip install 'gammalab[pretrained]'") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({' '.join(str(error).split())})") from None
    except AttributeError as error:  # a type that numpy does not have
        raise ValueError(f"{path} holds a tensor of another type ({error}); accepted: {', '.join(FLOATS)}") from None
