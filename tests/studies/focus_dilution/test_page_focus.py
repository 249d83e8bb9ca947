"""The report of curves written by hand: which pictures there are, and that stages lie where the curves have them."""

import io
import math
import re

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from shown import lines, titles

from lab.runs import Runs
from lab.studies.focus_dilution import collapse
from lab.studies.focus_dilution import page as module
from lab.studies.focus_dilution.page import sections, spans

LAW = (0.75, 0.19, 0.05, 0.01)
TIMES, SNAPSHOTS, SPECTRA = np.arange(0, 2001, 20), np.arange(0, 2001, 100), np.arange(0, 2001, 400)
GAMMAS, SEEDS = (1.661, 2.4914), (0, 1)
UNIGRAM, RATE = 0.727, 0.554
N_FRAMES = 4
AXES = ("gamma", "learning_rate", "seed", "weight_decay")
WITHOUT_ESCAPE = {"limit-small", "limit-large", "limit-paths", "limit-film", "limit-fine", "limit-spectra",
                  "state-small", "state-large", "state-focus", "laws"}  # fmt: skip
OF_COLLAPSE = {"collapse-small", "collapse-large", "balances"}


def through(*knots, steps=TIMES):
    """Straight lines between (step, value)."""
    at, values = zip(*knots, strict=True)
    return np.interp(steps, at, values)


def portrait(steps):
    """Condensed at 200; F turns at 1000; a second direction above 1/20 from 1400 on; then all of it once more."""
    focus = through((600, 0.75), (1000, 0.9), (1300, 0.7), (1500, 0.7), (1700, 0.9), (1900, 0.7), steps=steps)
    rank = through((400, 10.0), (800, 5.0), (1400, 5.0), (1800, 2.0), steps=steps)
    to_top = np.stack([focus] * 4, axis=1)
    ones = np.ones_like(to_top)
    ratio = np.stack([through((200, 0.0), (1200, 0.0), (2000, 0.2), steps=steps),
                      through((1800, 0.0), (2000, 0.1), steps=steps)], axis=1)  # fmt: skip
    loss = through((0, 1.386), (200, UNIGRAM), (600, UNIGRAM), (2000, 0.6), steps=steps)
    return {
        "loss": loss, "gap": loss - UNIGRAM, "excess": loss - RATE, "focus": focus,
        "attention": np.stack([to_top] + [(1 - to_top) / 3] * 3, axis=2), "entropy": 0.7 * ones, "token_norm": ones,
        "gamma": ones, "rank_embedding": through((0, 3.9), (200, 1.0), (1200, 1.0), (2000, 2.0), steps=steps),
        "rank_query": rank, "rank_key": rank, "ratio_embedding": ratio[:, 0], "singular_ratios": ratio,
        "redistribution": np.exp(steps / 200), "coordinates": np.stack([to_top, to_top**2], axis=2),
    }  # fmt: skip


EXTRA = {
    "attention": ("query_token", "key_token"), "entropy": ("query_token",), "token_norm": ("query_token",),
    "gamma": ("query_token",), "singular_ratios": ("ratio",), "coordinates": ("query_token", "axis"),
    "cosine": ("matrix",), "effective_rank": ("matrix",),
}  # fmt: skip


def dataset(groups, gammas=GAMMAS, **coords):
    """`groups` maps (measure, its time) to the curves of one row, which all have."""
    shape = (len(gammas), 1, len(SEEDS), 1)
    variables = {"diverged_at": (AXES, np.full(shape, -1))}
    for (measure, time), curves in groups.items():
        for name, values in curves.items():
            dims = (*AXES, time, *EXTRA.get(name, ()))
            variables[f"{measure}.{name}"] = (dims, np.broadcast_to(values, (*shape, *values.shape)).copy())
    axes = {"gamma": list(gammas), "learning_rate": [0.5], "seed": list(SEEDS), "weight_decay": [0.0]}
    return xr.Dataset(variables, axes | coords, {"config": {"model": {"d_model": 16}}})


