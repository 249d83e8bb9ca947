"""The Fisher information against dense Jacobians, and the expansion where theory says what its error is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.analysis import fisher, loss_fn
from lab.tasks import Batch

VOCAB, LENGTH = 4, 3
MODEL = models.Transformer(
    vocab_size=VOCAB, max_length=LENGTH, n_layers=1, n_heads=1, d_model=5, d_head=4, d_ff=6, activation="tanh",
    norm="none", use_bias=False, head_bias=False, final_norm=False, tied_head=False, readout="all",
)  # fmt: skip
initial = jax.jit(models.init, static_argnums=0)
expand = jax.jit(fisher.expansion, static_argnums=0)
STEPS = (2e-3, 1e-3)


def batch(targets_BxL, tokens_BxL=None, n_answers=1):
    """The last `n_answers` targets answer; a target 0 is padding."""
    targets_BxL = np.array(targets_BxL, np.int32)
    weights_BxL = np.zeros(targets_BxL.shape)  # numpy's, so that they are as exact as the test they are used in
    weights_BxL[:, LENGTH - n_answers :] = 1
    tokens_BxL = np.ones_like(targets_BxL) if tokens_BxL is None else np.array(tokens_BxL, np.int32)
    return Batch(tokens_BxL, targets_BxL, weights_BxL, {})


def parameters(seed):
    params = initial(MODEL, jax.random.key(seed), jnp.zeros((1, LENGTH), jnp.int32))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)


def moved(params, seed, size):
    noise = parameters(seed)
    return jax.tree.map(lambda leaf, other: leaf + size * other, params, noise)


def expansion(params, start, drawn, size=None):
    batches = loss_fn.minibatches(drawn, size or len(drawn.tokens_BxL))
    return jax.tree.map(float, expand(MODEL, params, start, batches)._asdict())


MIXED = batch([[1, 2, 3], [3, 1, 1], [2, 2, 2], [3, 3, 1]], [[1, 2, 3], [3, 2, 1], [2, 1, 3], [1, 1, 2]])
# Every pair of context targets after the same tokens: noise that is exactly uniform on all tokens but 0, padding.
PAIRS = list(itertools.product(range(1, VOCAB), repeat=2))


def test_information_is_that_of_dense_jacobians(float64):
    start = parameters(0)
    vector_P, rebuild = loss_fn.flatten(start)
    logits_BxLxV = loss_fn.logits(MODEL)(start, MIXED)
    jacobian_BxLxVxP = jax.jit(jax.jacrev(lambda v: loss_fn.logits(MODEL)(rebuild(v), MIXED)))(vector_P)
    expected_PxP = np.zeros((vector_P.size, vector_P.size))
    for i, t in itertools.product(range(4), range(2)):  # the third target answers
        p_V = np.exp(logits_BxLxV[i, t]) / np.exp(logits_BxLxV[i, t]).sum()
        jacobian_VxP = np.asarray(jacobian_BxLxVxP[i, t])
        expected_PxP += jacobian_VxP.T @ (np.diag(p_V) - np.outer(p_V, p_V)) @ jacobian_VxP / 12
    matvec, _ = fisher.information(MODEL, start, loss_fn.minibatches(MIXED, 2))
    # sums of a dozen products of numbers below 10, in float64
    np.testing.assert_allclose(jax.jit(jax.vmap(matvec))(jnp.eye(vector_P.size)), expected_PxP, atol=1e-12)


def test_terms_by_hand_and_their_sum(float64):
    start, params = parameters(0), parameters(1)
    log_p, log_p_start = (np.asarray(jax.nn.log_softmax(loss_fn.logits(MODEL)(p, MIXED))) for p in (params, start))
    rows, places = np.indices((4, LENGTH))
    nll_BxL, start_BxL = (-at[rows, places, np.asarray(MIXED.targets_BxL)] for at in (log_p, log_p_start))
    found = expansion(params, start, MIXED)
    assert found["ntp"] == pytest.approx(nll_BxL.mean(), rel=1e-12)
    assert found["answer"] == pytest.approx(nll_BxL[:, 2].sum() / 12, rel=1e-12)
    assert found["start"] == pytest.approx(start_BxL[:, :2].sum() / 12, rel=1e-12)
    assert found["uniform"] == pytest.approx(2 / 3 * np.log(VOCAB), rel=1e-12)
    parts = sum(found[name] for name in ("answer", "start", "slope", "quadratic", "remainder"))
    assert parts == pytest.approx(found["ntp"], rel=1e-12)
    for name, value in expansion(params, start, MIXED, size=2).items():
        assert value == pytest.approx(found[name], rel=1e-10), name


def test_slope_is_a_finite_difference_and_padding_counts_nowhere(float64):
    padded = batch([[1, 3, 2], [2, 1, 0], [3, 0, 0]])
    padded = padded._replace(weights_BxL=np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]]))
    assert float(fisher.answer_share(loss_fn.minibatches(padded, 3))) == 0.5  # 3 answers and 3 of context
    start = parameters(0)
    h = 1e-5
    ahead, behind = (expansion(moved(start, 1, sign * h), start, padded) for sign in (1, -1))
    log_p_BxLxV = np.asarray(jax.nn.log_softmax(loss_fn.logits(MODEL)(start, padded)))
    by_hand = -(log_p_BxLxV[0, 0, 1] + log_p_BxLxV[0, 1, 3] + log_p_BxLxV[1, 0, 2]) / 6
    assert ahead["start"] == pytest.approx(by_hand, rel=1e-12)
    context = [one["ntp"] - one["answer"] for one in (ahead, behind)]
    # central differences: error h^2, and rounding 1e-16 / h
    assert ahead["slope"] / h == pytest.approx((context[0] - context[1]) / (2 * h), rel=1e-6)


def test_quadratic_forms_are_of_the_move_and_of_the_whole(float64):
    start, params = parameters(0), parameters(1)
    zero = jax.tree.map(jnp.zeros_like, start)
    found = expansion(params, start, MIXED)
    assert expansion(start, start, MIXED)["quadratic"] == 0
    double = jax.tree.map(lambda leaf: 2 * leaf, params)
    assert expansion(double, start, MIXED)["quadratic_whole"] == pytest.approx(4 * found["quadratic_whole"], rel=1e-12)
    assert expansion(params, zero, MIXED)["quadratic"] == 0  # at zero weights the logits' Jacobian vanishes


def without_padding(start):
    """Uniform outputs on the tokens that can be targets: padding has a logit of -60, no weight moves the others."""
    zero = jnp.zeros_like(start["head"]["kernel"])
    return dict(start, head={"kernel": zero, "bias": jnp.array([-60.0, 0, 0, 0])})


def halved(drawn):
    """Slopes over steps, and by how much quadratic term and remainder fall where the step is halved."""
    with_bias = MODEL.clone(head_bias=True)
    start, direction = (without_padding(parameters(0)), parameters(1))
    direction = dict(direction, head={"kernel": direction["head"]["kernel"], "bias": jnp.array([0.0, 1, -2, 3])})
    found = []
    for step in STEPS:
        params = jax.tree.map(lambda leaf, other, step=step: leaf + step * other, start, direction)
        found.append(expand(with_bias, params, start, loss_fn.minibatches(drawn, len(drawn.tokens_BxL))))
    slopes = [float(one.slope) / step for one, step in zip(found, STEPS, strict=True)]
    return slopes, *(float(getattr(found[0], name) / getattr(found[1], name)) for name in ("quadratic", "remainder"))


def test_error_is_cubic_where_context_is_uniform_noise(float64):
    slopes, quadratic, remainder = halved(batch([[a, b, 1] for a, b in PAIRS]))
    np.testing.assert_allclose(slopes, 0, atol=1e-12)
    assert quadratic == pytest.approx(4, rel=1e-9)
    assert remainder == pytest.approx(8, rel=0.05)  # the next order is a step of 0.002 smaller, times its own factor


def test_slope_and_a_quadratic_error_stay_where_context_can_be_predicted(float64):
    slopes, quadratic, remainder = halved(batch([[1, 2, 1], [1, 1, 2], [1, 2, 3]]))
    assert abs(slopes[0]) > 0.1
    assert quadratic == pytest.approx(4, rel=1e-9) and remainder == pytest.approx(4, rel=0.1)


def test_information_is_the_same_whatever_the_targets_are(float64):
    other = batch([[3, 1, 1], [1, 2, 2], [3, 1, 3], [1, 2, 2]], MIXED.tokens_BxL)
    vector_P = loss_fn.flatten(parameters(1))[0]

    @jax.jit
    def form(drawn):
        return fisher.information(MODEL, parameters(0), loss_fn.minibatches(drawn, 4))[0](vector_P)

    forms = [form(drawn) for drawn in (MIXED, other)]
    np.testing.assert_allclose(forms[0], forms[1], atol=1e-12)
    assert float(vector_P @ forms[0]) > 0


def test_model_that_answers_only_at_the_end_is_refused(float64):
    last = MODEL.clone(readout="last")
    params = parameters(0)
    with pytest.raises(ValueError, match=r"logits at 1 of 3 positions: use model\.readout='all'"):
        expand(last, params, params, loss_fn.minibatches(MIXED, 4))
