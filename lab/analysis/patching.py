"""Activation patching: activations of one run put in their place in another.

The source may be the same model on another input or another row's parameters on the same input. A patch is an edit
(`lab.models.forward`); names are those of `lab.models.acts`. The answer is read at the last position.

Activations differ by where and how well each run stored the fact, so a large effect says that the state *suffices* to
carry the answer over, a small one not that it is unused: another place may hold the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits, models
from lab.analysis import estimate
from lab.analysis.flow import indices, refuse_outside

HEAD_AXIS = {"attn/q": 2, "attn/k": 2, "attn/v": 2, "attn/z": 2, "attn/score": 1, "attn/pattern": 1, "attn/mix": 1}
POSITION_AXIS = {"attn/score": 2, "attn/pattern": 2, "attn/mix": 2}  # 1 everywhere else


class Answer(NamedTuple):
    """What a run says at its last position, (B,) each: is the answer its top-1 (1 or 0), its logit, its probability.

    Averages and differences of these have the same fields, as `Estimate` over the batch.
    """

    correct: jax.Array
    logit: jax.Array
    probability: jax.Array


class Trace(NamedTuple):
    """Restored by each site, (N, L) estimates, and what the clean and the corrupted run say, scalar estimates."""

    restored: Answer
    clean: Answer
    corrupted: Answer


class Changes(NamedTuple):
    """Of the items that a run answers right: how many there are, int32, and the share that loses the answer to another
    run's state, (N, L) estimates; NaN where there are none."""

    n: jax.Array
    share: estimate.Estimate


def read_answer(logits_BxQxV, answer_B) -> Answer:
    """Reads the token `answer_B` (integers) at the last position; of equal logits the first token is top-1.

    Exact up to rounding.
    """
    logits_BxV, answer_B = logits_BxQxV[:, -1], jnp.asarray(answer_B)
    correct_B = jnp.argmax(logits_BxV, axis=-1).astype(answer_B.dtype) == answer_B
    logit_B, probability_B = (
        jnp.take_along_axis(values_BxV, answer_B[:, None], axis=-1)[:, 0]
        for values_BxV in (logits_BxV, jax.nn.softmax(logits_BxV))
    )
    return Answer(correct_B.astype(logits_BxV.dtype), logit_B, probability_B)


def over_batch(answer: Answer) -> Answer:
    """Means over the last axis, the batch, as estimates: sequences are the independent draws."""
    return Answer(*(estimate.mean(values, axis=-1) for values in answer))


def stream_names(n_layers: int) -> list[str]:
    """N+1 names of the residual stream: entry l is the state after l blocks."""
    return [f"block_{i}/resid_pre" for i in range(n_layers)] + [f"block_{n_layers - 1}/resid_post"]


def patch(source_acts: Mapping, names: str | Sequence[str], positions=None, heads=None) -> dict[str, Callable]:
    """Edits that put the activations of another run in the place of this one's; elsewhere nothing changes, bitwise.

    Args:
      source_acts: `acts` of the other run, of the same shapes.
      names: one name or several of `lab.models.acts`.
      positions: in the sequence, where to patch: a scalar, (P,) or (B, P) integers; None for all. Of a score or
        pattern these are queries. The length of the sequence is read off `source_acts["embed"]`. Traced positions
        that the activation does not have patch nothing.
      heads: likewise, a scalar or (n,) integers; None for all.

    Raises:
      ValueError: no such activation (the nearest is named); it has no heads or positions to choose from; known
        positions or heads that it does not have; or, when the edits are used, another shape or dtype.
    """
    names = [names] if isinstance(names, str) else names
    return {name: _substitution(source_acts, name, positions, heads) for name in names}


def causal_trace(model, params, clean_BxL, corrupted_BxL, answer_B, names: Sequence[str]) -> Trace:
    """Denoising (Meng et al. 2022, arXiv 2202.05262, section 2.1): the clean answer restored by a clean state.

    One run on `corrupted_BxL` for each site (name, position), with the clean run's state there; `restored` is what
    the answer gains over the unpatched corrupted run. N L + 2 forwards, one at a time, of one program.

    Args:
      clean_BxL, corrupted_BxL: tokens, item by item of one layout.
      answer_B: the clean answers.
      names: N activations with a position axis: `stream_names(n_layers)` is the map over layers.

    Returns:
      Trace of (N, L) estimates, the standard error that of the paired gain.

    Raises:
      ValueError: as `patch`.
    """
    clean_BxQxV, clean_acts = models.forward(model, params, clean_BxL)
    corrupted_BxQxV, _ = models.forward(model, params, corrupted_BxL)
    clean, corrupted = read_answer(clean_BxQxV, answer_B), read_answer(corrupted_BxQxV, answer_B)

    def gain(logits_BxQxV):
        return jax.tree.map(jnp.subtract, read_answer(logits_BxQxV, answer_B), corrupted)

    gain_NxLxB = _at_every_site(model, params, corrupted_BxL, clean_acts, names, gain)
    return Trace(over_batch(gain_NxLxB), over_batch(clean), over_batch(corrupted))


