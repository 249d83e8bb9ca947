"""What the pictures of a cycle show is read back from their axes, and from the film's frames."""

import io

import numpy as np
from numpy.testing import assert_array_equal
from PIL import Image
from shown import lines

from lab.report import cycles

STEPS = np.array([0, 10, 20, 40, 80])
SPANS = [("focus", 10, 20), ("dilution", 20, 80), ("focus", 80, np.nan)]


def test_stages_draws_every_curve_level_and_stage_where_it_belongs():
    rng = np.random.default_rng(0)
    panels = {"Loss": {"loss": rng.uniform(size=5)}, "Ranks": {"W_0": rng.normal(size=5), "loss": rng.normal(size=5)}}
    figure = cycles.stages(STEPS, panels, SPANS, "t", levels={"Loss": {"H": 0.5}}, logarithmic=("Ranks",))
    colours = {}
    for ax, (name, curves) in zip(figure.axes, panels.items(), strict=True):
        drawn = {line.get_label(): line for line in lines(ax, "curve")}
        assert ax.get_title(loc="left") == name and drawn.keys() == curves.keys()
        for label, values in curves.items():
            shown = np.where(values > 0, values, np.nan) if name == "Ranks" else values
            assert_array_equal(drawn[label].get_xdata(), STEPS)
            assert_array_equal(drawn[label].get_ydata(), shown)
            colours.setdefault(label, set()).add(drawn[label].get_color())
        shaded = [patch for patch in ax.patches if patch.get_gid() == "stage"]
        assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in shaded] == [(10, 20), (20, 80)]
        assert shaded[0].get_facecolor() != shaded[1].get_facecolor()
    assert all(len(colour) == 1 for colour in colours.values())  # a label keeps its colour
    (level,) = lines(figure.axes[0], "level")
    assert set(level.get_ydata()) == {0.5}
    assert figure.axes[1].get_yscale() == "log" and figure.axes[0].get_yscale() == "linear"


def test_panels_may_have_times_of_their_own():
    panels = {"a": {"x": np.arange(5)}, "b": {"x": np.arange(3)}}
    figure = cycles.stages({"a": STEPS, "b": STEPS[:3]}, panels, (), "t")
    assert [line.get_xdata().tolist() for ax in figure.axes for line in ax.lines] == [STEPS.tolist(), [0, 10, 20]]


def test_trajectories_end_in_a_dot_and_carry_their_marks():
    paths = {"row": np.random.default_rng(1).normal(size=(5, 3, 2))}
    (ax,) = cycles.trajectories(paths, "abc", "t", {"row": (2,)}).axes
    drawn = [line.get_xydata() for line in lines(ax, "path")]
    assert_array_equal(np.stack(drawn, axis=1), paths["row"])
    dots = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert_array_equal(dots, paths["row"][-1])
    crosses = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "x"]
    assert_array_equal(crosses, paths["row"][2])


def test_laws_draws_points_line_and_scales():
    x, y = np.array([0.1, 0.2, 0.4]), np.array([3.0, 5.0, 9.0])
    panel = {"x": "delta", "y": "steps", "points": {"seed 0": (x, y), "seed 1": (x, 2 * y)}, "line": (x, y), "log": "x"}
    (ax,) = cycles.laws({"Escape": panel}, "t").axes
    drawn = [line.get_xydata() for line in lines(ax, "points")]
    assert_array_equal(drawn, [np.column_stack([x, y]), np.column_stack([x, 2 * y])])
    assert ax.get_xscale() == "log" and ax.get_yscale() == "linear" and ax.get_xlabel() == "delta"


def test_film_has_a_frame_for_every_time_on_one_scale():
    attention = np.stack([np.eye(3), np.full((3, 3), 1 / 3), np.full((3, 3), 1 / 3)])
    gif = cycles.film(attention, "abc", [5, 15, 30], SPANS)
    frames = []
    with Image.open(io.BytesIO(gif)) as film:
        assert film.n_frames == 3
        for i in range(3):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB"), int))
    assert all(frame.shape == frames[0].shape for frame in frames)
    # the last two show the same map, up to what a palette of 64 colours rounds; only the caption above it differs
    half = len(frames[0]) // 2
    apart = [np.abs(frames[i][half:] - frames[i + 1][half:]).max(axis=2) > 32 for i in (0, 1)]
    assert apart[1].mean() < 0.01 < apart[0].mean()
