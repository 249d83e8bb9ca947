"""What is measured of snapshots written by hand: every row in its own limit, with its own start, in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import lab
from lab import config as configs
from lab import models, rng
from lab.configs import composition, focus_dilution
from lab.measuring.run import Selection, measure
from lab.studies import focus_dilution as study
from lab.studies.focus_dilution import population
from lab.studies.focus_dilution.measures import DIMS, FINER, SEQUENCES, limit_steps
from lab.tree import named_leaves

STEPS, RATE, D = 40, 0.5, 4
LAW, STAYS = np.array([0.5, 0.3125, 0.1875]), (0.5, 0.25)  # exact in float32, in which the task hands its law over
EPS32, EPS64 = 2.0**-23, 2.0**-52
W_0, W_Q, W_K, W_1 = (
    "embed/token/embedding", "block_0/attn/query/kernel", "block_0/attn/key/kernel", "head/kernel",
)  # fmt: skip


def tiny(variant, **changes):
    options = configs.variants(focus_dilution.get_config("smoke"))[variant].to_dict() | {"steps": STEPS}
    return ConfigDict({name: {**options[name], **changes.get(name, {})} if isinstance(options[name], dict)
                       else options[name] for name in options})  # fmt: skip


def draws(shapes, scale):
    """Snapshots of two rows, float32."""
    snapshots = {}
    for step in (0, STEPS):
        rng_of, tree = np.random.default_rng(step), {}
        for name, shape in shapes.items():
            *modules, leaf = name.split("/")
            place = functools.reduce(lambda place, module: place.setdefault(module, {}), modules, tree)
            place[leaf] = (scale * rng_of.standard_normal((2, *shape))).astype(np.float32)
        snapshots[step] = tree
    return snapshots


@pytest.fixture(scope="module")
def cycle(tmp_path_factory, untrained):
    """A chain of three states, two rows with limits of their own; all that is measured of them, asked in float32."""
    config = tiny(
        "cycle",
        grid=dict(gamma=(0.5,), learning_rate=(RATE,), seed=(0,), stay=STAYS),
        task=dict(stationary=tuple(LAW.tolist())),
        model=dict(vocab_size=3, d_model=D),
    )
    shapes = {W_0: (3, D), W_Q: (D, D), W_K: (D, D), W_1: (D, 3)}
    work = untrained(tmp_path_factory.mktemp("cycle") / "w", config, draws(shapes, 0.7))
    names = measure(work, study.measures(work.experiment), Selection(precision="float32"))
    assert names == ["state", "limit", "fine", "spectra"]
    return work


@functools.cache
def row_of(work, at):
    """What was measured of the first or the last row, (pi, P), and its parameters at both snapshots in float64."""
    where = dict(gamma=0.5, learning_rate=RATE, weight_decay=0.0, seed=0, stay=STAYS[at])
    dataset = lab.load(work.path)
    chain = LAW, STAYS[at] * np.eye(3) + (1 - STAYS[at]) * LAW
    params = [jax.tree.map(np.float64, dataset.lab.params(step, **where)) for step in (0, STEPS)]
    return dataset.sel(where), chain, *params


def of(row, measure, name):
    return row[f"{measure}.{name}"].transpose(..., *DIMS.get(name, ())).values


# --- `population` has its own oracles; here it is whether it is given the right row, chain, rate and steps ---

# Weights are below 3 and sums have at most four terms: a gradient is made of products of five matrices, 4^4 terms below
# 3^5, and errs by at most 6e4 roundings; a state by that times the rate 0.5 for each of 40 steps, or a twentieth of it
# for 800. Another factor of ten for singular vectors: they lose the gap between singular values, above a tenth of s_1.
BOUND = 10 * 6.2e4 * RATE * STEPS * EPS64  # 3e-9: float32 would miss it by two orders

ROWS = pytest.mark.parametrize("at", [0, -1], ids=["first", "last"])
descend, portraits = jax.jit(population.descend), jax.jit(population.portraits)


@ROWS
def test_state_is_the_portrait_of_every_snapshot_in_its_rows_own_limit(float64, cycle, at):
    row, chain, *snapshots = row_of(cycle, at)
    for step, params in zip((0, STEPS), snapshots, strict=True):
        expected = jax.jit(population.portrait)(params, *chain, jnp.zeros((D, 2)))
        del expected["coordinates"]
        for name, values in expected.items():
            found = of(row.sel(snapshot=step), "state", name)
            np.testing.assert_allclose(found, values, rtol=0, atol=BOUND, err_msg=f"{name} at {step}")


@ROWS
def test_limit_is_gradient_descent_from_the_first_snapshot(float64, cycle, at):
    """Paths are drawn in the plane of the last state; the growth constant is that of each."""
    row, chain, start, _ = row_of(cycle, at)
    assert row.time.values.tolist() == list(range(STEPS + 1))
    params_T = descend(start, *chain, RATE, row.time.values)
    expected = portraits(params_T, *chain, population.plane(jax.tree.map(lambda leaf: leaf[-1], params_T)))
    expected["predicted"] = jax.vmap(lambda gamma_V: population.growth_constant(gamma_V, LAW, STAYS[at], D))(
        expected["gamma"]
    )
    assert {f"limit.{name}" for name in expected} == {name for name in row if name.startswith("limit.")}
    for name, values in expected.items():
        np.testing.assert_allclose(of(row, "limit", name), values, rtol=0, atol=BOUND, err_msg=name)
        assert not np.allclose(values[0], values[-1]), name


@ROWS
def test_fine_is_twenty_times_as_many_steps_of_a_twentieth(float64, cycle, at):
    row, chain, start, _ = row_of(cycle, at)
    assert FINER == 20
    params_T = descend(start, *chain, RATE / 20, 20 * row.time.values)
    expected = portraits(params_T, *chain, jnp.zeros((D, 2)))
    expected["to_top"] = expected["attention"][:, :, 0]
    for name in ("loss", "focus", "token_norm", "to_top"):
        found = row[f"fine.{name}"].transpose("time", ...)
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=BOUND, err_msg=name)
    apart = abs(row["fine.loss"] - row["limit.loss"]).max("time")
    assert float(apart) > 1e6 * BOUND  # they are not the same descent


@ROWS
def test_spectra_are_those_of_the_limits_hessian(float64, cycle, at):
    row, chain, start, _ = row_of(cycle, at)
    assert set(row.spectrum_time.values) <= set(row.time.values) and {0, STEPS} <= set(row.spectrum_time.values)
    params_T = descend(start, *chain, RATE, row.spectrum_time.values)
    for t in (0, -1):
        found = jax.jit(population.critical)(jax.tree.map(lambda leaf, t=t: leaf[t], params_T), *chain)
        for block, values_N in (("whole", found.whole_N), ("outer", found.outer_N), ("inner", found.attention_N)):
            for end, value in (("least", values_N[0]), ("largest", values_N[-1])):
                spectrum = row[f"spectra.{block}_{end}"].isel(spectrum_time=t)
                # 56 entries of the Hessian a row, each a gradient's slope
                assert float(spectrum) == pytest.approx(float(value), abs=56 * BOUND), (block, end)


def test_rows_that_are_asked_only_when_they_escape_are_spared_the_finer_descent_and_the_spectra():
    """As many rows again, of which no claim reads them."""
    measures = study.measures(configs.experiment(tiny("escape")))
    assert [one.name for one in measures] == ["state", "limit"]


def test_all_but_the_companions_signals_are_float64_whatever_is_asked(cycle):
    dataset = lab.load(cycle.path)
    measured = ("state.", "limit.", "fine.", "spectra.")
    found = {name: values.dtype for name, values in dataset.items() if name.startswith(measured)}
    assert len(found) > 40 and set(found.values()) == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("steps", "expected"), [(3, [0, 1, 2, 3]), (20_000, [*range(0, 2000, 10), *range(2000, 20_001, 90)])]
)
def test_limit_is_seen_four_hundred_times_half_of_them_in_the_first_tenth(steps, expected):
    config = tiny("cycle")
    config.steps = steps
    assert list(limit_steps(configs.experiment(config))) == expected


# --- the companion ---

F_HIDDEN, VOCAB = 5, 24
COMPANION = {
    "embed/token/embedding": (VOCAB, D), "head/kernel": (D, VOCAB),
    **{f"block_0/attn/{name}/kernel": (D, D) for name in ("query", "key", "value")},
    "block_0/mlp/in/kernel": (D, F_HIDDEN), "block_0/mlp/out/kernel": (F_HIDDEN, D),
}  # fmt: skip


@pytest.fixture(scope="module")
def companion(tmp_path_factory, untrained):
    config = tiny(
        "collapse",
        grid=dict(gamma=(0.85,), seed=(0, 1)),
        task=dict(low=5, high=20, vocab_size=VOCAB),
        model=dict(vocab_size=VOCAB, d_model=D, d_ff=F_HIDDEN),
    )
    work = untrained(tmp_path_factory.mktemp("collapse") / "w", config, draws(COMPANION, 0.5))
    assert measure(work, study.measures(work.experiment)) == ["signals"]
    return work


def companion_at(work, seed, step):
    dataset = lab.load(work.path)
    where = dict(gamma=0.85, gamma_embed=0.5, gamma_head=0.5, learning_rate=1e-3, weight_decay=0.0, seed=seed)
    params = {name: np.float64(leaf) for name, leaf in named_leaves(dataset.lab.params(step, **where)).items()}
    return dataset.sel(where | {"snapshot": step}), params


def by_matrix(params):
    """In the paper's order, neurons as rows."""
    attn, mlp = "block_0/attn/{}/kernel", "block_0/mlp/{}/kernel"
    return {
        "value": params[attn.format("value")].T, "in": params[mlp.format("in")].T, "out": params[mlp.format("out")],
        "query": params[attn.format("query")].T, "key": params[attn.format("key")].T,
    }  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("step", [0, STEPS])
