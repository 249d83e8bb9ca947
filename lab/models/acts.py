"""Activation names: the one table, and the tape that records and edits activations.

Shapes: B sequences, L tokens, Q positions with a logit (1 or L; before the last block always L), D width, H heads,
K head width, F hidden width, V vocabulary.

| name                    | shape   | what                                                                       |
|---|---|---|
| `embed`                 | B L D   | token + position embedding                                                 |
| `block_i/resid_pre`     | B L D   | what enters block i                                                        |
| `block_i/attn/q`        | B Q H K | queries                                                                    |
| `block_i/attn/k`, `/v`  | B L H K | keys and values                                                            |
| `block_i/attn/score`    | B H Q L | q.k / sqrt(K), -1e9 where the query may not look                           |
| `block_i/attn/pattern`  | B H Q L | softmax of the score: each row sums to one                                 |
| `block_i/attn/z`        | B Q H K | values mixed by the pattern                                                |
| `block_i/attn/out`      | B Q D   | z through the output matrix, before residual and norm                      |
| `block_i/resid_mid`     | B Q D   | stream after attention (post-norm: after the norm, the papers' X_ao)       |
| `block_i/mlp/pre`       | B Q F   | hidden units before the nonlinearity                                       |
| `block_i/mlp/post`      | B Q F   | and after it                                                               |
| `block_i/mlp/out`       | B Q D   | what the MLP adds                                                          |
| `block_i/resid_post`    | B Q D   | what leaves block i                                                        |
| `final`                 | B Q D   | what the head reads                                                        |
| `logits`                | B Q V   |                                                                            |

The decoder (`lab.models.decoder`) has the same ones: q and k as they are scored, normed and rotated, k and v by head of
keys (B L G K), and, where its MLP is gated, `mlp/pre` of the gate, `mlp/up` (B L F), what the gate multiplies, and
`mlp/post`, their product. All of its blocks compute all positions: Q = L before `final`.

Where alpha or beta is not 0 there is `block_i/attn/mix` (B H Q L), which multiplies values in the pattern's place.

Mamba (`lab.models.mamba`) has `embed`, `resid_pre`, `resid_post`, `final` and `logits` as above, and, with H heads of
width K, I = H K channels, N states and C = I + 2N convolved channels:

- `block_i/ssm/u` (B L C): x, B and C before the convolution (Mamba-1: x alone, C = I);
- `block_i/ssm/conv` (B L C): after it, after SiLU and the path past both;
- `block_i/ssm/B`, `/C` (B L N): Mamba-1 only; of Mamba-2 they are parts of `ssm/conv`;
- `block_i/ssm/dt` (B L H): step sizes, after softplus (Mamba-1: B L I);
- `block_i/ssm/s` (B H Q L): S, by which token i reads dt x of token j, 0 for j > i (Mamba-1: B I Q L);
- `block_i/ssm/y` (B Q I): S (dt x) + D x;
- `block_i/ssm/gate` (B Q I): SiLU(z);
- `block_i/ssm/out` (B Q D): what the block adds.

`TwoLayerMLP`: `pre`, `post` (B F) and `logits`. `EmbMLP`: `embed` (B L D), `sum` (B D), `pre`, `post` (B F), `logits`
(B V); with an axis of L positions behind B where it answers at all. `EmbLinear`, `EmbTable`: those that they have.
`OneLayerAttention` and `AttentionMLP` (Q = H = 1, K = D): those above that they have, scores divided by sqrt(D).
`UNet`, `FNO2D`, `M2M` and `VectorAttention` list theirs in `lab.models.unet`, `fno`, `m2m` and `in_context`.
"""

from collections.abc import Callable, Mapping

import jax

from lab import limits


class Tape:
    """Records every intermediate by name, and applies the edit of that name to it first.

    Values are returned by the forward pass rather than sown (`sow` loses values under nested vmap); under jit those
    nobody reads cost nothing.
    """

    def __init__(self, edits: Mapping[str, Callable]):
        self.edits = edits
        self.acts: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        if name in self.edits:
            value = self.edits[name](value)
        self.acts[name] = value
        return value

    def finish(self) -> dict[str, jax.Array]:
        """The recorded activations.

        Raises:
          ValueError: an edit names an activation that this model does not have.
        """
        for name in self.edits:
            if name not in self.acts:
                hint = limits.nearest(name, self.acts) or f"; there are {', '.join(sorted(self.acts))}"
                raise ValueError(f"edit of {name!r}: no such activation{hint}")
        return self.acts
