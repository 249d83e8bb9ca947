"""Models: frozen Flax Linen modules with static fields only, so that a module is a static argument of jit.

A model maps inputs to `(logits, acts)`; `acts` is a flat dict of named intermediates (see `lab.models.acts`).
"""

from collections.abc import Callable, Mapping

import flax.linen as nn

from lab.models.attention import AttentionMLP, OneLayerAttention
from lab.models.layers import ACTIVATIONS
from lab.models.mlp import EmbMLP, TwoLayerMLP
from lab.models.transformer import NORMS, READOUTS, Transformer
from lab.models.unet import UNet

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "NORMS",
    "READOUTS",
    "AttentionMLP",
    "EmbMLP",
    "OneLayerAttention",
    "Transformer",
    "TwoLayerMLP",
    "UNet",
    "forward",
    "init",
    "reads",
]

# those that tasks give inputs to; TwoLayerMLP reads vectors, which none gives yet
FAMILIES: dict[str, type[nn.Module]] = {
    "transformer": Transformer,
    "emb_mlp": EmbMLP,
    "attention": OneLayerAttention,
    "attention_mlp": AttentionMLP,
    "unet": UNet,
}
NO_EDITS: Mapping[str, Callable] = {}


def reads(family: type[nn.Module]) -> str:
    """What models of a family read: tokens, unless its attribute `reads` says otherwise."""
    return getattr(family, "reads", "tokens")


def init(model: nn.Module, key, inputs):
    """Parameters at unit rate: every matrix with std d_in^-1/2. Each leaf's draw depends on its own name only."""
    return model.init(key, inputs, NO_EDITS)["params"]


def forward(model: nn.Module, params, inputs, edits: Mapping[str, Callable] = NO_EDITS):
    """`(logits, acts)` of a batch.

    Args:
      edits: activation name -> function applied to that activation where it is made.

    Raises:
      ValueError: an edit names no activation of the model; the nearest name is given.
    """
    return model.apply({"params": params}, inputs, edits)