def test_signals_are_the_companions_of_the_row_on_its_own_sequences(companion, seed, step):
    row, params = companion_at(companion, seed, step)
    _, start = companion_at(companion, seed, 0)
    # products of neurons are sums of at most five terms below 9, and squared norms by which they are divided above 1/4
    bound = 5 * 9 * 4 * EPS32
    for group in (("value", "in", "out"), ("query", "key")):
        neurons, before = (np.concatenate([by_matrix(each)[m].ravel() for m in group]) for each in (params, start))
        moved = np.linalg.norm(neurons - before) / np.linalg.norm(before)
        name = "signals.change_outer" if "value" in group else "signals.change_inner"
        assert float(row[name]) == pytest.approx(moved, abs=bound), name
    expected = leading(companion, params)
    for name, value in expected.items():
        # G is a sum over 512 sequences, and its leading pair loses the gap to the second, above a tenth of the first
        assert float(row[f"signals.{name}"]) == pytest.approx(value, abs=10 * SEQUENCES * EPS32), name


def leading(work, params):
    """What follows from G = <mean_j x_j^T (U (onehot - 1/V))^T> on the measure's sequences."""
    task = work.experiment.task
    batch = task.sample(rng.key(work.config.data_seed, "analysis/signals"), SEQUENCES, "train", {})
    tokens, targets = np.asarray(batch.tokens_BxL), np.asarray(batch.targets_BxL)[:, -1]
    mean = params["embed/token/embedding"][tokens].mean(axis=1)
    error = np.eye(VOCAB)[targets] - 1 / VOCAB
    u, s, v = np.linalg.svd(mean.T @ error @ params["head/kernel"].T / SEQUENCES)
    value, hidden, out = by_matrix(params)["value"].T, by_matrix(params)["in"].T, by_matrix(params)["out"]
    w_v, w_2 = u[:, 0] @ value, out @ v[0]
    return {
        "leading_value": s[0],
        "leading_ratio": s[1] / s[0],
        "energy": w_v @ hidden @ w_2,
        "aligned_value": np.mean(np.abs(u[:, 0] @ value) / np.linalg.norm(value, axis=0)),
        "a1_hidden": np.mean(w_2 * (w_v @ hidden) > 0),
        "a1_value": np.mean(w_v * (hidden @ w_2) > 0),
    }


# --- what is refused ---


def test_other_models_and_tasks_are_refused_by_name():
    (variant, *_) = configs.variants(composition.smoke()).values()
    experiment = configs.experiment(variant)
    accepted = "OneLayerAttention on Markov, and AttentionMLP"
    with pytest.raises(ValueError, match=f"{accepted}; not Transformer on Composition"):
        study.measures(experiment)
    other_task = dataclasses.replace(experiment, model=models.OneLayerAttention(experiment.task.vocab_size, D))
    with pytest.raises(ValueError, match=f"{accepted}; not OneLayerAttention on Composition"):
        study.measures(other_task)
