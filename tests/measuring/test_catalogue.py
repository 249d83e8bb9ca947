"""What the catalogue offers runs, is labelled as it says, and is given what it is named after.

The functions behind it have their own oracles; here it is whether they are wired to the right row, loss and axes.
"""

import collections
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lab import config as configs
from lab import rng
from lab.configs import base, composition
from lab.disk import load
from lab.engine import step as steps
from lab.measuring import catalogue
from lab.measuring.catalogue import attention, loss, sparsity
from lab.measuring.declare import Row
from lab.measuring.run import _identity
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
N = 16  # sequences
LENGTH, VOCAB = 9, 201
FEW = dict(
    SEQUENCES=N, MINIBATCH=N, EIGENVALUES=2, MATVECS=6, TRACE_PROBES=2, DENSITY_PROBES=2, SLOPES=4, ALPHAS=(-0.5, 0.5),
    DIRECTIONS=2, RADII=(0.05, 0.1, 0.2), RELATIVE_RADII=(0.5,), ASCENT_STEPS=2, SIGMAS=(0.1, 0.4, 0.8, 1.6), DRAWS=2,
    CHAINS=2, BURN_IN=1, SAMPLES=2, SMALL=8, SUBSPACES=(4, 8, 10**6), SUBSPACE_STEPS=3, NTK_SEQUENCES=6, NTK_PROBES=3,
)  # fmt: skip

MODELS = {
    "transformer": dict(d_model=8, d_ff=8, n_layers=1, n_heads=2, d_head=4),
    "post": dict(d_model=8, d_ff=8, n_layers=1, n_heads=2, d_head=4, norm="post", final_norm=False),
    "decoder": base.decoder(d_model=8, d_ff=8, n_layers=1, n_heads=2, n_kv_heads=1, d_head=4, max_length=0),
    "emb_mlp": dict(family="emb_mlp", vocab_size=VOCAB, d_model=4, d_ff=3, activation="tanh"),
    "mamba2": base.mamba(d_model=8, d_inner=12, d_state=4, n_layers=1, n_heads=2),
    "mamba1": base.mamba1(dt_rank=2, d_model=8, d_inner=12, d_state=4, n_layers=1),
}
OF_WEIGHTS = ("rank", "spectrum", "directions", "norm", "laziness")
OF_LOSS = ("ntk", "sharpness", "density", "flatness", "noise", "learning_coefficient", "quantization", "subspace")
OF_STREAM = ("focus", "heads", "head_cosines", "lens", "tracing")
OFFERED = {
    "transformer": {*OF_WEIGHTS, *OF_LOSS, *OF_STREAM, "attribution", "edges", "sparsity"},
    "post": {*OF_WEIGHTS, *OF_LOSS, *OF_STREAM, "edges", "sparsity"},
    "decoder": {*OF_WEIGHTS, *OF_LOSS, *OF_STREAM, "sparsity"},
    "emb_mlp": {*OF_WEIGHTS, *OF_LOSS},
    "mamba2": {*OF_WEIGHTS, *OF_LOSS, "tracing", "mixing"},
    "mamba1": {*OF_WEIGHTS, *OF_LOSS, "tracing", "mixing"},
}
# NaN: singular values that a smaller matrix has not, pairs of tokens that do not meet, edges that are not there
WITH_GAPS = {"spectrum.matrix", "focus.attention", "focus.attention_error", "focus.lift"}
WITH_GAPS |= {f"edges.{name}{of}" for name in ("accuracy", "logit") for of in ("", "_error")}
OFF_THE_SCALE = {
    "subspace.dimension",
    "quantization.bits",
    "quantization.description_length",
}  # inf: none tried will do
# What takes seconds to compile runs with -m long where another model runs the same lines; all of it is traced always.
SLOW = {("transformer", name) for name in OF_LOSS if name != "quantization"}
SLOW |= {("post", name) for name in (*OF_WEIGHTS, *OF_LOSS)}
SLOW |= {(model, name) for model in ("mamba1", "mamba2") for name in (*OF_WEIGHTS, *OF_LOSS)}
SLOW |= {("decoder", name) for name in (*OF_LOSS, "rank", "directions", "norm", "laziness")}
SLOW |= {("emb_mlp", name) for name in ("rank", "directions", "norm", "laziness", "sharpness")}
RUNS = [
    pytest.param(model, name, marks=[pytest.mark.long] if (model, name) in SLOW else [])
    for model, offered in OFFERED.items()
    for name in sorted(offered)
]


