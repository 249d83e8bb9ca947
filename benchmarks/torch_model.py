"""The transformer of `lab.models` in PyTorch, written as the papers' code writes it, and our parameters loaded into it.

Attention is plain softmax: the papers' code computes it so, and so do we (the pattern is data, and second derivatives
exist); at nine tokens `F.scaled_dot_product_attention` has nothing to save.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lab import models, tree

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
MASKED = -1e9


def norm_layer(present: bool, d_model: int) -> nn.Module:
    return nn.LayerNorm(d_model, eps=1e-5) if present else nn.Identity()


class Attention(nn.Module):
    def __init__(self, model: models.Transformer):
        super().__init__()
        self.n_heads, self.d_head = model.n_heads, model.d_head
        inner = model.n_heads * model.d_head
        self.query = nn.Linear(model.d_model, inner, bias=model.use_bias)
        self.key = nn.Linear(model.d_model, inner, bias=model.use_bias)
        self.value = nn.Linear(model.d_model, inner, bias=model.use_bias)
        self.out = nn.Linear(inner, model.d_model, bias=model.use_bias)
        hidden = torch.ones(model.max_length, model.max_length, dtype=torch.bool).triu(1)
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self, h_BxLxD, n_queries: int):
        batch, length, _ = h_BxLxD.shape

        def project(linear, h):
            return linear(h).view(batch, -1, self.n_heads, self.d_head).transpose(1, 2)

        q_BxHxQxK = project(self.query, h_BxLxD[:, length - n_queries :])
        k_BxHxLxK = project(self.key, h_BxLxD)
        v_BxHxLxK = project(self.value, h_BxLxD)
        score_BxHxQxL = q_BxHxQxK @ k_BxHxLxK.transpose(-1, -2) / math.sqrt(self.d_head)
        hidden_QxL = self.hidden[length - n_queries : length, :length]
        pattern_BxHxQxL = score_BxHxQxL.masked_fill(hidden_QxL, MASKED).softmax(dim=-1)
        z_BxQxHxK = (pattern_BxHxQxL @ v_BxHxLxK).transpose(1, 2)
        return self.out(z_BxQxHxK.reshape(batch, n_queries, -1))


class Block(nn.Module):
    def __init__(self, model: models.Transformer):
        super().__init__()
        self.attn = Attention(model)
        self.mlp_in = nn.Linear(model.d_model, model.d_ff, bias=model.use_bias)
        self.mlp_out = nn.Linear(model.d_ff, model.d_model, bias=model.use_bias)
        self.activation = ACTIVATIONS[model.activation]
        self.post = model.norm == "post"
        self.attn_norm = norm_layer(model.norm != "none", model.d_model)
        self.mlp_norm = norm_layer(model.norm != "none", model.d_model)

    def mlp(self, h):
        return self.mlp_out(self.activation(self.mlp_in(h)))

    def forward(self, h_BxLxD, n_queries: int):
        asked_BxQxD = h_BxLxD[:, h_BxLxD.shape[1] - n_queries :]
        if self.post:
            h_BxQxD = self.attn_norm(asked_BxQxD + self.attn(h_BxLxD, n_queries))
            return self.mlp_norm(h_BxQxD + self.mlp(h_BxQxD))
        h_BxQxD = asked_BxQxD + self.attn(self.attn_norm(h_BxLxD), n_queries)
        return h_BxQxD + self.mlp(self.mlp_norm(h_BxQxD))


class Transformer(nn.Module):
    """`forward(tokens_BxL) -> logits_BxQxV`; all options, `readout` too, are those of a `lab.models.Transformer`."""

    def __init__(self, model: models.Transformer):
        super().__init__()
        self.readout, self.tied_head = model.readout, model.tied_head
        self.token = nn.Embedding(model.vocab_size, model.d_model)
        self.position = nn.Embedding(model.max_length, model.d_model)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.n_layers))
        self.final_norm = norm_layer(model.final_norm, model.d_model)
        if not model.tied_head:
            self.head = nn.Linear(model.d_model, model.vocab_size, bias=model.head_bias)
        self.register_buffer("positions", torch.arange(model.max_length), persistent=False)

    def forward(self, tokens_BxL):
        length = tokens_BxL.shape[1]
        h = self.token(tokens_BxL) + self.position(self.positions[:length])
        for i, block in enumerate(self.blocks):
            last_only = self.readout == "last" and i == len(self.blocks) - 1
            h = block(h, 1 if last_only else length)
        h_BxQxD = self.final_norm(h)
        return F.linear(h_BxQxD, self.token.weight) if self.tied_head else self.head(h_BxQxD)


def load(module: Transformer, params) -> None:
    """Copies a parameter tree of `lab.models.Transformer` into the module of the same options.

    Raises:
      RuntimeError: a parameter is missing, left over or of another shape.
    """
    state = {}
    for name, leaf in tree.named_leaves(params).items():
        value = torch.from_numpy(np.array(leaf))
        state[torch_name(name)] = value.T if name.endswith("kernel") else value
    module.load_state_dict(state)


def torch_name(name: str) -> str:
    """`block_0/mlp/in/kernel` -> `blocks.0.mlp_in.weight`."""
    *modules, leaf = name.split("/")
    path = ".".join(modules).replace("block_", "blocks.").replace("mlp.", "mlp_").removeprefix("embed.")
    return f"{path}.{'bias' if leaf == 'bias' else 'weight'}"
