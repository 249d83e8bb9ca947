"""What a checkpoint's format says: tensors and the leaves that they hold, and models and the configs that say them."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from lab.models.decoder import Decoder
from lab.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
      shape: in the file.
      leaves: those of ours that it holds.
      split: the tensor -> their values.
      join: the inverse.
    """

    shape: tuple[int, ...]
    leaves: tuple[str, ...]
    split: Callable = lambda array: (array,)
    join: Callable = lambda values: values[0]

    @property
    def is_embedding(self) -> bool:
        """Of tokens, which a tied head is, too."""
        return self.leaves == ("embed/token/embedding",)


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of checkpoint.

    Attributes:
      title: for people.
      model_types: those of its configs.
      prefix: that names of all tensors but the head's may carry.
      head: name of the head's tensor, which a model with a tied one may have, too, as a copy.
      constants: of every layer, that are no parameters, and that some files keep beside the weights.
      numbers: what the config must give, positive integers; optional: positive integers that it may give.
      computed: option -> the value of it that our model computes, and that stands for a missing one.
      activations: option, and its values -> ours.
      model: config -> model.
      tensors: model -> name, without prefix, of every tensor.
      config: model -> config; None of a model that the format cannot say.
    """

    title: str
    model_types: tuple[str, ...]
    prefix: str
    head: str
    constants: tuple[str, ...]
    numbers: tuple[str, ...]
    optional: tuple[str, ...]
    computed: Mapping
    activations: tuple[str, Mapping[str, str]]
    model: Callable[[Mapping], Transformer | Decoder]
    tensors: Callable[[Transformer | Decoder], dict[str, Tensor]]
    config: Callable[[Transformer | Decoder], dict | None]


# --- tensors ---


def transposed(shape, leaf: str) -> Tensor:
    return Tensor(shape, (leaf,), lambda array: (array.T,), lambda values: values[0].T)


def thirds(shape, leaf: str) -> Tensor:
    """Query, key and value side by side."""
    leaves = tuple(leaf.format(part) for part in ("query", "key", "value"))
    return Tensor(shape, leaves, lambda a: tuple(np.split(a, 3, axis=-1)), lambda values: np.concatenate(values, -1))


def thirds_of_heads(n_heads: int, shape, leaf: str) -> Tensor:
    """Query, key and value of every head below each other: (H 3 K, D), or (H 3 K)."""
    leaves = tuple(leaf.format(part) for part in ("query", "key", "value"))

    def split(array):
        parts = np.moveaxis(array.reshape(n_heads, 3, -1, *array.shape[1:]), 1, 0)
        return tuple(part.reshape(-1, *array.shape[1:]).T for part in parts)

    def join(values):
        parts = [value.T.reshape(n_heads, -1, *value.T.shape[1:]) for value in values]
        return np.stack(parts, axis=1).reshape(shape)

    return Tensor(shape, leaves, split, join)


def norm(name: str, leaf: str, d: int, biased: bool = True) -> dict[str, Tensor]:
    """Gain, and bias, of a norm over d channels."""
    words = {"weight": "scale", "bias": "bias"} if biased else {"weight": "scale"}
    return {f"{name}.{theirs}": Tensor((d,), (f"{leaf}/{ours}",)) for theirs, ours in words.items()}


# --- configs and models ---


def first(config: Mapping, *names: str, usual):
    """Of an option with several names; some configs keep it among `rope_parameters`."""
    within = config.get("rope_parameters") or {}
    return next((place[name] for place in (config, within) for name in names if name in place), usual)


def named(activations: Mapping[str, str], model) -> str | None:
    """What a format calls a model's activation."""
    return next((name for name, ours in activations.items() if ours == model.activation), None)


def is_same(model: Transformer | Decoder, said: Transformer | Decoder) -> bool:
    """Whether two models are one function of one tree of parameters, however it is computed."""
    if type(model) is not type(said):
        return False
    changes = dict(readout=said.readout, compute_dtype=said.compute_dtype)
    if isinstance(said, Decoder):
        if model.n_key_heads != said.n_key_heads:
            return False
        names = ("n_kv_heads", "scan_layers", "remat", "max_length")  # of sequences: it has no positions
        changes |= {name: getattr(said, name) for name in names}
    return model.clone(**changes) == said