@pytest.fixture(scope="module", autouse=True)
def few():
    """Sequences, products, probes and steps; what they are is read when a measure is built and when it is traced."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEW.items():
            patch.setattr(loss, name, value)
        patch.setattr(attention, "SEQUENCES", N)
        patch.setattr(sparsity, "PROBE_TOKENS", N * LENGTH)
        yield


def experiment(model, **task):
    config = configs.variants(composition.smoke())["unseen"].to_dict()
    config["model"] = model if "family" in model else config["model"] | model
    config["task"] |= task
    return configs.experiment(ConfigDict(config))


@functools.cache
def measures(model):
    made = experiment(MODELS[model])
    return made, {one.name: one for one in catalogue.measures(made)}


def noisy(params, seed):
    """No tensor is zero, none is another's multiple."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf) + 0.1 * draw.standard_normal(leaf.shape).astype(np.float32)), params
    )


@functools.cache
def started(made):
    hparams = dict(gamma=0.5, weight_decay=0.01, learning_rate=1e-3)
    hparams = {name: jnp.float32(value) for name, value in hparams.items()} | {"seed": jnp.int32(1)}
    start = noisy(jax.jit(lambda hparams: steps.start(made, hparams).params)(hparams), 0)
    return noisy(start, 1), start, hparams


@functools.cache
def sequences(task, n):
    return jax.jit(lambda key: task.sample(key, n, "train", {}))(jax.random.key(1))


def row_of(made, n, step=40):
    """(model, the rest of a Row, traced), trained to the end where no step is given."""
    model = made.model.clone(readout="all") if hasattr(made.model, "readout") else made.model
    return model, (*started(made), jnp.int32(step), sequences(made.task, n), jax.random.key(2))


def of_row(one, model):
    return lambda *traced: one.function(Row(model, *traced))


@functools.cache
def program(model, name):
    made, there = measures(model)
    return jax.jit(of_row(there[name], row_of(made, there[name].n)[0]))


@functools.cache
def taken(model, name):
    """`(measure, row, outputs)` of a row."""
    made, there = measures(model)
    module, traced = row_of(made, there[name].n)
    outputs = program(model, name)(*traced)
    return there[name], Row(module, *traced), {key: np.asarray(values) for key, values in outputs.items()}


# --- what is offered ---


@pytest.mark.parametrize("model", MODELS)
def test_model_is_offered_what_is_defined_for_it(model):
    """No attention of a bag of embeddings, no attribution where the stream is normalized after each sum."""
    assert set(measures(model)[1]) == OFFERED[model]


@pytest.mark.parametrize("model", MODELS)
def test_every_measurement_is_offered_under_its_name_or_absent_for_a_reason(model):
    made, there = measures(model)
    assert not there.keys() & catalogue.absent(made).keys()
    assert [*there] == [name for name in catalogue.CATALOGUE if name not in catalogue.absent(made)]
    some = {"norm", "edges", "none of it"}
    assert [one.name for one in catalogue.measures(made, some)] == [name for name in there if name in some]


