"""What the README shows works: its task and model train in the engine as they stand there."""

import dataclasses
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import grid
from lab.engine import batches, shard, sweep
from lab.experiment import Experiment
from lab.models.acts import Tape
from lab.optim import Optim
from lab.tasks import Batch, Task

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def shown():
    """The classes defined in the README's Python blocks."""
    names = {"dataclasses": dataclasses, "jax": jax, "jnp": jnp, "nn": nn, "Batch": Batch, "Task": Task, "Tape": Tape}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        if "class " in block:
            exec(block, names)
    return names


@pytest.mark.usefixtures("standard_promotion")
def test_the_readmes_task_and_model_train_to_the_answer_the_model_can_know(shown):
    task = shown["Parity"](length=2)
    model = shown["Bigram"](vocab_size=2, d_model=8)
    optim = Optim("adamw", "constant", 0, 1.0, 1.0, 1.0, "scaled", "all", 0.9, 0.999, 1e-8, 0.0)
    experiment = Experiment(model, task, optim, "paper", 200, 64, 0, "shared", 0, 512)
    rows = grid.product({"gamma": (0.5, 0.8), "weight_decay": (0.0,), "learning_rate": (0.03,), "seed": (0,)})

    layout = shard.layout(shard.run_mesh(len(rows)), len(rows), width=1)
    programs = sweep.build(experiment, 200, layout.width, layout.mesh)
    (hparams,) = layout.to_device(rows.arrays())
    train_set = batches.train_set(experiment)
    state, metrics = programs.chunk(hparams, programs.start(hparams), train_set, 0, 200)
    scores = programs.evaluate({}, state, batches.evaluation_set(experiment, train_set))

    # A bigram model sees one of the two tokens: parity stays a coin toss for it, at a loss of log 2. The mean over
    # 100 steps of 64 sequences estimates it with standard error below 0.01; AdamW's wandering costs up to 0.03.
    loss_R = np.asarray(metrics["train_loss"])[:, 100:].mean(axis=1)
    np.testing.assert_allclose(loss_R, np.log(2), atol=0.04)
    # 512 fair coins: 5 standard deviations
    np.testing.assert_allclose(np.asarray(scores["test.accuracy"]), 0.5, atol=5 * 0.5 / np.sqrt(512))


def test_every_file_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_every_command_the_readme_shows_is_known():
    from lab.cli.arguments import parser

    (choices,) = (action.choices for action in parser()._actions if action.choices)
    commands = re.findall(r"python -m lab ([\w-]+)", README.read_text())
    assert len(commands) >= 4
    assert set(commands) <= set(choices)


@pytest.mark.parametrize("page", sorted((README.parent / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_test_and_file_that_a_page_names_exists(page):
    text, file = page.read_text(), None
    for named, test in re.findall(r"`(test_\w+\.py)?(?:::)?(test_\w+)?`", text):
        file = next((README.parent / "tests").rglob(named)) if named else file
        if named or test:
            assert f"def {test}" in file.read_text(), f"{named}::{test}"
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target


def test_the_readmes_claims_table_is_that_of_the_kept_run():
    kept = json.loads((README.parent / "docs/results/composition-cpu/claims.json").read_text())
    for row in kept:
        (line,) = (line for line in README.read_text().splitlines() if line.startswith(f"| **{row['id']}**"))
        measured = f"{row['measured']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        assert [cell.strip() for cell in line.split("|")][3:6:2] == [measured, row["verdict"]]
