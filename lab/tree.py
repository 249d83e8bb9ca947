"""Parameter trees: names of leaves, a leafwise `where`, and sizes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


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


def size(tree) -> int:
    """Number of scalars in the tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def n_bytes(tree) -> int:
    """Memory of the tree's arrays; shapes and dtypes are enough."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
