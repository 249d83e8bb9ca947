"""Which leaves of a Flax module are weight matrices, and how many inputs each has.

The layer that owns a leaf decides, whatever its name: of a kernel all axes that are summed over are inputs, of an
embedding the last axis (as the papers count). A module says of its own leaves, or of those of modules in it, by path:

    fan_in = {"w": 32}                # so many inputs, or the axes of the leaf that are inputs: {"w": (0, 1)};
    fan_in = {"*/table": None}        # None: no matrix, it stays as the module draws it
    groups = {"readout/kernel": "head"}    # the group whose rate it follows, where names don't tell: see `lab.init`
    unit_leaves = ("w",)              # the module itself draws these with std d_in^-1/2
    matrix_rows = {"w": (0, 1, 2)}    # the axes that are rows of its matrix, where these are more than the inputs

Such attributes stand in the class, or are fields. The outermost module's word counts.
"""

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import linear, recurrent

from lab import layouts, module, nnx_matrices, rng, tree
from lab.layouts import Layout

# what Flax's layers call their leaves
MATRICES = ("kernel", "embedding")
OTHERS = ("bias", "scale", "negative_slope")
KERNELS = nn.Dense | nn.DenseGeneral | nn.Einsum | nn.Conv | nn.ConvLocal | nn.ConvTranspose | recurrent.DenseParams
PROJECTIONS = {"query": "qk", "key": "qk", "value": "vo", "out": "vo"}


class Matrix(NamedTuple):
    """One weight matrix.

    Attributes:
      d_in: its number of inputs.
      group: as its module says; empty where the names decide.
      drawn: `unit`: by its layer, with std d_in^-1/2. `anew`: by us, from a normal distribution of that std, since its
        own initializer has another one or is unknown. `constant`: it does not depend on the key, and stays.
      layout: which of its axes are the rows of a matrix; None: of more than two axes, and nothing says which.
    """

    d_in: int
    group: str
    drawn: str
    layout: Layout | None


class Owner(NamedTuple):
    """A leaf as its module sees it; under `nn.scan` and `nn.vmap` without the axis that stacks copies."""

    layer: nn.Module
    shape: tuple[int, ...]
    subscripts: str


class Found(NamedTuple):
    """The leaves of a model, by name.

    Attributes:
      matrices: those that are weight matrices.
      shapes: of all, in the tree's order.
      constants: those of a matrix's shape, or whose initializer is unknown, that do not depend on the key.
    """

    matrices: dict[str, Matrix]
    shapes: dict[str, tuple[int, ...]]
    constants: set[str]


def find(model: nn.Module, inputs) -> Found:
    """Which leaves of a model are weight matrices; only shapes and dtypes of `inputs` are read.

    Raises:
      ValueError: as `lab.module.draw`; a leaf with two axes or more that is drawn at random by a module that does not
        say how many inputs it has; a `fan_in`, `matrix_rows` or `groups` that cannot be; a layer whose weights no rate
        can scale.
    """
    leaves, structure = jax.tree.flatten(inputs)
    try:
        hash(model)
    except TypeError as error:
        why = module.first_line(error)
        raise ValueError(f"{type(model).__name__}: its fields must be static, tuples and no lists ({why})") from None
    return _find(model, structure, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))


def unit(model: nn.Module, key, inputs):
    """Parameters as the model draws them, with those of other std drawn anew: every matrix with std d_in^-1/2."""
    found = find(model, inputs).matrices

    def drawn(name, value):
        if name not in found or found[name].drawn != "anew":
            return value
        normal = jax.random.normal(rng.named(key, name), value.shape, value.dtype)
        return normal * np.asarray(found[name].d_in ** -0.5, value.dtype)

    return tree.map_named(drawn, module.draw(model, key, inputs))


