"""How GPT-2, GPT-NeoX (Pythia) and Llama checkpoints name, lay out and configure what the lab's models compute.

Nothing is folded or centred: each tensor of a file is one leaf of ours, or three (joint query, key and value), with the
values it has there. Of a decoder the leaves are named layer by layer, `block_i/...`; `lab.tree.stack_layers` stacks
them.

| ours, in `block_i` | GPT-2, in `h.i` | GPT-NeoX, in `layers.i` | Llama, in `layers.i` |
|---|---|---|---|
| `attn_norm` | `ln_1` | `input_layernorm` | `input_layernorm` |
| `mlp_norm` | `ln_2` | `post_attention_layernorm` | `post_attention_layernorm` |
| `attn/query`, `/key`, `/value` | `attn.c_attn` | `attention.query_key_value` | `self_attn.q_proj`, `k_`, `v_` |
| `attn/out` | `attn.c_proj` | `attention.dense` | `self_attn.o_proj` |
| `mlp/in`, `mlp/gate` | `mlp.c_fc` | `mlp.dense_h_to_4h` | `mlp.up_proj`, `mlp.gate_proj` |
| `mlp/out` | `mlp.c_proj` | `mlp.dense_4h_to_h` | `mlp.down_proj` |
| `embed/token`, `/position` | `wte`, `wpe` | `embed_in` | `embed_tokens` |
| `final_norm` | `ln_f` | `final_layer_norm` | `norm` |
| `head` | the embedding | `embed_out` | `lm_head`, or the embedding |

Of GPT-2's joint matrix query, key and value are thirds, of GPT-NeoX' those of every head. GPT-2's model is a
`Transformer`, the others' a `Decoder`.
GPT-2's matrices are (in, out), as Flax's kernels; those of the others are transposed.
"""

from collections.abc import Mapping

from lab.models import checkpoint
from lab.models.checkpoint import Format, Tensor
from lab.models.decoder import Decoder
from lab.models.transformer import Transformer

ACTIVATION = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "tanh": "tanh"}
GATED = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


# --- GPT-2 ---


def _gpt2_model(config: Mapping) -> Transformer:
    d_model = config["n_embd"]
    return Transformer(
        vocab_size=config["vocab_size"], max_length=config["n_positions"], n_layers=config["n_layer"],
        n_heads=config["n_head"], d_model=d_model, d_head=d_model // config["n_head"],
        d_ff=config.get("n_inner") or 4 * d_model,
        activation=ACTIVATION[config.get("activation_function", "gelu_new")], norm="pre", use_bias=True,
        head_bias=False, final_norm=True, tied_head=True, readout="all",
    )  # fmt: skip


def _gpt2_tensors(model: Transformer) -> dict[str, Tensor]:
    d, f = model.d_model, model.d_ff
    found = {
        "wte.weight": Tensor((model.vocab_size, d), ("embed/token/embedding",)),
        "wpe.weight": Tensor((model.max_length, d), ("embed/position/embedding",)),
    }
    affine = {
        "attn.c_attn": ("attn/{}", d, 3 * d), "attn.c_proj": ("attn/out", d, d), "mlp.c_fc": ("mlp/in", d, f),
        "mlp.c_proj": ("mlp/out", f, d),
    }  # fmt: skip
    for i in range(model.n_layers):
        for name, norm in (("ln_1", "attn_norm"), ("ln_2", "mlp_norm")):
            found |= checkpoint.norm(f"h.{i}.{name}", f"block_{i}/{norm}", d)
        for name, (leaf, n_in, n_out) in affine.items():
            kind = checkpoint.thirds if "{}" in leaf else lambda shape, leaf: Tensor(shape, (leaf,))
            found[f"h.{i}.{name}.weight"] = kind((n_in, n_out), f"block_{i}/{leaf}/kernel")
            found[f"h.{i}.{name}.bias"] = kind((n_out,), f"block_{i}/{leaf}/bias")
    return found | checkpoint.norm("ln_f", "final_norm", d)


