"""What the README and the docs show works: their task, model and study train as they stand there; links lead on."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import lab
from lab import grid
from lab.cli import main
from lab.disk import files
from lab.engine import batches, shard, sweep
from lab.experiment import Experiment
from lab.optim import Optim

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def shown():
    """The classes that the page on a task and a model of one's own defines."""
    names = {}
    exec("\n".join(python_blocks(DOCS / "a_task_and_a_model.md")), names)
    return names


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["Bigram", "SeenBigram"])
def test_a_task_and_a_model_of_ones_own_train_to_the_answer_the_model_can_know(shown, name):
    task = shown["Parity"](length=2)
    model = shown[name](vocab_size=2, d_model=8)
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


def test_the_file_of_ones_own_task_and_model_trains_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("\n\n".join(python_blocks(DOCS / "a_task_and_a_model.md")))
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # optax raises whole numbers
        main(["train", "--config=mine.py:cpu", "--workdir=w"])
    assert lab.load("w").sizes["gamma"] == 2


def test_every_file_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_every_command_the_readme_shows_is_known():
    from lab.cli.arguments import parser

    (choices,) = (action.choices for action in parser()._actions if action.choices)
    commands = re.findall(r"python -m lab ([\w-]+)", README.read_text())
    assert len(commands) >= 4
    assert set(commands) <= set(choices)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_test_and_file_that_a_page_names_exists(page):
    text, file = page.read_text(), None
    for named, test in re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)?(?:::)?(test_\w+)?`", text):
        if named:
            (file,) = (README.parent / "tests").rglob(named)
        if named or test:
            assert f"def {test}" in file.read_text(), f"{named}::{test}"
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target


def test_readme_is_read_in_minutes():
    assert len(README.read_text().split()) < 1000


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_reference_is_that_of_the_docstrings_and_has_every_name_of_the_face():
    text = (DOCS / "api.md").read_text()
    assert {*re.findall(r"^### `lab\.(\w+)`$", text, re.MULTILINE)} >= {*lab._FACE, "load", "export", "diff"}
    assert text == script("make_api").page(), "docs/api.md is old: python docs/make_api.py"


def test_links_into_a_page_lead_to_a_heading():
    for page in [README, *DOCS.glob("*.md")]:
        for target, heading in re.findall(r"\]\((?!http)([^)#]*\.md)#([^)]+)\)", page.read_text()):
            titles = re.findall(r"^#+ (.+)$", (page.parent / target).read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page.name}: {target}#{heading}"


def test_pages_made_of_kept_results_are_those_of_the_results():
    for name, text in script("make_gallery").pages().items():
        assert (DOCS / name).read_text() == text, f"{name} is old: python docs/make_gallery.py"


def test_kept_commands_name_no_folder_of_the_machine_that_ran_them():
    kept = [path for path in (DOCS / "results").rglob("*") if path.suffix in (".json", ".md", ".txt")]
    assert kept
    for path in kept:
        assert not re.search(r"(?<![\w.~])/(tmp|home|root|work|mnt|scratch)/", path.read_text()), path


def test_kept_claims_are_what_a_report_wrote():
    for path in (DOCS / "results").glob("*/*claims.json"):
        assert files.read_json(path)["claims"]  # raises where the hash in it is of something else


def test_the_study_of_ones_own_runs_and_is_short(tmp_path, monkeypatch, capsys):
    (block,) = python_blocks(DOCS / "a_study_of_your_own.md")
    assert len(block.splitlines()) <= 80 and block.count("@claim") == 4 and block.count("Picture(") == 3
    (tmp_path / "my_study.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    small = ("--config.steps=4", "--config.eval_every=2", "--config.checkpoint_every=2",
             "--config.optim.warmup_steps=1", "--config.grid.gamma=(0.3,0.7)", "--config.model.n_layers=1")  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):  # optax raises whole numbers
        main(["reproduce", "my_study.py", "--preset=smoke", *small])
    shown = capsys.readouterr().out
    assert re.findall(r"^(X\d) ", shown, re.MULTILINE) == ["X1", "X2", "X3", "X4"]
    drawn = {path.stem for path in (tmp_path / "runs/my_study-smoke/report/figures").glob("*.png")}
    assert {"main-phases", "main-training", "main-ranks"} <= drawn
    main(["reproduce", "my_study.py", "--preset=smoke", *small])
    assert "nothing to do" in capsys.readouterr().out


def opening_table(page):
    """Rows of a page's first table, as cells, where it is one of claims with verdicts; else none."""
    found = re.search(r"^\| claim[^\n]*\| verdict \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", page.read_text(), re.MULTILINE)
    rows = found[1].splitlines() if found else []
    return [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in rows]


def kept_claims(page):
    """Rows of the claims tables that are kept of the runs that a page links to."""
    folders = {*re.findall(r"\]\(results/([\w-]+)", page.read_text())}
    kept = [file for folder in sorted(folders) for file in (DOCS / "results" / folder).glob("*claims.json")]
    return [row for file in kept for row in files.read_json(file)["claims"]]


def is_rounded(text, value):
    """Whether a number is another one to the digits that are shown; `none` is an end among seeds without a number."""
    if text == "none":
        return not np.isfinite(float(value))
    mantissa, _, exponent = text.partition("e")
    digits = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return abs(float(text) - float(value)) <= 0.501 * 10.0**-digits


def is_told(cells, row):
    """Whether a row of a table says what was measured."""
    number = r"(-?[\d.]+(?:e-?\d+)?|none)"
    shown = re.findall(rf"{number} \[{number}, {number}\]", cells[2])
    measured = [row[name] for name in ("measured", "low", "high")]
    if row["verdict"] != cells[-1].partition(":")[0] or None in measured:
        return False
    return any(all(map(is_rounded, triple, measured)) for triple in shown)


@pytest.mark.parametrize(
    "page",  # claims.md is written of the kept runs, each by itself
    [page for page in sorted(DOCS.glob("*.md")) if page.name != "claims.md" and opening_table(page)],
    ids=Path.name.fget,
)
def test_the_table_that_a_page_opens_with_is_of_kept_runs(page):
    kept = kept_claims(page)
    for cells in opening_table(page):
        id = re.match(r"\**([A-Z][\w-]*)", cells[0])[1]
        rows = [row for row in kept if row["id"] == id]
        is_measured = any(row["measured"] is not None for row in rows)
        assert any(is_told(cells, row) for row in rows) if is_measured else cells[-1].startswith(("open", "not run")), (
            cells
        )