@pytest.mark.parametrize(("n_layers", "n_edges"), [(1, 2 * 9), (2, 2 * 45 + 2 * 9)])
def test_edges_are_cut_only_where_they_are_few(monkeypatch, n_layers, n_edges):
    """Two heads on nine tokens have 2 * 45 a layer, in the last one 2 * 9 that lead to the answer."""
    made = experiment(MODELS["transformer"] | {"n_layers": n_layers})
    monkeypatch.setattr(catalogue, "MOST_EDGES", n_edges)
    assert "edges" in {one.name for one in catalogue.measures(made)}
    monkeypatch.setattr(catalogue, "MOST_EDGES", n_edges - 1)
    assert {one.name for one in catalogue.measures(made)} == OFFERED["transformer"] - {"edges"}


def test_subspaces_are_no_larger_than_the_model():
    assert measures("emb_mlp")[1]["subspace"].coords["subspace"] == (4, 8)


@pytest.mark.parametrize("model", MODELS)
def test_all_that_is_said_of_one_loss_is_said_of_the_same_sequences(model):
    """The density is that of the Hessian whose eigenvalues were taken."""
    there = measures(model)[1]
    assert {(there[name].stream, there[name].split, there[name].n) for name in OF_LOSS if name != "ntk"} == {
        ("loss", "train", N)
    }


# --- every one of them ---


@pytest.mark.parametrize(("model", "name"), RUNS)
def test_measure_runs_on_a_row_and_is_finite(model, name, standard_promotion):
    one, _, outputs = taken(model, name)
    assert set(outputs) == set(one.units)
    for output, values in outputs.items():
        variable = f"{name}.{output}"
        if variable in OFF_THE_SCALE:
            assert values > 0, variable
        elif variable in WITH_GAPS:
            assert np.isfinite(values).any() and not np.isinf(values).any(), variable
        else:
            assert np.isfinite(values).all(), variable


@pytest.mark.parametrize("model", ["transformer", "emb_mlp"])
def test_axes_and_outputs_are_those_that_the_measure_declares(model, standard_promotion):
    """An axis has one length and one set of values in all measures: `lab.load` joins them in one Dataset."""
    made, there = measures(model)
    known = {"layer": 1, "head": 2, "position": LENGTH, "query": LENGTH} | {"eigenvalue": 2, "node_index": 6}
    labels = {}
    for name, one in there.items():
        module, traced = row_of(made, one.n)
        outputs = jax.eval_shape(of_row(one, module), *traced)
        assert set(outputs) == set(one.units), name
        assert set(one.dims) <= set(one.units), name
        assert set(one.coords) <= {dim for dims in one.dims.values() for dim in dims}, name
        for dim, values in one.coords.items():
            assert labels.setdefault(dim, values) == values, (name, dim)
            assert len(set(values)) == len(values), (name, dim)
            assert known.setdefault(dim, len(values)) == len(values), (name, dim)
        for output, like in outputs.items():
            dims = one.dims.get(output, ())
            assert len(dims) == len(like.shape), (name, output)
            for dim, length in zip(dims, like.shape, strict=True):
                assert known.setdefault(dim, length) == length, (name, output, dim)


# --- wired to the right things ---


TINY = dict(low=17, high=23, modulus=7, length=5, vocab_size=34)
TINY_MODEL = dict(family="emb_mlp", vocab_size=34, d_model=4, d_ff=3, activation="tanh")  # 136 + 12 + 102 weights


def by_hand(vector_P, tokens_BxL, target_B):
    """Mean cross-entropy of tanh(sum of embeddings W_1) W_2; leaves in alphabetical order: embed, head, in."""
    embed_VxD, head_FxV, in_DxF = vector_P[:136].reshape(34, 4), vector_P[136:238].reshape(3, 34), vector_P[238:]
    logits_BxV = jnp.tanh(embed_VxD[tokens_BxL].sum(axis=1) @ in_DxF.reshape(4, 3)) @ head_FxV
    right_B = jnp.take_along_axis(logits_BxV, target_B[:, None], axis=1)[:, 0]
    return jnp.mean(jax.scipy.special.logsumexp(logits_BxV, axis=1) - right_B)


