"""One layer of softmax attention over vectors, with the changes of arXiv 2310.13220 (`lab.models.dual_attention`).

On demonstrations x_1 ... x_N and a query x_q the plain layer gives, with v = W_V x, k = W_K x, q = W_Q x_q,

    h = sum_j p_j v_j,    p_j = exp(k_j . q / sqrt(D)) / Z,    j = 1 ... N and the query itself.

That is one gradient step of a dual model (`lab.analysis.dual`).
"""

from collections.abc import Callable, Mapping

import flax.linen as nn

from lab import limits
from lab.models import products
from lab.models.acts import Tape
from lab.models.dual_attention import AUGMENTS, Changes, augmented, mixing
from lab.models.layers import ACTIVATIONS, Dense, Model, UnitNormal, dense


class Readin(Dense):
    """In the place of an embedding, and with its rate."""

    groups = {"kernel": "embed"}


class View(nn.Module):
    """W x, or that through an MLP."""

    d_model: int
    changes: Changes

    @nn.compact
    def __call__(self, h_BxLxD):
        return augmented(dense(self.d_model, self.d_model, False, "linear")(h_BxLxD), self.changes)


class DualAttention(nn.Module):
    """What the last token collects, (B, D)."""

    d_model: int
    changes: Changes

    groups = {"key/linear/kernel": "qk", "value/linear/kernel": "vo"}

    @nn.compact
    def __call__(self, h_BxLxD, tape: Callable):
        q_Bx1xD = tape("attn/q", dense(self.d_model, self.d_model, False, "query")(h_BxLxD[:, -1:]))
        k_BxLxD = tape("attn/k", View(self.d_model, self.changes, name="key")(h_BxLxD))
        v_BxLxD = tape("attn/v", View(self.d_model, self.changes, name="value")(h_BxLxD))
        score_BxL = tape("attn/score", products.scores(q_Bx1xD, k_BxLxD)[:, 0] / self.d_model**0.5)
        pattern_BxL = tape("attn/pattern", products.softmax(score_BxL))
        mix_BxL = tape("attn/mix", mixing(pattern_BxL[:, None], score_BxL[:, None], self.changes)[:, 0])
        return tape("attn/z", products.mix(mix_BxL[:, None], v_BxLxD)[:, 0])


class VectorAttention(Model):
    """Says one number of the last of L vectors: `__call__(x_BxLxI, edits) -> (answer_B, acts)`.

    Read in linearly, one head, no residual, norm, biases or positions: demonstrations are a set. Activations: `embed`
    (B L D), `block_0/attn/` with `q` (B 1 D), `k`, `v` (B L D), `score`, `pattern`, `mix` (B L) and `z` (B D), `answer`
    (B).

    Attributes:
      d_in: numbers in a vector.
      alpha, beta, n_negatives, augment, d_augment, activation: see `lab.models.dual_attention`.

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
        changes = Changes(self.alpha, self.beta, self.n_negatives, self.augment, self.d_augment, self.activation)
        attention = DualAttention(self.d_model, changes, name="block_0")
        z_BxD = attention(h_BxLxD, lambda name, value: tape(f"block_0/{name}", value))
        answer_B = tape("answer", dense(self.d_model, 1, False, "head")(z_BxD)[:, 0])
        return answer_B, tape.finish()
