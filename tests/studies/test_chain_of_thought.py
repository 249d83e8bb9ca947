"""Every claim of the chain-of-thought study on tables written by hand, and the study from the command line."""

import functools

import numpy as np
import pytest
import synthetic
from synthetic import Grid, reproduce

from lab.configs import chain_of_thought as presets
from lab.measuring.catalogue import hops
from lab.report.page import draw_section
from lab.runs import Runs
from lab.studies import chain_of_thought as study
from lab.studies.chain_of_thought import claims as stated
from lab.tasks import TwoHop

measured = functools.partial(synthetic.measured, study.STUDY)

XI = tuple(stated.PUBLISHED_XI)
STEPS = (0, 100, 200, 300)
N_SEEDS = 5
TASK = dict(family="two_hop", world="graph", n_entities=30, n_relations=10, out_degree=4, ood_share=0.5, ratio=1.0)
CONFIG = {"model": {"n_layers": 2}, "task": TASK, "batch_size": 12}
INPUTS = ("block_0/resid_pre", "block_1/resid_pre")
STATES = (*INPUTS, "block_2/resid_pre", "block_2/resid_post")
PLACES = (*hops.QUESTION, hops.BRIDGE, hops.ANSWER)


def grid(**axes):
    return Grid(study.STUDY.usual, CONFIG, STEPS, **axes)


def column(*numbers):
    """A number for each seed: the last given one for the rest."""
    return np.array([*numbers, *[numbers[-1]] * (N_SEEDS - len(numbers))], float)


def noise(name, by_xi, time="snapshot"):
    made = grid(xi_second=XI)
    for xi, values in zip(XI, by_xi, strict=True):
        made.put(name, values, time, xi_second=xi)
    return made


def curves(name, by_xi, made=None):
    """The same curve (step) for all seeds, by share of wrong answers."""
    made = made or grid(xi_second=XI)
    for xi, curve in zip(XI, by_xi, strict=True):
        made.put(name, np.repeat(np.array(curve, float)[:, None], N_SEEDS, axis=1), "step", xi_second=xi)
    return made


def test_accuracies_with_a_chain_of_thought_are_those_of_what_is_said():
    made = grid().put("generation.two_hop_id", column(0.99, 0.97, 1.0), None)
    np.testing.assert_array_equal(measured("H1a", thought=made).values_S, [0.99, 0.97, 1, 1, 1])
    made.put("generation.two_hop_ood", column(0.95, 0.8, 0.92), None)
    for name, value in (("fact_ood.accuracy", 1), ("two_hop_ood.bridge_accuracy", 0.5)):
        made.put(name, column(value))
    made.put("two_hop_ood.answer_accuracy", column(0.25))
    result = measured("H1b", thought=made)
    np.testing.assert_array_equal(result.values_S, [0.95, 0.8, 0.92, 0.92, 0.92])
    assert result.verdict == "open" and "Facts 1.00, bridge 0.50, answer after the true bridge 0.25" in result.note


def test_accuracy_without_is_the_highest_of_all_steps():
    rising = np.array([column(0), column(0.04, 0.2, 0.03), column(0.02), column(0.01)])
    made = grid().put("two_hop_ood.accuracy", rising)
    made.put("two_hop_train.accuracy", column(1)).put("two_hop_id.accuracy", column(0.3))
    result = measured("H1c", direct=made)
    np.testing.assert_allclose(result.values_S, [0.04, 0.2, 0.03, 0.03, 0.03])
    assert result.note == "At the last step trained questions 1.00, in distribution 0.30."
    made.put("two_hop_train.accuracy", column(0.1, 1))  # one that has not learnt its questions says nothing
    np.testing.assert_allclose(measured("H1c", direct=made).values_S, [np.nan, 0.2, 0.03, 0.03, 0.03])


def test_fall_over_wrong_answers_is_in_rank_and_beside_the_published_values():
    found = [column(0.97), column(0.7), column(0.6, 0.8), column(0.2)]
    made = noise("generation.two_hop_ood", found, None)
    np.testing.assert_allclose(measured("H2a", noise=made).values_S, [-1, -0.8, *[-0.8] * 3])
    np.testing.assert_allclose(measured("H2b", noise=made).values_S, [0.109, *[0.309] * 4])