def test_sharpness_and_both_edges_are_those_of_the_dense_hessian(float64, monkeypatch, standard_promotion):
    monkeypatch.setattr(loss, "MATVECS", 120)
    made = experiment(TINY_MODEL, **TINY)
    (one,) = [one for one in catalogue.measures(made) if one.name == "sharpness"]
    module, traced = row_of(made, one.n)
    double = [jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, part) for part in traced]
    params, _, _, _, batch, _ = double
    function = jax.jit(of_row(one, module))

    vector_P = jnp.concatenate([leaf.ravel() for leaf in named_leaves(params).values()])
    data = (batch.tokens_BxL, batch.targets_BxL[:, -1])
    hessian_PxP = np.asarray(jax.jit(jax.hessian(by_hand))(vector_P, *data))
    largest = np.linalg.eigvalsh(hessian_PxP)[::-1][:2]
    quarters = [tuple(part[at : at + 4] for part in data) for at in range(0, N, 4)]  # SLOPES sequences each
    slope_4xP = np.array([jax.jit(jax.grad(by_hand))(vector_P, *quarter) for quarter in quarters])
    # trained on 32 sequences, of which there are 16 here: the square of the mean of a batch of 16
    noise_P = np.var(slope_4xP, axis=0, ddof=1) * 4  # of one sequence
    squared_mean_P = np.mean(slope_4xP, axis=0) ** 2 - noise_P / 16  # without bias
    root_P = np.sqrt(np.sqrt(squared_mean_P + noise_P / 16) + made.optim.eps)
    preconditioned = np.linalg.eigvalsh(hessian_PxP / root_P[:, None] / root_P[None]).max()

    for step in (2, 20):  # warm-up over 5 steps from 0.04 on; then half a cosine over the other 35, to 0.04
        double[3] = jnp.int32(step)
        found = function(*double)
        rate = 1e-3 * (0.04 + 0.96 * (step / 5 if step < 5 else (1 + np.cos(np.pi * (step - 5) / 35)) / 2))
        assert found["top_converged"].all()
        # a Rayleigh quotient is off by less than its residual, found or a multiple of rounding
        off = found["top_residual"] + 250 * 2.0**-52 * largest[0]
        assert (np.abs(found["top"] - largest) <= off).all() and (off < 1e-6 * largest[0]).all()
        # the schedule and the row's rate are float32: a few roundings each
        assert found["rate"] == pytest.approx(rate, rel=8 * EPS)
        for at, used in (("", rate), ("_at_peak", 1e-3)):
            assert found[f"edge{at}"] == pytest.approx(used * largest[0] / 2, rel=8 * EPS)
            expected = used * preconditioned * (1 - 0.9) / (2 + 2 * 0.9)
            assert found[f"adam_edge{at}"] == pytest.approx(expected, rel=8 * EPS)
        assert found["adam_top"] == pytest.approx(preconditioned, rel=8 * EPS) and found["adam_top_converged"]
    assert found["gauss_newton"] > 0 and found["gauss_newton_converged"]
    assert 0 <= found["gauss_newton_residual"] < 0.01 * found["gauss_newton"]


def test_momentum_moves_the_edge_away_and_eigenvalues_that_are_not_found_yet_say_so(monkeypatch, standard_promotion):
    """Heavy ball is stable up to 2 (1 + momentum) / learning rate; two products find no eigenvalue of 250."""
    monkeypatch.setattr(loss, "EIGENVALUES", 1)
    monkeypatch.setattr(loss, "MATVECS", 4)
    made = experiment(TINY_MODEL, **TINY)
    made = dataclasses.replace(made, optim=dataclasses.replace(made.optim, family="sgd", momentum=0.9))
    (one,) = [one for one in catalogue.measures(made) if one.name == "sharpness"]
    module, traced = row_of(made, one.n)
    found = jax.jit(of_row(one, module))(*traced)
    assert found["edge_at_peak"] == pytest.approx(1e-3 * found["top"][0] / 3.8, rel=8 * EPS)
    assert found["edge"] == pytest.approx(0.04 * 1e-3 * found["top"][0] / 3.8, rel=8 * EPS)
    assert not any(name.startswith("adam") for name in found)
    for name in ("top", "gauss_newton"):
        assert not np.any(found[f"{name}_converged"]) and np.all(found[f"{name}_residual"] > 0.01 * found[name]), name


