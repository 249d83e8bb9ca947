"""The weight matrices of an NNX module that `flax.nnx.bridge.ToLinen` has made a Linen one."""

import math
import sys

import flax.linen as nn


def inputs(layer: nn.Module) -> dict[str, int]:
    """d_in of every matrix that NNX's own layers hold, by its path in `layer`; empty for other modules.

    Raises:
      ValueError: a layer that draws random numbers when it is called, which the bridge would do in evaluation, too.
    """
    nnx = sys.modules.get("flax.nnx")  # imported by whoever made such a module: it takes a second
    if nnx is None or not isinstance(layer, nnx.bridge.ToLinen):
        return {}

    def build():
        rngs = {} if layer.skip_rng else {"rngs": nnx.Rngs(0)}
        return layer.nnx_class(*layer.args, **layer.kwargs, **rngs)

    found = {}
    for path, node in nnx.iter_graph(nnx.eval_shape(build)):
        where = "/".join(map(str, path))
        if getattr(node, "dropout_rate", 0) or (isinstance(node, nnx.Dropout) and node.rate):
            raise ValueError(
                f"{where or layer.nnx_class.__name__}: dropout of NNX; write the model in Linen, or without it"
            )
        n = _inputs(nnx, node)
        if n is not None:
            leaf = "embedding" if isinstance(node, nnx.Embed) else "kernel"
            found["/".join((*map(str, path), leaf))] = n
    return found


def _inputs(nnx, node) -> int | None:
    if isinstance(node, nnx.Embed):
        return node.features
    if isinstance(node, nnx.Conv):
        return math.prod(node.kernel_size) * node.in_features // node.feature_group_count
    if isinstance(node, nnx.LinearGeneral):
        return math.prod(node.in_features)
    return node.in_features if isinstance(node, nnx.Linear) else None
