"""Models: frozen Flax Linen modules with static fields only, so that a module is a static argument of jit.

A model maps inputs to `(logits, acts)`; `acts` is a flat dict of named intermediates (see `lab.models.acts`). Any other
Flax Linen module that keeps to `lab.module` is a model, too. `init` draws parameters at unit rate, every matrix with
std d_in^-1/2 (`lab.matrices`); `forward` gives `(outputs, acts)`.
"""

import flax.linen as nn

from lab.matrices import unit as init
from lab.models.attention import AttentionMLP, OneLayerAttention
from lab.models.decoder import Decoder
from lab.models.fno import FNO2D
from lab.models.in_context import VectorAttention
from lab.models.layers import ACTIVATIONS
from lab.models.m2m import M2M
from lab.models.mamba import Mamba1, Mamba2
from lab.models.mlp import EmbLinear, EmbMLP, EmbTable, TwoLayerMLP
from lab.models.transformer import NORMS, READOUTS, Transformer
from lab.models.unet import UNet
from lab.module import forward

__all__ = [
    "ACTIVATIONS",
    "ANYTHING",
    "FAMILIES",
    "FNO2D",
    "M2M",
    "NORMS",
    "READOUTS",
    "AttentionMLP",
    "Decoder",
    "EmbLinear",
    "EmbMLP",
    "EmbTable",
    "Mamba1",
    "Mamba2",
    "OneLayerAttention",
    "Transformer",
    "TwoLayerMLP",
    "UNet",
    "VectorAttention",
    "forward",
    "init",
    "reads",
]

# those that tasks give inputs to; TwoLayerMLP reads vectors, which none gives yet
FAMILIES: dict[str, type[nn.Module]] = {
    "transformer": Transformer,
    "emb_mlp": EmbMLP,
    "emb_linear": EmbLinear,
    "emb_table": EmbTable,
    "attention": OneLayerAttention,
    "attention_mlp": AttentionMLP,
    "unet": UNet,
    "mamba1": Mamba1,
    "mamba2": Mamba2,
    "vector_attention": VectorAttention,
    "decoder": Decoder,
    "fno2d": FNO2D,
    "m2m": M2M,
}


ANYTHING = ""


def reads(family: type[nn.Module]) -> str:
    """What models of a family read: what its attribute `reads` says, else tokens, or anything if it is a user's."""
    return getattr(family, "reads", "tokens" if family.__module__.startswith("lab.") else ANYTHING)