def interchange(model, params, tokens_BxL, other_BxL, answer_B, names: Sequence[str]) -> Changes:
    """Which states decide the answer: those that take it along when another run's stand in their place, one at a time
    (interchange interventions: Geiger et al. 2021, arXiv 2106.02997).

    Of items whose answer, read at the last position, is top-1 in the run on `tokens_BxL`, the share of which it is no
    longer. The other run differs in one part of the question, so a state that does not carry this part, and one that
    nothing later reads, change nothing; neither does a part that the model does not use. N L + 2 forwards, one at a
    time, of one program.

    Args:
      tokens_BxL, other_BxL: item by item of one layout.
      names: N activations with a position axis.

    Raises:
      ValueError: as `patch`.
    """
    logits_BxQxV, _ = models.forward(model, params, tokens_BxL)
    _, other_acts = models.forward(model, params, other_BxL)
    right_B = read_answer(logits_BxQxV, answer_B).correct
    lost_NxLxB = _at_every_site(
        model, params, tokens_BxL, other_acts, names, lambda logits: 1 - read_answer(logits, answer_B).correct
    )
    n = jnp.sum(right_B)
    share_NxL = jnp.einsum("nlb,b->nl", lost_NxLxB, right_B) / n
    error_NxL = jnp.sqrt(share_NxL * (1 - share_NxL) / (n - 1))
    return Changes(n.astype(jnp.int32), estimate.Estimate(share_NxL, error_NxL))


def _at_every_site(model, params, tokens_BxL, source_acts, names, read):
    """`read(logits)` with the source's state at one (name, position), for all of them: leaves (N, L, ...)."""
    n_names, length = len(names), tokens_BxL.shape[1]

    def run(site):
        chosen, position = site
        edits = {}
        for i, name in enumerate(names):
            # every name is edited in one program; position -1 is nowhere
            edits |= patch(source_acts, name, jnp.where(chosen == i, position, -1))
        return read(models.forward(model, params, tokens_BxL, edits)[0])

    name_S, position_S = (jnp.asarray(axis.ravel()) for axis in np.indices((n_names, length), np.int32))
    found = jax.lax.map(run, (name_S, position_S))
    return jax.tree.map(lambda leaf: leaf.reshape(n_names, length, *leaf.shape[1:]), found)


def _substitution(source_acts: Mapping, name: str, positions, heads) -> Callable:
    if name not in source_acts:
        hint = limits.nearest(name, source_acts) or f"; there are {', '.join(sorted(source_acts))}"
        raise ValueError(f"patch of {name!r}: no such activation{hint}")
    source = source_acts[name]
    chosen = _chosen(source_acts, name, positions, heads)

    def edit(value):
        if (value.shape, value.dtype) != (source.shape, source.dtype):
            raise ValueError(
                f"patch of {name!r}: the source is {source.dtype}{source.shape}, here {value.dtype}{value.shape}"
            )
        return jnp.where(chosen, source, value)

    return edit


def _chosen(source_acts: Mapping, name: str, positions, heads):
    """Where to patch, with the activation's number of axes, to be broadcast."""
    shape, short_name = source_acts[name].shape, name.partition("/")[2]
    chosen = jnp.ones((1,) * len(shape), bool)
    if positions is not None:
        if len(shape) < 3:
            raise ValueError(f"patch of {name!r} at positions={positions}: it has no positions")
        if "embed" not in source_acts:
            raise ValueError("source_acts has no 'embed', from which the length of the sequence is read")
        axis, stop = POSITION_AXIS.get(short_name, 1), source_acts["embed"].shape[1]
        position_BxP, start = indices("positions", positions), stop - shape[axis]
        refuse_outside(f"patch of {name!r}: position", position_BxP, start, stop)
        at_BxQ = _any_equal(position_BxP, start, stop)
        chosen = chosen & at_BxQ.reshape(
            [at_BxQ.shape[0] if i == 0 else -1 if i == axis else 1 for i in range(len(shape))]
        )
    if heads is not None:
        if short_name not in HEAD_AXIS:
            raise ValueError(f"patch of {name!r} in heads={heads}: only {', '.join(HEAD_AXIS)} have heads")
        axis, head_1xn = HEAD_AXIS[short_name], indices("heads", heads)
        refuse_outside(f"patch of {name!r}: head", head_1xn, 0, shape[axis])
        at_1xH = _any_equal(head_1xn, 0, shape[axis])
        chosen = chosen & at_1xH.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return chosen


def _any_equal(values_BxP, start: int, stop: int):
    """(B, stop - start): whether each of start ... stop - 1 is among the values."""
    values_BxP = jnp.asarray(values_BxP)
    return jnp.any(values_BxP[..., None] == jnp.arange(start, stop, dtype=values_BxP.dtype)[None, None], axis=1)