@pytest.mark.parametrize("n", [N - 3, N - 2])
def test_small_training_set_of_any_size_is_cut_into_equal_parts(n, standard_promotion):
    """13 is prime, and 14 has no divisor 4 or 8."""
    made, there = measures("emb_mlp")
    for name in ("sharpness", "learning_coefficient"):
        module, (*traced, batch, key) = row_of(made, N)
        few = jax.tree.map(lambda leaf: leaf[:n], batch)
        outputs = jax.eval_shape(of_row(there[name], module), *traced, few, key)
        assert set(outputs) == set(there[name].units)


def test_subspaces_of_the_initial_weights_are_measured_once(standard_promotion):
    """Training took 40 steps."""
    made, _ = measures("emb_mlp")
    at_the_end, before = (program("emb_mlp", "subspace")(*row_of(made, N, step)[1]) for step in (40, 20))
    assert np.isfinite(at_the_end["loss"]).all()
    assert all(np.isnan(values).all() for values in before.values())


def test_row_has_not_moved_at_its_start_and_each_tensor_by_its_own_way():
    made, there = measures("transformer")
    one = there["laziness"]
    module, (params, start, *rest) = row_of(made, one.n)
    function = jax.jit(of_row(one, module))
    assert all((np.asarray(values) == 0).all() for values in function(start, start, *rest).values())

    found = function(params, start, *rest)
    now, then = ({k: np.asarray(v, np.float64).ravel() for k, v in named_leaves(t).items()} for t in (params, start))
    assert one.coords["tensor"] == tuple(now)
    wholes = [np.concatenate([*leaves.values()]) for leaves in (now, then)]
    for at, (new, old) in [*zip(range(len(now)), zip(now.values(), then.values(), strict=True), strict=True),
                           ("whole", wholes)]:  # fmt: skip
        distance, turn = (found[name][at] if at != "whole" else found[f"{name}_whole"] for name in ("distance", "turn"))
        norms = [np.linalg.norm(v) for v in (new, old)]
        # n squares added one by one, at worst; the subtraction rounds to eps |W|, which is at most 20 |W - W0| here
        rel = (new.size + 40) * EPS
        assert distance == pytest.approx(np.linalg.norm(new - old) / norms[1], rel=rel), at
        # |u - v|^2 / 2: entries of u - v are off by eps of u, |u| = |v| = 1
        assert turn == pytest.approx(1 - new @ old / norms[0] / norms[1], rel=rel, abs=8 * EPS), at


def test_norms_are_those_of_numpy_by_name_of_the_matrix(standard_promotion):
    one, row, found = taken("transformer", "norm")
    now, then = (named_leaves(tree) for tree in (row.params, row.start))
    squares, moved = [], []
    for i, name in enumerate(one.coords["matrix"]):
        w, w_0 = np.asarray(now[name], np.float64), np.asarray(then[name], np.float64)
        squares.append(np.sum(w**2))
        moved.append(np.sum((w - w_0) ** 2))
        # logs of sums of fewer than 2000 squares: relative errors become absolute
        assert found["log_frobenius"][i] == pytest.approx(np.log(squares[-1]) / 2, abs=2000 * EPS)
        assert found["log_distance"][i] == pytest.approx(np.log(moved[-1]) / 2, abs=2000 * EPS)
        # LAPACK's singular values are off by a small multiple of eps |W|
        assert found["log_spectral"][i] == pytest.approx(np.log(np.linalg.norm(w, 2)), abs=100 * EPS)
    assert len(squares) == sum(name.endswith(("kernel", "embedding")) for name in now)
    assert found["log_frobenius_whole"] == pytest.approx(np.log(sum(squares)) / 2, abs=2000 * EPS)
    assert found["log_distance_whole"] == pytest.approx(np.log(sum(moved)) / 2, abs=2000 * EPS)


