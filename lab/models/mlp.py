"""The models that theory is written for: a two-layer MLP, and bags of embeddings with or without one behind."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from lab.models.acts import Tape
from lab.models.layers import ACTIVATIONS, Model, dense, embedding


class TwoLayerMLP(Model):
    """f(x) = W_2 s(W_1 x + b): `__call__(x_BxD, edits) -> (output_BxV, acts)`."""

    d_in: int
    d_ff: int
    d_out: int
    activation: str
    use_bias: bool

    reads = "vectors"

    @nn.compact
    def __call__(self, x_BxD, edits: Mapping[str, Callable]):
        tape = Tape(edits)
        pre_BxF = tape("pre", dense(self.d_in, self.d_ff, self.use_bias, "in")(x_BxD))
        post_BxF = tape("post", ACTIVATIONS[self.activation](pre_BxF))
        output_BxV = tape("logits", dense(self.d_ff, self.d_out, False, "out")(post_BxF))
        return output_BxV, tape.finish()


class EmbMLP(Model):
    """G(X) = s((sum of the tokens' embeddings) W_1) W_2 ("An Analysis for Reasoning Bias", arXiv 2502.04375).

    `__call__(tokens_BxL, edits) -> (logits_BxQxV, acts)`. The paper's theory wants s(0) = 0, s'(0) = 1 and bounded
    derivatives: `tanh`.

    Attributes:
      readout: `last`: one answer a sequence (Q = 1), of all its tokens; `all`: one after every token, of those so far
        (Q = L); their sum, where a transformer that attends to all of them alike takes the mean.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    activation: str
    readout: str = "last"

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        tape = Tape(edits)
        sum_D = _sums(embedding(self.vocab_size, self.d_model, "embed"), tokens_BxL, self.readout, tape)
        pre_F = tape("pre", dense(self.d_model, self.d_ff, False, "in")(sum_D))
        post_F = tape("post", ACTIVATIONS[self.activation](pre_F))
        return _answers(dense(self.d_ff, self.vocab_size, False, "head")(post_F), self.readout, tape)


class EmbLinear(Model):
    """G(X) = (sum of the tokens' embeddings) U, linear in E U: `__call__` and `readout` as `EmbMLP`."""

    vocab_size: int
    d_model: int
    readout: str = "last"

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        tape = Tape(edits)
        sum_D = _sums(embedding(self.vocab_size, self.d_model, "embed"), tokens_BxL, self.readout, tape)
        return _answers(dense(self.d_model, self.vocab_size, False, "head")(sum_D), self.readout, tape)


class EmbTable(Model):
    """G(X) = sum of the tokens' rows of W: the function of `EmbLinear` without its factors, where nothing is shared."""

    vocab_size: int
    readout: str = "last"

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        tape = Tape(edits)
        sum_V = _sums(embedding(self.vocab_size, self.vocab_size, "embed"), tokens_BxL, self.readout, tape)
        return _answers(sum_V, self.readout, tape)


def _sums(embed: nn.Embed, tokens_BxL, readout: str, tape: Tape):
    """The sum of the embeddings of all tokens, or of those up to each."""
    h_BxLxD = tape("embed", embed(tokens_BxL))
    return tape("sum", h_BxLxD.sum(axis=1) if readout == "last" else jnp.cumsum(h_BxLxD, axis=1))


def _answers(logits, readout: str, tape: Tape):
    logits = tape("logits", logits)
    return logits[:, None, :] if readout == "last" else logits, tape.finish()
