"""What copying costs: the scores that softmax and decay need to single out a token, and states, one a token.

Softmax attention: with a score g above those of L - 1 others a token has the weight 1 / (1 + (L - 1) e^-g), so that a
share e of weight elsewhere asks for g = log(L - 1) + log((1 - e)/e). A state that decays by a at each token: written
L - 1 tokens ago, with a score s beside 1 of all others, a token has s a^(L-1) of s a^(L-1) + sum_{k<L-1} a^k, which
asks for log s = -(L - 1) log a + log((1 - a^(L-1))/(1 - a)) + log((1 - e)/e): exponentially large scores. Both are
found here by bisection on what the models compute. (arXiv 2410.03810, its theorems on copying.)

What N states hand to queries C that come after all keys B is C B^T, times what each token decays by: of rank N at most.
So N states can copy N arbitrary vectors exactly (`copier`: a whole Mamba-2 that does), and of more than N they miss
some, whatever the weights (`least_error`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lab import matrices, rng, tree
from lab.models import Mamba2, products, ssm

SHARE = 0.01  # of the weight, that may lie elsewhere
HIGHEST = 80.0  # score, log score
HALVINGS = 30  # of it: beyond float32
LARGE = 30.0  # SiLU of it is itself, and of 0 it is 0


def softmax_gap(length: int):
    """The score above `length` - 1 others, all alike, at which softmax leaves `SHARE` of the weight to them."""
    return _least(lambda gap: products.softmax(jnp.zeros((length,), jnp.float32).at[0].set(gap)))


def decay_log_score(length: int, rate: float):
    """The log of the score, beside 1 of `length` - 1 later tokens, at which the first one has all but `SHARE` of S.

    Args:
      rate: by which the state decays at each token, below 1.
    """
    a_1x1xL = jnp.full((1, 1, length), np.log(rate), jnp.float32)
    ones_1xLx1 = jnp.ones((1, length, 1), jnp.float32)

    def weights(log_score):
        return ssm.quadratic(ones_1xLx1[:, -1:], ones_1xLx1.at[:, 0].set(jnp.exp(log_score)), a_1x1xL)[0, 0, 0]

    return _least(weights)


def _least(weights: Callable):
    """The number from 0 to `HIGHEST` from which on the first of the weights (L) has all but `SHARE` of their sum."""

    def halve(_, bounds):
        middle = sum(bounds) / 2
        weight_L = weights(middle)
        enough = jnp.sum(weight_L[1:]) <= SHARE * jnp.sum(weight_L)
        return jnp.where(enough, bounds[0], middle), jnp.where(enough, middle, bounds[1])

    return jax.lax.fori_loop(0, HALVINGS, halve, (jnp.float32(0), jnp.float32(HIGHEST)))[1]


def least_error(n_tokens: int, n_states: int) -> float:
    """The least error of copies of orthonormal vectors, root mean square relative to them: sqrt(1 - N/L), or 0.

    Of their L x L matrix, the identity, a matrix of rank N misses L - N singular values of 1 (Eckart and Young).
    """
    return float(np.sqrt(max(0, n_tokens - n_states) / n_tokens))


def copier(n_tokens: int, n_states: int, vocab_size: int, end: int) -> tuple[Mamba2, dict]:
    """A Mamba-2 of one layer, and its weights, that copies strings of `n_tokens` letters, if it has a state for each.

    What it reads is as long as in `lab.tasks.CopyStrings`: a mark, the string, a mark, the copy. The state does not
    decay; token i of the string writes what it is under the unit vector of state i, and what comes after token i - 1 of
    the copy is read there. Where tokens are more than states, token i shares its state with token i - `n_states`.

    The residual stream has V numbers of which token is read, then one for each position, then V for which is answered.

    Args:
      end: the token that follows a copy.
    """
    length = 2 * n_tokens + 2
    model = Mamba2(
        vocab_size=vocab_size, max_length=length, n_layers=1, d_model=2 * vocab_size + length, d_inner=vocab_size,
        d_state=n_states, n_taps=1, conv="none", past_conv="none", taps_follow_gamma=False, has_positions=True,
        norm="none", final_norm=False, readout="all", n_heads=1,
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: matrices.unit(model, rng.key(0, "init"), np.zeros((1, length), np.int32)))
    weights = {name: np.zeros(leaf.shape, np.float32) for name, leaf in tree.named_leaves(shapes).items()}

    letter, place, answer = np.arange(vocab_size), vocab_size + np.arange(length), -vocab_size + np.arange(vocab_size)
    written, state = np.arange(n_tokens), np.arange(n_tokens) % n_states
    weights["embed/token/embedding"][letter, letter] = 1
    weights["embed/position/embedding"][np.arange(length), place] = 1
    weights["block_0/ssm/x/kernel"][letter, letter] = LARGE
    weights["block_0/ssm/B/kernel"][place[1 + written], state] = LARGE
    weights["block_0/ssm/C/kernel"][place[1 + n_tokens + written], state] = LARGE
    weights["block_0/ssm/gate/kernel"][place] = LARGE
    weights["block_0/ssm/dt_bias"][:] = np.log(np.e - 1)  # dt = 1
    weights["block_0/ssm/A_log"][:] = -LARGE
    weights["block_0/ssm/norm/scale"][:] = 1
    weights["block_0/ssm/out/kernel"][letter, answer] = vocab_size**-0.5  # RMSNorm gives length sqrt(V)
    weights["head/kernel"][answer, letter] = LARGE
    weights["head/kernel"][place[-1], end] = LARGE
    return model, tree.map_named(lambda name, _: jnp.asarray(weights[name]), shapes)


def copy_error(model: Mamba2, params, tokens_BxL, targets_BxL):
    """The largest error of what a `copier` answers of the letters, as unit vectors (of the end mark it keeps none)."""
    n_tokens, vocab_size = tokens_BxL.shape[1] // 2 - 1, model.vocab_size
    copied = slice(n_tokens + 1, 2 * n_tokens + 1)
    _, acts = model.apply({"params": params}, tokens_BxL, {})
    answered_BxNxV = acts["block_0/ssm/out"][:, copied, -vocab_size:]
    return jnp.max(jnp.abs(answered_BxNxV - jax.nn.one_hot(targets_BxL[:, copied], vocab_size, dtype=jnp.float32)))
