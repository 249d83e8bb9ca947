"""Every claim on grids written by hand, on which the answer is known; and that every preset can be built."""

import math

import numpy as np
import pytest
import xarray as xr

from lab import config as configs
from lab.analysis import phase
from lab.configs import base
from lab.configs import complexity_control as config
from lab.configs import complexity_control_language as language_config
from lab.studies import claims
from lab.studies.claims import Lacking
from lab.studies.complexity_control import language, page, pictures, published
from lab.studies.complexity_control.claims import CLAIMS, alike_but_wrong, phases
from lab.studies.complexity_control.measures import measures
from lab.studies.composition.measures import QUERY

SEEDS, GAMMAS, DECAYS, RATES = (0, 1, 2), (0.4, 0.5, 0.6, 0.7), (0.01, 1.0), (1e-4, 1e-3, 1e-2)
AXES = ("gamma", "learning_rate", "seed", "weight_decay")
GARBAGE = 77.0  # in every place that no claim may read
TIMES = {"rank.stable": "snapshot"}  # variables of the last snapshot alone have none
ONCE = ("masked", "equivalence", "minimum", "quantization")


def rows(*by_gamma):
    """(gamma, seed): a number for all seeds, or one for each."""
    return np.array([np.broadcast_to(row, len(SEEDS)) for row in by_gamma], float)


def dataset(**variables):
    """A trained variant: arrays (gamma, seed) at decay 0.01, or pairs of them for both decays; the middle rate counts.

    Of two evaluations or snapshots the last one counts; `rank.stable` is a pair of both snapshots.
    """
    coords = {"gamma": list(GAMMAS), "learning_rate": list(RATES), "seed": list(SEEDS), "weight_decay": list(DECAYS)}
    data = {"diverged_at": (AXES, np.full([len(coords[axis]) for axis in AXES], -1))}
    for name, value in variables.items():
        if name == "rank.stable":
            values = np.full((2, len(GAMMAS), 3, len(SEEDS), 2, 1), GARBAGE)
            values[:, :, 1, :, 0, 0] = value
            data[name] = (("snapshot", *AXES, "matrix"), values)
            coords["matrix"] = [QUERY]
            continue
        values = np.full((2, len(GAMMAS), 3, len(SEEDS), 2), GARBAGE)
        pair = value if isinstance(value, tuple) else (value, np.full_like(value, GARBAGE))
        values[-1, :, 1] = np.stack(pair, axis=-1)
        data[name] = (AXES, values[-1]) if name.startswith(ONCE) else (("step", *AXES), values)
    attrs = {"config": {"task": {"family": "composition", "setting": "34_unseen"}, "model": {"n_layers": 2}}}
    return xr.Dataset(data, coords, attrs)


def measure(name, of=CLAIMS, **datasets):
    (claim,) = [claim for claim in of if claim.id == name]
    return claims._measure(claim, datasets)


LATE = rows(0.0, 0.1, (0.9, 0.9, 0.2), 1.0)  # boundary at 0.6, 0.6 and 0.7


def test_p1_is_how_far_the_boundary_moves_down():
    made = dataset(**{"ood_43.reasoning": (LATE, rows(0.0, 1.0, 1.0, 1.0))})
    # crossings 0.5 + 0.1 * 0.4 / 0.8 = 0.55 twice and 0.6 + 0.1 * 0.3 / 0.8 = 0.6375, against 0.45
    assert measure("P1", phase=made).per_seed == pytest.approx((0.1, 0.1, 0.1875))
    assert measure("P1", phase=made).verdict == "holds"
    always = dataset(**{"ood_43.reasoning": (LATE, rows(1.0, 1.0, 1.0, 1.0))})
    assert measure("P1", phase=always).per_seed == pytest.approx((0.15, 0.15, 0.2375))  # at least: at the grid's edge
    never = dataset(**{"ood_43.reasoning": (rows(0.0, 0.0, 0.0, 0.4), LATE)})
    assert measure("P1", phase=never).verdict == "not measured"


