"""Every claim on runs written by hand, on which the answer is known. Arrays are (seed, gamma)."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from planned import decided
from synthetic import Grid, by_gamma

import lab
from lab import config as configs
from lab import models
from lab.analysis import entropy, estimate
from lab.cli import main
from lab.configs import base
from lab.configs import low_entropy as config
from lab.engine import batches
from lab.measuring.declare import Row
from lab.studies import low_entropy as study
from lab.studies.low_entropy.measures import TOP, distribution
from lab.studies.low_entropy.sizes import by_size, n_parameters
from lab.tasks import strings

measured = functools.partial(synthetic.measured, study.STUDY)
SIZES = [(width, depth) for width in (8, 16, 32) for depth in (1, 2)]
NULL = dict(target=6.0, sample=5.7, sample_median=5.75, sample_low=5.6, sample_high=5.9, entropy=6, said=6.01)
TRAINED = NULL | dict(said_error=0.01, forward=0.5)


def model(width, depth, **changes):
    options = dict(
        d_model=width, n_layers=depth, n_heads=1, d_head=width, d_ff=4 * width, vocab_size=6, max_length=6,
    )  # fmt: skip
    return options | changes


def size(width, depth, sparse=None, axes=None, of=None, **distribution):
    """One variant; numbers are per seed, `sparse` is per seed and layer."""
    settings = {"model": of or model(width, depth), "task": {"length": 6}}
    made = Grid(study.STUDY.usual, config=settings, gamma=(0.5,), **(axes or {}))
    for name, values in (TRAINED | distribution).items():
        made.put(f"distribution.{name}", by_gamma(values), "snapshot")
    for name, values in (sparse or {}).items():
        layers = np.broadcast_to(np.asarray(values, float)[:, None, None], (5, 1, depth))
        made.put(f"sparsity.{name}", layers, "snapshot", {"layer": range(depth)})
    return made


def sizes(gap=lambda width, depth: -(width**2) * depth, **others):
    """`gap` and sparsity by width and depth: a number, or one for each seed."""
    made = {}
    for width, depth in SIZES:
        sparse = {name: np.broadcast_to(of(width, depth), 5) for name, of in others.items()}
        made[f"fixed_{width}x{depth}"] = size(width, depth, sparse, gap=gap(width, depth))
    return made


def test_share_of_sizes_below_the_target_by_seed():
    def gap(width, depth):  # the first seed is above at two of six sizes, the second at one
        return (0.1 if width == 8 else -0.1, 0.1 if (width, depth) == (8, 1) else -0.1, -0.1, -0.2, -0.3)

    found = measured("E1", **sizes(gap))
    np.testing.assert_allclose(found.values_S, (4 / 6, 5 / 6, 1, 1, 1))


@pytest.mark.parametrize(
    ("gap", "words"),
    [(-0.2, "the sample explains it"), (-0.5, "lower than the sample explains"), (0.1, "not below its target")],
)
def test_the_sample_stands_beside_the_gap_of_the_largest_model(gap, words):
    """Its own entropy is 0.3 below the target's, the band begins 0.4 below."""
    found = measured("E1", **sizes(lambda width, depth: gap))
    assert words in found.note and f"{gap:.3f}; the training sample itself -0.300" in found.note
    assert "[-0.400, -0.100]" in found.note and "1.0 standard errors" in found.note


def test_entropy_that_falls_with_parameters():
    assert (measured("E2", **sizes()).values_S == -1).all()
    assert measured("E2", **sizes(lambda width, depth: width**2 * depth)).verdict == "does not hold"
    assert "three sizes" in measured("E2", fixed_8x1=size(8, 1), fixed_8x2=size(8, 2)).note


def test_attention_alone_is_held_against_the_full_model_of_its_size():
    full = sizes(lambda width, depth: (-0.4, -0.4, -0.4, -0.4, 0.1) if (width, depth) == (32, 2) else -9)
    alone = size(32, 2, of=model(32, 2, n_heads=3, d_ff=0), gap=(-0.1, -0.2, -0.4, 0.2, -0.1))
    found = measured("E3", attention=alone, **full)
    np.testing.assert_allclose(found.values_S, (0.25, 0.5, 1.0, -0.5, np.nan))
    del full["fixed_32x2"]
    assert "fixed_32x2" in measured("E3", attention=alone, **full).note


def test_attention_alone_has_as_many_parameters():
    runs = synthetic.runs(study.STUDY, a=size(32, 2), b=size(32, 2, of=model(32, 2, n_heads=3, d_ff=0)))
    assert n_parameters(runs["a"]) == n_parameters(runs["b"])
    made = configs.experiment(configs.variants(config.get_config("cpu"))["attention"])
    assert (made.model.n_heads, made.model.d_ff) == (3, 0)


