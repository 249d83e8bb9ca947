"""Options out of their limits are refused by name and value; those at their limits are accepted."""

import types

import numpy as np
import pytest

from lab import limits


def options(**values):
    return types.SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, (1, None), r"^task\.size=0: must be at least 1$"),
        (-1, (0, 5), r"^task\.size=-1: a number from 0 to 5$"),
        (6, (0, 5), r"^task\.size=6: a number from 0 to 5$"),
        (np.nan, (0, 1), r"^task\.size=nan: a number from 0 to 1$"),
        (np.nan, (0, None), r"^task\.size=nan: must be at least 0$"),
    ],
)
def test_numbers_out_of_bounds_are_refused(value, bounds, message):
    with pytest.raises(ValueError, match=message):
        limits.check("task", options(other=9, size=value), bounds={"other": (9, 9), "size": bounds})


def test_bounds_themselves_are_accepted():
    for value, bounds in ((1, (1, None)), (10**9, (1, None)), (0.0, (0, 1)), (1.0, (0, 1))):
        limits.check("task", options(size=value), bounds={"size": bounds})


def test_choices_are_listed_where_there_is_none_such():
    limits.check("model", options(norm="pre", depth=2), {"norm": ("pre", "post"), "depth": {1: "a", 2: "b"}})
    with pytest.raises(ValueError, match=r"^model\.norm='batch': one of pre, post$"):
        limits.check("model", options(norm="batch"), {"norm": ("pre", "post")})
    with pytest.raises(ValueError, match=r"^model\.depth=3: one of 1, 2$"):
        limits.check("model", options(depth=3), {"depth": {1: "a", 2: "b"}})