def test_p2_is_the_rise_over_the_one_step_that_crosses():
    found = measure("P2", phase=dataset(**{"ood_43.reasoning": LATE}))
    assert found.per_seed == pytest.approx((0.8, 0.8, 0.8)) and "0.6, 0.6, 0.7" in found.note
    first = rows((1.0, 0.0, 0.0), 1.0, 1.0, 1.0)  # reasons where the grid begins: there is no step across
    assert math.isnan(measure("P2", phase=dataset(**{"ood_43.reasoning": first})).per_seed[0])
    slow = dataset(**{"ood_43.reasoning": rows(0.0, 0.4, 0.7, 1.0)})
    assert measure("P2", phase=slow).verdict == "does not hold"


def test_p3_is_the_share_of_rank_left_at_the_last_gamma_below():
    start, end = rows(10, 20, 40, 80), rows(10, 8, (1, 1, 18), 1)
    made = dataset(**{"ood_43.reasoning": LATE, "rank.stable": np.stack([start, end])})
    found = measure("P3", phase=made)
    assert found.per_seed == pytest.approx((0.4, 0.4, 0.45)) and found.verdict == "holds"
    made["rank.stable"][-1, 1, 1, 0] = 11.0
    assert measure("P3", phase=made).verdict == "does not hold"


def middle(commutes, reasoning):
    """Gammas by phase: 1, 2, 2, 3."""
    return dataset(
        **{
            "test_seen.accuracy": rows(0.2, 1.0, 1.0, 1.0),
            "ood_43.reasoning": rows(0.0, 0.0, 0.1, 1.0),
            "swap.commutativity": commutes,
            "swap.reasoning": reasoning,
        }
    )


def test_p4_takes_what_is_alike_and_wrong_in_memory_rows_less_that_of_others():
    found = measure("P4", phase=middle(rows(0.1, 0.1, (0.8, 0.9, 0.7), 1.0), rows(0.0, 0.0, 0.1, 0.95)))
    # 0.7, 0.8, 0.6 less the 0.1 of phase 1; reasoning rows commute, but rightly
    assert found.per_seed == pytest.approx((0.6, 0.7, 0.5)) and found.verdict == "holds"
    early = measure("P4", phase=middle(rows(0.9, 0.1, 0.8, 1.0), rows(0.0, 0.0, 0.1, 0.95)))
    assert early.per_seed == pytest.approx((-0.2, -0.2, -0.2)) and early.verdict == "does not hold"


def test_phases_are_those_of_the_last_evaluation():
    made = middle(rows(0.1, 0.1, 0.8, 1.0), rows(0.0, 0.0, 0.1, 0.95))
    found = phases(made).isel(learning_rate=1, weight_decay=0, seed=0).values
    assert [phase.PHASES[index] for index in found] == ["1", "2 w/o", "2 w", "3"]
    assert alike_but_wrong(made).isel(step=-1, learning_rate=1, weight_decay=0, seed=0).values == pytest.approx(
        [0.1, 0.1, 0.7, 0.05]
    )


def cut(reasoning, symmetric, random, whole=1.0, **more):
    """What is left at the smallest weights."""
    left = {"whole": whole, "reasoning": reasoning, "symmetric": symmetric, "random": random}
    names = {f"masked_unseen.{name}": rows(GARBAGE, GARBAGE, GARBAGE, value) for name, value in left.items()}
    return dataset(**names, **{name: rows(GARBAGE, GARBAGE, GARBAGE, value) for name, value in more.items()})


def test_m1_and_m2_are_shares_of_the_accuracy_that_was_there():
    made = cut((0.4, 0.2, 0.0), (0.8, 0.76, 0.72), (0.76, 0.8, 0.8), 0.8)
    assert measure("M1", phase=made).per_seed == pytest.approx((0.5, 0.75, 1.0))
    assert measure("M1", phase=made).verdict == "holds"
    assert measure("M2", phase=made).per_seed == pytest.approx((0.05, 0.05, 0.1))
    assert measure("M2", phase=cut(0.0, 1.0, (1.0, 0.89, 1.0))).verdict == "does not hold"
    assert measure("M1", phase=cut((0.0, 0.6, 0.0), 1.0, 1.0)).verdict == "does not hold"


def test_rows_that_do_not_reason_have_no_reasoning_to_cut():
    made = cut(0.0, 0.0, 0.0, (0.4, 1.0, 1.0), **{"equivalence.gap": 0.5})
    assert math.isnan(measure("M1", phase=made).per_seed[0]) and math.isnan(measure("M2", phase=made).per_seed[0])
    assert measure("M1", phase=dataset()).verdict == "not measured"


