"""Every claim on grids written by hand, on which the answer is known; presets, pictures and the page."""

import functools

import numpy as np
import pytest
import synthetic
from synthetic import GARBAGE, Grid, by_gamma

from lab import claims
from lab import config as configs
from lab.analysis import phase
from lab.configs import complexity_control as config
from lab.measuring.catalogue import loss
from lab.measuring.catalogue.anchors import QUERY
from lab.measuring.declare import Measure
from lab.runs import Runs
from lab.studies import complexity_control as study
from lab.studies.complexity_control.circuits import EQUIVALENCE

measured = functools.partial(synthetic.measured, study.STUDY)
GAMMAS, DECAYS = (0.4, 0.5, 0.6, 0.7), (0.01, 1.0)
NAN, NEVER = np.nan, 10**6


def check(id, expected, verdict, **grids):
    found = measured(id, **grids)
    np.testing.assert_allclose(found.values_S, expected, atol=1e-12)  # float64, a few roundings of numbers below 10
    assert found.verdict == verdict
    return found


def phase_grid(**config):
    config = {"task": {"family": "composition", "setting": "34_unseen"}, "model": {"n_layers": 2}} | config
    return Grid(study.STUDY.usual, config, gamma=GAMMAS, weight_decay=DECAYS)


def peaked(values):
    """Over time: the best evaluation is not the last one."""
    return np.stack([values, values - 0.05])


def reasoning(by_gamma_at_small, by_gamma_at_large=None):
    grid = phase_grid().put("ood_43.reasoning", peaked(by_gamma_at_small))
    large = by_gamma_at_large
    return grid if large is None else grid.put("ood_43.reasoning", peaked(large), weight_decay=1.0)


LATE = by_gamma(0.0, 0.1, (0.9, 0.9, 0.9, 0.9, 0.2), 1.0)  # boundary at 0.6, of the last seed at 0.7


def test_p1_is_how_far_the_boundary_moves_down():
    early = by_gamma(0.0, 1.0, 1.0, 1.0)
    # crossings 0.5 + 0.1 * 0.4 / 0.8 = 0.55 and 0.6 + 0.1 * 0.3 / 0.8 = 0.6375, against 0.45
    check("P1", [0.1] * 4 + [0.1875], claims.HOLDS, phase=reasoning(LATE, early))
    # at least: at the grid's ends
    check("P1", [0.15] * 4 + [0.2375], claims.HOLDS, phase=reasoning(LATE, by_gamma(1.0, 1.0, 1.0, 1.0)))
    never = by_gamma(0.0, 0.0, 0.0, 0.4)
    check("P1", [0.0] * 5, claims.FAILS, phase=reasoning(never, never))


def test_p2_is_the_rise_over_the_one_step_that_crosses():
    found = check("P2", [0.8] * 5, claims.HOLDS, phase=reasoning(LATE))
    assert "0.6, 0.6, 0.6, 0.6, 0.7" in found.note
    # a seed that reasons where the grid begins has no step across; one that never reasons neither
    first = by_gamma((1.0, 0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0, 0.4), 0.3, (1.0, 1.0, 1.0, 1.0, 0.4))
    check("P2", [NAN, 1.0, 1.0, 1.0, NAN], claims.OPEN, phase=reasoning(first))
    check("P2", [0.3] * 5, claims.FAILS, phase=reasoning(by_gamma(0.0, 0.4, 0.7, 1.0)))


def test_p3_is_the_share_of_rank_left_at_the_last_gamma_below():
    start, end = by_gamma(10, 20, 40, 80), by_gamma(10, 8, (1, 1, 1, 1, 18), 1)
    matrix = {"matrix": ("block_1/attn/query/kernel", QUERY)}
    both = np.stack([np.full((2, 5, 4), GARBAGE), np.stack([start, end])], axis=-1)
    grid = reasoning(LATE).put("rank.stable", both, "snapshot", matrix)
    check("P3", [0.4] * 4 + [0.45], claims.HOLDS, phase=grid)
    both[1, :, 1, 1] = 11
    check("P3", [0.55] * 4 + [0.45], claims.OPEN, phase=grid.put("rank.stable", both, "snapshot", matrix))