def test_distance_of_entropy_and_loss_is_of_a_symbol():
    made = size(32, 2, teacher_forced=(6.0, 6.06, 5.97, 6.0, 6.0), cross_entropy=6.03, temperature=1.02, gap=0.0)
    np.testing.assert_allclose(measured("E4", fresh=made).values_S, (0.005, 0.005, 0.01, 0.005, 0.005), rtol=1e-9)


@pytest.mark.parametrize("name", ["ratio", "active"])
def test_trends_with_width_are_of_the_worst_depth(name):
    id = {"ratio": "E5a", "active": "E5b"}[name]
    found = measured(id, **sizes(**{name: lambda width, depth: 1 / width}))
    assert (found.values_S == pytest.approx(-1)) and found.verdict == "holds"

    def mixed(width, depth):  # of the first seed, at depth 2, it rises at last
        return (0.2 if (width, depth) == (32, 2) else 1 / width, *[1 / width] * 4)

    np.testing.assert_allclose(measured(id, **sizes(**{name: mixed})).values_S, (0.5, -1, -1, -1, -1), atol=1e-12)


@pytest.mark.parametrize("name", ["ratio", "active"])
def test_changes_with_depth_are_of_the_worst_width(name):
    id = {"ratio": "E5c", "active": "E5d"}[name]
    found = measured(id, **sizes(**{name: lambda width, depth: width - depth * (0.5 if width == 16 else 1)}))
    np.testing.assert_allclose(found.values_S, [-0.5] * 5)
    one_depth = {name: grid for name, grid in sizes(**{name: lambda width, depth: 1.0}).items() if name.endswith("x1")}
    assert "two depths" in measured(id, **one_depth).note


def unstable(spikes_at):
    """2,000 steps at two rates; dead neurons jump between 400 and 420, and at 1200, of every row alike."""
    snapshots = range(0, 2001, 20)
    made = Grid(study.STUDY.usual, steps=snapshots, times={"train_step": range(2000)}, learning_rate=(3e-3, 1e-2))
    dead = np.zeros(len(snapshots))
    dead[21:] += 0.2
    noise = np.where(np.arange(2000) % 2, 0.01, -0.01)
    for rate in (3e-3, 1e-2):
        loss = np.tile(1 + noise[:, None], (1, 5))
        for seed in range(5):
            loss[spikes_at[seed], seed] = 5.0
        made.put("train_loss", loss, "train_step", learning_rate=rate)
        made.put(
            "sparsity.dead", np.tile(dead[:, None, None], (1, 5, 1)), "snapshot", {"layer": [0]}, learning_rate=rate
        )
    return made


def test_spikes_near_deaths_are_told_from_others_and_without_spikes_there_is_no_number():
    found = measured("E6", unstable=unstable([[410, 420], [355, 468], [1000, 1500], [], [400]]))
    p = found.values_S
    # the share of time near the jump is 120 of 2,000: of two rows shifted each by itself 0.0036
    assert p[0] < 0.02 and p[1] < 0.02 and p[2] == 1 and np.isnan(p[3]) and p[4] < 0.02
    assert "4, 4, 4, 0, 2" in found.note and "1.00, 1.00, 0.00, nan, 1.00" in found.note


def test_diagram_is_of_the_usual_decay_and_its_corners_are_said():
    made = Grid(study.STUDY.usual, gamma=(0.3, 0.5, 0.8), weight_decay=(0.01, 1.0))
    made.put("distribution.gap", by_gamma(-0.3, -0.2, (-0.1, -0.1, -0.1, -0.1, -0.25)), "snapshot")
    made.put("distribution.gap", by_gamma(0.1, 0.2, 0.3), "snapshot", weight_decay=1.0)
    found = measured("E7", diagram=made)
    np.testing.assert_allclose(found.values_S, (1, 1, 1, 1, 0.5), atol=1e-12)
    assert "gamma 0.3, decay 0.01: -0.300" in found.note and "gamma 0.8, decay 1: 0.300" in found.note


# --- what a model says ---


