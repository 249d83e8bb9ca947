import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from lab.report.film import LAST_FRAME_MS, gif


@pytest.mark.parametrize("n", [1, 3])
def test_every_frame_is_shown_as_long_and_the_last_one_longer(n):
    colours = ("red", "lime", "blue")[:n]
    with Image.open(io.BytesIO(gif((Figure((2, 1), facecolor=colour) for colour in colours), 120, 50))) as film:
        seen, held = [], []
        for i in range(n):
            film.seek(i)
            seen.append(film.convert("RGB").getpixel((0, 0)))
            held.append(film.info.get("duration", LAST_FRAME_MS))
        assert film.size == (100, 50) and seen == [(255, 0, 0), (0, 255, 0), (0, 0, 255)][:n]
        assert held == [120] * (n - 1) + [LAST_FRAME_MS] and (n == 1 or film.info["loop"] == 0)