def test_tokens_in_focus_are_the_most_frequent_ones():
    made, there = measures("transformer")
    sample = made.task.sample(rng.key(made.data_seed, "analysis/tokens"), N, "train", {})
    count = collections.Counter(np.asarray(sample.tokens_BxL).ravel().tolist())
    chosen = there["focus"].coords["query_token"]
    assert there["focus"].coords["key_token"] == chosen and len(set(chosen)) == attention.TOKENS
    assert [count[token] for token in chosen] == sorted(count.values(), reverse=True)[: attention.TOKENS]


def answered(row):
    return jax.jit(lambda params, tokens: row.model.apply({"params": params}, tokens, {}))(
        row.params, row.batch.tokens_BxL
    )


def test_attention_in_focus_is_the_mean_over_heads_and_places_of_the_query(standard_promotion):
    """Rows are queries: what two tokens give each other differs."""
    one, row, found = taken("transformer", "focus")
    mean_BxQxL = np.asarray(answered(row)[1]["block_0/attn/pattern"], np.float64).mean(axis=1)
    tokens_BxL = np.asarray(row.batch.tokens_BxL)
    for i, query in enumerate(one.coords["query_token"]):
        for j, key in enumerate(one.coords["key_token"]):
            mass = [mean_BxQxL[b, q][tokens_BxL[b] == key].sum() for b, q in np.argwhere(tokens_BxL == query)]
            expected = np.mean(mass) if mass else np.nan
            # shares below one: a mean of at most 144 of them, in any order
            assert found["attention"][0, i, j] == pytest.approx(expected, abs=144 * EPS, nan_ok=True), (query, key)


def test_there_is_an_edge_exactly_where_it_leads_to_the_answer(standard_promotion):
    """One layer: the last query alone is read, and cutting any of its edges changes the logit."""
    _, _, found = taken("transformer", "edges")
    there_QxL = np.zeros((LENGTH, LENGTH), bool)
    there_QxL[-1] = True
    for values in found.values():
        np.testing.assert_array_equal(np.isfinite(values), np.broadcast_to(there_QxL, values.shape))
    assert (found["logit"][:, :, -1] != 0).all()


def test_cut_edge_changes_the_logit_by_what_the_model_says_without_it(standard_promotion):
    _, row, found = taken("transformer", "edges")
    answer_B = np.asarray(row.batch.targets_BxL)[:, -1]

    def logit_B(edits):
        logits_BxQxV, _ = jax.jit(lambda params: row.model.apply({"params": params}, row.batch.tokens_BxL, edits))(
            row.params
        )
        return np.asarray(logits_BxQxV, np.float64)[np.arange(N), -1, answer_B]

    def cut(pattern_BxHxLxL):
        return pattern_BxHxLxL.at[:, 1, -1, 3].set(0)

    change_B = logit_B({"block_0/attn/pattern": cut}) - logit_B({})
    # logits below ten, of 8-wide products, twice
    assert found["logit"][0, 1, -1, 3] == pytest.approx(change_B.mean(), abs=2 * 8 * 10 * EPS)
    assert found["logit_error"][0, 1, -1, 3] == pytest.approx(change_B.std(ddof=1) / N**0.5, abs=2 * 8 * 10 * EPS)


def test_attributed_parts_add_up_to_the_answers_logit(standard_promotion):
    _, row, found = taken("transformer", "attribution")
    logits_BxQxV, _ = answered(row)
    answer_B = np.asarray(row.batch.targets_BxL)[:, -1]
    logit_B = np.asarray(logits_BxQxV, np.float64)[np.arange(N), -1, answer_B]
    # four parts of 8-wide products, each below 10 in size, and a norm, in another order
    assert found["total"] == pytest.approx(logit_B.mean(), abs=4 * 8 * 10 * EPS)
    assert found["total_error"] == pytest.approx(logit_B.std(ddof=1) / N**0.5, abs=4 * 8 * 10 * EPS)
    assert (found["heads_error"] > 0).all() and (found["mlps_error"] > 0).all()