@pytest.fixture(scope="module")
def model_of_strings():
    """A model of random weights, far from uniform, on 3^3 strings: its measurement, its law, and P and Q of each."""
    experiment = configs.experiment(configs.variants(config.get_config("smoke"))["fixed_8x1"])
    task, tokens_NxT = experiment.task, strings.contexts(experiment.task)
    params = jax.tree.map(lambda leaf: 2 * leaf, models.init(experiment.model, jax.random.key(1), tokens_NxT))
    one = distribution(experiment)
    row = Row(experiment.model, params, params, {}, jnp.int32(0), None, jax.random.key(2))
    found = jax.jit(lambda params: one.function(row._replace(params=params)))(params)
    assert set(found) == set(one.units)

    def log_law(tokens_BxT):
        return jax.nn.log_softmax(models.forward(experiment.model, params, tokens_BxT)[0])

    law_of_q = np.exp(np.asarray(log_law(tokens_NxT), float))
    joints = [_joint(law, tokens_NxT) for law in (strings.laws(task, tokens_NxT), law_of_q)]
    return experiment, jax.tree.map(np.asarray, found), log_law, *joints


def _joint(law_NxTxV, tokens_NxT):
    """Of every string, (V, V, V)."""
    weight_N = np.prod([law_NxTxV[np.arange(9), t, tokens_NxT[:, t + 1]] for t in range(2)], axis=0)
    return (weight_N[:, None] * law_NxTxV[:, -1]).reshape(3, 3, 3)


def _entropies(joint):
    """Of each symbol given those before it."""
    prefixes = [joint.reshape(3**t, -1).sum(axis=1) for t in range(4)]
    return np.diff([-np.sum(p * np.log(p)) for p in prefixes])


def test_entropies_and_divergences_of_a_model_are_those_of_all_strings_summed_one_by_one(model_of_strings):
    experiment, found, _, p, q = model_of_strings
    law_of_q = q / q.sum(axis=2, keepdims=True), q.sum(axis=2) / q.sum(axis=(1, 2))[:, None], q.sum(axis=(1, 2))
    in_contexts_of_p = p.sum(axis=2), p.sum(axis=(1, 2)), 1
    expected = {
        "entropy": _entropies(q).sum(), "target": _entropies(p).sum(), "gap_at": _entropies(q) - _entropies(p),
        "gap": _entropies(q).sum() - strings.entropies(experiment.task).sum(),  # the latter without enumeration
        "forward": np.sum(p * np.log(p / q)), "reverse": np.sum(q * np.log(q / p)),
        "cross_entropy": -np.sum(p * np.log(q)),
        "teacher_forced": sum(
            np.sum(weight * -np.sum(law * np.log(law), axis=-1))
            for weight, law in zip(in_contexts_of_p, law_of_q, strict=True)
        ),
        "top": np.sort(q.ravel())[-TOP:].sum(),
    }  # fmt: skip
    for name, values in expected.items():
        # float32 sums of 27 products of 3 factors; logarithms of P are as large as 20
        np.testing.assert_allclose(found[name], values, rtol=0, atol=20 * 30 * 2.0**-23, err_msg=name)
    assert abs(found["gap"]) > 0.05 and abs(found["forward"]) > 0.05  # or nothing would be told apart
    count = collections.Counter(map(tuple, batches.train_set(experiment).targets_BxL.tolist()))
    share = np.array([*count.values()]) / experiment.train_size
    assert found["sample"] == pytest.approx(-np.sum(share * np.log(share)), rel=2**-22)
    assert found["sample_low"] <= found["sample_median"] <= found["sample_high"]
    assert found["sample_median"] < found["target"]


def test_every_entropy_is_the_same_by_enumeration_and_from_strings_that_are_drawn_within_its_error(model_of_strings):
    """From strings of the target those that are means over it, from strings that the model says its own."""
    experiment, found, log_law, p, _ = model_of_strings
    task, n = experiment.task, 4000

    def of_string(logits_TxV, one):
        return task.score(logits_TxV[None], jax.tree.map(lambda leaf: leaf[None], one))

    @jax.jit
    def drawn(key):
        batch = task.sample(key, n, "test", {})
        scores = jax.vmap(of_string)(log_law(batch.tokens_BxL), batch)
        scores |= {"target": scores["law_loss"] - scores["excess"]}
        return {name: estimate.mean(task.length * score_B) for name, score_B in scores.items()}

    @jax.jit
    def said(key):
        whole, said_BxT = entropy.sampled(log_law, key, n, task.length, strings.BEGIN)
        tokens_BxT = jnp.concatenate([jnp.full((n, 1), strings.BEGIN, jnp.int32), said_BxT[:, :-1]], axis=1)
        log_q_BxTxV = log_law(tokens_BxT)
        log_q_B = jnp.take_along_axis(log_q_BxTxV, said_BxT[..., None], axis=2).sum(axis=(1, 2))
        log_p_B = jnp.log(jnp.asarray(p, jnp.float32))[tuple(said_BxT.T)]
        by_depth = estimate.mean(-jnp.sum(jnp.exp(log_q_BxTxV) * log_q_BxTxV, axis=2))
        return {"entropy": whole, "plain": estimate.mean(-log_q_B), "reverse": estimate.mean(log_q_B - log_p_B),
                "by depth": by_depth}  # fmt: skip

    by_target, by_model = jax.tree.map(np.asarray, (drawn(jax.random.key(3)), said(jax.random.key(4))))
    routes = [
        (by_target["target"], found["target"]),
        (by_target["law_loss"], found["cross_entropy"]),
        (by_target["excess"], found["forward"]),
        (by_target["entropy"], found["teacher_forced"]),
        (by_model["entropy"], found["entropy"]),
        (by_model["plain"], found["entropy"]),
        (by_model["reverse"], found["reverse"]),
        (by_model["by depth"], found["gap_at"] + _entropies(p)),
        (estimate.Estimate(found["said"], found["said_error"]), found["entropy"]),
    ]
    for (value, error), enumerated in routes:
        # five standard errors, and the rounding of symbols that are certain: the first has the same law in all strings
        assert (abs(value - enumerated) <= 5 * error + 1e-5).all()
        assert (error <= 0.05 * (1 + abs(enumerated))).all()


