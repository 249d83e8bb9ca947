"""The curvature benchmark compares ways that answer the same question, and gives no ratio where they do not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The modules of benchmarks/ by the names they call each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


def found(value_RxK, trace_R=(), error_R=()):
    return SimpleNamespace(value_RxK=np.array(value_RxK), trace_R=np.array(trace_R), error_R=np.array(error_R))


def result(**changes):
    """Of a run in which ours is three times as fast as theirs, and everybody accurate."""
    plain = {
        "errors": {"ours": 0.002, "eigenthings": 0.009},
        "traces": {"ours": {"apart": 0.0}, "eigenthings": {"apart": 2.0}},
        "reference_residual": 1e-6,
        "rates": {"ours": [30.0, 15.0, 3.0], "eigenthings": [10.0, 5.0, 1.0]},
    }
    return plain | changes


def test_ratios_are_taken_within_a_round():
    import sharpness

    # the machine slows down tenfold from first to last round, the ratio does not change
    assert sharpness.ratios(result()) == {"eigenthings": (3.0, 3.0, 3.0)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"errors": {"ours": 0.002, "eigenthings": 0.011}}, "eigenthings is off by 0.011 of itself, above 0.01"),
        ({"errors": {"ours": 0.02, "eigenthings": 0.002}}, "ours is off by 0.02"),
        ({"errors": {"ours": float("nan"), "eigenthings": 0.002}}, "ours is off by nan"),
        ({"reference_residual": 0.002}, "the reference may itself be off by 0.002"),
        ({"traces": {"eigenthings": {"apart": 5.1}}}, "a trace is 5.1 standard errors from ours"),
    ],
)
def test_no_ratio_where_accuracy_is_missed(changes, says):
    import sharpness

    assert says in sharpness.ratios(result(**changes))["eigenthings"]


def test_errors_are_of_the_rows_and_the_eigenvalues_a_way_was_asked_for():
    import sharpness

    reference = SimpleNamespace(
        largest_RxK=np.array([[4.0, 2.0], [10.0, 5.0], [8.0, 1.0]]),
        magnitude_RxK=np.array([[4.0, -20.0], [10.0, 5.0], [8.0, -2.0]]),
    )
    rounds = [([2, 0], found([[8.0, 1.0], [4.0, 2.0]])), ([1], found([[10.0, 4.5]]))]
    assert sharpness.worst(rounds, reference, "ours") == pytest.approx(0.1)  # 5 - 4.5, of row 1
    assert sharpness.worst([([0], found([[4.0, -21.0]]))], reference, "pyhessian") == pytest.approx(0.05)


def test_traces_are_compared_row_by_row_in_standard_errors_of_their_difference():
    import sharpness

    ours = [([0, 1], found([], [10.0, 100.0], [3.0, 3.0]))]
    theirs = [([1], found([], [110.0], [4.0]))]
    entry = sharpness.trace(theirs, ours)
    assert entry == {"relative_error": pytest.approx(4 / 110), "apart": pytest.approx(10 / 5)}  # 5 = |(3, 4)|
    assert sharpness.trace(ours, ours)["apart"] == 0


def test_every_row_has_its_turn():
    import sharpness

    way = sharpness.Way(lambda rows: sum(rows), 2, 5)
    assert all(way.rate() > 0 for _ in range(5))
    assert way.found == [([0, 1], 1), ([2, 3], 5), ([4, 0], 4), ([1, 2], 3), ([3, 4], 7)]


def test_without_pytorch_ours_is_measured_and_the_others_are_named(monkeypatch):
    import sharpness

    monkeypatch.setitem(sys.modules, "torch", None)
    side, failures = sharpness.their_side(None, sharpness.PRESETS["smoke"])
    assert side is None and set(failures) == {"eigenthings", "pyhessian"}
    assert set(failures.values()) == {"pip install 'gammalab[bench]'"}


def test_snapshots_of_a_training_that_never_was_are_read_as_a_trainings(tmp_path):
    import measures

    work = measures.drifting(tmp_path, measures.Preset("cpu", "smoke", 3, 2))
    assert work.snapshot_steps() == [0, 100]
    start_RxDxF, later_RxDxF = (work.params(step)["block_0"]["mlp"]["in"]["kernel"] for step in (0, 100))
    assert start_RxDxF.shape == (3, work.experiment.model.d_model, work.experiment.model.d_ff)
    # 1 % of the tensor's own size; the standard deviation of 1,536 numbers is known to 2 %
    assert np.std(later_RxDxF - start_RxDxF) == pytest.approx(0.01 * np.std(start_RxDxF), rel=0.1)


@pytest.mark.torch
def test_smoke_finds_the_same_eigenvalues_in_three_ways(tmp_path):
    pytest.importorskip("hessian_eigenthings")
    pytest.importorskip("pyhessian")
    command = [sys.executable, BENCHMARKS / "sharpness.py", "--preset=smoke", f"--json={tmp_path / 'out.json'}"]
    # unoptimized programs compile in half the time
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (grid,) = json.loads((tmp_path / "out.json").read_text())["grids"]
    assert set(grid["errors"]) == {"ours", "eigenthings", "pyhessian"}
    # Lanczos converges to rounding; power iteration stops within the tolerance that it is judged by
    assert max(grid["errors"]["ours"], grid["errors"]["eigenthings"]) < 1e-4
    assert grid["errors"]["pyhessian"] < 0.01
    assert min(grid["memory"].values()) > grid["n_parameters"] * 4  # at least a vector
    for name in ("eigenthings", "pyhessian"):
        ratios = np.divide(grid["rates"]["ours"], grid["rates"][name])
        (printed,) = re.findall(rf"ours/{name}: +(\S+)", done.stdout)
        assert float(printed) == pytest.approx(np.median(ratios), rel=5e-3)  # three digits