def middle(commutes, right):
    """Gammas by phase: 1, 2, 2, 3."""
    grid = reasoning(by_gamma(0.0, 0.0, 0.1, 1.0)).put("test_seen.accuracy", peaked(by_gamma(0.2, 0.9, 1, 1)))
    return grid.put("swap.commutativity", commutes).put("swap.reasoning", right)


def test_p4_takes_what_is_alike_and_wrong_in_memory_rows_less_that_of_others():
    right = by_gamma(0.0, 0.0, 0.1, 0.95)
    late = middle(by_gamma(0.1, 0.1, (0.8, 0.9, 0.7, 0.8, 0.8), 1.0), right)
    # 0.7, 0.8, 0.6 less the 0.1 of phase 1; reasoning rows commute, but rightly
    check("P4", [0.6, 0.7, 0.5, 0.6, 0.6], claims.HOLDS, phase=late)
    check("P4", [-0.2] * 5, claims.FAILS, phase=middle(by_gamma(0.9, 0.1, 0.8, 1.0), right))
    found = study.phases(late.run()).isel(seed=0).values
    assert [phase.PHASES[index] for index in found] == ["1", "2 w/o", "2 w", "3"]


def cut(reasoning, symmetric, random, whole=1.0, **equivalence):
    """What is left at the smallest weights."""
    grid = phase_grid()
    left = {"whole": whole, "reasoning": reasoning, "symmetric": symmetric, "random": random}
    values = {f"masked_unseen.{name}": value for name, value in left.items()}
    values |= {f"equivalence.{name}": value for name, value in equivalence.items()}
    for name, value in values.items():
        grid.put(name, np.broadcast_to(value, 5), None, gamma=0.7)
    return grid


def test_m1_and_m2_are_shares_of_the_accuracy_that_was_there():
    made = cut((0.4, 0.2, 0.0, 0.4, 0.4), (0.8, 0.76, 0.736, 0.8, 0.8), (0.76, 0.8, 0.8, 0.8, 0.8), 0.8)
    check("M1", [0.5, 0.75, 1.0, 0.5, 0.5], claims.HOLDS, phase=made)
    check("M2", [0.05, 0.05, 0.08, 0.0, 0.0], claims.HOLDS, phase=made)
    check("M2", [0.0, 0.11, 0.0, 0.0, 0.0], claims.OPEN, phase=cut(0.0, 1.0, (1.0, 0.89, 1.0, 1.0, 1.0)))
    check("M1", [0.4] * 5, claims.FAILS, phase=cut(0.6, 1.0, 1.0))


def test_rows_that_do_not_reason_have_no_reasoning_to_cut():
    means = dict.fromkeys(EQUIVALENCE, 0.9)
    made = cut(0.5, 0.5, 0.5, (0.4, 1.0, 1.0, 1.0, 1.0), gap=0.5, **means)
    for id in ("M1", "M2", "M3"):
        check(id, [NAN, 0.5, 0.5, 0.5, 0.5], claims.FAILS if id == "M2" else claims.OPEN, phase=made)
    assert "two layers with its circuits cut" in measured("M1", phase=phase_grid()).note


def test_m3_is_the_gap_and_the_two_layer_variant_counts_where_there_is_one():
    made = cut(0.0, 1.0, 1.0, gap=(0.5, 0.42, 0.6, 0.5, 0.5), **dict.fromkeys(EQUIVALENCE, 0.9))
    for grids in ({"phase": made}, {"phase": phase_grid(), "two_layers": made}):
        check("M3", [0.5, 0.42, 0.6, 0.5, 0.5], claims.HOLDS, **grids)


# --- corrupted pairs ---

STEPS = (0, 100, 200, 300, 400)
PAIRS = tuple(f"{a},{b}" for a in (1, 2, 3, 4) for b in (1, 2, 3, 4))


def corrupted(k, depth, fitted, learnt=0):
    """Loss below 0.1, and pairs right, from a step on: by seed, and by pair."""
    task = {"family": "composition", "setting": "all_pairs", "noise_groups": k}
    grid = Grid(study.STUDY.usual, {"task": task, "model": {"n_layers": depth}}, STEPS, gamma=(0.5, 0.8))
    at_T = np.array(STEPS)[:, None]
    loss_TxS = np.where(at_T >= np.broadcast_to(fitted, 5), 0.05, 1.0)
    right_TxP = (at_T >= np.broadcast_to(learnt, 16)).astype(float)
    grid.put("train.loss", loss_TxS, gamma=0.8)
    right_TxSxP = np.broadcast_to(right_TxP[:, None], (5, 5, 16))
    return grid.put("train.pair_accuracy", right_TxSxP, dims={"pair": PAIRS}, gamma=0.8)