def cycle():
    blocks = {f"{block}_least": through((0, 0.0), (2000, -0.1), steps=SPECTRA) for block in ("whole", "outer", "inner")}
    state = {name: values for name, values in portrait(SNAPSHOTS).items() if name != "coordinates"}
    groups = {("limit", "time"): portrait(TIMES), ("fine", "time"): {"focus": portrait(TIMES)["focus"] / 2},
              ("spectra", "spectrum_time"): blocks, ("state", "snapshot"): state}  # fmt: skip
    return dataset(groups, time=TIMES, snapshot=SNAPSHOTS, spectrum_time=SPECTRA)


def escape():
    """From symmetric tokens a second direction never comes; the others take longer the smaller delta is."""
    parts = {0.0: math.inf, 0.01: 1600, 0.02: 800}
    ratios = [{"ratio_embedding": through((at - 1, 0.01), (at, 0.06))} if at < math.inf else
              {"ratio_embedding": np.full(len(TIMES), 0.01)} for at in parts.values()]  # fmt: skip
    made = [dataset({("limit", "time"): portrait(TIMES) | ratio}, GAMMAS[-1:], time=TIMES) for ratio in ratios]
    return xr.concat(made, xr.IndexVariable("delta", list(parts)), combine_attrs="override")


def companion(cosine=0.8):
    cosine_TxM, rank_TxM = np.full((len(SNAPSHOTS), 5), 0.2), np.full((len(SNAPSHOTS), 5), 10.0)
    cosine_TxM[:, :3] = np.where(SNAPSHOTS >= 400, cosine, 0.2)[:, None]
    rank_TxM[:, 3:] = through((600, 10.0), (1600, 2.0), steps=SNAPSHOTS)[:, None]
    flat = np.full(len(SNAPSHOTS), 0.5)
    names = ("change_outer", "change_inner", "balance_drift", "energy", *(f"aligned_{m}" for m in collapse.MATRICES),
             *(f"a{i}_{side}" for i in (1, 2) for side in ("hidden", "value")))  # fmt: skip
    groups = {("signals", "snapshot"): {"cosine": cosine_TxM, "effective_rank": rank_TxM} | dict.fromkeys(names, flat)}
    groups[("test", "step")] = {"loss": np.array([5.0, 3.0])}
    return dataset(groups, snapshot=SNAPSHOTS, step=[0, 2000], matrix=list(collapse.MATRICES))


def pictures_of(datasets):
    return {picture.name: picture for section in sections(Runs(datasets)) for picture in section.pictures}


