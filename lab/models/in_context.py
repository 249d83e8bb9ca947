"""One layer of softmax attention over vectors, with what arXiv 2310.13220 changes in it: self, views, negatives.

On demonstrations x_1 ... x_N and a query x_q the plain layer gives, with v = W_V x, k = W_K x, q = W_Q x_q,

    h = sum_j p_j v_j,    p_j = exp(k_j . q / sqrt(D)) / Z,    j = 1 ... N and the query itself.

That is one gradient step of a dual model (`lab.analysis.dual`). What its authors' changes of the dual's loss do to the
layer, in the form that our notes give (their formulas were not available):

- *regularized*: a penalty (alpha / 2) |W|^2 scales what the dual starts from, the query's own term: p_q becomes
  (1 - alpha) p_q;
- *augmented*: keys and values go through a small MLP each, in place of nothing (`serial`) or beside it (`parallel`);
- *negative*: v_i -> v_i - (beta / r) sum of v_j over the r demonstrations that the query scores lowest.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from lab import limits
from lab.models import products
from lab.models.acts import Tape
from lab.models.layers import ACTIVATIONS, Dense, Model, UnitNormal, dense

AUGMENTS = ("none", "serial", "parallel")


class Readin(Dense):
    """In the place of an embedding, and with its rate."""

    groups = {"kernel": "embed"}


class View(nn.Module):
    """W x, or that through g, a two-layer MLP: g(W x) if `serial`, W x + g(W x) if `parallel`."""

    d_model: int
    augment: str
    d_augment: int
    activation: str

    @nn.compact
    def __call__(self, h_BxLxD):
        view_BxLxD = dense(self.d_model, self.d_model, False, "linear")(h_BxLxD)
        if self.augment == "none":
            return view_BxLxD
        hidden_BxLxF = ACTIVATIONS[self.activation](dense(self.d_model, self.d_augment, False, "in")(view_BxLxD))
        mapped_BxLxD = dense(self.d_augment, self.d_model, False, "out")(hidden_BxLxF)
        return mapped_BxLxD if self.augment == "serial" else view_BxLxD + mapped_BxLxD


def mixing(pattern_BxL, score_BxL, alpha: float, beta: float, n_negatives: int):
    """What each value is multiplied by, of a query that is the last of the L tokens; the pattern itself at 0 and 0.

    Args:
      pattern_BxL: softmax of `score_BxL`.
      alpha: the query's own weight is multiplied by 1 - alpha.
      beta: this share of the demonstrations' weight is taken from the mean of the `n_negatives` lowest-scored ones, or
        of all where there are not as many.
    """
    length = pattern_BxL.shape[1]
    mix_BxL = pattern_BxL
    if alpha:
        mix_BxL = mix_BxL.at[:, -1].multiply(1 - alpha)
    if beta and length > 1:
        demos_BxN = score_BxL[:, :-1]
        # by comparison: cheaper than to sort where N is small; of equal scores the earlier one is the lower
        earlier_NxN = jnp.arange(length - 1)[:, None] > jnp.arange(length - 1)[None]
        lower_BxNxN = demos_BxN[:, None, :] < demos_BxN[:, :, None]
        tied_BxNxN = (demos_BxN[:, None, :] == demos_BxN[:, :, None]) & earlier_NxN[None]
        is_negative_BxN = jnp.sum(lower_BxNxN | tied_BxNxN, axis=-1) < n_negatives
        share = beta / min(n_negatives, length - 1)
        taken_Bx1 = share * (1 - pattern_BxL[:, -1:])
        mix_BxL = mix_BxL.at[:, :-1].add(-taken_Bx1 * is_negative_BxN.astype(mix_BxL.dtype))
    return mix_BxL


class DualAttention(nn.Module):
    """What the last token collects, (B, D)."""

    d_model: int
    alpha: float
    beta: float
    n_negatives: int
    augment: str
    d_augment: int
    activation: str

    @nn.compact
    def __call__(self, h_BxLxD, tape: Callable):
        def view(name):
            return View(self.d_model, self.augment, self.d_augment, self.activation, name=name)(h_BxLxD)

        q_Bx1xD = tape("attn/q", dense(self.d_model, self.d_model, False, "query")(h_BxLxD[:, -1:]))
        k_BxLxD = tape("attn/k", view("key"))
        v_BxLxD = tape("attn/v", view("value"))
        score_BxL = tape("attn/score", products.scores(q_Bx1xD, k_BxLxD)[:, 0] / self.d_model**0.5)
        pattern_BxL = tape("attn/pattern", products.softmax(score_BxL))
        mix_BxL = tape("attn/mix", mixing(pattern_BxL, score_BxL, self.alpha, self.beta, self.n_negatives))
        return tape("attn/z", products.mix(mix_BxL[:, None], v_BxLxD)[:, 0])


class VectorAttention(Model):
    """Says one number of the last of L vectors: `__call__(x_BxLxI, edits) -> (answer_B, acts)`.

    Read in linearly, one head, no residual, norm, biases or positions: demonstrations are a set. Activations: `embed`
    (B L D), `block_0/attn/` with `q` (B 1 D), `k`, `v` (B L D), `score`, `pattern`, `mix` (B L) and `z` (B D), `answer`
    (B).

    Attributes:
      d_in: numbers in a vector.
      alpha, beta, n_negatives: see `mixing`.
      augment: of keys and values, `none`, `serial` or `parallel`, through `d_augment` units with an `activation`.

    Raises:
      ValueError: a size that is too small, an unknown choice; inputs of another kind, e.g. tokens.
    """

    d_in: int
    d_model: int
    alpha: float = 0.0
    beta: float = 0.0
    n_negatives: int = 1
    augment: str = "none"
    d_augment: int = 32
    activation: str = "relu"

    reads = "sequences of vectors"
    n_layers = 1

    def __post_init__(self):
        limits.check("model", self, choices={"augment": AUGMENTS, "activation": ACTIVATIONS})
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxLxI, edits: Mapping[str, Callable]):
        if x_BxLxI.ndim != 3 or x_BxLxI.shape[2] != self.d_in:
            raise ValueError(
                f"model.family='vector_attention', model.d_in={self.d_in}: reads sequences of vectors (B, L, "
                f"{self.d_in}), not {x_BxLxI.shape}; use task.family='linear_regression', and its features plus one"
            )
        tape = Tape(edits)
        readin = Readin(self.d_model, use_bias=False, kernel_init=UnitNormal(self.d_in), name="embed")
        h_BxLxD = tape("embed", readin(x_BxLxI))
        attention = DualAttention(
            self.d_model, self.alpha, self.beta, self.n_negatives, self.augment, self.d_augment, self.activation,
            name="block_0",
        )  # fmt: skip
        z_BxD = attention(h_BxLxD, lambda name, value: tape(f"block_0/{name}", value))
        answer_B = tape("answer", dense(self.d_model, 1, False, "head")(z_BxD)[:, 0])
        return answer_B, tape.finish()
