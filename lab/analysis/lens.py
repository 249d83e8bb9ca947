"""The logit lens, and direct attribution of a logit to embedding, heads and MLPs.

Activations (`acts`) are those of an unedited run of a `Transformer`, for the lens also of a `Decoder`. All of this is
deterministic in them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab import models
from lab.analysis import estimate
from lab.models.decoder import NORM_KINDS
from lab.models.layers import LayerNorm, dense


class Attribution(NamedTuple):
    """Parts of one logit at the last Q positions; their `total` is the logit.

    Attributes:
      embed_BxQ: token and position embedding of the position itself.
      heads_NxBxHxQxL: what each head brings from each position it reads.
      mlps_NxBxQ: each MLP, its output bias included.
      bias_BxQ: biases of attention outputs, final norm and head, which belong to no head.
    """

    embed_BxQ: jax.Array
    heads_NxBxHxQxL: jax.Array
    mlps_NxBxQ: jax.Array
    bias_BxQ: jax.Array

    def total(self):
        """logit_BxQ: the sum of all parts."""
        heads_BxQ = jnp.sum(self.heads_NxBxHxQxL, axis=(0, 2, 4))
        return self.embed_BxQ + heads_BxQ + jnp.sum(self.mlps_NxBxQ, axis=0) + self.bias_BxQ


Lensed = models.Transformer | models.Decoder


def logit_lens(model: Lensed, params, h_BxQxD):
    """logits_BxQxV that the final norm (if the model has one) and the unembedding read off a state of the stream.

    At the last `resid_post` these are the model's own logits (nostalgebraist 2020, "interpreting GPT: the logit
    lens"). Earlier states need not be written in the head's basis: that a token cannot be read there does not say
    that it is not known. Exact up to rounding.

    Raises:
      ValueError: the model is no transformer and no decoder.
    """
    _refuse_others(model, Lensed)
    if model.final_norm:
        norm = NORM_KINDS[model.norm_kind](model.norm_eps) if isinstance(model, models.Decoder) else LayerNorm()
        h_BxQxD = norm.apply({"params": params["final_norm"]}, h_BxQxD)
    if model.tied_head:
        return jnp.einsum("bqd,vd->bqv", h_BxQxD, params["embed"]["token"]["embedding"])
    head = dense(model.d_model, model.vocab_size, model.head_bias, "head")
    return head.apply({"params": params["head"]}, h_BxQxD)


def target_rank(logits_BxQxV, target_B):
    """rank_BxQ: 1 where the item's target token is alone at the top, V at the bottom.

    Ties count against the target, and NaN logits rank V: a head that says nothing has found nothing. Exact.
    """
    target_Bx1x1 = jnp.asarray(target_B)[:, None, None]
    target_logit_BxQx1 = jnp.take_along_axis(logits_BxQxV, target_Bx1x1, axis=-1)
    return logits_BxQxV.shape[-1] - jnp.sum(logits_BxQxV < target_logit_BxQx1, axis=-1)


def lens_mrr(model: Lensed, params, acts: Mapping, target_B, names: Sequence[str]) -> estimate.Estimate:
    """Mean reciprocal rank of the target in the logit lens, of N states at L positions: an (N, L) estimate.

    MRR = mean over items of 1 / rank, in (0, 1], as arXiv 2502.04667 reads bridge entities.
    N unembeddings, no forward; `patching.stream_names(n_layers)` are the states after 0 ... N blocks.

    Raises:
      ValueError: the model is no transformer and no decoder; a state lacks positions (`readout='last'`); no such
        activation.
    """
    length = acts["embed"].shape[1]
    reciprocal = []
    for name in names:
        if name not in acts or acts[name].shape[1:] != (length, model.d_model):
            raise ValueError(f"{name!r}: a state (B, {length}, {model.d_model}) of the stream, with readout='all'")
        rank_BxL = target_rank(logit_lens(model, params, acts[name]), target_B)
        reciprocal.append(1 / rank_BxL.astype(acts[name].dtype))
    return estimate.mean(jnp.stack(reciprocal), axis=1)


def resolved_layer(mrr_NxL, threshold):
    """layer_L: the first of N layers with MRR >= `threshold`, say 0.9; N where none is.

    Later layers may fall below again. Exact, but carries the sampling error of the MRR.
    """
    resolved_NxL = mrr_NxL >= threshold
    return jnp.where(jnp.any(resolved_NxL, axis=0), jnp.argmax(resolved_NxL, axis=0), mrr_NxL.shape[0])


def logit_attribution(model: models.Transformer, params, acts: Mapping, target_B) -> Attribution:
    """Direct logit attribution: the target's logit as a sum over what embedding, heads and MLPs write to the stream
    (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

    The stream is that sum for `norm` `none` and `pre`; a final LayerNorm is linear once its 1/std is held at the
    run's own value, as it is here. So parts add up to the logit exactly, up to rounding; they do not say what the
    logit would be without a part, which changes what later blocks and the final norm make of the rest. No forward.

    Raises:
      ValueError: the model is no transformer, or is post-norm: its stream is renormalized after each sum, and no
        part keeps its size.
    """
    _refuse_others(model, models.Transformer)
    if model.norm == "post":
        raise ValueError("norm='post': the stream is no sum of what was written to it; 'pre' or 'none'")
    n_queries = acts["final"].shape[1]
    direction_BxQxD, bias_BxQ = _readout(model, params, acts, target_B)

    def share(h_BxLxD):
        return jnp.einsum("bqd,bqd->bq", h_BxLxD[:, h_BxLxD.shape[1] - n_queries :], direction_BxQxD)

    heads = []
    for layer in range(model.n_layers):
        name, out = f"block_{layer}/attn", params[f"block_{layer}"]["attn"]["out"]
        out_HxKxD = out["kernel"].reshape(model.n_heads, model.d_head, model.d_model)
        read_BxHxQxK = jnp.einsum("bqd,hkd->bhqk", direction_BxQxD, out_HxKxD)
        value_BxHxQxL = jnp.einsum("bhqk,blhk->bhql", read_BxHxQxK, acts[f"{name}/v"])
        pattern_BxHxLxL = acts[f"{name}/pattern"]
        heads.append(pattern_BxHxLxL[:, :, pattern_BxHxLxL.shape[2] - n_queries :] * value_BxHxQxL)
        if model.use_bias:
            bias_BxQ = bias_BxQ + jnp.einsum("d,bqd->bq", out["bias"], direction_BxQxD)
    if model.d_ff:
        mlps = [share(acts[f"block_{layer}/mlp/out"]) for layer in range(model.n_layers)]
    else:
        mlps = [jnp.zeros_like(bias_BxQ)] * model.n_layers
    return Attribution(share(acts["embed"]), jnp.stack(heads), jnp.stack(mlps), bias_BxQ)


def _readout(model, params, acts, target_B):
    """`(direction_BxQxD, bias_BxQ)`: the target's logit is stream . direction + bias, with the std of the run.

    LayerNorm(h) . w = (h - mean h) / std . (scale w) + bias . w = h . (g - mean g) / std + bias . w with g = scale w.
    """
    target_B = jnp.asarray(target_B)
    if model.tied_head:
        read_BxD = params["embed"]["token"]["embedding"][target_B]
    else:
        read_BxD = params["head"]["kernel"].T[target_B]
    stream_BxQxD = acts[f"block_{model.n_layers - 1}/resid_post"]
    direction_BxQxD = jnp.broadcast_to(read_BxD[:, None], stream_BxQxD.shape)
    bias_BxQ = jnp.zeros_like(stream_BxQxD[:, :, 0])
    if model.head_bias and not model.tied_head:
        bias_BxQ = bias_BxQ + params["head"]["bias"][target_B][:, None]
    if model.final_norm:
        norm = params["final_norm"]
        bias_BxQ = bias_BxQ + jnp.einsum("d,bd->b", norm["bias"], read_BxD)[:, None]
        scaled_BxD = read_BxD * norm["scale"][None]
        centered_BxD = scaled_BxD - jnp.mean(scaled_BxD, axis=-1, keepdims=True)
        variance_BxQx1 = jnp.var(stream_BxQxD, axis=-1, keepdims=True)
        direction_BxQxD = centered_BxD[:, None] / jnp.sqrt(variance_BxQx1 + LayerNorm.epsilon)
    return direction_BxQxD, bias_BxQ


def _refuse_others(model, accepted):
    if not isinstance(model, accepted):
        raise ValueError(f"the lens reads a residual stream: a Transformer, not {type(model).__name__}")
