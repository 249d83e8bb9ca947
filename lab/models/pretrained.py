"""Trained weights from elsewhere as the lab's own models, so that every analysis applies to them unchanged; and back.

`lab.models.formats` says which tensor is which leaf, `lab.models.pretrained_files` reads and writes files.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import tree
from lab.models.checkpoint import Format, Tensor
from lab.models.decoder import Decoder
from lab.models.formats import FORMATS
from lab.models.transformer import READOUTS, Transformer

FLOATS = ("float32", "float16", "bfloat16")
WIDTHS, HEADS = ("n_embd", "hidden_size"), ("n_head", "num_attention_heads")
# options that every format leaves open
FREE = ("parent", "name", "vocab_size", "n_layers", "readout", "compute_dtype", "scan_layers", "remat")
NAMED = 3  # tensors an error names before it only counts


def gpt2(config: Mapping, tensors: Mapping[str, np.ndarray], readout: str = "all") -> tuple[Transformer, dict]:
    """As `read`, of GPT-2; its config may leave out `model_type`."""
    _refuse_others("model_type", config.get("model_type", "gpt2"), ("gpt2",))
    return read({**config, "model_type": "gpt2"}, tensors, readout)


def read(
    config: Mapping, tensors: Mapping[str, np.ndarray], readout: str = "all"
) -> tuple[Transformer | Decoder, dict]:
    """`(model, params)` of a checkpoint's config and tensors, by the names that Hugging Face gives them.

    `params` are float32 (half precision is widened, which is exact), for `models.forward(model, params, tokens_BxL)`
    with int32 token ids below `vocab_size`. GPT-2 is a `Transformer`; GPT-NeoX and Llama are a `Decoder`, whose layers
    are stacked. Names may carry the format's prefix (`transformer.`, `gpt_neox.`, `model.`).

    Raises:
      ValueError: the config is of no format of `lab.models.formats`, lacks a number or asks for what our models do not
        compute; a tensor is missing, unexpected, or of another shape or type; a tied head is not the token embedding;
        `readout` is unknown.
    """
    if readout not in READOUTS:
        raise ValueError(f"readout={readout!r}: one of {', '.join(READOUTS)}")
    form = format_of(config)
    model = form.model(config).clone(readout=readout)
    entries = named_tensors(form, model, tensors)
    _check_names(form, model, tensors, entries)
    _check_arrays(tensors, entries)
    _check_head(form, model, tensors, entries)
    leaves = {}
    for name, entry in entries.items():
        values = entry.split(np.asarray(tensors[name]).astype(np.float32))
        leaves |= dict(zip(entry.leaves, map(jnp.asarray, values), strict=True))
    params = _nested(leaves)
    return model, tree.stack_layers(params) if isinstance(model, Decoder) and model.scan_layers else params


def tensors_of(form: Format, model: Transformer | Decoder, params) -> dict[str, np.ndarray]:
    """The inverse of `read`: name, without prefix, of every tensor, float32."""
    layers = params if tree.STACKED not in params else tree.unstack_layers(params)
    leaves = {name: np.asarray(leaf, np.float32) for name, leaf in tree.named_leaves(layers).items()}
    return {
        name: np.ascontiguousarray(entry.join([leaves[leaf] for leaf in entry.leaves]))
        for name, entry in form.tensors(model).items()
    }


def format_of(config: Mapping) -> Format:
    """The format that a config is of.

    Raises:
      ValueError: none, it lacks a number, or asks for what our models do not compute.
    """
    known = {kind: form for form in FORMATS for kind in form.model_types}
    _refuse_others("model_type", config.get("model_type"), known)
    form = known[config["model_type"]]
    for name in form.numbers:
        if name not in config:
            raise ValueError(f"the config lacks {name}; it must give {', '.join(form.numbers)}")
    for name in (*form.numbers, *form.optional):
        value = config.get(name)
        if name in form.optional and value is None:  # the format's way to leave it to the other sizes
            continue
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}; accepted: a positive integer")
    for name, value in form.computed.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name}={config[name]!r}; accepted: {value!r}")
    rope = config.get("rope_parameters") or {}
    _refuse_others("rope_parameters.rope_type", rope.get("rope_type", "default"), ("default",))
    width, n_heads = (next(name for name in names if name in form.numbers) for names in (WIDTHS, HEADS))
    if config[width] % config[n_heads] and not config.get("head_dim"):
        raise ValueError(f"{width}={config[width]} is not a multiple of {n_heads}={config[n_heads]}")
    option, accepted = form.activations
    _refuse_others(option, config.get(option, next(iter(accepted))), accepted)
    return form


def format_for(model) -> tuple[Format, dict]:
    """The format that can say a model, and the config that says it.

    Raises:
      ValueError: none can.
    """
    for form in FORMATS if isinstance(model, Transformer | Decoder) else ():
        if (config := form.config(model)) is not None:
            return form, config
    raise ValueError(
        f"{_said(model)}: no format says such a model; accepted: a Transformer as GPT-2 (norm='pre', use_bias, "
        "final_norm, tied_head, attention unchanged), a Decoder as GPT-NeoX (gated=False, norm_kind='layer', use_bias) "
        "or as Llama and Qwen-3 (gated, norm_kind='rms'), without embed_norm and sandwich_norm"
    )


def _said(model) -> str:
    """A model's kind, and of those that may have a format the options that decide, for people."""
    kind = type(model).__name__
    if not isinstance(model, Transformer | Decoder):
        return kind
    options = (field.name for field in dataclasses.fields(model) if field.name not in FREE)
    return f"{kind} " + ", ".join(f"{name}={getattr(model, name)!r}" for name in options)


