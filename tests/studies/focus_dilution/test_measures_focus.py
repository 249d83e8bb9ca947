"""What is measured of snapshots written by hand, against the closed forms in numpy, float64."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from ml_collections import ConfigDict

import lab
from lab import config as configs
from lab import models, rng
from lab.configs import composition, focus_dilution
from lab.disk import files, store
from lab.disk.workdir import Workdir
from lab.measuring.run import Selection, measure
from lab.studies import focus_dilution as study
from lab.studies.focus_dilution.measures import DIMS, FINER, SEQUENCES, limit_steps
from lab.tree import named_leaves

STEPS, RATE, D = 40, 0.5, 4
LAW, STAYS = np.array([0.5, 0.3125, 0.1875]), (0.5, 0.25)  # exact in float32, in which the task hands its law over
EPS32, EPS64 = 2.0**-23, 2.0**-52
W_0, W_Q, W_K, W_1 = NAMES = (
    "embed/token/embedding", "block_0/attn/query/kernel", "block_0/attn/key/kernel", "head/kernel",
)  # fmt: skip


def tiny(variant, **changes):
    options = configs.variants(focus_dilution.get_config("smoke"))[variant].to_dict() | {"steps": STEPS}
    return ConfigDict({name: {**options[name], **changes.get(name, {})} if isinstance(options[name], dict)
                       else options[name] for name in options})  # fmt: skip


def draws(shapes, n_rows, step, scale):
    """Parameters of all rows, float32."""
    rng_of = np.random.default_rng(step)
    tree = {}
    for name, shape in shapes.items():
        *modules, leaf = name.split("/")
        place = functools.reduce(lambda place, module: place.setdefault(module, {}), modules, tree)
        place[leaf] = (scale * rng_of.standard_normal((n_rows, *shape))).astype(np.float32)
    return tree


def workdir(path, config, shapes, scale):
    made, rows = Workdir(path), configs.grid(config)
    made.path.mkdir()
    files.write_json(made.path / "config.json", {"config": configs.to_json(config), "data": {}, "start": {}})
    files.write_json(made.path / "grid.json", rows.to_json())
    chunk = {"train_step": np.arange(0), "step": np.array([0]), "train_loss": np.zeros((0, len(rows)), np.float32)}
    files.write_npz(made.metrics / "0.npz", chunk | {"diverged_at": np.full(len(rows), -1)})
    for step in (0, STEPS):
        store.save(made.snapshots, step, draws(shapes, len(rows), step, scale))
    return made


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    """A chain of three states, two rows with limits of their own; all that is measured of them, asked in float32."""
    config = tiny(
        "cycle",
        grid=dict(gamma=(0.5,), learning_rate=(RATE,), seed=(0,), stay=STAYS),
        task=dict(stationary=tuple(LAW.tolist())),
        model=dict(vocab_size=3, d_model=D),
    )
    shapes = {W_0: (3, D), W_Q: (D, D), W_K: (D, D), W_1: (D, 3)}
    work = workdir(tmp_path_factory.mktemp("cycle") / "w", config, shapes, 0.7)
    names = measure(work, study.measures(work.experiment), Selection(precision="float32"))
    assert names == ["state", "limit", "fine", "spectra"]
    return work


@functools.cache
def row_of(work, at):
    """What was measured of the first or the last row; pi, P and its parameters at both snapshots, float64."""
    where = dict(gamma=0.5, learning_rate=RATE, weight_decay=0.0, seed=0, stay=STAYS[at])
    dataset = lab.load(work.path)
    transition = STAYS[at] * np.eye(3) + (1 - STAYS[at]) * LAW
    params = [named_leaves(dataset.lab.params(step, **where)) for step in (0, STEPS)]
    return (
        dataset.sel(where), LAW, transition, *({name: np.float64(leaf) for name, leaf in p.items()} for p in params)
    )  # fmt: skip


def of(row, measure, name):
    return row[f"{measure}.{name}"].transpose(..., *DIMS.get(name, ())).values


# --- by hand: the limit by the paper's closed forms in its lumped matrices ---


def forward(p, law):
    """A, M and the answers' probabilities."""
    phi = p[W_0] @ p[W_Q] @ p[W_K].T @ p[W_0].T / math.sqrt(D)
    attention = law * np.exp(phi)
    attention = attention / attention.sum(axis=1, keepdims=True)
    answer = np.exp(attention @ p[W_0] @ p[W_1])
    return attention, p[W_0] @ p[W_1], answer / answer.sum(axis=1, keepdims=True)


def loss(p, law, transition):
    return -(law[:, None] * transition * np.log(forward(p, law)[2])).sum()


