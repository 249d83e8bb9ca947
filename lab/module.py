"""Calls any Flax Linen module: what a model is given, and what it must return.

| `__call__` takes            | and is given                                                                        |
|---|---|
| one input, the first        | what the task gives: int32 tokens (B, L), or e.g. `(image, time, bits)`             |
| `edits`                     | activation name -> function applied to that activation                              |
| `train` or `deterministic`  | whether this is a training step, or whether it is not                               |

It returns outputs alone (of tokens: logits (B, Q, V), Q = L or 1), or `(outputs, acts)`, `acts` a dict of named
intermediates. Parameters are all that a model may keep from call to call. Random numbers (dropout) are drawn in
training steps only: `nn.Dropout` and Flax's attention are told so, whether the model hands it on or not.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping

import flax
import flax.linen as nn
import jax
import numpy as np

NO_EDITS: Mapping[str, Callable] = {}
FLAGS = {"train": True, "training": True, "deterministic": False}  # the value that means training
GIVES = "a model gets tokens (B, L) and returns logits (B, Q, V), or (logits, acts) with acts a dict of arrays by name"
NOT_A_MODEL = (
    "model {!r:.80}: expected a Flax Linen module; wrap one of NNX in flax.nnx.bridge.ToLinen, and a function in a "
    "module whose __call__ it is"
)
KEPT = {
    "batch_stats": "BatchNorm and SpectralNorm couple the sequences of a batch and keep what is not trained",
    "cache": "a decoding cache",
}


def draw(model: nn.Module, key, inputs):
    """Parameters as the model's own initializers draw them. Each leaf's draw depends on its own name only.

    Raises:
      ValueError: no Flax Linen module, or one that takes, or keeps, what no model may.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(NOT_A_MODEL.format(model))
    variables = _call(lambda kwargs: model.init(key, inputs, **kwargs), model, NO_EDITS, training=False)
    for kind in variables:
        if kind != "params":
            why = KEPT.get(kind, "only parameters are trained and saved")
            raise ValueError(f"{_name(model)} keeps {kind!r} from call to call ({why}): a model has parameters only")
    return nn.meta.unbox(variables.get("params", {}))


def forward(
    model: nn.Module,
    params,
    inputs,
    edits: Mapping[str, Callable] = NO_EDITS,
    dropout_key: Callable[[], jax.Array] | None = None,
):
    """`(outputs, acts)` of a batch; no acts of a model that returns none.

    Args:
      edits: activation name -> function applied to that activation where it is made.
      dropout_key: gives the key of a training step, asked only by models that draw; None: not a training step.

    Raises:
      ValueError: an edit names no activation of the model (the nearest name is given); token ids that the model does
        not have, where they are known; a model that takes or returns something else, or draws in evaluation.
    """
    _check_ids(model, inputs)

    def apply(kwargs, **rngs):
        return model.apply({"params": params}, inputs, **kwargs, **rngs)

    training = dropout_key is not None
    try:
        found = _call(apply, model, edits, training)
    except flax.errors.InvalidRngError as error:
        if not training:
            raise ValueError(
                f"{_name(model)} draws random numbers outside of training steps; let it take `train`, True in training "
                f"steps alone ({first_line(error)})"
            ) from None
        # Asked for only now: models that draw nothing have no key in their program.
        found = _call(lambda kwargs: apply(kwargs, rngs={"dropout": dropout_key()}), model, edits, training)
    except flax.errors.ModifyScopeVariableError as error:
        raise ValueError(f"{_name(model)} keeps more than parameters from call to call: {first_line(error)}") from None
    return _pair(model, found)