def test_k1_is_a_ratio_and_rows_that_never_fit_count_all_steps():
    clean, slow = corrupted(0, 2, (100, 200, 100, 100, 100)), corrupted(5, 2, (200, 200, NEVER, 200, 200))
    check("K1", [2, 1, 4, 2, 2], claims.OPEN, clean=clean, slow=slow)
    check("K1", [NAN] * 5, claims.OPEN, clean=corrupted(0, 2, NEVER), slow=slow)
    assert "a training of 2 layers with 5 corrupted pairs" in measured("K1", clean=clean).note
    slow.diverge(7, gamma=0.8, seed=3)  # neither slow nor fast
    check("K1", [2, 1, 4, NAN, 2], claims.OPEN, clean=clean, slow=slow)


def learnt(slowed, others, odd=None):
    """By pair: those of 1 and 2 alone, of which (2,2) is last; all others; (1,3)."""
    steps_P = np.where([set(pair.split(",")) <= {"1", "2"} for pair in PAIRS], slowed, others)
    steps_P[PAIRS.index("2,2")] = 400
    steps_P[PAIRS.index("1,3")] = others if odd is None else odd
    return steps_P


@pytest.mark.parametrize(
    ("at", "ratio", "verdict"),
    [
        (learnt(300, 200), 1.5, claims.HOLDS),
        (learnt(300, 200, odd=300), 1.0, claims.FAILS),  # a tie
        (learnt(NEVER, 200), 2.0, claims.HOLDS),
        (learnt(300, NEVER), NAN, claims.OPEN),
    ],
)
def test_k2_sets_the_first_slowed_pair_against_the_last_of_the_others(at, ratio, verdict):
    check("K2", [ratio] * 5, verdict, noisy=corrupted(1, 2, 100, at))


def test_k3_compares_slowdowns_of_the_shallow_and_the_deepest_model():
    shallow = {"a": corrupted(0, 2, 100), "b": corrupted(5, 2, 400)}
    between = {"c": corrupted(0, 3, 100), "d": corrupted(5, 3, 100)}
    deepest = {"e": corrupted(0, 4, 100), "f": corrupted(5, 4, (200, 400, 200, 200, 200))}
    check("K3", [2, 1, 2, 2, 2], claims.OPEN, **shallow, **between, **deepest)  # a tie is not less
    assert "a model of more than 2 layers" in measured("K3", **shallow).note


# --- addition ---


def test_a1_and_a2_compare_the_two_corners_of_the_grid():
    grid = Grid(study.STUDY.usual, {"task": {"family": "addition"}}, gamma=(0.3, 0.5, 0.8), weight_decay=(0.01, 1.0))
    small, large = {"gamma": 0.8, "weight_decay": 1.0}, {"gamma": 0.3, "weight_decay": 0.01}
    grid.put("ood.accuracy", (0.9, 0.8, 0.7, 0.9, 0.9), **small).put("ood.accuracy", np.full(5, 0.5), **large)
    grid.put("test_seen.accuracy", np.ones(5), **small).put("test_seen.accuracy", (1.0, 0.98, 1.0, 1.0, 1.0), **large)
    check("A1", [0.4, 0.3, 0.2, 0.4, 0.4], claims.HOLDS, addition=grid)
    check("A2", [1.0, 0.98, 1.0, 1.0, 1.0], claims.OPEN, addition=grid)
    assert "a training on addition" in measured("A1", phase=phase_grid()).note


# --- pictures and presets ---


def test_published_grids_are_monotone_in_complexity():
    assert set(phase.PUBLISHED.values.ravel()) == {0, 1, 2, 3}
    assert (phase.PUBLISHED.diff("weight_decay") >= 0).all()  # more decay never means a higher complexity there
    assert (study.PUBLISHED_RANK.diff("gamma") <= 0).all()