def test_wrong_bridges_of_the_loop_and_drawn_one_by_one_are_told_apart():
    config = CONFIG | {"task": TASK | {"out_degree": 10}}
    leaking = Grid(study.STUDY.usual, config, STEPS, xi_leaking=(0.05, 0.092))
    leaking.put("generation.two_hop_ood", column(0.5, 0.9), None, xi_leaking=0.092)
    clean = grid(xi_first=(0.05,)).put("generation.two_hop_ood", column(0.95), None)
    result = measured("H2c", leaking=leaking)
    np.testing.assert_allclose(result.values_S, [0.013, *[0.387] * 4])
    assert result.note == "Accuracy 0.90; 0.39 of the bridges are wrong."
    np.testing.assert_allclose(measured("H2d", leaking=leaking, first_hop=clean).values_S, [0.45, *[0.05] * 4])
    assert measured("H2d", leaking=leaking).note == "This run lacks variant first_hop."
    nominal = Grid(study.STUDY.usual, config, STEPS, xi_leaking=(0.05,))
    nominal.put("generation.two_hop_ood", column(0.5), None)
    assert "lacks an xi_leaking that makes 0.39" in measured("H2c", leaking=nominal).note


@pytest.mark.parametrize("preset", ["record", "gpu", "paper"])
def test_presets_leak_as_many_wrong_bridges_as_published(preset):
    config = getattr(presets, preset)()
    (xi,) = config.variants.leaking.grid.xi_leaking
    assert stated.wrong_bridges(xi, config.task.out_degree) == pytest.approx(0.39, abs=0.005)


def test_share_of_wrong_bridges_is_that_of_the_loop():
    degree, xi = 5, 0.2
    wrong = np.zeros((20_000, degree), bool)
    hit = np.random.default_rng(0).random(wrong.shape) < xi
    for j in range(degree):
        wrong[:, j] = hit[:, j] | (wrong[:, j - 1] if j else False)
    assert stated.wrong_bridges(xi, degree) == pytest.approx(wrong.mean(), abs=0.01)


def test_training_accuracy_is_taken_where_the_held_out_one_peaks():
    held_out = [(0, 1, 0.9, 0.8)] * 3 + [(0, 0.2, 0.9, 0.4)]
    trained = [(0, 0.95, 1, 1), (0, 0.78, 1, 1), (0, 0.61, 1, 1), (0, 1, 0.24, 1)]
    made = curves("two_hop_train.accuracy", trained, curves("two_hop_id.accuracy", held_out))
    np.testing.assert_allclose(measured("H3a", noise=made).values_S, 0.04)
    made = curves("two_hop_train.accuracy", [(0, 0, 0, 0)] * 2 + [(0, 0, 1, 0.97), (0, 1, 1, 0.92)], made)
    np.testing.assert_allclose(measured("H3b", noise=made).values_S, 0.92)
    np.testing.assert_allclose(measured("H3c", noise=made).values_S, 0.2)


def test_questions_are_held_against_the_square_of_their_facts():
    facts, questions = (0, 0.5, 1, 1), (0, 0.4, 0.8, 0.8)  # expected: 0, 0.2, 0.8, 0.8
    made = grid()
    for name, curve in (("fact_ood", facts), ("two_hop_ood", questions)):
        made.put(f"{name}.accuracy", np.repeat(np.array(curve)[:, None], N_SEEDS, axis=1))
    result = measured("H4", thought=made)
    np.testing.assert_allclose(result.values_S, 0.2)
    assert result.note == "Ceiling 0.80."
    made.put("two_hop_ood.accuracy", np.zeros((len(STEPS), N_SEEDS)))  # nothing to wait for
    assert np.isnan(measured("H4", thought=made).values_S).all()


def routed(bridge=None, answer=None, inputs=INPUTS):
    """All other cells are garbage: h and r1 at the input, and above it; b."""
    made = grid()
    for name, swaps, places, own in (
        ("bridge", hops.FROM_QUESTION, hops.QUESTION, bridge), ("answer", hops.FROM_BRIDGE, hops.FROM_BRIDGE, answer),
    ):  # fmt: skip
        values = np.full((N_SEEDS, len(swaps), len(inputs), len(places)), synthetic.GARBAGE)
        for i, part in enumerate(swaps):
            if own and part in own:
                values[:, i, :, places.index(part)] = own[part]
        dims = {f"{name}_swap": swaps, "input": inputs, f"{name}_place": places}
        made.put(f"routing.{name}", values, None, dims)
    return made


def test_routing_is_read_at_the_place_of_the_part_that_is_swapped():
    made = routed(
        bridge={"h": (1, 0.02), "r1": (0.97, 0.3)}, answer={"b": (1, 0.9)} | dict.fromkeys(("h", "r1", "r2"), 0)
    )
    assert (measured("H5a", thought=made).values_S == 0.97).all()
    result = measured("H5b", thought=made)
    assert (result.values_S == 0.3).all() and result.note.startswith("h 0.02, r1 0.30. 2 layers: reduced")
    assert (measured("H5c", thought=made).values_S == 0.9).all()
    single = routed(bridge={"h": (1,), "r1": (1,)}, inputs=INPUTS[:1])
    assert measured("H5b", thought=single).note == "This run lacks a second layer."