# --- presets ---


@pytest.mark.parametrize("preset", ["smoke", "cpu", "record", "gpu", "paper"])
def test_variants_are_of_the_size_they_are_named_after(preset):
    for name, variant in configs.variants(config.get_config(preset)).items():
        experiment = configs.experiment(variant)
        if name.startswith("fixed_"):
            assert name == f"fixed_{experiment.model.d_model}x{experiment.model.n_layers}"
            assert experiment.train_size
        assert bool(experiment.train_size) != (name in ("fresh", "unstable")), name


def test_sizes_are_found_in_order_and_others_left_out():
    runs = synthetic.runs(
        study.STUDY, fixed_16x1=size(16, 1), fixed_8x2=size(8, 2), text_32x1=size(32, 1), fresh=size(8, 1)
    )
    assert [*by_size(runs)] == [(8, 2), (16, 1), (32, 1)]


# --- on a text ---


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Stories of a few words, as TinyStories separates them; and preset `text` made small enough for them."""
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))
    stories = (f"Once there was a {who}.\nThe {who} saw {n} birds." for who in ("cat", "dog", "fox") for n in range(30))
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    changes = dict(steps=4, batch_size=4, eval_every=2, eval_size=4, snapshots=2, checkpoint_every=4)
    changes |= {"optim.warmup_steps": 2}
    return [f"--config.task.path={tmp_path / 'stories.txt'}", *(f"--config.{key}={n}" for key, n in changes.items())]


def test_text_has_six_sizes_and_names_a_text():
    assert set(config.get_config("text").variants) == {f"text_{w}x{d}" for w in (16, 32, 64) for d in (1, 2)}
    assert "TinyStories" in base.presets("low_entropy")["text"]


def test_text_without_a_path_is_refused_in_a_line_that_says_how_to_give_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "low_entropy", "--preset=text", f"--workdir={tmp_path / 'w'}"])
    said = capsys.readouterr().err
    assert "give one of them, --config.task.path=FILE" in said and "Traceback" not in said
    assert not (tmp_path / "w").exists()


@pytest.mark.usefixtures("standard_promotion")  # optax raises whole numbers
def test_text_decides_claims_on_sparsity_and_no_other(text):
    """Traced, not trained."""
    made = base.load("low_entropy", "text")
    made.task.path = text[0].partition("=")[2]
    assert decided(study.STUDY, configs.variants(made)) == ("E5a", "E5b", "E5c", "E5d")


@pytest.mark.usefixtures("standard_promotion")
def test_text_runs_from_a_file_to_a_page(text, tmp_path):
    folder = tmp_path / "w"
    chosen = [f"--workdir={folder}", "--variants=text_16x1", "--config.grid.seed=(0,)"]
    main(["reproduce", "low_entropy", "--preset=text", *chosen, *text])
    found = lab.load(folder, "text_16x1")
    assert not [name for name in found if name.startswith("distribution.")]
    assert found["sparsity.active_at"].sizes["position"] == found.attrs["config"]["task"]["length"]
    for name in ("active", "dead", "bypass"):
        assert ((found[f"sparsity.{name}"] >= 0) & (found[f"sparsity.{name}"] <= 1)).all()
    assert {path.stem for path in (folder / "report" / "figures").glob("*.png")} >= {"sparsity", "sparsity-training"}
