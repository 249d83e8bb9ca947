"""What a figure shows, read back from it."""

import numpy as np


def lines(ax, gid):
    """Those drawn under this name."""
    return [line for line in ax.lines if line.get_gid() == gid]


def heading(figure):
    """Title and notes."""
    return " ".join([figure.get_suptitle(), *(text.get_text() for text in figure.texts)]).replace("\n", " ")


def keys(figure):
    """Labels of the legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(figure):
    """Of the panels that have one."""
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]


def band_at(band, x):
    """The lowest and highest ordinate of a band's outline at x."""
    vertices = band.get_paths()[0].vertices
    at = vertices[np.isclose(vertices[:, 0], x), 1]
    return at.min(), at.max()