def test_m3_is_the_gap_and_the_two_layer_variant_counts_where_there_is_one():
    more = {f"equivalence.{name}": 0.9 for name in ("within_40", "within_79", "across")}
    made = cut(0.0, 1.0, 1.0, **more | {"equivalence.gap": (0.5, 0.42, 0.6)})
    assert measure("M3", phase=made).per_seed == pytest.approx((0.5, 0.42, 0.6))
    assert measure("M3", phase=dataset(), two_layers=made).verdict == "holds"
    made = cut(0.0, 1.0, 1.0, (0.4, 1.0, 1.0), **more | {"equivalence.gap": 0.5})
    assert math.isnan(measure("M3", phase=made).per_seed[0])


# --- corrupted pairs ---

STEPS = (0, 100, 200, 300, 400)
PAIRS = tuple(f"{a},{b}" for a in (1, 2, 3, 4) for b in (1, 2, 3, 4))


def corrupted(k, depth, fitted, learnt=None):
    """Loss below 0.1, and pairs right, from a step on: by seed, and (seed, pair)."""
    at_T = np.array(STEPS)[:, None]
    loss_TxS = np.where(at_T >= np.array(fitted), 0.05, 1.0)
    learnt_SxP = np.zeros((len(SEEDS), len(PAIRS))) if learnt is None else np.asarray(learnt, float)
    right_TxSxP = (at_T[..., None] >= learnt_SxP).astype(float)
    axes = ("gamma", "weight_decay", "learning_rate", "seed")
    ones = (1, 1, 1)
    data = {
        "train.loss": (("step", *axes), loss_TxS.reshape(len(STEPS), *ones, 3)),
        "train.pair_accuracy": (("step", *axes, "pair"), right_TxSxP.reshape(len(STEPS), *ones, 3, 16)),
        "diverged_at": (axes, np.full((*ones, 3), -1)),
    }
    coords = {"step": list(STEPS), "pair": list(PAIRS), "seed": list(SEEDS), "gamma": [0.8]}
    attrs = {"config": {"task": {"family": "composition", "setting": "all_pairs", "noise_groups": k},
                        "model": {"n_layers": depth}}}  # fmt: skip
    return xr.Dataset(data, coords, attrs)


NEVER = 10**6


def test_n1_is_a_ratio_and_rows_that_never_fit_count_all_steps():
    made = {"a": corrupted(0, 2, (100, 200, 100)), "b": corrupted(5, 2, (200, 200, NEVER))}
    assert measure("N1", **made).per_seed == pytest.approx((2.0, 1.0, 4.0))
    assert measure("N1", **made).verdict == "does not hold"
    assert measure("N1", a=corrupted(0, 2, (NEVER,) * 3), b=made["b"]).verdict == "not measured"
    assert measure("N1", a=made["a"]).verdict == "not measured"


def learnt(slowed, others, odd=None):
    """(seed, pair), alike for all seeds: pairs of 1 and 2 alone, of which (2,2) is last; all others; (1,3)."""
    inside = [set(pair.split(",")) <= {"1", "2"} for pair in PAIRS]
    steps_P = np.where(inside, slowed, others)
    steps_P[PAIRS.index("2,2")] = 400
    steps_P[PAIRS.index("1,3")] = others if odd is None else odd
    return np.tile(steps_P, (len(SEEDS), 1))


def test_n2_sets_the_first_slowed_pair_against_the_last_of_the_others():
    found = measure("N2", a=corrupted(1, 2, (100,) * 3, learnt(300, 200)))
    assert found.per_seed == pytest.approx((1.5, 1.5, 1.5)) and found.verdict == "holds"
    assert measure("N2", a=corrupted(1, 2, (100,) * 3, learnt(300, 200, odd=300))).verdict == "does not hold"  # a tie
    assert measure("N2", a=corrupted(1, 2, (100,) * 3, learnt(NEVER, 200))).per_seed == pytest.approx((2, 2, 2))
    assert measure("N2", a=corrupted(1, 2, (100,) * 3, learnt(300, NEVER))).verdict == "not measured"


