"""Pictures of one row through its stages: curves over training, embeddings on their way, attention as a film.

Stages are given as `[(label, first, last), ...]` in training steps and shaded behind the curves. The step axis is
logarithmic, linear below the first step after 0.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.lines import Line2D

from lab.report import maps, style
from lab.report.film import gif

SHADES = ("#eef2ff", "#fef3c7", "#dcfce7", "#fce7f3")  # by stage, light enough for every curve
FRAME_MS, FRAME_DPI = 120, 70


@style.paper()
def stages(step_T, panels, spans, title, levels=None, logarithmic=()):
    """Curves over training, a panel per title, with the stages shaded behind them.

    Args:
      step_T: T steps, or one array for each panel's title.
      panels: title -> {label: T values}; labels that several panels share keep their colour. A curve that is alone in
        its panel is named by the title.
      spans: [(label, first step, last step), ...].
      levels: title -> {label: value} of dashed horizontal lines, e.g. an entropy.
      logarithmic: titles of panels with a logarithmic axis; values not above 0 are left blank there.
    """
    figure, axes = style.panels(len(panels), 3.35, 2.5, title)
    labels = list(dict.fromkeys(label for curves in panels.values() if len(curves) > 1 for label in curves))
    strokes = dict(zip(labels, style.strokes(labels), strict=True))
    alone = {"color": "black", "ls": "-"}
    for ax, (name, curves) in zip(axes, panels.items(), strict=True):
        times_T = np.asarray(step_T[name] if isinstance(step_T, Mapping) else step_T)
        for label, values_T in curves.items():
            values_T = np.asarray(values_T, float)
            shown_T = np.where(values_T > 0, values_T, np.nan) if name in logarithmic else values_T
            ax.plot(times_T, shown_T, **strokes.get(label, alone), lw=1.6, label=label, gid="curve")
        for label, value in (levels or {}).get(name, {}).items():
            ax.axhline(value, color=style.GREY, lw=1, ls=(0, (4, 3)), gid="level")
            ax.annotate(
                label, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8,
                color=style.GREY,
            )  # fmt: skip
        if name in logarithmic:
            ax.set_yscale("log")
        else:
            ax.margins(y=0.12)
        _shade(ax, spans)
        ax.set_title(name, loc="left")
        style.log_steps(ax, times_T, 1)
        ax.set(xlim=(times_T[0], times_T[-1]), xlabel="step")
    shades = [Line2D([], [], color=shade, lw=8, label=label) for label, shade in _shades(spans).items()]
    style.legend_below(figure, [Line2D([], [], **strokes[label], label=label) for label in labels] + shades)
    return figure


@style.paper()
def trajectories(paths, names, title, marks=None):
    """Where V embeddings go in a plane, a panel per label: `paths` maps labels to (T, V, 2); they end in a dot.

    `names` are the V tokens; `marks` maps labels to indices into T that get a small cross (the ends of stages).
    """
    figure, axes = style.panels(len(paths), 4.2, 3.6, title)
    strokes = style.strokes(list(names))
    for ax, (label, path_TxVx2) in zip(axes, paths.items(), strict=True):
        path_TxVx2 = np.asarray(path_TxVx2)
        for v, stroke in enumerate(strokes):
            x_T, y_T = path_TxVx2[:, v].T
            ax.plot(x_T, y_T, color=stroke["color"], lw=1.4, gid="path")
            ax.plot(x_T[-1], y_T[-1], "o", color=stroke["color"], ms=6)
            for t in (marks or {}).get(label, ()):
                ax.plot(x_T[t], y_T[t], "x", color=stroke["color"], ms=5, mew=1.4)
        ax.axhline(0, color=style.GREY, lw=0.6)
        ax.axvline(0, color=style.GREY, lw=0.6)
        ax.set_title(style.short(label), loc="left")
        ax.set_xlabel("along the final first direction")
    axes[0].set_ylabel("along the second")
    handles = [
        Line2D([], [], color=stroke["color"], label=str(name)) for stroke, name in zip(strokes, names, strict=True)
    ]
    style.legend_below(figure, handles)
    return figure


@style.paper()
def laws(panels, title):
    """Measured points and the line through them, a panel per title.

    Args:
      panels: title -> {"x": label, "y": label, "points": {label: (x_N, y_N)}, "line": (x_M, y_M) or None,
        "log": names of logarithmic axes, e.g. "xy"}.
    """
    figure, axes = style.panels(len(panels), 4.2, 3.0, title)
    handles = {}
    for ax, (name, panel) in zip(axes, panels.items(), strict=True):
        for stroke, (label, (x_N, y_N)) in zip(
            style.strokes(list(map(str, panel["points"]))), panel["points"].items(), strict=True
        ):
            (handles[label],) = ax.plot(x_N, y_N, "o", ms=5, color=stroke["color"], label=label, gid="points")
        if panel["line"] is not None:
            ax.plot(*panel["line"], color=style.GREY, lw=1.2, ls=(0, (4, 3)), zorder=1, gid="line")
        for i, axis in enumerate("xy"):
            shown = np.concatenate([np.asarray(pair[i], float) for pair in panel["points"].values()])
            if axis in panel["log"] and (shown > 0).any():
                getattr(ax, f"set_{axis}scale")("log")
        ax.set_title(name, loc="left")
        ax.set(xlabel=panel["x"], ylabel=panel["y"])
    if len(handles) > 1:
        style.legend_below(figure, list(handles.values()))
    return figure


def film(attention_TxIxJ, names, step_T, spans, title="Who attends to whom", queries=None) -> bytes:
    """A GIF of token attention over training: a frame per snapshot, titled with its step and stage.

    `names` are those of the keys, and of the queries where these have no others.
    """

    def frame(attention_IxJ, step):
        inside = [label for label, first, last in spans if first <= step < last]
        caption = f"step {int(step)}" + (f", {inside[-1]}" if inside else "")
        return maps.token_attention({caption: attention_IxJ}, queries or names, names, title, top=1.0)

    snapshots = zip(np.asarray(attention_TxIxJ), step_T, strict=True)
    return gif((frame(*snapshot) for snapshot in snapshots), FRAME_MS, FRAME_DPI)


def _shades(spans: Sequence[tuple]) -> dict[str, str]:
    labels = list(dict.fromkeys(label for label, _, _ in spans))
    return {label: SHADES[i % len(SHADES)] for i, label in enumerate(labels)}


def _shade(ax, spans) -> None:
    shades = _shades(spans)
    for label, first, last in spans:
        if np.isfinite([first, last]).all() and last > first:
            ax.axvspan(first, last, color=shades[label], lw=0, zorder=0, gid="stage")