def _gpt2_config(model: Transformer | Decoder) -> dict | None:
    named = checkpoint.named(ACTIVATION, model)
    if not isinstance(model, Transformer) or named is None or model.n_heads * model.d_head != model.d_model:
        return None
    config = dict(
        model_type="gpt2", architectures=["GPT2LMHeadModel"], n_layer=model.n_layers, n_head=model.n_heads,
        n_embd=model.d_model, vocab_size=model.vocab_size, n_positions=model.max_length, n_inner=model.d_ff,
        activation_function=named, layer_norm_epsilon=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    return config if model.max_length and checkpoint.is_same(model, _gpt2_model(config)) else None


# --- GPT-NeoX ---


def _neox_model(config: Mapping) -> Decoder:
    return Decoder(
        **_sizes(config), activation=ACTIVATION[config.get("hidden_act", "gelu")], gated=False, norm_kind="layer",
        norm_eps=config.get("layer_norm_eps", 1e-5), use_bias=True,
        parallel=config.get("use_parallel_residual", True),
        rope_theta=float(checkpoint.first(config, "rotary_emb_base", "rope_theta", usual=10000.0)),
        rope_share=float(checkpoint.first(config, "rotary_pct", "partial_rotary_factor", usual=0.25)),
    )  # fmt: skip


def _sizes(config: Mapping) -> dict:
    n_heads, d_model = config["num_attention_heads"], config["hidden_size"]
    return dict(
        vocab_size=config["vocab_size"], max_length=config["max_position_embeddings"],
        n_layers=config["num_hidden_layers"], n_heads=n_heads, d_model=d_model,
        d_head=config.get("head_dim") or d_model // n_heads, d_ff=config["intermediate_size"],
        tied_head=config.get("tie_word_embeddings", False),
    )  # fmt: skip


def _neox_tensors(model: Decoder) -> dict[str, Tensor]:
    d, f = model.d_model, model.d_ff
    found = {"embed_in.weight": Tensor((model.vocab_size, d), ("embed/token/embedding",))}
    for i in range(model.n_layers):
        at, to = f"layers.{i}", f"block_{i}"
        found |= checkpoint.norm(f"{at}.input_layernorm", f"{to}/attn_norm", d)
        found |= checkpoint.norm(f"{at}.post_attention_layernorm", f"{to}/mlp_norm", d)
        for leaf, shape in (("kernel", (3 * d, d)), ("bias", (3 * d,))):
            name = {"kernel": "weight"}.get(leaf, leaf)
            joint = checkpoint.thirds_of_heads(model.n_heads, shape, f"{to}/attn/{{}}/{leaf}")
            found[f"{at}.attention.query_key_value.{name}"] = joint
        affine = {
            "attention.dense": ("attn/out", d, d), "mlp.dense_h_to_4h": ("mlp/in", f, d),
            "mlp.dense_4h_to_h": ("mlp/out", d, f),
        }  # fmt: skip
        for name, (leaf, n_out, n_in) in affine.items():
            found[f"{at}.{name}.weight"] = checkpoint.transposed((n_out, n_in), f"{to}/{leaf}/kernel")
            found[f"{at}.{name}.bias"] = Tensor((n_out,), (f"{to}/{leaf}/bias",))
    return found | checkpoint.norm("final_layer_norm", "final_norm", d) | _head("embed_out.weight", model)


def _head(name: str, model: Decoder) -> dict[str, Tensor]:
    return {} if model.tied_head else {name: checkpoint.transposed((model.vocab_size, model.d_model), "head/kernel")}


def _neox_config(model: Transformer | Decoder) -> dict | None:
    named = checkpoint.named(ACTIVATION, model)
    if not isinstance(model, Decoder) or named is None or model.n_heads * model.d_head != model.d_model:
        return None
    config = _of_sizes(model) | dict(
        model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], hidden_act=named, layer_norm_eps=model.norm_eps,
        use_parallel_residual=model.parallel, rotary_emb_base=model.rope_theta, rotary_pct=model.rope_share,
    )  # fmt: skip
    return config if not model.tied_head and checkpoint.is_same(model, _neox_model(config)) else None