@functools.lru_cache(maxsize=64)
def _find(model: nn.Module, structure, inputs) -> Found:
    def example():
        return jax.tree.unflatten(structure, [jnp.zeros(shape, dtype) for shape, dtype in inputs])

    modules, owners, of_nnx = {}, {}, {}
    with nn.intercept_methods(_noting(modules, owners, of_nnx)):
        params = jax.eval_shape(lambda: module.draw(model, rng.key(0, "init"), example()))
    leaves = tree.named_leaves(params)
    said = {name: _words(modules, leaves, name) for name in ("fan_in", "groups", "unit_leaves", "matrix_rows")}

    d_in, undecided = {}, []
    for name, leaf in leaves.items():
        owner = owners.get(name)
        if name in said["fan_in"]:
            word = said["fan_in"][name]
            if word is not None:
                d_in[name] = _said_inputs(name, word, leaf.shape if owner is None else owner.shape)
        elif owner is not None and (n := _inputs(owner, name)) is not None:
            d_in[name] = n
        elif name in of_nnx:
            d_in[name] = of_nnx[name]
        elif len(leaf.shape) > 1 and not (owner and _is_flaxs(owner.layer, name) and name.endswith(OTHERS)):
            undecided.append(name)

    unit_drawn = {name for name in d_in if name in said["unit_leaves"] or _draws_unit(owners.get(name), d_in[name])}
    to_try = [*undecided, *(name for name in d_in if name not in unit_drawn)]
    constant = _constants(model, example, tuple(to_try)) if to_try else set()
    for name in undecided:
        if name not in constant:
            _refuse(model, name, leaves[name].shape, owners.get(name))
    found = {}
    for name, n in d_in.items():
        drawn = "constant" if name in constant else "unit" if name in unit_drawn else "anew"
        projection = _projection(modules, name)
        rows = _said_rows(name, said, n, leaves[name].shape if name not in owners else owners[name].shape)
        layout = _layout(owners.get(name), name, leaves[name].shape, rows, projection)
        found[name] = Matrix(n, said["groups"].get(name, PROJECTIONS.get(projection, "")), drawn, layout)
    return Found(found, {name: leaf.shape for name, leaf in leaves.items()}, constant)


def _noting(modules: dict, owners: dict, of_nnx: dict) -> Callable:
    """An interceptor that notes every module, by path, and every leaf's owner, or d_in if it is NNX's, by name."""

    def note(function, args, kwargs, context):
        layer = context.module
        of_nnx.update({"/".join((*layer.path, name)): n for name, n in nnx_matrices.inputs(layer).items()})
        returned = function(*args, **kwargs)
        if isinstance(layer, nn.WeightNorm):
            raise ValueError(f"{'/'.join(layer.path)}: WeightNorm divides its kernel by its norm, so no init rate acts")
        here = modules.setdefault(tuple(layer.path), [])  # several where they share a scope
        if type(layer) not in map(type, here):
            here.append(layer)
        subscripts = ""
        if isinstance(layer, nn.Einsum):
            if context.method_name != "__call__":
                return returned
            subscripts = kwargs.get("einsum_str") or (args[1] if len(args) > 1 else layer.einsum_str)
        for name, value in layer.variables.get("params", {}).items():
            value = nn.meta.unbox(value)
            path = "/".join((*layer.path, name))
            if not isinstance(value, Mapping) and (path not in owners or not _is_flaxs(owners[path].layer, path)):
                owners[path] = Owner(layer, value.shape, subscripts)
        return returned

    return note


def _is_flaxs(layer: nn.Module, name: str) -> bool:
    """Whether a leaf is one that a layer of Flax's makes, rather than a module that wraps or extends it."""
    ours = (kind.__module__.startswith("flax.linen.") and kind is not nn.Module for kind in type(layer).__mro__)
    return name.rsplit("/", 1)[-1] in (*MATRICES, *OTHERS) and any(ours)


def _inputs(owner: Owner, name: str) -> int | None:
    """d_in of a matrix of one of Flax's layers; None for other leaves."""
    layer, shape = owner.layer, owner.shape
    if name.rsplit("/", 1)[-1] not in MATRICES:
        return None
    if isinstance(layer, nn.Embed):
        return shape[-1]
    if not isinstance(layer, KERNELS) or "." in _kernel(owner.subscripts):
        return None
    return math.prod(shape[axis] for axis in layouts.of_layer(layer, shape, owner.subscripts, "").rows)


def _kernel(subscripts: str) -> str:
    """The subscripts of an `nn.Einsum`'s kernel; empty for other layers."""
    return subscripts.split("->")[0].partition(",")[2]


def _draws_unit(owner: Owner | None, d_in: int) -> bool:
    """Whether a layer's initializer is known to have std d_in^-1/2: it says so, or is Flax's own with such a fan-in."""
    if owner is None:
        return False
    layer, shape = owner.layer, owner.shape
    if isinstance(layer, nn.Embed):
        initializer, fan = layer.embedding_init, shape[-1]
    else:
        initializer = getattr(layer, "kernel_init", None)
        fan = math.prod(shape[: -layouts.n_axes(layer.features) if isinstance(layer, nn.DenseGeneral) else -1])
    flaxs = initializer in (linear.default_kernel_init, linear.default_embed_init)
    return getattr(initializer, "d_in", fan if flaxs else None) == d_in


