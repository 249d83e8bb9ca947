"""Pictures of single rows side by side: condensation, embeddings, information flow, outputs by pair of anchors.

`panels` is {panel title: dataset of one row}; dimensions still open are selected as in
`lab.report.figures`, the last snapshot by default, and the title says so.
"""

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from lab.report import style
from lab.report.figures import pick
from lab.runs import as_run

FAINTEST = 0.02  # attention weights below this are not drawn
MARKERS = {True: "o", False: "^"}  # a < b, and the other order


def _portraits(panels, name, keep, at):
    """({panel title: values with dims `keep`}, notes) of variable `name`."""
    chosen = {title: pick(as_run(row), name, keep, at) for title, row in panels.items()}
    notes = list(dict.fromkeys(note for _, notes in chosen.values() for note in notes))
    return {title: values for title, (values, _) in chosen.items()}, ", ".join(notes)


def _scalar(row, name, at):
    return float(pick(as_run(row), name, (), at)[0])


@style.paper()
def cosine_heatmaps(panels, title="Condensation: neurons that point the same way form red blocks", **at):
    """Cosines between neurons' input weights, neurons reordered into groups (`neurons.order`)."""
    cosines, notes = _portraits(panels, "neurons.cosine", ("neuron", "neuron_"), at)
    orders, _ = _portraits(panels, "neurons.order", ("neuron",), at)
    figure, axes = style.panels(len(panels), 3.4, 3.7, title, [notes])
    # Steps of 0.05 and unsmoothed cells: the noise of hundreds of neurons then compresses well.
    cmap = matplotlib.colormaps[style.DIVERGING].resampled(40).with_extremes(bad="#d1d5db")
    for ax, (label, ds) in zip(axes, panels.items(), strict=True):
        order = orders[label].values
        order = order.astype(int) if np.isfinite(order).all() else np.arange(len(order))
        image = ax.imshow(
            cosines[label].values[np.ix_(order, order)], vmin=-1, vmax=1, cmap=cmap, interpolation="nearest"
        )
        groups = _scalar(ds, "condensation.n_groups", at)
        ax.set_title(f"{label}\n{groups:.0f} groups of {len(order)} neurons", loc="left")
        ax.set(xticks=[], yticks=[], xlabel="neuron, reordered")
        ax.grid(False)
    axes[0].set_ylabel("neuron, reordered")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8, pad=0.015)
    return figure


@style.paper()
def embedding_pca(panels, title="Token embeddings: do tokens line up by value?", **at):
    """The first two principal components of the key tokens' embeddings, coloured by token value."""
    points, notes = _portraits(panels, "embedding.components", ("token", "component"), at)
    shares, _ = _portraits(panels, "embedding.explained", ("component",), at)
    figure, axes = style.panels(len(panels), 3.4, 3.4, title, [notes])
    for ax, (label, ds) in zip(axes, panels.items(), strict=True):
        x, y = points[label].values.T[:2]
        ax.plot(x, y, color=style.GREY, lw=0.5, alpha=0.4, zorder=1)
        dots = ax.scatter(x, y, c=points[label]["token"].values, cmap=style.ORDERED, s=26, zorder=2)
        first, second = 100 * shares[label].values[:2]
        names = {"xlabel": f"component 1 ({first:.1f} % of variance)", "ylabel": f"component 2 ({second:.1f} %)"}
        ax.set(**names, xticks=[], yticks=[])
        ax.set_title(f"{label}\norder by value {_scalar(ds, 'embedding.order', at):.2f}", loc="left")
    figure.colorbar(dots, ax=axes, label="token value", shrink=0.8, pad=0.015)
    return figure


@style.paper()
def attention_flow(panels, anchors=(1, 2, 3, 4), title="Where attention carries key and anchors", **at):
    """The example sequence's attention as lines between levels, wider where attention is stronger.

    A line of layer l runs from the position attended to (level l-1) up to the position that attends
    (level l), and has the colour of its source: key, anchor or noise. The key stands before the first
    of `anchors`. The last layer shows the last position only, the one that answers.
    """
    patterns, notes = _portraits(panels, "flow.pattern", ("layer", "query", "position"), at)
    tokens, _ = _portraits(panels, "flow.tokens", ("position",), at)
    n_layers = max(pattern.sizes["layer"] for pattern in patterns.values())
    notes = "wider is more attention, the top layer shows the answering position" + (notes and ", ") + notes
    figure, axes = style.panels(len(panels), 5.1, 1.2 * n_layers + 1.3, title, [notes])
    for ax, label in zip(axes, panels, strict=True):
        _flow(ax, patterns[label].values, _roles(tokens[label].values, anchors), tokens[label].values)
        ax.set_title(label, loc="left")
    return figure


