"""Mamba-2 of `lab.models` in PyTorch, in the form that runs on a CPU without kernels of its own: the masked product.

`transformers` computes the same on a CPU, in chunks; at 29 tokens one chunk holds the sequence, and this is it with
less around it. `F.conv1d` convolves.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lab import models, tree

EPSILON = 1e-5


def rms_norm(h, gain):
    return h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + EPSILON) * gain


class SSM(nn.Module):
    def __init__(self, model: models.Mamba2):
        super().__init__()
        self.inner, self.states, self.n_heads, self.n_taps = model.d_inner, model.d_state, model.n_heads, model.n_taps
        widths = {
            "x": model.d_inner,
            "B": model.d_state,
            "C": model.d_state,
            "gate": model.d_inner,
            "dt": model.n_heads,
        }
        for name, width in widths.items():
            setattr(self, name, nn.Linear(model.d_model, width, bias=False))
        self.out = nn.Linear(model.d_inner, model.d_model, bias=False)
        channels = model.d_inner + 2 * model.d_state
        self.conv = nn.Conv1d(channels, channels, model.n_taps, groups=channels, padding=model.n_taps - 1)
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(model.n_heads)), nn.Parameter(torch.zeros(model.n_heads))
        self.D, self.norm = nn.Parameter(torch.ones(model.d_inner)), nn.Parameter(torch.ones(model.d_inner))

    def forward(self, h_BxLxD, n_queries: int):
        batch, length, _ = h_BxLxD.shape
        u_BxLxC = torch.cat([self.x(h_BxLxD), self.B(h_BxLxD), self.C(h_BxLxD)], dim=-1)
        conv_BxLxC = F.silu(self.conv(u_BxLxC.transpose(1, 2))[..., :length].transpose(1, 2))
        x_BxLxI, b_BxLxN, c_BxLxN = conv_BxLxC.split([self.inner, self.states, self.states], dim=-1)
        dt_BxLxH = F.softplus(self.dt(h_BxLxD) + self.dt_bias)
        a_BxHxL = (dt_BxLxH * -self.A_log.exp()).transpose(1, 2)
        asked_L = slice(length - n_queries, length)

        token_L = torch.arange(length)
        later_LxL = token_L[:, None] > token_L
        passed_BxHxLxL = a_BxHxL[..., None].masked_fill(~later_LxL, 0).cumsum(dim=2)[:, :, asked_L]
        hidden_QxL = (token_L[:, None] < token_L)[asked_L]
        left_BxHxQxL = passed_BxHxLxL.masked_fill(hidden_QxL, -torch.inf).exp()
        s_BxHxQxL = left_BxHxQxL * (c_BxLxN[:, asked_L] @ b_BxLxN.transpose(1, 2))[:, None]
        v_BxHxLxK = (x_BxLxI.view(batch, length, self.n_heads, -1) * dt_BxLxH[..., None]).transpose(1, 2)
        y_BxQxI = (s_BxHxQxL @ v_BxHxLxK).transpose(1, 2).reshape(batch, n_queries, -1)
        y_BxQxI = y_BxQxI + self.D * x_BxLxI[:, asked_L]
        return self.out(rms_norm(y_BxQxI * F.silu(self.gate(h_BxLxD[:, asked_L])), self.norm))


class Mamba2(nn.Module):
    """`forward(tokens_BxL) -> logits_BxQxV`; all options, `readout` too, are those of a `lab.models.Mamba2`.

    Raises:
      ValueError: a convolution that is not learned, or a path past it.
    """

    def __init__(self, model: models.Mamba2):
        super().__init__()
        if (model.conv, model.past_conv) != ("learned", "none"):
            raise ValueError(f"the PyTorch side has learned taps and no path past them, not {model}")
        self.readout, self.pre, self.has_final_norm = model.readout, model.norm == "pre", model.final_norm
        self.token = nn.Embedding(model.vocab_size, model.d_model)
        if model.has_positions:
            self.position = nn.Embedding(model.max_length, model.d_model)
        self.blocks = nn.ModuleList(SSM(model) for _ in range(model.n_layers))
        if self.pre:
            self.norms = nn.ParameterList(torch.ones(model.d_model) for _ in range(model.n_layers))
        if model.final_norm:
            self.final_norm = nn.Parameter(torch.ones(model.d_model))
        self.head = nn.Linear(model.d_model, model.vocab_size, bias=False)

    def forward(self, tokens_BxL):
        length = tokens_BxL.shape[1]
        h = self.token(tokens_BxL)
        if hasattr(self, "position"):
            h = h + self.position.weight[:length]
        for i, block in enumerate(self.blocks):
            n_queries = 1 if self.readout == "last" and i == len(self.blocks) - 1 else length
            h = h[:, length - n_queries :] + block(rms_norm(h, self.norms[i]) if self.pre else h, n_queries)
        return self.head(rms_norm(h, self.final_norm) if self.has_final_norm else h)


def load(module: Mamba2, params) -> None:
    """Copies a parameter tree of `lab.models.Mamba2` into the module of the same options.

    Raises:
      RuntimeError: a parameter is missing, left over or of another shape.
    """
    state = {}
    for name, leaf in tree.named_leaves(params).items():
        value = torch.from_numpy(np.array(leaf))
        path = name.replace("embed/", "").replace("/ssm", "")
        if name.endswith("/taps"):
            value, path = value.T[:, None], path.replace("taps", "weight")
        elif path.startswith("block_") and path.endswith("norm/scale"):
            path = path.replace("/scale", "") if "/ssm/" in name else f"norms.{path.split('/')[0][6:]}"
        elif name.endswith("kernel"):
            value = value.T
        path = path.replace("kernel", "weight").replace("embedding", "weight").replace("final_norm/scale", "final_norm")
        state[path.replace("block_", "blocks.").replace("/", ".")] = value
    module.load_state_dict(state)