def _projection(modules: Mapping, name: str) -> str:
    """`query`, `key`, `value` or `out` of Flax's attention, whatever that is called; else empty."""
    *path, projection, _ = ("", *name.split("/"))
    around = modules.get(tuple(path[1:]), ())
    attention = any(isinstance(layer, nn.MultiHeadDotProductAttention) for layer in around)
    return projection if attention and projection in PROJECTIONS else ""


def _layout(
    owner: Owner | None, name: str, shape: tuple[int, ...], inputs: int | tuple[int, ...], projection: str
) -> Layout | None:
    """Of a matrix: by the axes its module names, else by its layer, else by its number of inputs."""
    inside = shape if owner is None else owner.shape
    if len(inside) < 2:
        return None
    if not isinstance(inputs, tuple) and owner is not None and _inputs(owner, name) is not None:
        found = layouts.of_layer(owner.layer, inside, owner.subscripts, projection)
    elif name.endswith("embedding") and len(inside) == 2:
        found = layouts.by_name(name, inside)
    else:
        found = layouts.of_inputs(inputs, inside)
    return found and layouts.stacked(found, inside, shape)


def _words(modules: Mapping, leaves: Mapping, attribute: str) -> dict:
    """Leaf -> what the outermost module says of it in an attribute."""
    found = {}
    outermost_first = [(path, layer) for path in sorted(modules, key=len) for layer in reversed(modules[path])]
    for path, layer in outermost_first:
        said = getattr(layer, attribute, ())
        said = said if isinstance(said, Mapping) else dict.fromkeys(said, True) if isinstance(said, tuple) else {}
        prefix = "/".join((*path, ""))
        inside = [name.removeprefix(prefix) for name in leaves if name.startswith(prefix)]
        for pattern, word in said.items():
            matched = fnmatch.filter(inside, pattern)
            if not matched:
                there = ", ".join(inside) or "none"
                raise ValueError(f"{type(layer).__name__}.{attribute}: no leaf {pattern!r}; there are {there}")
            for name in matched:
                found.setdefault(prefix + name, word)
    return found


def _said_inputs(name: str, word, shape: tuple[int, ...]) -> int:
    if _are_axes(word, shape):
        return math.prod(shape[axis] for axis in word)
    if isinstance(word, int) and not isinstance(word, bool) and word > 0:
        return word
    raise ValueError(f"fan_in of {name!r} {shape}: {word!r}; accepted: a number from 1, a tuple of its axes, or None")


def _said_rows(name: str, said: Mapping, d_in: int, shape: tuple[int, ...]) -> int | tuple[int, ...]:
    """What a module says of a matrix's rows: by its `matrix_rows`, else its `fan_in`, else `d_in`."""
    if name not in said["matrix_rows"]:
        return said["fan_in"].get(name, d_in)
    word = said["matrix_rows"][name]
    if not _are_axes(word, shape):
        raise ValueError(f"matrix_rows of {name!r} {shape}: {word!r}; accepted: a tuple of its axes")
    return word


def _are_axes(word, shape: tuple[int, ...]) -> bool:
    axes = word if isinstance(word, tuple) else ()
    return bool(axes) and all(isinstance(axis, int) and -len(shape) <= axis < len(shape) for axis in axes)


def _constants(model: nn.Module, example: Callable, names: tuple[str, ...]) -> set[str]:
    """Those of some leaves that two keys draw alike."""

    def same(one, other, inputs):
        drawn = [tree.named_leaves(module.draw(model, key, inputs)) for key in (one, other)]
        return {name: jnp.all(drawn[0][name] == drawn[1][name]) for name in names}

    with jax.ensure_compile_time_eval():  # numbers, also where this is asked inside a traced function
        found = jax.jit(same)(rng.key(0, "init"), rng.key(1, "init"), example())
        return {name for name, is_same in found.items() if bool(is_same)}


def _refuse(model: nn.Module, name: str, shape: tuple[int, ...], owner: Owner | None) -> None:
    mine, layer = type(model).__name__, type(model if owner is None else owner.layer).__name__
    axes = tuple(range(len(shape) - 1))
    raise ValueError(
        f"model {mine}: {name!r} {shape} is drawn at random by {layer}, and how many inputs it has is not said; say it "
        f"in the class {mine} or one derived from it, e.g. fan_in = {{{name!r}: {math.prod(shape[:-1])}}} (or its axes "
        f"that are inputs, {axes}; or None: it stays as drawn, whatever gamma is)"
    )
