"""Parameter trees: names of leaves, a leafwise `where`, sizes, and trees packed into vectors."""

import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence

import jax
import jax.numpy as jnp

STACKED = "blocks"  # of a model that scans over its layers: their parameters, every leaf with a first axis over them


def leaf_name(path) -> str:
    """`(DictKey('block_0'), DictKey('attn'), ...)` -> `"block_0/attn/..."`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree) -> dict[str, jax.Array]:
    """Leaves by name, in the tree's own order."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable, tree):
    """`tree` with every leaf replaced by `function(name, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(leaf_name(path), leaf), tree)


def where(condition, on_true, on_false):
    """Leafwise `where` with one scalar condition: keeps `on_false` bitwise where the condition is False."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def stack(trees: Sequence):
    """Equal trees as one, every leaf with a new first axis over them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def by_layer(params) -> list:
    """The parameters of every block of a model whose blocks are `block_0`, `block_1`, ..., or stacked in `blocks`."""
    if STACKED not in params:
        return [
            params[f"block_{i}"] for i in range(sum(re.fullmatch(r"block_\d+", name) is not None for name in params))
        ]
    n_layers = jax.tree.leaves(params[STACKED])[0].shape[0]
    return [jax.tree.map(lambda leaf_Nx, i=i: leaf_Nx[i], params[STACKED]) for i in range(n_layers)]


def each_layer(function: Callable, name: str, leaf):
    """`function(leaf)`, a number or what broadcasts to the leaf; of every layer apart where `blocks` stacks them."""
    if not name.startswith(f"{STACKED}/"):
        return function(leaf)
    return jax.vmap(lambda of_layer: jnp.broadcast_to(function(of_layer), of_layer.shape))(leaf)


def stack_layers(params) -> dict:
    """A tree of `block_0`, `block_1`, ... as one with its blocks stacked in `blocks`; `unstack_layers` undoes it."""
    others = {name: leaf for name, leaf in params.items() if not re.fullmatch(r"block_\d+", name)}
    return others | {STACKED: stack(by_layer(params))}


def unstack_layers(params) -> dict:
    """The inverse of `stack_layers`."""
    others = {name: leaf for name, leaf in params.items() if name != STACKED}
    return others | {f"block_{i}": layer for i, layer in enumerate(by_layer(params))}


def size(tree) -> int:
    """Number of scalars in the tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def n_bytes(tree) -> int:
    """Memory of the tree's arrays; shapes and dtypes are enough."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Packing:
    """A tree's leaves as one vector for each group of them, so that what is elementwise is one operation a group.

    Attributes:
      structure: of the tree.
      shapes, groups: of its leaves, in order; a group's leaves have one dtype, and groups can be sorted.
    """

    structure: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[Hashable, ...]

    @classmethod
    def of(cls, tree, group_of: Mapping[str, Hashable]) -> "Packing":
        """
        Args:
          group_of: leaf name -> group.
        """
        leaves = named_leaves(tree)
        groups = tuple(group_of[name] for name in leaves)
        return cls(jax.tree.structure(tree), tuple(leaf.shape for leaf in leaves.values()), groups)

    def pack(self, tree) -> dict:
        """Group -> vector."""
        members = {group: [] for group in sorted(set(self.groups))}
        for group, leaf in zip(self.groups, jax.tree.leaves(tree), strict=True):
            members[group].append(leaf.reshape(-1))
        return {group: jnp.concatenate(leaves) for group, leaves in members.items()}

    def unpack(self, vectors: Mapping):
        """The tree whose `pack` these are."""
        leaves, begins = [], dict.fromkeys(vectors, 0)
        for group, shape in zip(self.groups, self.shapes, strict=True):
            end = begins[group] + math.prod(shape)
            leaves.append(vectors[group][begins[group] : end].reshape(shape))
            begins[group] = end
        return jax.tree.unflatten(self.structure, leaves)

    def pack_within(self, state):
        """`state` with every part that has the tree's structure packed: parameters, moments of an optimizer."""
        return _map_parts(self.pack, self.structure, state)

    def unpack_within(self, state):
        """The inverse of `pack_within`."""
        return _map_parts(self.unpack, jax.tree.structure(dict.fromkeys(self.groups, 0)), state)


def _map_parts(function: Callable, structure, tree):
    def is_part(node) -> bool:
        return jax.tree.structure(node) == structure

    return jax.tree.map(lambda node: function(node) if is_part(node) else node, tree, is_leaf=is_part)
