"""Reads trained weights from elsewhere, and writes the lab's own as such; `lab.models.formats` says what becomes what.

A folder is laid out as Hugging Face does: `config.json` beside `model.safetensors`, or beside shards that
`model.safetensors.index.json` names. Text becomes ids elsewhere, for instance with the package `tokenizers` and the
`tokenizer.json` beside the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lab.models import checkpoint, pretrained
from lab.models.pretrained import FLOATS

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SHARD = "model-{:05d}-of-{:05d}.safetensors"
LARGEST_SHARD = 5 * 10**9  # bytes
METADATA = {"format": "pt"}  # which PyTorch's readers want to see


class File(NamedTuple):
    """One safetensors file."""

    metadata: dict[str, str] | None
    tensors: dict[str, np.ndarray]


def read(folder, readout: str = "all"):
    """`(model, params)` of the GPT-2, GPT-NeoX (Pythia) or Llama in `folder`; see `lab.models.pretrained.read`.

    Raises:
      ValueError: a file is missing or is not what its name says; the package safetensors is not installed; or, with the
        folder's name, what `lab.models.pretrained.read` refuses.
    """
    return _read(folder, readout, pretrained.read)


def gpt2(folder, readout: str = "all"):
    """As `read`, of GPT-2 alone."""
    return _read(folder, readout, pretrained.gpt2)


def write(model, params, folder, like=None, dtype: str = "float32", largest_shard: int = LARGEST_SHARD) -> list[Path]:
    """Writes parameters as a checkpoint that `read`, and Hugging Face's own code, reads; the files written.

    Args:
      model, params: a `Transformer` that is a GPT-2, or a `Decoder` that is a GPT-NeoX or a Llama, and a row of it.
      folder: a new one, or one without such files.
      like: a folder that `read` reads; names, dtypes, shards, config and constants are then its own, so that what was
        read from it is written bit for bit.
      dtype: of all tensors, without `like`: float32, float16 or bfloat16; to half precision values are rounded.
      largest_shard: bytes; more become several files and an index, without `like`.

    Raises:
      ValueError: no format says such a model, or `like` is of another one; the folder holds a checkpoint; an unknown
        dtype; the package safetensors is not installed.
    """
    folder = Path(folder)
    if dtype not in FLOATS:
        raise ValueError(f"dtype={dtype!r}; accepted: {', '.join(FLOATS)}")
    if there := [name for name in (CONFIG, WEIGHTS, INDEX) if (folder / name).exists()]:
        raise ValueError(f"{folder} holds {', '.join(there)}; give a new folder, nothing is written over")
    if like is None:
        texts, files = _fresh(model, params, dtype, largest_shard)
    else:
        texts, files = _alike(model, params, Path(like))
    folder.mkdir(parents=True, exist_ok=True)
    save_file = _safetensors().numpy.save_file
    for name, file in files.items():
        save_file(file.tensors, folder / name, file.metadata)
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return [folder / name for name in (*files, *texts)]


def _read(folder, readout: str, what):
    folder = Path(folder)
    config = _config(_file(folder, CONFIG))
    tensors = {name: array for file in _files(folder).values() for name, array in file.tensors.items()}
    try:
        return what(config, tensors, readout)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _fresh(model, params, dtype: str, largest_shard: int) -> tuple[dict[str, bytes], dict[str, File]]:
    """Texts and files of a checkpoint, by their names."""
    form, config = pretrained.format_for(model)
    bare = pretrained.tensors_of(form, model, params)
    tensors = {
        name if name == form.head else form.prefix + name: array.astype(jnp.dtype(dtype))
        for name, array in bare.items()
    }
    shards, room = [{}], largest_shard
    for name, array in tensors.items():
        if array.nbytes > room and shards[-1]:
            shards, room = [*shards, {}], largest_shard
        shards[-1][name] = array
        room -= array.nbytes
    names = [SHARD.format(i + 1, len(shards)) for i in range(len(shards))] if len(shards) > 1 else [WEIGHTS]
    texts = {CONFIG: config | {"dtype": dtype, "torch_dtype": dtype}}
    if len(shards) > 1:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(array.nbytes for array in tensors.values())
        texts[INDEX] = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    files = {name: File(METADATA, shard) for name, shard in zip(names, shards, strict=True)}
    return {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in texts.items()}, files


def _alike(model, params, like: Path) -> tuple[dict[str, bytes], dict[str, File]]:
    """Those of the folder `like`, with other weights."""
    config, files = _config(_file(like, CONFIG)), _files(like)
    try:
        form = pretrained.format_of({"model_type": "gpt2"} | config)
    except ValueError as error:
        raise ValueError(f"{like}: {error}") from None
    said = form.model(config)
    if not checkpoint.is_same(model, said):
        raise ValueError(f"{like} is of another model: {said}; given: {model}")
    held = [name for file in files.values() for name in file.tensors]
    mine = pretrained.tensors_of(form, model, params)
    named = {name: mine[name.removeprefix(form.prefix)] for name in pretrained.named_tensors(form, said, held)}
    if said.tied_head:
        named[form.head] = mine[next(name for name, entry in form.tensors(said).items() if entry.is_embedding)]

    def changed(name, array):
        return named[name].astype(array.dtype) if name in named else array

    written = {
        name: File(file.metadata, {tensor: changed(tensor, array) for tensor, array in file.tensors.items()})
        for name, file in files.items()
    }
    texts = {name: (like / name).read_bytes() for name in (CONFIG, INDEX) if (like / name).is_file()}
    return texts, written


def _files(folder: Path) -> dict[str, File]:
    """The safetensors files of a folder, by name."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return {WEIGHTS: _tensors(_file(folder, WEIGHTS))}
    index = _config(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map of tensors to files")
    files = {name: _tensors(_file(folder, name)) for name in sorted(set(places.values()))}
    for tensor, name in places.items():
        if tensor not in files[name].tensors:
            raise ValueError(f"{folder / name} lacks {tensor}, which {INDEX} says it holds")
    return files


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        holds = f"it holds {', '.join(found) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise ValueError(
            f"no {name} in {folder}: {holds}; accepted: a folder with {CONFIG} and {WEIGHTS}, or shards and {INDEX}"
        )
    return folder / name


def _config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # undecodable text too
        raise ValueError(f"{path} is not JSON ({error}); accepted: a checkpoint's {path.name}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; accepted: an object")
    return config


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError:
        raise ValueError("reading and writing weights needs safetensors: pip install 'gammalab[pretrained]'") from None
    return safetensors


def _tensors(path: Path) -> File:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return File(file.metadata(), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({' '.join(str(error).split())})") from None
    except AttributeError as error:  # a type that numpy does not have
        raise ValueError(f"{path} holds a tensor of another type ({error}); accepted: {', '.join(FLOATS)}") from None