def test_readability_is_compared_at_two_places_and_falls_at_the_third():
    values = np.full((N_SEEDS, len(STATES), len(PLACES)), synthetic.GARBAGE)
    values[:, 1:3, PLACES.index("r1")] = (0.3, 1.0)
    values[:, 1:3, PLACES.index("r2")] = (0.5, 0.95)
    values[:, 1:3, PLACES.index("b")] = (0.8, 0.05)  # what leaves the last block is garbage, too
    made = grid().put("readability.bridge", values, None, {"state": STATES, "place": PLACES})
    np.testing.assert_allclose(measured("H6a", thought=made).values_S, 0.2)
    np.testing.assert_allclose(measured("H6b", thought=made).values_S, 0.75)
    made = grid().put("readability.bridge", values[:, 1:], None, {"state": STATES[1:], "place": PLACES})
    assert measured("H6b", thought=made).note == "This run lacks a third layer."


def ratios(slow, fast, final=0.8):
    """Curves of ratio 0.5 and 1 that reach half of their end at these steps."""
    made = grid(ratio=(0.5, 1.0))
    for ratio, step in ((0.5, fast), (1.0, slow)):
        curve = np.array([final if at >= step else 0.1 for at in STEPS])
        made.put("two_hop_ood.accuracy", np.repeat(curve[:, None], N_SEEDS, axis=1), ratio=ratio)
    return made


def test_exposures_of_a_step_are_the_share_of_a_fact_in_the_batch():
    made = ratios(200, 100)
    task = TwoHop(**{name: value for name, value in TASK.items() if name != "family"})
    n, n_id = 120, 60
    assert len(task.facts.head_A) == n and (~task.facts.is_ood_A).sum() == n_id
    found = stated.exposures_a_step(made.run())
    np.testing.assert_allclose(found.sel(ratio=[0.5, 1.0]), [12 / (n + 30), 12 / (n + 60)])


def test_spread_over_exposures_is_that_over_steps_less_the_ratio_of_the_sets():
    sets = np.log(180 / 150)
    np.testing.assert_allclose(measured("H7", ratios=ratios(200, 100)).values_S, np.log(2) - sets)
    np.testing.assert_allclose(measured("H7", ratios=ratios(200, 200)).values_S, sets)
    assert np.isnan(measured("H7", ratios=ratios(200, 100, final=0.4)).values_S).all()  # never answered
    assert measured("H7", ratios=grid(ratio=(1.0,))).note == "This run lacks a second ratio."


def test_three_hops_count_where_both_pairs_are_right():
    made = grid().put("generation.three_hop_ood", column(0.1), None)
    splits = {"split": ("three_hop_id", "three_hop_ood")}
    made.put("pairs.all", np.array([(1, 0.96)] * 4 + [(1, 0.5)]), None, splits)
    result = measured("H8", thought=made)
    np.testing.assert_array_equal(result.values_S, [0.96] * 4 + [0.5])
    assert result.note == "Three hops said in one go: 0.10."


def test_pictures_of_speed_are_the_same_curves_over_two_clocks():
    made = ratios(200, 100)
    made.put("fact_ood.accuracy", column(1.0), ratio=0.5).put("fact_ood.accuracy", column(1.0), ratio=1.0)
    runs = Runs({"ratios": made.dataset}, study.STUDY.usual)
    section = draw_section("", "", runs, (study.over_steps, study.over_exposures))
    assert [picture.name for picture in section.pictures] == ["speed-steps", "speed-exposures"]
    last = [picture.figure.axes[0].lines[0].get_xdata()[-1] for picture in section.pictures]
    np.testing.assert_allclose(last, [300, 300 * 12 / 150])


def test_pictures_of_noise_have_the_published_values_beside_ours():
    made = grid(xi_second=XI)
    for split in ("two_hop_train", "two_hop_id", "two_hop_ood"):
        curves(f"{split}.accuracy", [(0, 0.3, 0.6, xi) for xi in XI], made)
        for xi in XI:
            made.put(f"generation.{split}", column(xi), None, xi_second=xi)
    runs = Runs({"noise": made.dataset}, study.STUDY.usual)
    section = draw_section("", "", runs, (study.ceilings, study.noise_over_training))
    assert [picture.name for picture in section.pictures] == ["ceilings", "noise"]
    lines = {line.get_gid(): line.get_ydata() for line in section.pictures[0].figure.axes[1].lines}
    np.testing.assert_allclose(lines["ours"], XI)
    np.testing.assert_allclose(lines["published"], [out for _, out in stated.PUBLISHED_XI.values()])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return reproduce("chain_of_thought", tmp_path_factory.mktemp("thought") / "w")


def test_page_shows_every_picture_of_the_variants_it_has(root):
    figures = {path.stem for path in (root / "report" / "figures").glob("*.png")}
    assert {"learning", "tracing-bridge", "tracing-answer", "readability"} <= figures
