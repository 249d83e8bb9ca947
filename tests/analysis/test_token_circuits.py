import jax
import numpy as np
import pytest

from lab import models
from lab.analysis.token_circuits import (
    Heads,
    copying,
    heads,
    ov_circuit,
    position_embedding,
    qk_circuit,
    qk_parts,
    token_embedding,
    unembedding,
)

H, D, K, V, L = 2, 10, 3, 7, 5
ATOL = 1e-11  # float64: numbers of order 100, sums of D * K * D = 300 products at most: 300 * 100 * 2e-16 = 6e-12


def model(**changes):
    fields = {
        "vocab_size": V, "max_length": L, "n_layers": 1, "n_heads": H, "d_model": D, "d_head": K, "d_ff": 4,
        "activation": "relu", "norm": "none", "use_bias": False, "head_bias": False, "final_norm": False,
        "tied_head": False, "readout": "all",
    }  # fmt: skip
    return models.Transformer(**fields | changes)


def params_of(transformer):
    """Its parameter tree with standard normal leaves in float64."""
    rng, width = np.random.default_rng(0), transformer.n_heads * K
    shapes = {"query": (D, width), "key": (D, width), "value": (D, width), "out": (width, D)}
    return {
        "embed": {
            "token": {"embedding": rng.standard_normal((V, D))},
            "position": {"embedding": rng.standard_normal((L, D))},
        },
        "block_0": {
            "attn": {name: {"kernel": rng.standard_normal(shape)} for name, shape in shapes.items()},
            "mlp": {"in": {"kernel": rng.standard_normal((D, 4))}, "out": {"kernel": rng.standard_normal((4, D))}},
        },
    } | ({} if transformer.tied_head else {"head": {"kernel": rng.standard_normal((D, V))}})


def random_heads(seed, n_heads=H, d_head=K):
    draw = np.random.default_rng(seed).standard_normal
    return Heads(*(draw((n_heads, D, d_head)) for _ in range(3)), draw((n_heads, d_head, D)))


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def test_circuits_are_the_dense_products(float64):
    of, source, target, unembed = random_heads(0), random(1, 4, D), random(2, 6, D), random(3, D, 8)
    qk, ov = qk_circuit(of, source, target), ov_circuit(of, target, unembed)
    for h in range(H):
        dense_qk = of.query_HxDxK[h] @ of.key_HxDxK[h].T / np.sqrt(K)
        dense_ov = of.value_HxDxK[h] @ of.out_HxKxD[h]
        np.testing.assert_allclose(qk[h], source @ dense_qk @ target.T, rtol=0, atol=ATOL)
        np.testing.assert_allclose(ov[h], target @ dense_ov @ unembed, rtol=0, atol=ATOL)


def test_parts_of_the_first_layers_score_add_up_to_the_models(float64):
    transformer = model()
    params = params_of(transformer)
    ids = np.array([[3, 0, 6, 3, 1], [2, 2, 5, 4, 0]], np.int32)
    score = np.asarray(
        jax.jit(lambda params: models.forward(transformer, params, ids)[1]["block_0/attn/score"])(params)
    )
    parts = jax.device_get(qk_parts(heads(params, 0, H), token_embedding(params), position_embedding(params)))
    for b in range(2):
        for q in range(L):
            for j in range(q + 1):
                total = (
                    parts["token_token"][:, ids[b, q], ids[b, j]]
                    + parts["token_position"][:, ids[b, q], j]
                    + parts["position_token"][:, q, ids[b, j]]
                    + parts["position_position"][:, q, j]
                )
                np.testing.assert_allclose(total, score[b, :, q, j], rtol=0, atol=ATOL)


@pytest.mark.parametrize("tied", [False, True])
def test_ov_circuit_is_what_the_attended_token_adds_to_the_logits(float64, tied):
    transformer = model(tied_head=tied)
    params = params_of(transformer)
    ids = np.array([[3, 0, 6, 3, 1]], np.int32)
    reads = {
        "block_0/attn/pattern": lambda pattern: 0 * pattern + np.eye(L)[2].reshape(1, 1, 1, L)
    }  # everyone reads position 2
    without_mlp = {"block_0/mlp/out": lambda out: 0 * out}
    nothing = {"block_0/attn/out": lambda out: 0 * out}

    @jax.jit
    def added(params):
        with_head, _ = models.forward(transformer, params, ids, reads | without_mlp)
        without_head, _ = models.forward(transformer, params, ids, nothing | without_mlp)
        return (with_head - without_head)[0]

    read = (token_embedding(params)[6] + position_embedding(params)[2])[None]
    expected = np.sum(ov_circuit(heads(params, 0, H), read, unembedding(params)), axis=0)
    np.testing.assert_allclose(added(params), np.broadcast_to(expected, (L, V)), rtol=0, atol=ATOL)


@pytest.mark.parametrize("n_tokens", [9, 3, 2])
def test_copying_eigenvalues_are_those_of_the_dense_circuit(float64, n_tokens):
    of, table, unembed = random_heads(4), random(5, n_tokens, D), random(6, D, n_tokens)
    result = jax.jit(copying)(of, table, unembed)
    for h in range(H):
        dense = np.linalg.eigvals(table @ of.value_HxDxK[h] @ of.out_HxKxD[h] @ unembed)
        dense = dense[np.argsort(-np.abs(dense))][: min(K, n_tokens)]  # the others are zero
        found = np.asarray(result["eigenvalues"][h])
        # Pairs are conjugate; eigenvalues of order 30 with a condition below 1e3 in 1e-16 arithmetic.
        np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(dense), rtol=0, atol=1e-10)
        assert result["score"][h] == pytest.approx(dense.real.sum() / np.abs(dense).sum(), abs=1e-11)
        assert result["positive"][h] == np.mean(dense.real > 0)


def test_head_that_copies_scores_one_its_negative_minus_one_and_a_rotation_zero(float64):
    table, value = random(7, 8, D), random(8, D, 2)
    # E V V^T E^T is positive semidefinite; V J V^T with J a rotation by 90 degrees has eigenvalues +-i times a number.
    rotation = np.array([[0.0, 1], [-1, 0]])
    out = np.stack([value.T, -value.T, rotation @ value.T, 0 * value.T])
    four = np.broadcast_to(value, (4, D, 2))
    result = copying(Heads(four, four, four, out), table, table.T)
    np.testing.assert_allclose(result["score"], [1, -1, 0, 0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(result["positive"][:2], [1, 0])
    assert result["positive"][3] == 0


def test_heads_of_a_layer_that_is_not_there_are_refused():
    params = params_of(model())
    with pytest.raises(ValueError, match="no layer 3; there are block_0"):
        heads(params, 3, H)
    with pytest.raises(ValueError, match="n_heads=4 does not divide 6, the width of all heads"):
        heads(params, 0, 4)