def _roles(tokens_L, anchors):
    """ "key", "anchor" or "" for every position."""
    roles = np.where(np.isin(tokens_L, anchors), "anchor", "").astype("<U6")
    first = np.flatnonzero(roles == "anchor")[:1]
    roles[first[first > 0] - 1] = "key"
    return roles


def _flow(ax, pattern_NxQxL, roles, tokens_L):
    colours = {"key": style.CATEGORIES[1], "anchor": style.CATEGORIES[0], "": "#9ca3af"}
    n_layers, n_query, length = pattern_NxQxL.shape
    fill = [colours[role] for role in roles]
    shift = length - n_query  # readout "last" leaves the last layer one query: the last position
    for layer, pattern_QxL in enumerate(np.nan_to_num(pattern_NxQxL)):
        answering = [n_query - 1] if layer == n_layers - 1 else range(n_query)
        edges = [(q, k, pattern_QxL[q, k]) for q in answering for k in range(length)]
        edges = [(q + shift, k, weight) for q, k, weight in edges if weight > FAINTEST]
        ax.add_collection(
            LineCollection(
                [[(k, layer), (q, layer + 1)] for q, k, _ in edges],
                linewidths=[0.4 + 4.5 * weight for _, _, weight in edges],
                colors=[matplotlib.colors.to_rgba(fill[k], 0.12 + 0.78 * weight) for _, k, weight in edges],
                capstyle="round",
                zorder=1,
                gid=f"layer {layer + 1}",
            )
        )
        ax.scatter(range(length), [layer] * length, s=300 if layer == 0 else 45, c=fill, zorder=2)
    ax.scatter(length - 1, n_layers, s=110, c="black", zorder=2)
    ax.text(length - 1, n_layers + 0.12, "answer", ha="center", va="bottom")
    for position, (token, role) in enumerate(zip(tokens_L, roles, strict=True)):
        ink = "white" if role else "black"
        ax.text(position, 0, f"{token:.0f}", ha="center", va="center", fontsize=8.5, zorder=3, color=ink)
        ax.text(position, -0.2, role, ha="center", va="top", fontsize=8.5, color=colours[role])
    ax.set(xlim=(-0.6, length - 0.4), ylim=(-0.42, n_layers + 0.4), xticks=[])
    ax.set_yticks(range(n_layers + 1), ["tokens"] + [f"layer {i + 1}" for i in range(n_layers)])
    style.as_image(ax)


@style.paper()
def outputs_by_pair(panels, title="What the output says of the pair"):
    """Principal components of `outputs.*`, whole and with the key hidden; a colour a pair, a shape an order."""
    drawn = [(label, row, name) for label, row in panels.items() for name in ("whole", "hidden")]
    figure, axes = style.panels(len(drawn), 5.1, 3.4, title, ["dots: sequences; circles (a,b), triangles (b,a)"])
    pairs = [tuple(map(int, str(pair).split(","))) for pair in drawn[0][1]["ordered_pair"].values]
    sets = sorted({tuple(sorted(pair)) for pair in pairs})
    colour = dict(zip(sets, matplotlib.colormaps["tab10"].colors, strict=False))
    for ax, (label, row, name) in zip(axes, drawn, strict=True):
        components = row[f"outputs.{name}"].transpose("ordered_pair", "repeat", "component").values
        for pair, points_Rx2 in zip(pairs, components, strict=True):
            marker, c = MARKERS[pair[0] < pair[1]], colour[tuple(sorted(pair))]
            ax.scatter(*points_Rx2.T, s=14, marker=marker, color=c, alpha=0.6, lw=0)
        shares = 100 * row[f"outputs.{name}_explained"].values
        ax.set(
            xlabel=f"component 1 ({shares[0]:.0f} %)", ylabel=f"component 2 ({shares[1]:.0f} %)", xticks=[], yticks=[]
        )
        merged = float(row[f"outputs.{name}_merged"])
        words = "key hidden" if name == "hidden" else "whole"
        ax.set_title(f"{label}, {words}\ncosine of the two orders {merged:.2f}", loc="left")
    dots = [Line2D([], [], color=colour[pair], ls="", marker="o", label=f"{pair[0]} and {pair[1]}") for pair in sets]
    style.legend_below(figure, dots)
    return figure
