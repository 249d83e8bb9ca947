"""The two models that theory is written for: a two-layer MLP, and a bag of embeddings followed by one."""

from collections.abc import Callable, Mapping

import flax.linen as nn

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

    `__call__(tokens_BxL, edits) -> (logits_Bx1xV, acts)`: one answer a sequence, as a transformer's last position.
    The paper's theory wants s(0) = 0, s'(0) = 1 and bounded derivatives: `tanh`.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    activation: str

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        tape = Tape(edits)
        h_BxLxD = tape("embed", embedding(self.vocab_size, self.d_model, "embed")(tokens_BxL))
        sum_BxD = tape("sum", h_BxLxD.sum(axis=1))
        pre_BxF = tape("pre", dense(self.d_model, self.d_ff, False, "in")(sum_BxD))
        post_BxF = tape("post", ACTIVATIONS[self.activation](pre_BxF))
        logits_BxV = tape("logits", dense(self.d_ff, self.vocab_size, False, "head")(post_BxF))
        return logits_BxV[:, None, :], tape.finish()
