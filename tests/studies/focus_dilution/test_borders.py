import math

import numpy as np
import pytest

from lab.analysis.attention_stages import NEVER, Event
from lab.studies.focus_dilution.borders import Thresholds, borders


def planted(until=100, bottom=5.0):
    """Outer cosines rise from .1 over steps 10-20, 10-30 and 10-40; ranks fall from 50 over steps 50-70 and 60-80."""
    step_T = np.arange(0, until, 2)
    cosine = np.stack([np.interp(step_T, (10, end), (0.1, 0.9)) for end in (20, 30, 40, 90, 90)], axis=1)
    falls = ((50, 70), (60, 80))
    ranks = [*(np.interp(step_T, (0, 99), (50, 1)) for _ in range(3)),
             *(np.interp(step_T, fall, (50, bottom)) for fall in falls)]  # fmt: skip
    return step_T, cosine, np.stack(ranks, axis=1)


def test_borders_are_where_they_were_planted():
    found = borders(*planted())
    # 95 % of 10-40 is at 38.5, 5 % of 50-70 at 51, 95 % of 60-80 at 79; snapshots are even
    assert found == (Event(38, 40, 40), Event(50, 52, 52), Event(78, 80, 80))


def test_what_does_not_happen_has_no_border():
    step_T, cosine, ranks = planted(bottom=30.0)  # falls to 60 % of its start only
    found = borders(step_T, cosine, ranks)
    assert found.condensation_end.step == 40
    assert found[1:] == (NEVER, NEVER)
    assert borders(step_T, 0.5 * cosine, ranks).condensation_end is NEVER
    ranks[:, 3] = planted()[2][:, 3]  # W_Q collapses, W_K does not
    assert borders(step_T, cosine, ranks).collapse_start is NEVER
    lower = Thresholds(cosine=0.4, rank=0.7)
    assert not math.isnan(borders(step_T, 0.5 * cosine, ranks, lower).collapse_end.step)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, c, r: (s[::-1], c, r), "increase"),
        (lambda s, c, r: (s, c[:, :3], r), "of one length"),
        (lambda s, c, r: (s[1:], c, r), "of one length"),
        (lambda s, c, r: (s, c, np.where(r < 20, np.nan, r)), "finite"),
    ],
)
def test_impossible_curves_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        borders(*change(*planted()))
