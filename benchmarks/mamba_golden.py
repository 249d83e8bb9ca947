"""Makes tests/models/mamba_golden.npz: what two independent packages compute with weights that are kept beside it.

    python benchmarks/mamba_golden.py          # needs torch, transformers and mambapy

Mamba-1 by transformers (its loop) and by mambapy (its loop and its parallel scan), Mamba-2 by transformers with one
chunk for the whole sequence and with chunks of four tokens. Weights are random, by our names and in our layout; outputs
are the stream after the final norm.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from mambapy import mamba as mambapy
from transformers import Mamba2Config, Mamba2Model, MambaConfig, MambaModel

TO = Path(__file__).parents[1] / "tests" / "models" / "mamba_golden.npz"
V, D, INNER, STATES, LAYERS, TAPS, RANK, HEADS = 11, 8, 16, 4, 2, 4, 2, 2
B, L = 2, 9
CHUNKS = (64, 4)


def randomize(module: torch.nn.Module) -> None:
    """Weights of order one over the root of their inputs; gains, A, D and dt's bias as they may be in training."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(module.state_dict().items()):
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim == 1 or name.endswith("A_log"):
            offset = 1.0 if "norm" in name or name.endswith(".D") else -0.5 if "dt" in name else 0.0
            value.copy_(offset + 0.3 * drawn)
        else:
            value.copy_(1.5 * drawn / np.sqrt(value.shape[-1]))


def shared(layer: dict, theirs: dict, i: int) -> dict:
    """Leaves that both versions have."""
    at = f"block_{i}"
    return {
        f"{at}/norm/scale": theirs[f"layers.{i}.norm.weight"],
        f"{at}/ssm/A_log": layer["A_log"],
        f"{at}/ssm/conv/taps": layer["conv1d.weight"][:, 0].T,
        f"{at}/ssm/conv/bias": layer["conv1d.bias"],
        f"{at}/ssm/out/kernel": layer["out_proj.weight"].T,
    }


def of_layer(theirs: dict, i: int) -> dict:
    prefix = f"layers.{i}.mixer."
    return {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}


def mamba1(theirs: dict) -> dict:
    found = {"embed/token/embedding": theirs["embeddings.weight"], "final_norm/scale": theirs["norm_f.weight"]}
    for i in range(LAYERS):
        layer, at = of_layer(theirs, i), f"block_{i}/ssm"
        found |= shared(layer, theirs, i)
        x, z = np.split(layer["in_proj.weight"].T, 2, axis=1)
        low, b, c = np.split(layer["x_proj.weight"].T, [RANK, RANK + STATES], axis=1)
        found |= {f"{at}/{name}/kernel": w for name, w in dict(x=x, gate=z, dt_low=low, B=b, C=c).items()}
        found |= {f"{at}/dt/kernel": layer["dt_proj.weight"].T, f"{at}/dt/bias": layer["dt_proj.bias"]}
        found[f"{at}/D"] = layer["D"]
    return found


def mamba2(theirs: dict) -> dict:
    found = {"embed/token/embedding": theirs["embeddings.weight"], "final_norm/scale": theirs["norm_f.weight"]}
    for i in range(LAYERS):
        layer, at = of_layer(theirs, i), f"block_{i}/ssm"
        found |= shared(layer, theirs, i)
        ends = np.cumsum([INNER, INNER, STATES, STATES])
        parts = np.split(layer["in_proj.weight"].T, ends, axis=1)
        found |= {f"{at}/{name}/kernel": w for name, w in zip(("gate", "x", "B", "C", "dt"), parts, strict=True)}
        found |= {f"{at}/dt_bias": layer["dt_bias"], f"{at}/norm/scale": layer["norm.weight"]}
        found[f"{at}/D"] = np.repeat(layer["D"], INNER // HEADS)
    return found


def mambapy_output(model: MambaModel, tokens: torch.Tensor, pscan: bool) -> np.ndarray:
    config = mambapy.MambaConfig(d_model=D, n_layers=LAYERS, d_state=STATES, dt_rank=RANK, pscan=pscan)
    other = mambapy.Mamba(config)
    own = {name: value for name, value in model.state_dict().items() if name.startswith("layers.")}
    other.load_state_dict(own)
    return model.norm_f(other(model.embeddings(tokens))).numpy()


@torch.no_grad()
def main() -> None:
    tokens = torch.randint(0, V, (B, L), generator=torch.Generator().manual_seed(1))
    sizes = dict(hidden_size=D, state_size=STATES, num_hidden_layers=LAYERS, vocab_size=V, expand=2, conv_kernel=TAPS)
    kept = {"tokens": tokens.numpy().astype(np.int32)}

    model = MambaModel(MambaConfig(**sizes, time_step_rank=RANK)).eval()
    randomize(model)
    theirs = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    kept |= {f"mamba1/params/{name}": value for name, value in mamba1(theirs).items()}
    kept["mamba1/transformers"] = model(tokens)[0].numpy()
    kept |= {f"mamba1/mambapy {n}": mambapy_output(model, tokens, n == "pscan") for n in ("loop", "pscan")}

    for chunk in CHUNKS:
        config = Mamba2Config(**sizes, num_heads=HEADS, head_dim=INNER // HEADS, n_groups=1, chunk_size=chunk)
        model = Mamba2Model(config).eval()
        randomize(model)
        kept[f"mamba2/transformers chunk {chunk}"] = model(tokens)[0].numpy()
    theirs = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    kept |= {f"mamba2/params/{name}": value for name, value in mamba2(theirs).items()}

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "mambapy")}
    kept["versions"] = np.array(" ".join(f"{name} {version}" for name, version in versions.items()))
    np.savez_compressed(TO, **{name: np.asarray(value) for name, value in kept.items()})
    print(TO, TO.stat().st_size, kept["versions"])


if __name__ == "__main__":
    main()