def named_tensors(form: Format, model: Transformer | Decoder, names) -> dict[str, Tensor]:
    """The tensors of a model, with a prefix where the names given have it."""
    prefix = form.prefix if any(name.startswith(form.prefix) for name in names) else ""
    return {name if name == form.head else prefix + name: entry for name, entry in form.tensors(model).items()}


def is_constant(form: Format, name: str) -> bool:
    """Whether a tensor of a layer is none of its parameters."""
    return re.sub(r"^.*?\.\d+\.", "", name) in form.constants


def _refuse_others(option: str, value, accepted) -> None:
    if value not in accepted:
        one = repr(next(iter(accepted)))
        raise ValueError(f"{option}={value!r}; accepted: {one if len(accepted) == 1 else ', '.join(accepted)}")


def _check_names(form: Format, model, tensors, entries) -> None:
    missing = [name for name in entries if name not in tensors]
    if missing:
        raise ValueError(f"missing tensors: {_few(missing)}; found {len(tensors)} tensors: {_few(sorted(tensors))}")
    unexpected = [
        name for name in sorted(tensors) if name not in entries and name != form.head and not is_constant(form, name)
    ]
    if unexpected:
        raise ValueError(
            f"unexpected tensors: {_few(unexpected)}; accepted: the {len(entries)} of a {form.title} with the config's "
            f"layers, {form.head} and the constants {' and '.join(form.constants)}"
        )


def _check_arrays(tensors, entries) -> None:
    for name, entry in entries.items():
        found = tensors[name]
        if found.shape != entry.shape:
            raise ValueError(f"{name} has shape {found.shape}; accepted by the config: {entry.shape}")
        if found.dtype.name not in FLOATS:
            raise ValueError(f"{name} is {found.dtype.name}; accepted: {', '.join(FLOATS)}")


def _check_head(form: Format, model, tensors, entries) -> None:
    """A copy of the embedding may stand where the head of a tied model would."""
    if not model.tied_head or form.head not in tensors:
        return
    embedding = next(name for name, entry in entries.items() if entry.is_embedding)
    if not np.array_equal(tensors[form.head], tensors[embedding]):
        raise ValueError(f"{form.head} differs from {embedding}; accepted: a head tied to the embedding")


def _few(names) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _nested(leaves: Mapping[str, jax.Array]) -> dict:
    """`{"a/b": leaf}` -> `{"a": {"b": leaf}}`."""
    nested = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = leaf
    return nested
