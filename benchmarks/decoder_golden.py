"""Makes tests/models/decoder_golden.npz: logits that transformers computes with weights and configs kept beside them.

    python benchmarks/decoder_golden.py          # needs torch and transformers

Tiny random GPT-2, GPT-NeoX (parallel and not), Llama (grouped heads; tied head) and Qwen-3 (normed queries and keys),
in float32, attention as plain products. Weights have transformers' own names and layout.
"""

import importlib.metadata
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen3Config

TO = Path(__file__).parents[1] / "tests" / "models" / "decoder_golden.npz"
B, L = 2, 7
SIZES = dict(
    vocab_size=11, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=8,
)  # fmt: skip
GROUPED = SIZES | dict(num_attention_heads=4, num_key_value_heads=2)
MODELS = {
    "gpt2": GPT2Config(vocab_size=11, n_positions=8, n_embd=16, n_layer=2, n_head=2, n_inner=12),
    "neox": GPTNeoXConfig(**SIZES),
    "neox one after the other": GPTNeoXConfig(**SIZES, use_parallel_residual=False, rotary_pct=0.5),
    "llama": LlamaConfig(**GROUPED, rope_theta=500.0),
    "llama tied": LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=6, rms_norm_eps=1e-5),
    "qwen3": Qwen3Config(**GROUPED, head_dim=6),
}


def randomize(module: torch.nn.Module) -> None:
    """Matrices large enough that layers are far from linear, gains and biases moved off one and zero."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(module.named_parameters()):
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            value.copy_(float("norm" in name or "ln_" in name) * ("bias" not in name) + 0.3 * drawn)
        else:
            value.copy_(1.5 * drawn / np.sqrt(value.shape[-1]))


@torch.no_grad()
def main() -> None:
    tokens = torch.randint(0, 11, (B, L), generator=torch.Generator().manual_seed(1))
    kept = {"tokens": tokens.numpy().astype(np.int32)}
    for name, config in MODELS.items():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomize(model)
        kept[f"{name}/config"] = np.array(json.dumps(config.to_diff_dict() | {"model_type": config.model_type}))
        kept[f"{name}/logits"] = model(tokens).logits.numpy()
        with tempfile.TemporaryDirectory() as folder:  # names in files are not those of modules
            model.save_pretrained(folder)
            held = load_file(Path(folder) / "model.safetensors")
        kept |= {f"{name}/tensors/{tensor}": value for tensor, value in held.items()}
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    kept["versions"] = np.array(versions)
    np.savez_compressed(TO, **kept)
    print(TO, TO.stat().st_size, versions)


if __name__ == "__main__":
    main()
