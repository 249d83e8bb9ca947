"""Init rate gamma: every weight matrix W with d_in inputs has entries of standard deviation d_in^-gamma.

A Flax module draws each matrix at unit rate (std = d_in^-1/2); `rescale` multiplies it by d_in^(1/2 - gamma) with
gamma traced, so one compiled program initializes any number of rates. Larger gamma = smaller weights.
Biases and norm parameters are never rescaled ("Initialization is Critical", arXiv 2405.05409, section 3).

Two conventions of the papers' released models:

| matrix                          | `paper` (2405.05409)  | `authors` (2501.08537)       |
|---|---|---|
| query, key, value               | d_model^-gamma        | d_model^-gamma               |
| attention output                | (heads d_head)^-gamma | d_model^-gamma / sqrt(2 L)   |
| MLP in                          | d_model^-gamma        | d_model^-gamma               |
| MLP out                         | d_ff^-gamma           | d_model^-gamma / sqrt(2 L)   |
| token and position embedding    | d_model^-gamma        | d_model^-gamma               |
| head                            | d_model^-gamma        | d_model^-gamma               |
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax.numpy as jnp

from lab import tree

GROUPS = ("embed", "qk", "vo", "mlp", "head")
CONVENTIONS = ("paper", "authors")

# (leaf name, group, number of output axes or None for all but the first, writes to the residual stream); the first
# match counts. Kernels are (inputs..., outputs...), so d_in is the product of the other axes; Flax's own attention
# has query kernels (D, H, K) and out kernels (H, K, D).
LEAVES = (
    (r"(^|/)head/kernel$", "head", 1, False),
    (r"(^|/)(query|key)/kernel$", "qk", None, False),
    (r"(^|/)value/kernel$", "vo", None, False),
    (r"mlp/out/kernel$", "mlp", 1, True),
    (r"(?i:att)[^/]*/out/kernel$", "vo", 1, True),
    (r"kernel$", "mlp", 1, False),
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """How one weight matrix is initialized: std = `fan`^-gamma * `factor`, starting from a draw of std d_in^-1/2."""

    group: str
    d_in: int
    fan: int
    factor: float = 1.0


def describe(name: str, shape: tuple[int, ...]) -> tuple[str, int, bool] | None:
    """Group, d_in and whether the matrix writes to the residual stream; None for biases and norm parameters."""
    if name.endswith("embedding"):
        return "embed", shape[-1], False
    for pattern, group, n_out, residual in LEAVES:
        if re.search(pattern, name):
            inputs = shape[:1] if n_out is None else shape[:-n_out]
            return group, math.prod(inputs), residual
    return None


def table(params, convention: str = "paper") -> dict[str, Leaf]:
    """The init table of any Flax parameter tree: leaf name -> `Leaf`, for every weight matrix.

    Matrices are those named `kernel` or `embedding`; names the table does not know fall in group `mlp`.
    The `authors` convention needs our transformer's names: it reads d_model from `embed/token/embedding` and counts
    the `block_<i>`.

    Raises:
      ValueError: unknown convention, or `authors` for a tree without those names.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown init convention {convention!r}; one of {', '.join(CONVENTIONS)}")
    shapes = {name: leaf.shape for name, leaf in tree.named_leaves(params).items()}
    described = {name: describe(name, shape) for name, shape in shapes.items()}
    described = {name: entry for name, entry in described.items() if entry is not None}
    if convention == "paper":
        return {name: Leaf(group, d_in, d_in) for name, (group, d_in, _) in described.items()}

    n_layers = len({match[0] for name in shapes if (match := re.match(r"block_\d+", name))})
    if "embed/token/embedding" not in shapes or not n_layers:
        raise ValueError(
            "init convention 'authors' is defined for the transformer (embed/token/embedding, block_<i>/...); "
            f"this model has {', '.join(shapes)}; use 'paper'"
        )
    d_model = shapes["embed/token/embedding"][-1]
    shrink = 1 / math.sqrt(2 * n_layers)
    return {
        name: Leaf(group, d_in, d_model, shrink if residual else 1.0)
        for name, (group, d_in, residual) in described.items()
    }


def rates(hparams: Mapping) -> dict:
    """The rate of each group: `gamma_<group>` where the row has one, else `gamma`."""
    return {group: hparams[f"gamma_{group}" if f"gamma_{group}" in hparams else "gamma"] for group in GROUPS}


def rescale(params, rates: Mapping, convention: str = "paper"):
    """Parameters drawn at unit rate, brought to the given rates.

    Args:
      params: a Flax parameter tree whose matrices have std d_in^-1/2 (Flax's default initializers).
      rates: group -> gamma, traced or not; see `GROUPS`.
      convention: `"paper"` or `"authors"`, see the module's table.
    """
    leaves = table(params, convention)

    def scaled(name, value):
        if name not in leaves:
            return value
        leaf = leaves[name]
        rate = rates[leaf.group] if hasattr(rates[leaf.group], "dtype") else jnp.float32(rates[leaf.group])
        factor = leaf.factor * math.sqrt(leaf.d_in) * jnp.power(float(leaf.fan), -rate)
        return value * factor.astype(value.dtype)

    return tree.map_named(scaled, params)
