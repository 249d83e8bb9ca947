"""Trained weights from elsewhere as the lab's own transformer, so that every analysis applies to them unchanged.

`pretrained_files` reads them. Nothing is folded or centred: each tensor of the file becomes one leaf (the joint
query-key-value matrix three), with the values it has there. GPT-2 is `Transformer` with pre-norm, biases, a final norm
and a tied head without bias; the score is q.k / sqrt(d_head), every LayerNorm has eps 1e-5, and "gelu_new" is our
`gelu_tanh`.

| GPT-2                   | ours                                                      |
|---|---|
| `wte`, `wpe`            | `embed/token`, `embed/position`                           |
| `h.i.ln_1`, `h.i.ln_2`  | `block_i/attn_norm`, `block_i/mlp_norm`: `weight` is `scale` |
| `h.i.attn.c_attn`       | `block_i/attn/query`, `/key`, `/value`: thirds of its columns |
| `h.i.attn.c_proj`       | `block_i/attn/out`                                        |
| `h.i.mlp.c_fc`          | `block_i/mlp/in`                                          |
| `h.i.mlp.c_proj`        | `block_i/mlp/out`                                         |
| `ln_f`                  | `final_norm`                                              |

GPT-2's "Conv1D" matrices are (in, out), as Flax's kernels: none is transposed.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from lab.models.transformer import READOUTS, Transformer

NUMBERS = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")  # config.json must hold these
ACTIVATION = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "tanh": "tanh"}
# What our transformer computes; the values are also the format's own defaults, for a config.json without them.
COMPUTED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
FLOATS = ("float32", "float16", "bfloat16")
MASKS = r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"  # constants that some files keep beside the weights
NAMED = 3  # tensors an error names before it only counts


def gpt2(config: Mapping, tensors: Mapping[str, np.ndarray], readout: str = "all") -> tuple[Transformer, dict]:
    """`(model, params)` of GPT-2's config and tensors, by the names that Hugging Face gives them.

    `params` are float32 (half precision is widened, which is exact), for `models.forward(model, params, tokens_BxL)`
    with int32 token ids below `vocab_size` and L <= `n_positions`. Names may carry the prefix `transformer.`.

    Raises:
      ValueError: the config lacks a number or asks for what our transformer does not compute; a tensor is missing,
        unexpected, or of another shape or type; the head is not the token embedding; `readout` is unknown.
    """
    if readout not in READOUTS:
        raise ValueError(f"readout={readout!r}: one of {', '.join(READOUTS)}")
    _check_config(config)
    model = _model(config, readout)
    prefix = "transformer." if any(name.startswith("transformer.") for name in tensors) else ""
    shapes = {prefix + name: shape for name, shape in _shapes(model).items()}
    _check_names(tensors, shapes)
    _check_arrays(tensors, shapes)
    head, wte = tensors.get("lm_head.weight"), tensors[prefix + "wte.weight"]
    if head is not None and not np.array_equal(head, wte):
        raise ValueError(f"lm_head.weight differs from {prefix}wte.weight; accepted: a head tied to the embedding")
    return model, _params(
        model, {name.removeprefix(prefix): jnp.asarray(tensors[name], jnp.float32) for name in shapes}
    )


def _check_config(config: Mapping) -> None:
    for name in NUMBERS:
        if name not in config:
            raise ValueError(f"the config lacks {name}; it must give {', '.join(NUMBERS)}")
    for name in (*NUMBERS, "n_inner"):
        value = config.get(name)
        if name == "n_inner" and value is None:  # the format's way to say 4 n_embd
            continue
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}; accepted: a positive integer")
    for name, value in COMPUTED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name}={config[name]!r}; accepted: {value!r}")
    if config["n_embd"] % config["n_head"]:
        raise ValueError(f"n_embd={config['n_embd']} is not a multiple of n_head={config['n_head']}")
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATION:
        raise ValueError(f"activation_function={activation!r}; accepted: {', '.join(ACTIVATION)}")


def _model(config: dict, readout: str) -> Transformer:
    d_model = config["n_embd"]
    return Transformer(
        vocab_size=config["vocab_size"],
        max_length=config["n_positions"],
        n_layers=config["n_layer"],
        n_heads=config["n_head"],
        d_model=d_model,
        d_head=d_model // config["n_head"],
        d_ff=config.get("n_inner") or 4 * d_model,
        activation=ACTIVATION[config.get("activation_function", "gelu_new")],
        norm="pre",
        use_bias=True,
        head_bias=False,
        final_norm=True,
        tied_head=True,
        readout=readout,
    )


def _shapes(model: Transformer) -> dict[str, tuple[int, ...]]:
    """Name, without prefix, and shape of every tensor that GPT-2 must hold."""
    d, f = model.d_model, model.d_ff
    shapes = {"wte.weight": (model.vocab_size, d), "wpe.weight": (model.max_length, d)}
    affine = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, f), "mlp.c_proj": (f, d)}
    for i in range(model.n_layers):
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{name}.weight": (d,), f"h.{i}.{name}.bias": (d,)}
        for name, (n_in, n_out) in affine.items():
            shapes |= {f"h.{i}.{name}.weight": (n_in, n_out), f"h.{i}.{name}.bias": (n_out,)}
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def _check_names(tensors, shapes) -> None:
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise ValueError(f"missing tensors: {_few(missing)}; found {len(tensors)} tensors: {_few(sorted(tensors))}")
    unexpected = [
        name
        for name in sorted(tensors)
        if name not in shapes and name != "lm_head.weight" and not re.fullmatch(MASKS, name)
    ]
    if unexpected:
        raise ValueError(
            f"unexpected tensors: {_few(unexpected)}; accepted: the {len(shapes)} of a GPT-2 with the config's layers, "
            "lm_head.weight and the constants attn.bias and attn.masked_bias"
        )


def _check_arrays(tensors, shapes) -> None:
    for name, shape in shapes.items():
        found = tensors[name]
        if found.shape != shape:
            raise ValueError(f"{name} has shape {found.shape}; accepted by the config: {shape}")
        if found.dtype.name not in FLOATS:
            raise ValueError(f"{name} is {found.dtype.name}; accepted: {', '.join(FLOATS)}")


def _few(names) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _params(model: Transformer, tensors) -> dict:
    def norm(name):
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def affine(name):
        return {"kernel": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def attention(name):
        thirds = {leaf: jnp.split(joint, 3, axis=-1) for leaf, joint in affine(f"{name}.c_attn").items()}
        qkv = {part: {leaf: thirds[leaf][i] for leaf in thirds} for i, part in enumerate(("query", "key", "value"))}
        return qkv | {"out": affine(f"{name}.c_proj")}

    def block(name):
        return {
            "attn_norm": norm(f"{name}.ln_1"),
            "attn": attention(f"{name}.attn"),
            "mlp_norm": norm(f"{name}.ln_2"),
            "mlp": {"in": affine(f"{name}.mlp.c_fc"), "out": affine(f"{name}.mlp.c_proj")},
        }

    embed = {"token": {"embedding": tensors["wte.weight"]}, "position": {"embedding": tensors["wpe.weight"]}}
    blocks = {f"block_{i}": block(f"h.{i}") for i in range(model.n_layers)}
    return {"embed": embed, **blocks, "final_norm": norm("ln_f")}
