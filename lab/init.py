"""Init rate gamma: every weight matrix W with d_in inputs has entries of standard deviation d_in^-gamma.

`lab.models.init` draws each matrix at unit rate (std = d_in^-1/2); `rescale` multiplies it by d_in^(1/2 - gamma) with
gamma traced, so one compiled program initializes any number of rates. Larger gamma = smaller weights.
Biases and norm parameters are never rescaled ("Initialization is Critical", arXiv 2405.05409, section 3), nor is what
does not depend on the key: zeros, ones, tables of sinusoids.

Which leaves are matrices, and of how many inputs, the layers that own them say, see `lab.matrices`. A matrix whose own
initializer is not known to have std d_in^-1/2 (`nn.initializers.normal(0.02)`, orthogonal ones) is drawn anew at unit
rate, from a normal distribution: gamma is the exponent of the std, not a factor on what a model likes.

A row may have a constant `sigma` in place of the rate: then every weight matrix has entries of std sigma, whatever its
inputs (theories of linear models, and GPT-2's 0.02, are of that kind). Group by group as well: `sigma_qk` in place of
`gamma_qk`, also beside `gamma`. Rows of both kinds are one grid where each has both, one of them 0: the other counts.

Two conventions of the papers' released models, where sigma stands for the powers of gamma:

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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab import matrices, rng, tree

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
    """How one weight matrix is initialized: std = `fan`^-gamma * `factor`, starting from a draw of std d_in^-1/2.

    One with `factor` 0 does not follow gamma: it stays as it is drawn, a constant.
    """

    group: str
    d_in: int
    fan: int
    factor: float = 1.0


class Sigma(NamedTuple):
    """A standard deviation in place of a rate, traced or not."""

    std: jax.Array | float


class Either(NamedTuple):
    """A rate, unless `sigma` is positive: then a standard deviation. Traced or not."""

    gamma: jax.Array | float
    sigma: jax.Array | float


class Row(NamedTuple):
    """What the init table says of one leaf.

    Attributes:
      leaf, shape: its name and shape.
      d_in, group: of a matrix; 0 and empty for other leaves.
      drawn: `unit`, `anew` or `constant`, see `lab.matrices.Matrix`; empty for other leaves that no key-free
        initializer is known of.
      promised, measured: std of its entries for each of the rates asked for; empty where none is promised. The measured
        one, of one draw, has a standard error of promised / sqrt(2 size), and is empty where it was not asked for.
    """

    leaf: str
    shape: tuple[int, ...]
    d_in: int
    group: str
    drawn: str
    promised: tuple[float, ...]
    measured: tuple[float, ...]


def describe(name: str, shape: tuple[int, ...]) -> tuple[str, int, bool] | None:
    """Group, d_in and whether the matrix writes to the residual stream; None for biases and norm parameters."""
    if name.startswith(f"{tree.STACKED}/"):
        shape = shape[1:]
    if name.endswith("embedding"):
        return "embed", shape[-1], False
    for pattern, group, n_out, residual in LEAVES:
        if re.search(pattern, name):
            inputs = shape[:1] if n_out is None else shape[:-n_out]
            return group, math.prod(inputs), residual
    return None


def leaves_of(model, example, convention: str = "paper") -> dict[str, Leaf]:
    """Leaf name -> `Leaf` for every weight matrix of a Flax module.

    Args:
      example: what it reads, a batch of one; values do not matter.

    Raises:
      ValueError: as `lab.matrices.find` and `by_name`; a group that is none of `GROUPS`.
    """
    found = matrices.find(model, example)
    named = _conventional(found.shapes, convention, {name: matrix.d_in for name, matrix in found.matrices.items()})
    for name, matrix in found.matrices.items():
        group = matrix.group or named[name].group
        if group not in GROUPS:
            raise ValueError(f"groups of {type(model).__name__}: {name!r} in {group!r}, one of {', '.join(GROUPS)}")
        factor = 0.0 if matrix.drawn == "constant" else named[name].factor
        named[name] = dataclasses.replace(named[name], group=group, factor=factor)
    return named


def by_name(params, convention: str = "paper") -> dict[str, Leaf]:
    """Leaf name -> `Leaf` for every weight matrix of a tree that names them as the lab's own models do.

    Matrices are those named `kernel` or `embedding`; names that `LEAVES` does not know fall in group `mlp`.
    The `authors` convention needs our transformer's names: it reads d_model from `embed/token/embedding` and counts
    the `block_<i>`, or the layers stacked in `blocks`.

    Raises:
      ValueError: unknown convention, or `authors` for a tree without those names.
    """
    shapes = {name: leaf.shape for name, leaf in tree.named_leaves(params).items()}
    described = {name: describe(name, shape) for name, shape in shapes.items()}
    return _conventional(shapes, convention, {name: entry[1] for name, entry in described.items() if entry is not None})


def _conventional(shapes: Mapping, convention: str, d_in: Mapping[str, int]) -> dict[str, Leaf]:
    """The matrices with the std that a convention gives them."""
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown init convention {convention!r}; one of {', '.join(CONVENTIONS)}")
    described = {name: describe(name, shapes[name]) or _described_by_path(name, shapes[name]) for name in d_in}
    if convention == "paper":
        return {name: Leaf(group, d_in[name], d_in[name]) for name, (group, _, _) in described.items()}

    n_layers = len({match[0] for name in shapes if (match := re.match(r"block_\d+", name))})
    n_layers += next((shape[0] for name, shape in shapes.items() if name.startswith(f"{tree.STACKED}/")), 0)
    if "embed/token/embedding" not in shapes or not n_layers:
        raise ValueError(
            "init convention 'authors' is defined for the transformer (embed/token/embedding, block_<i>/...); "
            f"this model has {', '.join(shapes)}; use 'paper'"
        )
    d_model = shapes["embed/token/embedding"][-1]
    shrink = 1 / math.sqrt(2 * n_layers)
    return {
        name: Leaf(group, d_in[name], d_model, shrink if residual else 1.0)
        for name, (group, _, residual) in described.items()
    }


def _described_by_path(name: str, shape: tuple[int, ...]) -> tuple[str, int, bool]:
    """As `describe` a leaf with a name of its own: as a kernel so called, or as one in its place."""
    places = (f"{name}/kernel", f"{name.rpartition('/')[0]}/kernel")
    groups = [describe(place, shape)[0] for place in places]
    return next((group for group in groups if group != "mlp"), "mlp"), 0, False


def rates(hparams: Mapping) -> dict:
    """The rate of each group: `gamma_<group>` where the row has one, else `gamma`; a `Sigma`, by the same names; or an
    `Either`, where it has both."""

    def rate(group):
        of = next(of for of in (f"_{group}", "") if f"gamma{of}" in hparams or f"sigma{of}" in hparams)
        gamma, sigma = hparams.get(f"gamma{of}"), hparams.get(f"sigma{of}")
        if sigma is None:
            return gamma
        return Sigma(sigma) if gamma is None else Either(gamma, sigma)

    return {group: rate(group) for group in GROUPS}


def rescale(params, rates: Mapping, convention: str = "paper", leaves: Mapping[str, Leaf] | None = None):
    """Parameters drawn at unit rate, brought to the given rates.

    Args:
      params: a Flax parameter tree whose matrices have std d_in^-1/2 (`lab.models.init`).
      rates: group -> gamma, `Sigma` or `Either`, traced or not; see `GROUPS`.
      convention: `"paper"` or `"authors"`, see the module's table.
      leaves: its matrices, `leaves_of` its model; None: `by_name`.
    """
    leaves = by_name(params, convention) if leaves is None else leaves

    def scaled(name, value):
        if name not in leaves or not leaves[name].factor:
            return value
        leaf = leaves[name]
        rate = rates[leaf.group]
        if isinstance(rate, Either):
            std = jnp.where(rate.sigma > 0, rate.sigma, jnp.power(float(leaf.fan), -jnp.asarray(rate.gamma)))
        elif isinstance(rate, Sigma):
            std = _number(rate.std)
        else:
            std = jnp.power(float(leaf.fan), -_number(rate))
        factor = leaf.factor * math.sqrt(leaf.d_in) * std
        return value * factor.astype(value.dtype)

    return tree.map_named(scaled, params)


def _number(value):
    return value if hasattr(value, "dtype") else jnp.float32(value)


def table(model, example, rates: Sequence[Mapping], convention: str = "paper", measure: bool = True) -> list[Row]:
    """The init table of any Flax module, a row a leaf, in the tree's order.

    Args:
      example: as `leaves_of`.
      rates: at which std is said, each group -> gamma or `Sigma`.
      measure: draw the model once at each of them, with seed 0.

    Raises:
      ValueError: as `leaves_of`.
    """
    leaves, found = leaves_of(model, example, convention), matrices.find(model, example)

    @jax.jit
    def stds(key, rates):
        drawn = tree.named_leaves(rescale(matrices.unit(model, key, example), rates, convention, leaves))
        return {name: jnp.sqrt(jnp.mean(jnp.square(drawn[name]))) for name in leaves}

    measured = [stds(rng.key(0, "init"), dict(each)) for each in rates] if measure else []
    rows = []
    for name, shape in found.shapes.items():
        leaf = leaves.get(name, Leaf("", 0, 0, 0.0))
        promised = [leaf.factor * _std(leaf, each[leaf.group]) for each in rates] if leaf.factor else []
        seen = [float(each[name]) for each in measured] if leaf.factor else []
        drawn = "constant" if name in found.constants else found.matrices[name].drawn if leaf.d_in else ""
        rows.append(Row(name, shape, leaf.d_in, leaf.group, drawn, tuple(promised), tuple(seen)))
    return rows


def _std(leaf: Leaf, rate) -> float:
    """Of a matrix, before its factor."""
    decided = _decided(rate)
    return float(decided.std) if isinstance(decided, Sigma) else leaf.fan ** -float(decided)


def _decided(rate):
    """What an `Either` of numbers comes to."""
    if isinstance(rate, Either):
        return Sigma(rate.sigma) if rate.sigma > 0 else rate.gamma
    return rate


def ends(columns: Mapping[str, Sequence]) -> tuple[dict, dict]:
    """The least and the greatest rates of a grid's columns, for `table`; those of its first and its last row, where
    some rows have a rate and others a standard deviation."""
    starts = {name: column for name, column in columns.items() if name.startswith(("gamma", "sigma"))}
    mixed = any(isinstance(rate, Either) for rate in rates(starts).values())
    both = (lambda column: column[0], lambda column: column[-1]) if mixed else (min, max)
    return tuple(
        jax.tree.map(float, {group: _decided(rate) for group, rate in rates(of_end).items()})
        for of_end in ({name: end(column) for name, column in starts.items()} for end in both)
    )


def sentence(rows: Sequence[Row], rates: Sequence[Mapping]) -> str:
    """How many leaves follow gamma, or sigma, for people."""
    constant_std = {isinstance(rate, Sigma) for each in rates for rate in each.values()}
    rule = {True: "sigma (their std)", False: "gamma (std d_in^-gamma)"}
    following = [row for row in rows if row.promised]
    anew = sum(row.drawn == "anew" for row in following)
    constant = [row.leaf for row in rows if row.drawn == "constant"]
    others = "biases and norms" if not constant else f"biases and norms, constants: {', '.join(constant)}"
    return (
        f"init: {len(following)} matrices follow {' or '.join(rule[is_std] for is_std in sorted(constant_std))}"
        + f", {anew} of them drawn normal in place of their own initializer" * bool(anew)
        + f"; {len(rows) - len(following)} leaves stay as drawn ({others})"
    )


def lines(rows: Sequence[Row], rates: Sequence[Mapping]) -> list[str]:
    """The init table, for people: `sentence`, and a line for every leaf that is a matrix or of a matrix's shape."""

    def std(row: Row, i: int) -> str:
        seen = f" (measured {row.measured[i]:.3g})" if row.measured else ""
        rate = rates[i][row.group]
        return (
            f"{row.promised[i]:.3g}{seen} at {f'sigma {rate.std:g}' if isinstance(rate, Sigma) else f'gamma {rate:g}'}"
        )

    said = [sentence(rows, rates)]
    width = max((len(row.leaf) for row in rows), default=0)
    for row in rows:
        name = f"{row.leaf:<{width}} {'x'.join(map(str, row.shape)):<12}"
        if row.promised:
            shown = range(len(rates)) if row.promised[0] != row.promised[-1] else range(1)
            own = ", drawn normal in place of its own initializer" * (row.drawn == "anew")
            said.append(f"{name} d_in {row.d_in:<6} {row.group:<5} std {', '.join(std(row, i) for i in shown)}{own}")
        elif len(row.shape) > 1:
            said.append(f"{name} stays as drawn" + ", a constant" * (row.drawn == "constant"))
    return said