def check_outputs(model: nn.Module, outputs, inputs, vocab_size: int, classifies: bool = False) -> None:
    """Of a language model's traced outputs.

    Args:
      classifies: whether (B, V) will do, see `lab.tasks.Task`.

    Raises:
      ValueError: not (B, Q, V) with Q = 1 or L and V of `vocab_size` at least.
    """
    shape, (n, length) = getattr(outputs, "shape", None), inputs.shape
    if shape is not None and classifies and len(shape) == 2:
        shape = (shape[0], 1, shape[1])
    if shape is None or len(shape) != 3 or shape[0] != n or shape[1] not in (1, length) or shape[2] < vocab_size:
        once = f", or ({n}, at least {vocab_size})" if classifies else ""
        raise ValueError(
            f"{_name(model)} returns {_said(outputs)} of tokens ({n}, {length}): expected logits (B, Q, V), here "
            f"({n}, {length} or 1, at least {vocab_size}){once}"
        )


def _call(call: Callable, model: nn.Module, edits: Mapping, training: bool):
    """`call(kwargs)` with those that the model takes."""
    taken = inspect.signature(type(model).__call__).parameters
    required = [
        name
        for name, parameter in list(taken.items())[2:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if others := [name for name in required if name not in {"edits", *FLAGS}]:
        raise ValueError(f"{_name(model)}.__call__ also wants {', '.join(others)}; {GIVES}; it may take edits, train")
    kwargs = {name: training if means else not training for name, means in FLAGS.items() if name in taken}
    if "edits" in taken:
        kwargs["edits"] = edits
    elif edits:
        raise ValueError(f"edit of {next(iter(edits))!r}: {_name(model)} takes no `edits`")
    with nn.intercept_methods(_tell(training)):
        return call(kwargs)


def _tell(training: bool) -> Callable:
    """An interceptor that tells Flax's layers whether to draw: as they were told, but never outside of training."""

    def tell(function, args, kwargs, context):
        module, told = context.module, kwargs.get("deterministic")
        if context.method_name != "__call__":
            return function(*args, **kwargs)
        if isinstance(module, nn.Dropout) and not training:
            return args[0] if args else kwargs["inputs"]
        unsaid = isinstance(module, nn.Dropout | nn.MultiHeadDotProductAttention) and module.deterministic is None
        positional = isinstance(module, nn.Dropout) and len(args) > 1
        if unsaid and told is None and not positional:
            kwargs = {**kwargs, "deterministic": not training}
        return function(*args, **kwargs)

    return tell


def _pair(model: nn.Module, found):
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping):
        return found
    if hasattr(found, "shape"):
        return found, {}
    raise ValueError(f"{_name(model)} returns {_said(found)}; {GIVES}")


def _check_ids(model: nn.Module, inputs) -> None:
    """Inside a traced function ids are not known; there they are those that were checked where data entered."""
    vocab_size = getattr(model, "vocab_size", None)
    if not isinstance(vocab_size, int) or isinstance(inputs, jax.core.Tracer):
        return
    if isinstance(inputs, jax.Array) and not inputs.is_fully_addressable:
        return
    with contextlib.suppress(TypeError):  # what is no array of integers the model itself refuses
        check_ids("tokens", np.asarray(inputs), vocab_size)


def check_ids(what: str, ids, bound: int, kind: str = "token id", whose: str = "vocab_size") -> None:
    """Host arrays of token ids, or of labels.

    Raises:
      ValueError: an id below 0 or of `bound` and more; XLA would read the last row, or NaN.
    """
    if not np.issubdtype(ids.dtype, np.integer) or not ids.size:
        return
    least, greatest = int(ids.min()), int(ids.max())
    if least < 0 or greatest >= bound:
        wrong = least if least < 0 else greatest
        raise ValueError(f"{what}: {kind} {wrong}; accepted: 0 to {bound - 1} ({whose}={bound})")


def _said(found) -> str:
    if hasattr(found, "shape"):
        return f"an array of shape {found.shape}"
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)}"
    return f"a {type(found).__name__}"


def _name(model) -> str:
    return type(model).__name__


def first_line(error: Exception) -> str:
    """What a long message begins with."""
    return str(error).strip().splitlines()[0]
