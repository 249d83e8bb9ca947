import numpy as np
import pytest
import xarray as xr

from lab import claims
from lab.report import claims_table
from lab.runs import Runs


def rows(*measures, **options):
    made = [
        claims.claim(
            f"C{i}", "It rises", quantity="rise", source="a paper", published="0.9 | 1", at_least=0.5, **options
        )(measure)
        for i, measure in enumerate(measures)
    ]
    return claims.table(tuple(made), Runs({}), "command", "reduced: 2 of 10 layers")["claims"]


def seeds(*values):
    return lambda runs: (xr.DataArray(list(values), dims="seed"), "A note.")


TABLE = rows(seeds(1e-5, 0.25, 0.375, 0.5, np.nan), lambda runs: 0.75, lambda runs: runs["x"].final("a"))


def test_text_says_number_interval_seeds_margin_and_what_is_needed():
    assert claims_table.text(TABLE).splitlines()[:6] == [
        "C0   open           0.312 [-inf, 0.5]        It rises",
        "     needs: rise at least 0.5 (5 seeds, 1 missing, margin -0.19, reduced: 2 of 10 layers). A note.",
        "C1   holds          0.75                     It rises",
        "     needs: rise at least 0.5 (exact, margin +0.25, reduced: 2 of 10 layers).",
        "C2   open           -                        It rises",
        "     needs: rise at least 0.5 (reduced: 2 of 10 layers). This run lacks variant x.",
    ]


def test_markdown_has_a_row_a_claim_and_escapes_its_separator():
    lines = claims_table.markdown(TABLE).splitlines()
    assert lines[2] == (
        r"| **C0** It rises | 0.9 \| 1 | 0.312 [-inf, 0.5], 5 seeds, 1 missing | rise at least 0.5 | -0.19 | open |"
    )
    assert [line.count("|") - line.count(r"\|") for line in lines[:5]] == [7] * 5


@pytest.mark.parametrize("values", [[1.0] * 5, [np.inf] * 5])
def test_headlines_are_marked(values):
    assert "headline; needs" in claims_table.text(rows(seeds(*values), headline=True))
