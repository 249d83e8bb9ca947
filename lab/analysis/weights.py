"""The weight matrices of any model's parameters, as `lab.layouts` says: convolutions and heads are matrices, too."""

import itertools
import math
from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab import layouts, matrices
from lab.layouts import Layout
from lab.tree import named_leaves

Layouts = Iterable[tuple[str, Layout]]  # leaf name, how it is laid out


def named_layouts(params) -> tuple[tuple[str, Layout], ...]:
    """The layouts of a parameter tree of which only the names are known: of its kernels and embeddings."""
    found = ((name, layouts.by_name(name, leaf.shape)) for name, leaf in named_leaves(params).items())
    return tuple((name, layout) for name, layout in found if layout is not None)


def layouts_of(model: nn.Module, example) -> tuple[tuple[str, Layout], ...]:
    """The layouts of a Flax module's matrices, by the layers that own them.

    Args:
      example: what it reads, a batch of one; values do not matter.

    Raises:
      ValueError: as `lab.matrices.find`.
    """
    found = matrices.find(model, example)
    known = {name: matrix.layout for name, matrix in found.matrices.items() if matrix.layout is not None}
    return tuple((name, known[name]) for name in found.shapes if name in known)


def left_out(shapes: Mapping[str, tuple[int, ...]], known: Layouts) -> tuple[str, ...]:
    """Leaves with two axes or more that are none of the matrices, nor biases or scales, with shapes, for people."""
    names = dict(known)
    others = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) > 1 and name not in names and not name.endswith(matrices.OTHERS)
    }
    return tuple(f"{name} {shape}" for name, shape in others.items())


def matrix_names(params, known: Layouts | None = None, heads: bool = True) -> list[str]:
    """The M weight matrices of a parameter tree, in tree order: a leaf's path, with `[copy]`, `[head h]` behind it.

    Args:
      known: how its leaves are laid out; None: as their names say.
      heads: whether every head of a kernel by heads counts as well, after the whole.
    """
    leaves = named_leaves(params)
    known = named_layouts(params) if known is None else known
    return [name for leaf, layout in known for name in _names(leaf, layout, leaves[leaf].shape, heads)]


def weight_matrices(params, known: Layouts | None = None, heads: bool = True) -> dict[str, jax.Array]:
    """Name -> matrix (I, O), I its inputs (of embeddings: its tokens); as `matrix_names`."""
    leaves = named_leaves(params)
    found = {}
    for leaf, layout in named_layouts(params) if known is None else known:
        names = _names(leaf, layout, leaves[leaf].shape, heads)
        found |= dict(zip(names, _split(leaves[leaf], layout, heads), strict=True))
    return found


def kernel_names(params, known: Layouts | None = None) -> list[str]:
    """Those of `matrix_names` whose columns are neurons' input weights: all but embeddings."""
    known = named_layouts(params) if known is None else known
    return matrix_names(params, [(leaf, layout) for leaf, layout in known if not leaf.endswith("embedding")])


def _names(leaf: str, layout: Layout, shape: tuple[int, ...], heads: bool) -> list[str]:
    names = []
    for copy in itertools.product(*(range(shape[axis]) for axis in layout.copies)):
        said = [*map(str, copy)]
        names.append(leaf + (f"[{', '.join(said)}]" if said else ""))
        if heads and layout.head is not None:
            names += [f"{leaf}[{', '.join([*said, f'head {h}'])}]" for h in range(shape[layout.head])]
    return names


def _split(leaf, layout: Layout, heads: bool) -> list:
    columns = [axis for axis in range(leaf.ndim) if axis not in (*layout.copies, *layout.rows)]
    order = [*layout.copies, *layout.rows, *columns]
    if order == [0, 1]:
        return [leaf]
    n_copies, n_rows = len(layout.copies), math.prod(leaf.shape[axis] for axis in layout.rows)
    inside = jnp.transpose(leaf, order)
    inside = inside.reshape(-1, *inside.shape[n_copies:])
    n_axes = len(layout.rows)
    found = []
    for copy in inside:
        found.append(copy.reshape(n_rows, -1))
        if heads and layout.head is not None:
            at = order.index(layout.head) - n_copies
            by_head = jnp.moveaxis(copy, at, 0)
            per_head = n_rows // copy.shape[at] if at < n_axes else n_rows
            found += [head.reshape(per_head, -1) for head in by_head]
    return found
