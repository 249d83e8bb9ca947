"""Decoding of Mamba token by token, as `lab.models.decode` asks: a state of constant size in place of a cache.

As there, the model's own code runs on one token, and edits put in what it cannot see: the convolution gets the last
tokens' inputs, and y what is left of the state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab.models import ssm
from lab.models.conv import causal_conv
from lab.models.mamba import Mamba1, Mamba2

Mamba = Mamba1 | Mamba2


class State(NamedTuple):
    """What N layers remember of B sequences.

    Attributes:
      window_N: of each layer, (B, T-1, C): the last inputs of the convolution, zeros before the first token.
      state_N: of each layer, (B, H, K, N), or (B, I, N) of Mamba-1.
      position_B: int32, position of the next token.
    """

    window_N: tuple[jax.Array, ...]
    state_N: tuple[jax.Array, ...]
    position_B: jax.Array


def prefill(model: Mamba, params, prompt_BxL, prompt_length_B) -> tuple[jax.Array, State]:
    """One forward pass over all prompts, as `lab.models.decode.prefill`: logits_BxV after each, and the state.

    Raises:
      ValueError: L exceeds the length that the model reads.
    """
    length, prompt_length_B = prompt_BxL.shape[1], prompt_length_B.astype(jnp.int32)
    told_BxL = jnp.arange(length, dtype=jnp.int32)[None] < prompt_length_B[:, None]
    last_Bx1x1 = (prompt_length_B - 1)[:, None, None]
    edits = {"final": lambda h_BxLxD: jnp.take_along_axis(h_BxLxD, last_Bx1x1, axis=1)}
    # where dt is 0 nothing is written, and nothing decays: the state after the padding is that before it
    still = {f"block_{i}/ssm/dt": lambda dt: jnp.where(told_BxL[..., None], dt, 0) for i in range(model.n_layers)}
    logits_Bx1xV, acts = model.clone(readout="all").apply({"params": params}, prompt_BxL, edits | still)

    place_BxT = prompt_length_B[:, None] - model.n_taps + 1 + jnp.arange(model.n_taps - 1, dtype=jnp.int32)[None]
    windows, states = [], []
    for i in range(model.n_layers):
        layer_acts = {name.rpartition("/")[2]: act for name, act in acts.items() if name.startswith(f"block_{i}/ssm/")}
        window_BxTxC = jnp.take_along_axis(layer_acts["u"], jnp.maximum(place_BxT, 0)[..., None], axis=1)
        windows.append(jnp.where((place_BxT >= 0)[..., None], window_BxTxC, 0))
        states.append(_final_state(model, params[f"block_{i}"]["ssm"], layer_acts))
    return logits_Bx1xV[:, 0], State(tuple(windows), tuple(states), prompt_length_B)


def extend(model: Mamba, params, state: State, token_B) -> tuple[jax.Array, State]:
    """One more token for every sequence: logits_BxV after it, and the state that has read it."""
    embed = {name: table["embedding"] for name, table in params["embed"].items()}
    h_BxD = embed["token"][token_B]
    if model.has_positions:
        h_BxD = h_BxD + embed["position"][jnp.minimum(state.position_B, model.max_length - 1)]
    edits, windows, states = {"embed": lambda _: h_BxD[:, None]}, [], []
    for i in range(model.n_layers):
        layer = _Layer(model, params[f"block_{i}"]["ssm"], state.window_N[i], state.state_N[i])
        edits |= {f"block_{i}/ssm/{name}": edit for name, edit in layer.edits(windows, states).items()}
    logits_Bx1xV, _ = model.apply({"params": params}, token_B[:, None], edits)
    return logits_Bx1xV[:, 0], State(tuple(windows), tuple(states), state.position_B + 1)


class _Layer:
    """The edits of one layer, which share what they have seen of the token."""

    def __init__(self, model: Mamba, params, window_BxTxC, state):
        self.model, self.params, self.window_BxTxC, self.state = model, params, window_BxTxC, state
        self.seen = {}

    def edits(self, windows: list, states: list) -> dict:
        """
        Args:
          windows, states: get the next ones, when the edits are applied.
        """

        def see(name):
            def edit(value):
                self.seen[name] = value
                return value

            return edit

        def convolve(alone_Bx1xC):
            u_BxTxC = jnp.concatenate([self.window_BxTxC, self.seen["u"]], axis=1)
            windows.append(u_BxTxC[:, 1:])
            return see("conv")(self._convolved(alone_Bx1xC, u_BxTxC))

        def remember(alone_Bx1xI):
            left, written, read = _recurrence(self.model, self.params, self.seen)
            kept = left * self.state
            states.append(kept + written)
            return alone_Bx1xI + read(kept).reshape(alone_Bx1xI.shape)

        watched = ("u", "dt", "B", "C") if isinstance(self.model, Mamba1) else ("u", "dt")
        return {name: see(name) for name in watched} | {"conv": convolve, "y": remember}

    def _convolved(self, alone_Bx1xC, u_BxTxC):
        conv, u_Bx1xC = self.model.convolution(), self.seen["u"]
        if conv.kind == "none":
            return alone_Bx1xC
        shape = (conv.n_taps, u_BxTxC.shape[-1])
        ones = jnp.ones(shape, u_BxTxC.dtype)
        taps_TxC = self.params["conv"]["taps"] if conv.kind == "learned" else ones
        summed_Bx1xC = causal_conv(u_BxTxC, taps_TxC)[:, -1:] + self.params["conv"]["bias"][None, None]
        return conv.after(summed_Bx1xC, u_Bx1xC)


def _recurrence(model: Mamba, params, seen):
    """Of one token: by what the state is multiplied, what is added, and how y is read from a state."""
    a = -jnp.exp(params["A_log"])
    if isinstance(model, Mamba1):
        x_BxI, dt_BxI, b_BxN, c_BxN = (seen[name][:, 0] for name in ("conv", "dt", "B", "C"))
        left = jnp.exp(dt_BxI[..., None] * a[None])
        return left, (dt_BxI * x_BxI)[..., None] * b_BxN[:, None], lambda h: jnp.einsum("bin,bn->bi", h, c_BxN)
    x_BxLxHxK, b_BxLxN, c_BxLxN = model.split(seen["conv"])
    dt_BxH, c_BxN = seen["dt"][:, 0], c_BxLxN[:, 0]
    written = (dt_BxH[..., None] * x_BxLxHxK[:, 0])[..., None] * b_BxLxN[:, 0, None, None]
    left = jnp.exp(dt_BxH * a[None])[..., None, None]
    return left, written, lambda h: jnp.einsum("bhkn,bn->bhk", h, c_BxN)


def _final_state(model: Mamba, params, layer_acts):
    a = -jnp.exp(params["A_log"])
    if isinstance(model, Mamba1):
        return ssm.scan(layer_acts["C"], layer_acts["B"], layer_acts["conv"], layer_acts["dt"], a)[1]
    x_BxLxHxK, b_BxLxN, _ = model.split(layer_acts["conv"])
    dt_BxLxH = layer_acts["dt"]
    return ssm.final_state(b_BxLxN, dt_BxLxH[..., None] * x_BxLxHxK, jnp.swapaxes(dt_BxLxH * a[None, None], 1, 2))
