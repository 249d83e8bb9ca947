"""Somebody's own Flax module, from its draw to two trained steps."""

import flax.linen as nn
import numpy as np
import pytest

from lab import models
from lab.disk.workdir import Workdir
from lab.engine import plan, train

pytestmark = pytest.mark.usefixtures("echo_is_a_task")
WIDTH = 300


class Own(nn.Module):
    """Tokens to logits, with dropout and a raw parameter."""

    width: int

    fan_in = {"w": (0,)}

    @nn.compact
    def __call__(self, tokens_BxL):
        h_BxLxD = nn.Dropout(0.2)(nn.Embed(8, self.width, name="table")(tokens_BxL))
        return h_BxLxD @ self.param("w", nn.initializers.normal(0.02), (self.width, 8))


class Unsaid(Own):
    fan_in = {}


@pytest.fixture
def config(echo, monkeypatch):
    """Of a family; the raw parameter is frozen, by its group."""
    monkeypatch.setitem(models.FAMILIES, "own", Own)
    monkeypatch.setitem(models.FAMILIES, "unsaid", Unsaid)

    def made(family):
        grid = dict(gamma=(0.3, 0.8), weight_decay=(0.1,), learning_rate=(0.01,), seed=(4,))
        optim = echo.OPTIM | dict(warmup_steps=1, frozen=("mlp",))
        options = dict(steps=2, eval_every=2, checkpoint_every=2, snapshots=2, optim=optim, grid=grid)
        return echo.config(model=dict(family=family, width=WIDTH), **options)

    return made


def test_own_module_starts_at_its_rate_and_trains_what_is_not_frozen(config, tmp_path, capsys):
    work = Workdir(train.train(config("own"), tmp_path / "w"))
    assert "init: 2 matrices follow gamma (std d_in^-gamma), 1 of them drawn normal" in capsys.readouterr().out
    for row, gamma in enumerate((0.3, 0.8)):
        start, end = work.params(0, row), work.params(2, row)
        for leaf in (start["w"], start["table"]["embedding"]):
            # four standard errors of a normal sample's standard deviation
            std = np.sqrt(np.mean(np.square(leaf, dtype=np.float64)))
            assert abs(std / WIDTH**-gamma - 1) < 4 / np.sqrt(2 * leaf.size)
        np.testing.assert_array_equal(end["w"], start["w"])
        assert not np.array_equal(end["table"]["embedding"], start["table"]["embedding"])


def test_module_that_does_not_say_its_inputs_is_refused_before_anything_is_written(config, tmp_path):
    message = r"model Unsaid: 'w' \(300, 8\) is drawn at random by Unsaid, .* e\.g\. fan_in = {'w': 300}"
    with pytest.raises(ValueError, match=message):
        train.train(config("unsaid"), tmp_path / "w")
    assert not (tmp_path / "w").exists()
    with pytest.raises(ValueError, match=message):
        plan.explain(config("unsaid"), compile_only=True)


def test_plan_shows_the_init_table(config):
    lines = plan.explain(config("own"), compile_only=True)
    assert lines[1].startswith("init: 2 matrices follow gamma")
    assert any("300x8" in line and "d_in 300" in line and "std 0.181 at gamma 0.3" in line for line in lines)