@pytest.fixture(scope="module", autouse=True)
def few_frames():
    """A frame of the film takes as long as a picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FILM_FRAMES", N_FRAMES)
        yield


@pytest.fixture(scope="module")
def complete(few_frames):
    """The sections of a report on all variants."""
    return sections(Runs({"cycle": cycle(), "escape": escape(), "collapse": companion()}))


@pytest.fixture(scope="module")
def found(complete):
    return {picture.name: picture for section in complete for picture in section.pictures}


def heights(picture, panel, gid="curve"):
    """Label -> values drawn in the panel whose title begins so."""
    (ax,) = [ax for ax in picture.figure.axes if ax.get_title(loc="left").startswith(panel)]
    return {line.get_label(): np.asarray(line.get_ydata()) for line in lines(ax, gid)}


def shaded(picture):
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in picture.figure.axes[0].patches
            if patch.get_gid() == "stage"]  # fmt: skip


# --- stages ---


def row():
    return cycle().isel(gamma=0, learning_rate=0, seed=0, weight_decay=0)


def test_spans_are_the_stages_in_order_one_cycle_after_the_other():
    found = spans(row(), "limit", "time")
    # F has risen by more than 0.01 at 640 (0.00075 each step of 1); its maximum is at 1000. s_2 / s_1 is 0.2 / 800 of
    # the steps after 1200: above 1/20 from 1420 on. Then F rises from 1500 by 0.001 a step, W_Q's rank falls from 1400
    # by 3 / 400: by 5 % at 1440. The second maximum is at 1700, s_3 above 1/20 after 1900.
    assert found == [
        ("condensation", 0.0, 620.0 + 20), ("focus", 640.0, 1000.0), ("dilution", 1000.0, 1420.0),
        ("new direction", 1420.0, 1520.0), ("focus", 1520.0, 1700.0), ("dilution", 1700.0, 1920.0),
        ("new direction", 1920.0, 2000.0),
    ]  # fmt: skip


def test_spans_are_in_order_where_a_direction_opens_before_the_rare_queries_turn():
    """And that the most frequent query turns before them begins no dilution."""
    early = row()
    early["limit.attention"][:, 0, 0] = through((600, 0.75), (800, 0.9), (900, 0.7))
    early["limit.singular_ratios"][:, 0] = through((800, 0.0), (900, 0.1), (2000, 0.1))  # above 1/20 from 860 on
    assert spans(early, "limit", "time")[:4] == [
        ("condensation", 0.0, 640.0), ("focus", 640.0, 860.0), ("new direction", 860.0, 1000.0),
        ("dilution", 1000.0, 1520.0),
    ]  # fmt: skip


def test_spans_tile_the_run():
    found = spans(row(), "state", "snapshot")
    assert [begin for _, begin, _ in found] == [0.0, *[end for _, _, end in found[:-1]]] and found[-1][2] == 2000
    assert [name for name, _, _ in found[:4]] == ["condensation", "focus", "dilution", "new direction"]


def test_run_that_never_condensed_is_one_stage():
    stuck = row()
    stuck["limit.rank_embedding"] = stuck["limit.rank_embedding"] + 1
    assert spans(stuck, "limit", "time") == [("condensation", 0.0, 2000.0)]


def test_row_that_diverged_has_no_stages_but_stays_in_the_pictures_and_keeps_its_limit(found):
    datasets = {"cycle": cycle(), "collapse": companion()}
    for made in datasets.values():
        made["diverged_at"].loc[{"seed": 0}] = 1000
    diverged = pictures_of(datasets)
    assert set(diverged) == set(found)
    for name, panel, curve in (("state-large", "Loss", "loss"), ("collapse-large", "Mean |cos|", "W_V")):
        assert shaded(diverged[name]) == [] and np.isfinite(heights(diverged[name], panel)[curve]).sum() == 10, name
    assert shaded(diverged["limit-large"]) == shaded(found["limit-large"]) != []


# --- what is there ---


THREE = ["The cycle in the exact limit", "The cycle trained on samples", "How long stages last"]


def test_complete_report_has_all_sections_and_in_every_picture_something(complete, found):
    assert [section.title for section in complete] == [*THREE, "Condensation, then rank collapse"]
    assert set(found) == WITHOUT_ESCAPE | OF_COLLAPSE
    for name, picture in found.items():
        assert picture.title and picture.caption and re.fullmatch(r"[a-z0-9_-]+", name), name
        for ax in picture.figure.axes:
            drawn = [line.get_ydata() for line in ax.lines if line.get_gid()] + [im.get_array() for im in ax.images]
            assert drawn or ax.collections, name  # a colour bar has collections
            assert all(np.isfinite(np.asarray(values, float)).any() for values in drawn), name


@pytest.mark.parametrize(
    ("made", "headings", "names"),
    [
        ({"escape": escape}, [], set()),  # without the cycle it has nothing to be compared with
        ({"collapse": companion}, ["Condensation, then rank collapse"], OF_COLLAPSE),
        ({"cycle": cycle}, THREE, WITHOUT_ESCAPE),
    ],
)
def test_report_has_the_sections_of_the_variants_that_were_trained(made, headings, names):
    there = sections(Runs({name: make() for name, make in made.items()}))
    assert [section.title for section in there] == headings
    assert {picture.name for section in there for picture in section.pictures} == names
    for picture in (picture for section in there for picture in section.pictures if picture.name == "laws"):
        assert titles(picture.figure) == ["First plateau"]


def test_film_is_a_gif_of_the_limit_from_its_start_to_its_end(found):
    film = found["limit-film"].film
    assert film[:6] == b"GIF89a"
    with Image.open(io.BytesIO(film)) as frames:
        assert frames.n_frames == N_FRAMES
    assert titles(found["limit-film"].figure) == ["step 0", "step 1000", "step 2000"]  # F is highest at 1000


def test_pictures_draw_what_was_measured(found):
    curves = portrait(TIMES)
    np.testing.assert_array_equal(heights(found["limit-small"], "Loss")["loss"], curves["loss"])
    levels = heights(found["limit-small"], "Loss", "level")
    # two differences of numbers below two
    assert sorted(level[0] for level in levels.values()) == pytest.approx([RATE, UNIGRAM], abs=4 * 2.0**-52)
    np.testing.assert_array_equal(heights(found["limit-large"], "Attention of each")["token 3"], curves["focus"])
    np.testing.assert_array_equal(heights(found["state-small"], "Loss")["loss"], portrait(SNAPSHOTS)["loss"])
    fine = heights(found["limit-fine"], "Focus F, γ = 1.661")
    np.testing.assert_array_equal(fine["20 times smaller"], curves["focus"] / 2)
    assert set(heights(found["state-focus"], "Focus F, γ = 2.4914")) == {"seed 0", "seed 1"}
    loss = heights(found["collapse-small"], "Loss on")["loss"]
    # 21 snapshots between two evaluations
    np.testing.assert_allclose(loss, np.linspace(5, 3, 21), rtol=4 * 2.0**-52)


def test_laws_are_of_every_row(found):
    plateau, escapes = found["laws"].figure.axes
    for line in plateau.lines[: len(SEEDS)]:  # F has risen by 0.01 and more at 640
        scale = np.array(GAMMAS) * math.log(16)
        np.testing.assert_allclose(line.get_xydata(), np.stack([scale, [640, 640]], axis=1), rtol=4 * 2.0**-52)
    for line in escapes.lines:
        np.testing.assert_array_equal(line.get_xydata(), [(0.01, 1600), (0.02, 800)])
    assert escapes.get_xscale() == escapes.get_yscale() == "log"


def test_line_of_the_laws_is_least_squares_through_all_rows():
    made = cycle()
    for g, s in np.ndindex(len(GAMMAS), len(SEEDS)):
        begins = 500 + 400 * g + 100 * s
        made["limit.focus"][{"gamma": g, "seed": s}] = through((begins, 0.75), (begins + 400, 0.9))[None, None]
    figure = pictures_of({"cycle": made})["laws"].figure
    (line,) = lines(figure.axes[0], "line")
    points = np.concatenate([line.get_xydata() for line in lines(figure.axes[0], "points")])
    # F has risen by 0.01 two snapshots after it begins; the mean of two seeds at each scale
    assert sorted(points[:, 1]) == [540, 640, 940, 1040]
    np.testing.assert_allclose(line.get_xydata(), np.stack([np.unique(points[:, 0]), [590, 990]], axis=1), rtol=1e-12)


def test_shaded_are_the_borders_of_the_companion_and_nothing_where_it_did_not_condense(found):
    # the fall of the ranks is 5 % done at 650 and 95 % at 1550: the snapshots after these
    assert shaded(found["collapse-small"]) == [(0, 400), (700, 1600), (1600, 2000)]
    assert shaded(pictures_of({"collapse": companion(0.4)})["collapse-small"]) == [(700, 1600), (1600, 2000)]


def test_balances_are_drawn_as_trained_and_beside_it_by_plain_descent_where_there_is_any(found):
    both = pictures_of({"collapse": companion(), "descent": companion()})["balances"].figure
    assert titles(both) == [f"{what}, {how}" for what in ("Drift of the balances", "Energy")
                            for how in ("as trained", "plain descent")]  # fmt: skip
    assert titles(found["balances"].figure) == titles(both)[::2]