def test_n3_compares_slowdowns_of_the_shallow_and_the_deepest_model():
    shallow = {"a": corrupted(0, 2, (100,) * 3), "b": corrupted(5, 2, (400,) * 3)}
    deep = {"c": corrupted(0, 4, (100,) * 3), "d": corrupted(5, 4, (200, 400, 200))}
    assert measure("N3", **shallow, **deep).per_seed == pytest.approx((2.0, 1.0, 2.0))
    assert measure("N3", **shallow, **deep).verdict == "does not hold"  # a tie is not less
    assert measure("N3", **shallow).verdict == "not measured"


def test_rows_that_diverged_are_neither_slow_nor_fast():
    made = corrupted(5, 2, (200,) * 3)
    made["diverged_at"][0, 0, 0, 1] = 7
    assert math.isnan(measure("N1", a=corrupted(0, 2, (100,) * 3), b=made).per_seed[1])


# --- corners ---


def corners(family, splits, small, large, sizes=None):
    """`small` and `large`: (in, out of) distribution of a corner, each by size and seed; other cells are garbage."""
    axes = ("gamma", "weight_decay", "learning_rate", *(("train_items",) if sizes else ()), "seed")
    shape = (3, 2, 1, *((len(sizes),) if sizes else ()), 3)
    data = {"diverged_at": (axes, np.full(shape, -1))}
    for i, split in enumerate(splits):
        values = np.full((2, *shape), GARBAGE)
        values[-1, -1, -1, 0], values[-1, 0, 0, 0] = small[i], large[i]
        data[f"{split}.accuracy"] = (("step", *axes), values)
    coords = {"gamma": [0.3, 0.5, 0.8], "weight_decay": [0.01, 1.0], "seed": list(SEEDS)}
    coords |= {"train_items": list(sizes)} if sizes else {}
    return xr.Dataset(data, coords, {"config": {"task": {"family": family}}})


def test_a_compares_the_two_corners_of_the_grid():
    made = corners("addition", ("test_seen", "ood"), (1.0, (0.9, 0.8, 0.7)), ((1.0, 0.98, 1.0), 0.5))
    assert measure("A1", addition=made).per_seed == pytest.approx((0.4, 0.3, 0.2))
    assert measure("A2", addition=made).per_seed == pytest.approx((1.0, 0.98, 1.0))
    assert measure("A2", addition=made).verdict == "does not hold"
    assert measure("A1", phase=dataset()).verdict == "not measured"


def test_l_takes_the_worst_data_size():
    lead = corners("scan", ("train", "test"), (1.0, [[0.5] * 3, [0.9] * 3]), (1.0, [[0.4] * 3, [0.2] * 3]), (10, 100))
    of = language.STUDY.claims
    found = measure("L1", of, scan=lead)
    assert found.per_seed == pytest.approx((0.1, 0.1, 0.1)) and "scan of 100 items: 0.90 against 0.20" in found.note
    behind = corners("cogs", ("test", "gen"), (1.0, [[0.5] * 3, [0.9] * 3]), (1.0, [[0.6] * 3, [0.2] * 3]), (10, 100))
    assert measure("L1", of, cogs=behind).verdict == "does not hold"
    behind["diverged_at"][-1, -1, 0, 0, 1] = 7
    assert math.isnan(measure("L1", of, cogs=behind).per_seed[1])


def test_a_corner_along_the_objective_is_of_the_largest_training_set():
    of_objective = [
        corners("scan", ("train", "test"), (1.0, [[0.1] * 3, answer]), (1.0, 0.0), (10, 100))
        for answer in ([0.5, 0.6, 0.7], [0.8, 0.9, 1.0])
    ]
    made = xr.concat(of_objective, xr.IndexVariable("ntp_weight", [0.0, 1.0]))
    small, large = language.CORNERS
    found = language.along(made.isel(train_items=[1, 0]), "test.accuracy", small, "ntp_weight")
    np.testing.assert_array_equal(found.transpose("ntp_weight", "seed"), [[0.5, 0.6, 0.7], [0.8, 0.9, 1.0]])
    by_size = language.along(of_objective[1].isel(train_items=[1, 0]), "test.accuracy", small, "train_items")
    np.testing.assert_array_equal(by_size.transpose("train_items", "seed"), [[0.1] * 3, [0.8, 0.9, 1.0]])
    assert not language.along(made, "test.accuracy", large, "ntp_weight").any()
    drawn = {picture.name for picture in language.pictures("scan", made)}
    assert drawn == {"scan-grid", "scan-training", "scan-train-items", "scan-ntp-weight"}


