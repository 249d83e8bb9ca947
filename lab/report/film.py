"""Films: figures one after the other as a GIF, which a `Picture` shows in place of its figure."""

import io
from collections.abc import Iterable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lab.report import style

LAST_FRAME_MS = 1500
COLOURS = 64  # of a frame


def gif(frames: Iterable[Figure], frame_ms: int, dpi: int) -> bytes:
    """One frame or more, each shown for so many milliseconds, the last for longer; then the film begins anew."""
    first, *others = (_image(frame, dpi) for frame in frames)
    held = [frame_ms] * len(others) + [LAST_FRAME_MS]
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=held, loop=0)
    return buffer.getvalue()


def _image(figure: Figure, dpi: int) -> Image.Image:
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with style.paper():
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(COLOURS)
