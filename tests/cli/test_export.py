"""`export` and `diff` from the command line: what they write and what they say."""

import json

import pandas as pd
import pytest
from on_disk import AXES, ROWS, SCHEDULE, write_training

from lab import grid, sinks

pytestmark = pytest.mark.usefixtures("echo_is_a_task")


@pytest.fixture
def root(echo, tmp_path):
    for name, data_seed in (("a", 5), ("b", 6)):
        write_training(tmp_path / name, echo.config(grid=AXES, data_seed=data_seed, **SCHEDULE), grid.product(AXES))
    return tmp_path


def test_export_writes_the_rows_asked_for_and_says_where_and_what_reads_it(root, run, capsys):
    run("export", str(root), "--to=csv", "--rows=0,3-4", "--metrics=odd.accuracy,grad_norm", "--variants=b")
    place = root / "export" / "table.csv"
    assert capsys.readouterr().out == f"written: {place}; look at it with pandas.read_csv('{place}')\n"
    read = pd.read_csv(place)
    assert [*read.columns[-2:]] == ["odd.accuracy", "grad_norm"] and {*read.variant} == {"b"}
    assert read.row.unique().tolist() == [0, 3, 4]
    assert read[[*AXES]].drop_duplicates().values.tolist() == [list(ROWS[row]) for row in (0, 3, 4)]


@pytest.mark.parametrize("to", sinks.SINKS)
def test_every_sink_can_be_asked_for_and_says_what_is_missing_in_one_line(root, run, refusal, monkeypatch, to):
    monkeypatch.setattr(sinks.importlib, "import_module", lambda name: __import__("no_package_of_this_name"))
    if sinks.SINKS[to].package:
        assert f"pip install 'gammalab[{sinks.SINKS[to].extra}]'" in refusal(
            "export", str(root), f"--to={to}", "--rows=all"
        )
    assert "row 12: " in refusal("export", str(root), "--to=csv", "--rows=11-12")


def test_weights_that_no_published_checkpoint_could_hold_are_refused_in_one_line(root, refusal):
    said = refusal("export", str(root), "--to=safetensors", "--variants=b")
    assert said.startswith("lab: --to=safetensors, b: EmbMLP: no format says such a model; accepted: a ")
    assert not (root / "export").exists()


def test_diff_says_what_differs(root, run, capsys):
    run("diff", str(root / "a"), str(root / "b"))
    said = capsys.readouterr().out
    assert said.splitlines()[:2] == ["settings:", "  config.data_seed: 5 -> 6"]
    run("diff", str(root / "a"), str(root / "b"), "--json")
    (found,) = json.loads(capsys.readouterr().out)["variants"].values()
    assert found["settings"] == ["config.data_seed: 5 -> 6"] and found["table"] == []
    assert "12 rows in both" in said and "equal at every step: train_loss, grad_norm, odd.accuracy, odd.share\n" in said