def _of_sizes(model: Decoder) -> dict:
    return dict(
        vocab_size=model.vocab_size, max_position_embeddings=model.max_length or 2048,
        num_hidden_layers=model.n_layers, num_attention_heads=model.n_heads, hidden_size=model.d_model,
        intermediate_size=model.d_ff, tie_word_embeddings=model.tied_head,
    )  # fmt: skip


# --- Llama, and Qwen-3, which norms queries and keys ---


def _llama_model(config: Mapping) -> Decoder:
    return Decoder(
        **_sizes(config), n_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        activation=GATED[config.get("hidden_act", "silu")], norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(checkpoint.first(config, "rope_theta", usual=10000.0)),
        qk_norm=config["model_type"] == "qwen3",
    )  # fmt: skip


def _llama_tensors(model: Decoder) -> dict[str, Tensor]:
    d, k = model.d_model, model.d_head
    heads, groups = model.n_heads * k, model.n_key_heads * k
    matrices = {
        "self_attn.q_proj": ("attn/query", heads, d), "self_attn.k_proj": ("attn/key", groups, d),
        "self_attn.v_proj": ("attn/value", groups, d), "self_attn.o_proj": ("attn/out", d, heads),
        "mlp.gate_proj": ("mlp/gate", model.d_ff, d), "mlp.up_proj": ("mlp/in", model.d_ff, d),
        "mlp.down_proj": ("mlp/out", d, model.d_ff),
    }  # fmt: skip
    norms = {"input_layernorm": ("attn_norm", d), "post_attention_layernorm": ("mlp_norm", d)}
    if model.qk_norm:
        norms |= {"self_attn.q_norm": ("attn/query_norm", k), "self_attn.k_norm": ("attn/key_norm", k)}
    found = {"embed_tokens.weight": Tensor((model.vocab_size, d), ("embed/token/embedding",))}
    for i in range(model.n_layers):
        for name, (leaf, n_out, n_in) in matrices.items():
            found[f"layers.{i}.{name}.weight"] = checkpoint.transposed((n_out, n_in), f"block_{i}/{leaf}/kernel")
        for name, (leaf, size) in norms.items():
            found |= checkpoint.norm(f"layers.{i}.{name}", f"block_{i}/{leaf}", size, biased=False)
    return found | checkpoint.norm("norm", "final_norm", d, biased=False) | _head("lm_head.weight", model)


def _llama_config(model: Transformer | Decoder) -> dict | None:
    named = checkpoint.named(GATED, model)
    if not isinstance(model, Decoder) or named is None:
        return None
    kind, architecture = ("qwen3", "Qwen3ForCausalLM") if model.qk_norm else ("llama", "LlamaForCausalLM")
    config = _of_sizes(model) | dict(
        model_type=kind, architectures=[architecture], num_key_value_heads=model.n_key_heads, head_dim=model.d_head,
        hidden_act=named, rms_norm_eps=model.norm_eps, rope_theta=model.rope_theta, attention_bias=False,
    )  # fmt: skip
    return config if checkpoint.is_same(model, _llama_model(config)) else None


NEOX_NUMBERS = (
    "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
FORMATS = (
    Format(
        "GPT-2", ("gpt2",), "transformer.", "lm_head.weight", ("attn.bias", "attn.masked_bias"),
        ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"), ("n_inner",),
        {
            "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False, "tie_word_embeddings": True,
        },
        ("activation_function", ACTIVATION), _gpt2_model, _gpt2_tensors, _gpt2_config,
    ),
    Format(
        "GPT-NeoX", ("gpt_neox",), "gpt_neox.", "embed_out.weight",
        ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
        NEOX_NUMBERS, (), {"attention_bias": True, "tie_word_embeddings": False, "rope_scaling": None},
        ("hidden_act", ACTIVATION), _neox_model, _neox_tensors, _neox_config,
    ),
    Format(
        "Llama", ("llama", "qwen3"), "model.", "lm_head.weight",
        ("self_attn.rotary_emb.inv_freq",),
        NEOX_NUMBERS, ("num_key_value_heads", "head_dim"),
        {"attention_bias": False, "mlp_bias": False, "rope_scaling": None, "use_sliding_window": False},
        ("hidden_act", GATED), _llama_model, _llama_tensors, _llama_config,
    ),
)  # fmt: skip