def gradient(p, law, transition):
    """dL/dM = sum_i pi_i A_i^T (p_i - P_i), dL/dPhi_ik = pi_i A_ik (e_k - A_i) M (p_i - P_i)^T, and the chain rule."""
    attention, lumped, answer = forward(p, law)
    error = law[:, None] * (answer - transition)
    by_m, along = attention.T @ error, error @ lumped.T
    by_phi = attention * (along - (attention * along).sum(axis=1, keepdims=True)) / math.sqrt(D)
    query, key = p[W_0] @ p[W_Q], p[W_0] @ p[W_K]
    return {
        W_0: by_m @ p[W_1].T + by_phi @ key @ p[W_Q].T + by_phi.T @ query @ p[W_K].T,
        W_Q: p[W_0].T @ by_phi @ key,
        W_K: p[W_0].T @ by_phi.T @ query,
        W_1: p[W_0].T @ by_m,
    }


def descended(p, law, transition, rate, n_steps):
    for _ in range(n_steps):
        slope = gradient(p, law, transition)
        p = {name: leaf - rate * slope[name] for name, leaf in p.items()}
    return p


def numbers(p, law, transition):
    attention = forward(p, law)[0]
    u, s, _ = np.linalg.svd(p[W_0])
    spectrum = np.linalg.svd(p[W_Q], compute_uv=False)
    share = spectrum / spectrum.sum()
    gamma = u[:, 0] * s[0] * np.sign(u[0, 0])
    return {
        "loss": loss(p, law, transition),
        "gap": loss(p, law, transition) + law @ np.log(law),
        "excess": loss(p, law, transition) + (law[:, None] * transition * np.log(transition)).sum(),
        "gradient_norm": math.sqrt(sum((leaf**2).sum() for leaf in gradient(p, law, transition).values())),
        "attention": attention,
        "focus": law @ attention[:, 0],
        "entropy": -(attention * np.log(attention)).sum(axis=1),
        "token_norm": np.linalg.norm(p[W_0], axis=1),
        "norm_query": np.linalg.norm(p[W_Q]),
        "rank_query": math.exp(-(share * np.log(share)).sum()),
        "gamma": gamma,
        "redistribution": (1 - law[0]) * gamma[0] - law[0] * gamma[1:].sum(),
        "singular_ratios": s[1:3] / s[0],
    }


# Weights are below 3 and sums have at most four terms: a gradient is made of products of five matrices, 4^4 terms below
# 3^5, and errs by at most 6e4 roundings; a state by that times the rate 0.5 for each of 40 steps, or a twentieth of it
# for 800. Another factor of ten for singular vectors: they lose the gap between singular values, above a tenth of s_1.
BOUND = 10 * 6.2e4 * RATE * STEPS * EPS64  # 3e-9: float32 would miss it by two orders

ROWS = pytest.mark.parametrize("at", [0, -1], ids=["first", "last"])


@ROWS
def test_state_is_the_portrait_of_every_snapshot_in_its_rows_own_limit(cycle, at):
    row, law, transition, *snapshots = row_of(cycle, at)
    for step, p in zip((0, STEPS), snapshots, strict=True):
        for name, expected in numbers(p, law, transition).items():
            found = of(row.sel(snapshot=step), "state", name)
            np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND, err_msg=f"{name} at {step}")


@ROWS
def test_limit_is_gradient_descent_from_the_first_snapshot(cycle, at):
    row, law, transition, start, _ = row_of(cycle, at)
    assert row.time.values.tolist() == list(range(STEPS + 1))
    for step in (0, 1, 13, STEPS):
        for name, expected in numbers(descended(start, law, transition, RATE, step), law, transition).items():
            found = of(row.sel(time=step), "limit", name)
            np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND, err_msg=f"{name} at {step}")


@ROWS
def test_limit_begins_where_training_does(cycle, at):
    row, *_ = row_of(cycle, at)
    both = {name.split(".")[1] for name in row if name.startswith("state.")}
    only = {name.split(".")[1] for name in row if name.startswith("limit.")} - both
    assert only == {"coordinates", "predicted"} and "attention" in both
    for name in both:
        found = of(row.isel(time=0), "limit", name), of(row.isel(snapshot=0), "state", name)
        np.testing.assert_allclose(*found, rtol=0, atol=BOUND, err_msg=name)
        assert not np.allclose(of(row.isel(time=0), "limit", name), of(row.isel(time=-1), "limit", name)), name


@ROWS
def test_limit_predicts_the_growth_constant_of_each_state(cycle, at):
    row, law, transition, start, _ = row_of(cycle, at)
    square, entropy = law @ law, -law @ np.log(law)
    # sum_i pi_i^2 (log pi_i + H), and sum_k pi_k^3 - (sum_k pi_k^2)^2
    fixed = (law**2 @ (np.log(law) + entropy)) * (law @ law**2 - square**2) / square**2
    for step in (0, STEPS):
        s_1 = np.linalg.norm(descended(start, law, transition, RATE, step)[W_0], 2)  # |gamma| = |W_0 v_1|
        expected = STAYS[at] / math.sqrt(D) * s_1**2 * fixed
        np.testing.assert_allclose(of(row.sel(time=step), "limit", "predicted"), expected, rtol=0, atol=BOUND)