def test_cosines_of_heads_are_of_their_own_weights(standard_promotion):
    _, row, found = taken("transformer", "head_cosines")
    attention = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), row.params["block_0"]["attn"])
    query, key, value, out = (attention[name]["kernel"] for name in ("query", "key", "value", "out"))
    part = [slice(4 * h, 4 * h + 4) for h in range(2)]
    for name, (one, two) in {
        "qk": [query[:, h] @ key[:, h].T for h in part],
        "ov": [value[:, h] @ out[h] for h in part],
    }.items():
        expected = np.sum(one * two) / np.linalg.norm(one) / np.linalg.norm(two)
        np.testing.assert_allclose(found[name], [[[1, expected], [expected, 1]]], rtol=0, atol=200 * EPS)


# --- other people's models ---


class Filters(nn.Module):
    """A convolution, attention by heads, a tensor whose inputs no axes name, and a table that is no matrix."""

    fan_in = {"tensor": 8, "table": None}

    @nn.compact
    def __call__(self, tokens_BxL):
        h = nn.Embed(VOCAB, 6)(tokens_BxL) + self.param("table", nn.initializers.normal(), (LENGTH, 6))[None]
        h = nn.MultiHeadDotProductAttention(2, name="mixer")(nn.Conv(6, (3,), name="filters")(h))
        h = h + jnp.sum(self.param("tensor", nn.initializers.normal(), (2, 3, 4)))
        return nn.Dense(VOCAB, name="head")(h)


OUT = (f"table {(LENGTH, 6)}", "tensor (2, 3, 4)")


@pytest.mark.parametrize("name", ["rank", "spectrum", "directions", "norm"])
def test_convolutions_and_heads_are_measured_and_what_is_no_matrix_is_said(name, standard_promotion):
    made = dataclasses.replace(experiment(MODELS["emb_mlp"]), model=Filters())
    build, _ = catalogue.CATALOGUE[name]
    one, (module, traced) = build(made), row_of(made, 1)
    assert one.left_out == OUT
    ((_, names),) = one.coords.items()
    assert {"filters/kernel", "mixer/query/kernel", "mixer/query/kernel[head 1]", "mixer/out/kernel[head 0]"} <= {
        *names
    }
    found = jax.jit(of_row(one, module))(*traced)
    filters = np.asarray(traced[0]["filters"]["kernel"], np.float64).reshape(18, 6)
    unit = filters / np.linalg.norm(filters, axis=0)
    s_K = np.linalg.svd(filters, compute_uv=False)
    output, expected = {
        "rank": ("stable", np.sum(s_K**2) / s_K[0] ** 2),
        "spectrum": ("matrix", s_K[0]),
        "directions": ("mean_absolute_cosine", (np.abs(unit.T @ unit).sum() - 6) / 30),
        "norm": ("log_frobenius", np.log(np.linalg.norm(filters))),
    }[name]
    values = np.asarray(found[output][names.index("filters/kernel")])
    # sums of 108 terms and an SVD, each within some ten roundings of its largest term
    assert values.ravel()[0] == pytest.approx(expected, rel=100 * EPS)


def test_what_a_measurement_leaves_out_stands_beside_its_numbers(standard_promotion):
    made = dataclasses.replace(experiment(MODELS["emb_mlp"]), model=Filters())
    header = _identity(catalogue.CATALOGUE["rank"][0](made))
    assert header["left_out"] == [*OUT] and load._left_out(header) == {"left_out": ", ".join(OUT)}
    assert "left_out" not in _identity(measures("emb_mlp")[1]["rank"])