def test_phase_picture_is_of_the_decays_of_both_variants_by_their_best_evaluations():
    def of(decays, n_seeds):
        grid = Grid(study.STUDY.usual, gamma=GAMMAS, weight_decay=decays)
        seen, right = by_gamma(0.2, 0.9, 0.9, 0.9), by_gamma(0.0, 0.1, 0.2, 0.5)
        for decay in decays:
            for name, values in zip(phase.SCORES, (seen, right, by_gamma(1, 0.2, 0.9, 1)), strict=True):
                grid.put(name, values if name.startswith("swap") else peaked(values), weight_decay=decay)
        grid.dataset = grid.dataset.isel(seed=slice(n_seeds))
        return grid.dataset

    runs = {"phase": of((0.01, 1.0), 5), "other_decays": of((0.0, 0.1), 3)}
    for chosen, n_decays in ((runs, 4), ({"phase": runs["phase"]}, 2)):
        ours, _ = study.phase_grid(Runs(chosen, study.STUDY.usual)).figure.axes
        assert [text.get_text() for text in ours.texts] == ["1", "2 w/o", "2 w", "3"] * n_decays


def test_best_rate_is_taken_for_each_answer_apart():
    grid = phase_grid(model={"n_layers": 2})
    for name, usual, best in (("reasoning", (0.1, 0.2, 0.3, 0.4), 1e-4), ("symmetric", (0.4, 0.3, 0.2, 0.1), 1e-2)):
        for rate in (1e-4, 1e-2):
            grid.put(f"ood_43.{name}", by_gamma(*[0.8 if rate == best else 0.0] * 4), learning_rate=rate)
        grid.put(f"ood_43.{name}", by_gamma(*usual))
    grid.diverge(7, gamma=0.4, seed=0, weight_decay=0.01, learning_rate=1e-3)
    runs = synthetic.runs(study.STUDY, depth_2=grid)
    best, fixed = (study.answers_by_depth(runs, best) for best in (True, False))
    assert best.dataset.n_layers.values.tolist() == [2]
    assert all((best.dataset[f"ood_43.{name}"] == 0.8).all() for name in ("reasoning", "symmetric"))
    assert (best.dataset["diverged_at"] < 0).all()  # other rates are healthy
    values = fixed.final("ood_43.reasoning", ("seed", "gamma"), n_layers=2)
    np.testing.assert_array_equal(values, by_gamma((NAN, *[0.1] * 4), 0.2, 0.3, 0.4))


@pytest.mark.parametrize("preset", ["smoke", "cpu", "record", "gpu", "paper"])
def test_every_variant_can_be_built_and_measured(preset):
    for name, variant in configs.variants(config.get_config(preset)).items():
        experiment = configs.experiment(variant)
        names = {one.name for one in study.measures(experiment)}
        assert len(configs.grid(variant)) > 1
        assert ("rank" in names) == (experiment.task.__dict__.get("setting") == "34_unseen"), name
        assert ("masked_seen" in names) == ("rank" in names and experiment.model.n_layers == 2), name


def test_smoke_preset_draws_every_part(tmp_path, monkeypatch):
    """Measures of the loss are replaced by numbers that are had at once: they alone take as long as all the rest."""

    def cheap(name, output):
        return lambda *_: Measure(name, lambda row: {output: row.hparams["gamma"]}, {output: ""}, snapshots="last")

    monkeypatch.setattr(loss, "top_eigenvalue", cheap("minimum", "top"))
    monkeypatch.setattr(loss, "quantized", cheap("quantization", "description_length"))
    tiny = ("steps=4", "eval_every=2", "checkpoint_every=4", "eval_size=32", "grid.seed=(0,)")
    options = ["--variants=phase,noise_1_depth_2", *(f"--config.{option}" for option in tiny)]
    synthetic.reproduce("complexity_control", tmp_path, *options)
    assert {
        "phase-grid", "phase-slice", "phase-accuracies", "complexity-rank", "complexity-measures",
        "complexity-predictors", "masked-seen", "masked-unseen", "circuit-equivalence", "circuit-outputs",
        "noise-steps", "noise-pairs",
    } <= {path.stem for path in (tmp_path / "report" / "figures").glob("*.png")}  # fmt: skip