@ROWS
def test_limit_draws_paths_in_the_plane_of_the_last_state(cycle, at):
    row, law, transition, start, _ = row_of(cycle, at)
    last = descended(start, law, transition, RATE, STEPS)[W_0]
    axes = np.linalg.svd(last)[2][:2].T
    axes = axes * np.sign([column[np.abs(column).argmax()] for column in (last @ axes).T])
    for step in (0, 7, STEPS):
        expected = descended(start, law, transition, RATE, step)[W_0] @ axes
        found = of(row.sel(time=step), "limit", "coordinates")
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


@ROWS
def test_fine_is_twenty_times_as_many_steps_of_a_twentieth(cycle, at):
    row, law, transition, start, _ = row_of(cycle, at)
    assert FINER == 20
    for step in (0, 1, STEPS):
        p = descended(start, law, transition, RATE / 20, 20 * step)
        wanted = numbers(p, law, transition)
        wanted["to_top"] = wanted["attention"][:, 0]
        for name in ("loss", "focus", "token_norm", "to_top"):
            found = row[f"fine.{name}"].sel(time=step).values
            np.testing.assert_allclose(found, wanted[name], rtol=0, atol=BOUND, err_msg=f"{name} at {step}")
    apart = abs(row["fine.loss"] - row["limit.loss"]).max("time")
    assert float(apart) > 1e6 * BOUND  # they are not the same descent


@ROWS
def test_spectra_are_those_of_the_gradients_differences(cycle, at):
    row, law, transition, start, _ = row_of(cycle, at)
    assert set(row.spectrum_time.values) <= set(row.time.values) and {0, STEPS} <= set(row.spectrum_time.values)
    h = 1e-4
    for step in (0, STEPS):
        p = descended(start, law, transition, RATE, step)
        columns = []
        for name in NAMES:
            for i in range(p[name].size):
                ends = []
                for sign in (1, -1):
                    moved = p[name].copy()
                    moved.flat[i] += sign * h
                    slope = gradient(p | {name: moved}, law, transition)
                    ends.append(np.concatenate([slope[each].ravel() for each in NAMES]))
                columns.append((ends[0] - ends[1]) / (2 * h))
        hessian = np.array(columns)
        outer = np.concatenate([np.full(p[name].size, name in (W_0, W_1)) for name in NAMES])
        for block, chosen in (("whole", outer | True), ("outer", outer), ("inner", ~outer)):
            values = np.linalg.eigvalsh(hessian[np.ix_(chosen, chosen)])
            now = row.sel(spectrum_time=step)
            # the differences leave out h^2 / 6 of third derivatives below 100, and eigenvalues move by at most the
            # norm of that, 56 times as much; gradients are exact to 6e4 roundings, over h
            bound = 56 * (h**2 / 6 * 100 + 6.2e4 * EPS64 / h)
            assert float(now[f"spectra.{block}_least"]) == pytest.approx(values[0], abs=bound)
            assert float(now[f"spectra.{block}_largest"]) == pytest.approx(values[-1], abs=bound)


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
def companion(tmp_path_factory):
    config = tiny(
        "collapse",
        grid=dict(gamma=(0.85,), seed=(0, 1)),
        task=dict(low=5, high=20, vocab_size=VOCAB),
        model=dict(vocab_size=VOCAB, d_model=D, d_ff=F_HIDDEN),
    )
    work = workdir(tmp_path_factory.mktemp("collapse") / "w", config, COMPANION, 0.5)
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
    neurons, before = by_matrix(params), by_matrix(start)
    # products of neurons are sums of at most five terms below 9, and squared norms by which they are divided above 1/4
    bound = 5 * 9 * 4 * EPS32
    for name, matrix in neurons.items():
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        cosine = np.abs(unit @ unit.T)[np.triu_indices(len(unit), 1)].mean()
        assert float(row["signals.cosine"].sel(matrix=name)) == pytest.approx(cosine, abs=bound), name
        share = np.linalg.svd(matrix, compute_uv=False) / np.linalg.svd(matrix, compute_uv=False).sum()
        rank = math.exp(-(share * np.log(share)).sum())
        assert float(row["signals.effective_rank"].sel(matrix=name)) == pytest.approx(rank, abs=bound), name
    for name, group in (("outer", ("value", "in", "out")), ("inner", ("query", "key"))):
        moved, norm = (sum((part[m] ** 2).sum() for m in group) for part in (
            {m: neurons[m] - before[m] for m in group}, before))  # fmt: skip
        assert float(row[f"signals.change_{name}"]) == pytest.approx(math.sqrt(moved / norm), abs=bound), name
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
