"""Which axes of a weight leaf are the rows of its matrix, which are heads, and which only stack matrices.

| leaf | shape | matrix |
|---|---|---|
| dense kernel | (I, O) | I x O, as it is |
| convolution | (kh, kw, I, O) | (kh kw I) x O: a column holds all that enters an output channel |
| grouped convolution | (kh, kw, I / g, O) | (kh kw I / g) x O, the bank of its filters; groups read different inputs |
| query, key, value by head | (D, H, K) | D x (H K), and D x K of every head: `name[head h]` |
| output by head | (H, K, D) | (H K) x D, and K x D of every head |
| embedding | (V, D) | V x D, as it is |
| stacked by `nn.scan`, `nn.vmap`, batch axes, a kernel for each place | (N, I, O) | I x O of every copy: `name[i]` |

A module that says `fan_in = {"w": (0, 1)}` says the rows with it, unless it says `matrix_rows`, as that of a Fourier
layer does: its weights (2, 2m, m, I, O) have I inputs, and are a (4 m m I) x O matrix.
"""

import itertools
import math
import re
from typing import NamedTuple

import flax.linen as nn

from lab.tree import STACKED

BY_HEAD = re.compile(r"(^|/)(query|key|value)/kernel$")
OUT_OF_HEADS = re.compile(r"(?i:att)[^/]*/out/kernel$")


class Layout(NamedTuple):
    """The axes of one weight leaf; those that are neither rows nor copies are columns.

    Attributes:
      rows: axes that become the rows of the matrix, in this order.
      copies: axes along which matrices are stacked.
      head: an axis of heads, each of which is a matrix as well; None: there is none.
    """

    rows: tuple[int, ...]
    copies: tuple[int, ...] = ()
    head: int | None = None


def by_name(name: str, shape: tuple[int, ...]) -> Layout | None:
    """Of a kernel or an embedding, by its name alone: of axes that stack copies only layers are seen. None for other
    leaves."""
    if name.startswith(f"{STACKED}/"):
        inside = by_name(name.removeprefix(f"{STACKED}/"), shape[1:])
        return inside and stacked(inside, shape[1:], shape)
    if len(shape) < 2 or name.rsplit("/", 1)[-1] not in ("kernel", "embedding"):
        return None
    if len(shape) == 3 and BY_HEAD.search(name):
        return Layout((0,), head=1)
    return Layout(tuple(range(len(shape) - 1)), head=0 if len(shape) == 3 and OUT_OF_HEADS.search(name) else None)


def of_layer(layer: nn.Module, shape: tuple[int, ...], subscripts: str, projection: str) -> Layout:
    """Of a kernel or an embedding of one of Flax's layers, of the shape that the layer itself sees.

    Args:
      subscripts: of an `nn.Einsum`.
      projection: `query`, `key`, `value` or `out` of Flax's attention; empty elsewhere.
    """
    n = len(shape)
    if isinstance(layer, nn.DenseGeneral):
        copies, columns = n_axes(layer.batch_dims), n_axes(layer.features)
        rows = tuple(range(copies, n - columns))
        head = None if not projection or n - copies != 3 else rows[0] if projection == "out" else n - columns
        return Layout(rows, tuple(range(copies)), head)
    if isinstance(layer, nn.Einsum):
        operands, result = subscripts.replace(" ", "").split("->")
        left, kernel = operands.split(",")
        rows = tuple(axis for axis, x in enumerate(kernel) if x not in result)
        return Layout(rows, tuple(axis for axis, x in enumerate(kernel) if x in left and x in result))
    if isinstance(layer, nn.ConvLocal):
        return Layout((n - 2,), tuple(range(n - 2)))
    if isinstance(layer, nn.ConvTranspose) and layer.transpose_kernel:
        return Layout((*range(n - 2), n - 1))
    return Layout(tuple(range(n - 1)))


def of_inputs(inputs: int | tuple[int, ...], shape: tuple[int, ...]) -> Layout | None:
    """Of a leaf of which only this is known: the axes that are inputs, or how many inputs there are.

    None where several axes could be meant, or none: the number of inputs is no product of the first or the last axes.
    """
    n = len(shape)
    if isinstance(inputs, tuple):
        return Layout(tuple(sorted({axis % n for axis in inputs})))
    for rows in [range(k) for k in range(1, n)] + [range(k, n) for k in range(1, n)]:
        if math.prod(shape[axis] for axis in rows) == inputs:
            return Layout(tuple(rows))
    return Layout((0,)) if n == 2 else None


def stacked(layout: Layout, inside: tuple[int, ...], shape: tuple[int, ...]) -> Layout | None:
    """The layout of a leaf of `shape` whose copies have the shape `inside`; None: they have not."""
    for copies in itertools.combinations(range(len(shape)), max(len(shape) - len(inside), 0)):
        places = [axis for axis in range(len(shape)) if axis not in copies]
        if tuple(shape[axis] for axis in places) == inside:
            rows, more, heads = (
                tuple(places[axis] for axis in axes)
                for axes in (layout.rows, layout.copies, () if layout.head is None else (layout.head,))
            )
            return Layout(rows, (*copies, *more), heads[0] if heads else None)
    return None


def n_axes(said) -> int:
    """Of what a layer says of its axes, or of their sizes: one, or several."""
    return 1 if isinstance(said, int) else len(said)