def test_types_of_generalization_are_drawn_where_they_were_decoded():
    made = corners("cogs", ("test", "gen"), (1.0, 0.5), (1.0, 0.2))
    axes = tuple(made["diverged_at"].dims)
    by_type = np.broadcast_to(np.linspace(0, 1, 21), (*made["diverged_at"].shape, 21))
    made["decoded.type_accuracy"] = ((*axes, "gen_type"), by_type)
    of_types = {picture.name: picture.figure for picture in language.pictures("cogs", made)}["cogs-types"]
    image = of_types.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, np.stack([np.linspace(0, 1, 21)] * 2, axis=1))


def test_corners_need_two_scales_and_two_decays():
    made = corners("addition", ("test_seen", "ood"), (1.0, 1.0), (1.0, 0.0))
    for axis in ("gamma", "weight_decay"):
        with pytest.raises(Lacking):
            language.corner(made.isel({axis: [0]}), "ood.accuracy", next(iter(language.CORNERS)))


# --- pictures and presets ---


def test_published_grids_are_complete_and_monotone_in_decay():
    grid = published.phases()
    assert grid.shape == (9, 4) and set(grid.values.ravel()) == {0, 1, 2, 3}
    assert (grid.diff("weight_decay") >= 0).all()  # more decay never means a higher complexity there
    assert (published.stable_rank().diff("gamma") <= 0).all()


def test_cells_say_their_phase_and_how_many_seeds_have_it():
    grids = {"ours": published.phases().isel(gamma=[0, 3])}
    agreement = xr.full_like(grids["ours"], 1.0, dtype=float)
    agreement[0, 3] = 0.67
    figure = pictures.phases(grids, {"ours": agreement}, "title")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["1", "2 w", "1", "2 w", "1", "2 w", "2 w\n0.67", "3"]  # decays from below


def test_best_rate_is_taken_for_each_answer_apart():
    made = dataset(**{"ood_43.reasoning": rows(0.1, 0.2, 0.3, 0.4), "ood_43.symmetric": rows(0.4, 0.3, 0.2, 0.1)})
    for name, rate in (("ood_43.reasoning", 0), ("ood_43.symmetric", 2)):
        made[name][-1] = made[name][-1].where(made[name][-1] != GARBAGE, 0.0)
        made[name][-1, :, rate, :, 0] = 0.8
    made["diverged_at"][0, 0, 0, 0] = 7
    found = page.by_depth({"depth_2": made, "phase": made})
    assert found["best"].n_layers.values.tolist() == [2]
    assert (found["best"]["ood_43.reasoning"] == 0.8).all() and (found["best"]["ood_43.symmetric"] == 0.8).all()
    assert found["fixed"]["ood_43.reasoning"].isel(n_layers=0, seed=0).values == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (found["best"]["diverged_at"] < 0).all()  # other rates are healthy


@pytest.mark.parametrize("preset", base.presets(config))
def test_every_variant_can_be_built_and_measured(preset):
    for name, variant in configs.variants(config.get_config(preset)).items():
        experiment = configs.experiment(variant)
        names = {one.name for one in measures(experiment)}
        assert len(configs.grid(variant)) > 1
        assert ("rank" in names) == (experiment.task.__dict__.get("setting") == "34_unseen"), name
        assert ("masked_seen" in names) == ("rank" in names and experiment.model.n_layers == 2), name


@pytest.mark.parametrize("preset", base.presets(language_config))
def test_every_language_preset_can_be_built(preset):
    made = language_config.get_config(preset)
    made.task.path = "anywhere"  # nothing is read yet
    for variant in configs.variants(made).values():
        experiment = configs.experiment(variant)
        assert "train_items" in configs.grid(variant).columns
        assert [one.name for one in language.measures(experiment)] == ["decoded"]


def test_published_embeddings_have_the_fixed_scale():
    (gamma,) = language_config.get_config("paper").grid.gamma_embed
    assert 768**-gamma == pytest.approx(0.02, rel=1e-12)  # float64, one power


def test_other_tasks_are_refused_by_the_language_study():
    experiment = configs.experiment(configs.variants(config.smoke())["phase"])
    with pytest.raises(ValueError, match="on scan or cogs, not Transformer on Composition"):
        language.measures(experiment)
