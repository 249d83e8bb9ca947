"""A row trained again, alone, is compared with what the grid left; one that was tampered with is found out."""

import shutil

import numpy as np
import pytest

from lab.disk import files
from lab.disk.workdir import Workdir
from lab.engine import train, verify_row

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

EPS = 2.0**-23  # float32


@pytest.fixture(scope="module")
def trained(echo, tmp_path_factory):
    """Two rows at once on a device; the last of four diverges at step 0."""
    grid = dict(gamma=(0.3, 0.5), weight_decay=(0.1,), learning_rate=(0.01, 1e30), seed=(4,))
    return train.train(echo.config(block_width=2, grid=grid), tmp_path_factory.mktemp("trained") / "w")


def test_row_of_a_block_is_the_row_alone_up_to_rounding(trained):
    found = verify_row.replay(trained, 0)
    assert found.steps == 24 and sorted(found.params) == [0, 12, 24] and found.diverged == (-1, -1)
    # as in test_sweep: 32 roundings of a loss below 4, and 24 Adam steps each off by the learning rate times 320
    assert found.loss <= 128 * EPS + 4 * 24 * 0.01 * 320 * EPS
    assert found.params[0] <= 4 * EPS and found.params[24] <= 24 * 0.01 * 320 * EPS
    assert (found.since is None) == (found.loss == 0)


def test_row_that_diverged_diverges_alone_at_the_same_step(trained):
    found = verify_row.replay(trained, 1)
    assert found.diverged == (0, 0) and found.params[24] == found.params[0]


def test_row_is_trained_no_further_than_asked(trained):
    found = verify_row.replay(trained, 0, steps=7)
    assert found.steps == 8 and sorted(found.params) == [0]


def test_row_that_is_not_what_its_hparams_make_is_found_with_the_step(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "w")
    path = Workdir(workdir).metrics / "16.npz"  # steps 12 to 15
    chunk = files.read_npz(path)
    chunk["train_loss"] = chunk["train_loss"] + np.float32([[0], [0], [0.25], [0]])
    files.write_npz(path, chunk)
    found = verify_row.replay(workdir, 2)
    assert found.at == 14 and found.since <= 14
    assert found.loss == pytest.approx(0.25, abs=1e-4)


def test_row_that_is_not_there_is_refused(trained):
    with pytest.raises(ValueError, match=r"row 4: .* has rows 0 to 3"):
        verify_row.replay(trained, 4)
