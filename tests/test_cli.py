"""The command line as its users meet it: the whole study in small, and one line for every mistake."""

import contextlib
import json
import os
import re
import shutil
import sys

import jax
import numpy as np
import pytest

import lab
from lab import arguments, models, rng, studies
from lab.analysis import catalogue
from lab.cli import main
from lab.engine import config as configs
from lab.engine import table
from lab.engine.workdir import Workdir
from lab.report import page
from lab.studies import outcome

CONFIG = f"--config={studies.get('composition').config_path}:smoke"
TINY = (
    "--config.model.d_model=8", "--config.model.d_head=8", "--config.model.d_ff=8", "--config.steps=8",
    "--config.batch_size=8", "--config.eval_size=32", "--config.eval_every=4", "--config.checkpoint_every=4",
    "--config.snapshots=2", "--config.optim.warmup_steps=2", "--config.grid.gamma=(0.5,0.8)",
    "--config.grid.weight_decay=(0.01,1.0)", "--config.grid.learning_rate=(0.001,)", "--config.grid.seed=(0,1)",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def as_conftest_set_jax():
    """Two devices, whatever the machine has; optax cannot run under strict promotion."""
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        yield


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """The study, trained, analyzed and reported once; compiled without optimizations, which is what takes the time."""
    root = tmp_path_factory.mktemp("runs") / "smoke"
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        run("reproduce", "composition", "--preset=smoke", f"--workdir={root}", *TINY)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return root


def run(*argv):
    with typed(*argv):
        main(list(argv))


@contextlib.contextmanager
def typed(*argv):
    """As if typed in a shell: ml_collections looks for overrides in `sys.argv`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lab", *argv])
        yield


def read_config(*argv):
    with typed(*argv):
        return arguments.read_config(list(argv), [])


def written(root):
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def refusal(capsys, *argv):
    """The one line that a mistake earns."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*argv)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    assert said.err.startswith("lab: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    return said.err


# --- what it does ---


def test_reproducing_again_says_nothing_to_do_and_touches_nothing(reproduced, capsys):
    before = written(reproduced)
    run("reproduce", "composition", "--preset=smoke", f"--workdir={reproduced}", *TINY)
    said = capsys.readouterr().out
    assert "nothing to do" in said.splitlines()[-1] and "analyzed: nothing new" in said
    assert written(reproduced) == before


def test_analyzing_again_takes_nothing(reproduced, capsys):
    before = written(reproduced)
    run("analyze", f"--workdir={reproduced}")
    assert capsys.readouterr().out.splitlines()[-1] == "analyzed: nothing new"
    assert written(reproduced) == before


def test_both_variants_were_trained_as_the_user_said(reproduced):
    """The preset gives variant `wrong` its own steps and gammas; the user's count in both."""
    for variant, setting in (("unseen", "34_unseen"), ("wrong", "34_wrong")):
        config = Workdir(reproduced / variant).config
        assert (config.task.setting, config.steps, config.grid.gamma) == (setting, 8, (0.5, 0.8))
        assert lab.load(reproduced, variant).step.values.tolist() == [0, 4, 8]


def test_accuracies_in_the_table_are_those_of_the_saved_weights(reproduced):
    dataset = lab.load(reproduced, "wrong")
    experiment = Workdir(reproduced / "wrong").experiment
    task, model = experiment.task, experiment.model
    forward = jax.jit(lambda params, tokens: models.forward(model, params, tokens)[0])
    for split in ("test_seen", "ood_43"):
        batch = task.sample(rng.key(experiment.data_seed, f"eval/{split}"), 32, split, {})
        for seed in (0, 1):
            params = dataset.lab.params(gamma=0.8, weight_decay=0.01, seed=seed)
            answers = np.asarray(forward(params, batch.tokens_BxL))[:, -1].argmax(axis=1)
            row = dataset.sel(gamma=0.8, weight_decay=0.01, seed=seed).isel(step=-1).squeeze()
            # shares of 32: exact
            assert row[f"{split}.accuracy"] == np.mean(answers == np.asarray(batch.targets_BxL)[:, -1])
            assert row[f"{split}.symmetric"] == np.mean(answers == np.asarray(batch.info["key_B"]) - 6)


def test_measurements_are_those_of_the_saved_weights(reproduced):
    dataset = lab.load(reproduced, "unseen")
    name = "block_0/attn/query/kernel"
    for step in (0, 8):
        params = dataset.lab.params(step, gamma=0.5, weight_decay=1.0, seed=1)
        s_K = np.linalg.svd(params["block_0"]["attn"]["query"]["kernel"].astype(np.float64), compute_uv=False)
        row = dataset.sel(snapshot=step, gamma=0.5, weight_decay=1.0, seed=1, matrix=name).squeeze()
        # tests/analysis/test_rank.py: 3 K^2 times twice 8 eps
        assert row["rank.stable"] == pytest.approx((s_K**2).sum() / s_K[0] ** 2, abs=3 * 64 * 16 * 2.0**-23)


def test_claims_table_is_the_one_of_the_page(reproduced, capsys):
    run("claims", f"--workdir={reproduced}", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((reproduced / "claims.json").read_text())
    page = (reproduced / "report" / "index.html").read_text()
    study = studies.get("composition")
    assert [row["id"] for row in rows] == [claim.id for claim in study.claims]
    for row in rows:
        assert row["verdict"] == "not measured"  # two seeds
        assert re.search(rf">\s*{row['id']}\s*<", page), row["id"]
    run("claims", f"--workdir={reproduced}")
    text = capsys.readouterr().out
    assert all(row["id"] in text and row["statement"] in text for row in rows)
    run("claims", f"--workdir={reproduced}", "--markdown")
    head, _, *lines = capsys.readouterr().out.splitlines()
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").replace(r"\|", "/").split("|")]
        assert len(cells) == head.count("|") - 1 and cells[0] == f"**{row['id']}** {row['statement']}"


def test_claim_is_the_number_of_the_raw_metrics(reproduced):
    """C3a from the files themselves: at weight decay 0.01, the best gamma's accuracy less the smallest gamma's."""
    with np.load(reproduced / "unseen" / "metrics" / "8.npz") as chunk:
        reasoning_R = chunk["ood_43.reasoning"][-1]
    columns = json.loads((reproduced / "unseen" / "grid.json").read_text())["columns"]
    rises = []
    for seed in (0, 1):
        at = {g: reasoning_R[r] for r, g in enumerate(columns["gamma"])
              if columns["seed"][r] == seed and columns["weight_decay"][r] == 0.01}  # fmt: skip
        assert len(at) == 2
        rises.append(float(max(at.values()) - at[min(at)]))
    (row,) = [row for row in outcome.read_claims(reproduced) if row["id"] == "C3a"]
    assert (row["low"], row["high"]) == pytest.approx((min(rises), max(rises)), rel=1e-5)


def test_claims_without_a_workdir_are_what_the_studies_claim(capsys):
    run("claims", "--json")
    rows = json.loads(capsys.readouterr().out)
    claimed = {(name, claim.id): claim for name in studies.NAMES for claim in studies.get(name).claims}
    assert {(row["study"], row["id"]) for row in rows} == set(claimed)
    for row in rows:
        claim = claimed[row["study"], row["id"]]
        assert (row["statement"], row["threshold"]) == (claim.statement, claim.threshold)
    run("claims")
    said = capsys.readouterr().out
    assert all(claim.statement in said and claim.threshold in said for claim in claimed.values())


# --- measurements by name ---


@pytest.fixture
def copied(reproduced, tmp_path):
    """The study's folder, to measure in; compiled without optimizations, too."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield shutil.copytree(reproduced, tmp_path / "w")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def test_named_measurement_is_taken_of_the_rows_snapshots_and_variants_asked_for(copied, capsys):
    asked = ("--measure=norm", "--rows=0,2-3", "--snapshots=last", "--precision=float64", "--variants=unseen")
    run("analyze", str(copied), *asked)
    assert capsys.readouterr().out.splitlines()[-1] == "analyzed: unseen/norm"
    found = lab.load(copied, "unseen")["norm.log_frobenius_whole"]
    assert found.dtype == np.float64 and found.isel(snapshot=-1).snapshot == 8
    columns, held = Workdir(copied / "unseen").grid.columns, []
    for row in range(8):
        place = {name: column[row] for name, column in columns.items()}
        value = float(found.sel(place).isel(snapshot=-1))
        leaves = jax.tree.leaves(lab.load(copied, "unseen").lab.params(8, **place))
        whole = sum((leaf.astype(np.float64) ** 2).sum() for leaf in leaves if leaf.ndim == 2)
        # below 10^4 squares added one after the other; the logarithm passes half of a relative error on
        assert np.isnan(value) or value == pytest.approx(np.log(whole) / 2, abs=1e4 * 2.0**-52)
        held.append(not np.isnan(value))
    assert held == [True, False, True, True, False, False, False, False]
    assert "norm.log_path" not in lab.load(copied, "wrong")

    run("analyze", str(copied), "--measure=norm", "--rows=0,2", "--snapshots=last", "--variants=unseen")
    assert capsys.readouterr().out.splitlines()[-1] == "analyzed: nothing new"
    run("analyze", str(copied), "--measure=norm,rank", "--snapshots=last")
    assert capsys.readouterr().out.splitlines()[-1] == "analyzed: unseen/norm, wrong/norm"
    assert np.isfinite(lab.load(copied, "wrong")["norm.log_path"].sel(snapshot=8)).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("--measure=sharpnes", r"no measurement 'sharpnes'; did you mean 'sharpness'\? There are .*, or all$"),
        ("--measure=norm,qqq", r"no measurement 'qqq'\. There are attribution, .*rank.*, or all$"),
        ("--measure=", r"no measurement ''\. There are"),
        ("--rows=8", "row 8: .* has rows 0 to 7"),
        ("--variants=unsen", "variant 'unsen': .* has unseen, wrong"),
        ("--variants=", "variant '': .* has unseen, wrong"),
    ],
)
def test_impossible_measurement_is_refused_and_nothing_measured(reproduced, capsys, asked, message):
    before = written(reproduced)
    assert re.search(message, refusal(capsys, "analyze", f"--workdir={reproduced}", asked).rstrip())
    assert written(reproduced) == before


@pytest.mark.parametrize("words", ["0,x", "3-1", "-2", "1,,2", "1-2-3", ""])
def test_words_that_are_no_rows_are_refused_with_an_example(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        run("analyze", "w", f"--rows={words}")
    assert stopped.value.code == 2
    assert re.search(r"--rows: invalid list of rows, e\.g\. 0,3,8-11, value", capsys.readouterr().err)


def test_row_numbers_are_each_once_and_in_order():
    assert arguments.row_numbers("8-11,3,0") == (0, 3, 8, 9, 10, 11)
    assert arguments.row_numbers("2,2,1-3") == (1, 2, 3) and arguments.row_numbers("7-7") == (7,)


def test_report_leaves_out_what_other_code_measured_and_says_so(copied, capsys, monkeypatch):
    run("analyze", str(copied), "--measure=spectrum", "--snapshots=last")
    monkeypatch.setattr(page, "_draw", lambda *_, **options: b"")
    drawn = {}
    for code in ("now", "other"):
        if code == "other":
            work = Workdir(copied / "unseen")
            header, arrays = table.read_measure(work, "spectrum")
            table.write_measure(work, "spectrum", arrays, header | {"code": code})
        capsys.readouterr()
        run("report", str(copied))
        drawn[code] = capsys.readouterr().out, (copied / "report" / "index.html").read_text()
    (said, html), (said_after, html_after) = drawn.values()
    assert "left out" not in said + html
    assert "left out of unseen: spectrum (measured by other code than is here now" in said_after
    assert "left out unseen" in html_after and "left out wrong" not in html_after
    pictures = [f"{variant}-measured-spectrum" for variant in ("unseen", "wrong")]
    assert [picture in html for picture in pictures] == [True, True]
    assert [picture in html_after for picture in pictures] == [False, True]
    run("analyze", str(copied), "--measure=spectrum", "--snapshots=last")
    assert capsys.readouterr().out.splitlines()[-1] == "analyzed: unseen/spectrum"


def test_list_names_every_measurement_that_analyze_takes(capsys, reproduced):
    run("list")
    said = capsys.readouterr().out
    experiment = Workdir(reproduced / "unseen").experiment
    taken = {one.name for one in [*catalogue.measures(experiment), *studies.get("composition").measures(experiment)]}
    lines = re.findall(r"^  --measure=(\S+) +(\S.*)$", said, re.MULTILINE)
    assert {name for name, _ in lines} >= taken
    assert ("spectrum", "Singular values of every matrix, and of every head's QK and OV product.") in lines


def test_list_names_every_study_preset_and_claim(capsys):
    run("list")
    said = capsys.readouterr().out
    for study in map(studies.get, studies.NAMES):
        assert study.name in said and study.title in said
        assert all(f"--preset={preset}" in said for preset in study.presets)
        assert all(claim.statement in said for claim in study.claims)


@pytest.fixture
def two_variants(tmp_path):
    """A config of which one variant sets three options for itself."""
    (tmp_path / "mine.py").write_text(
        "from lab.configs import composition\n"
        "def get_config():\n"
        "    config = composition.smoke()\n"
        "    own = dict(steps=30, grid=dict(gamma=(0.4,), learning_rate=(0.5,)), task=dict(setting='34_wrong'))\n"
        "    config.variants = dict(plain={}, special=own)\n"
        "    return config\n"
    )
    return f"--config={tmp_path / 'mine.py'}"


def test_users_word_at_top_level_wins_over_the_variants(two_variants):
    before = configs.variants(read_config(two_variants))
    said = ("--config.steps=7", "--config.grid.gamma=(0.1,)", "--config.optim.warmup_steps=1")
    after = configs.variants(read_config(two_variants, *said))
    assert (before["special"].steps, before["special"].grid.gamma) == (30, (0.4,))
    for variant in after.values():
        assert (variant.steps, variant.grid.gamma, variant.optim.warmup_steps) == (7, (0.1,), 1)
    # and what was not said stays
    assert (after["special"].grid.learning_rate, after["special"].task.setting) == ((0.5,), "34_wrong")
    assert after["plain"].grid.learning_rate == before["plain"].grid.learning_rate != (0.5,)


def test_axis_that_the_file_does_not_vary_can_be_said(two_variants):
    for variant in configs.variants(read_config(two_variants, "--config.grid.sam_radius=(0.0,0.1)")).values():
        assert variant.grid.sam_radius == (0.0, 0.1) and len(configs.grid(variant)) % 2 == 0


def test_users_word_for_one_variant_counts_there_only(two_variants):
    before = configs.variants(read_config(two_variants))
    after = configs.variants(read_config(two_variants, "--config.variants.special.steps=9"))
    assert (after["special"].steps, after["plain"].steps) == (9, before["plain"].steps)


# --- what it refuses ---


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("reproduce", "compo"), "unknown study 'compo'; there are composition"),
        (("reproduce", "composition", "--preset=huge"), "unknown preset 'huge' of composition; one of smoke, cpu"),
        (("reproduce", "composition", "--preset=smoke", "--config.grid.gama=(0.3,)"), "gamma"),
        (("reproduce", "composition", "--preset=smoke", "--variants=unsen"), "'unsen' is not a variant; one of unseen"),
        (("train", CONFIG, "--config.steps=abc"), "steps=abc: invalid literal for int"),
        (("train", CONFIG, "--config.step=3"), "steps"),
        (("train", CONFIG, "--config.model.norm=batch"), "model.norm='batch': one of pre, post, none"),
        (("train", CONFIG, "--config.grid.seed=(0,0)"), r"grid.seed=\(0, 0\): a value is repeated"),
        (("train", CONFIG, "--config.grid.gamma=('a',)"), "'a' is not a number"),
        (("train", CONFIG, "--config.grid.gamma=0.3"), "grid.gamma=0.3: expected a tuple of numbers"),
        (("train", CONFIG, "--config.grid.sam_radius=(-1,)"), "-1 is negative"),
        (
            ("train", CONFIG, "--config.grid.label_noise=(0,2)"),
            "a row of the grid: objective.label_noise=2.0: a number from",
        ),
        (("train", CONFIG, *TINY[:4], "--config.optim.warmup_steps=8"), r"warmup_steps=8: must lie in \[0, steps=8\)"),
        (("train", CONFIG, "--config.task.setting=43"), "task.setting='43': one of 34_wrong, 34_unseen, all_pairs"),
        (("train", CONFIG, "--config.eval_size=31"), "n=31 must be even"),
        (("train", CONFIG, "--variants=wrong,right"), "'right' is not a variant; one of unseen, wrong"),
        (("train", CONFIG, "--wrkdir=x"), "unexpected argument '--wrkdir=x'; did you mean --workdir"),
        (("train", CONFIG, "now"), "unexpected argument 'now'"),
        (("train",), "--config=FILE.* is missing"),
        (("analyze",), "no training here"),
        (("report",), "no training here"),
        (("claims",), "no claims table"),
        (("analyze", "--config.steps=3"), "unexpected argument '--config.steps=3'"),
    ],
)
def test_mistake_earns_one_line_that_says_what_would_do(tmp_path, capsys, argv, message):
    line = refusal(capsys, argv[0], *argv[1:2], f"--workdir={tmp_path / 'w'}", *argv[2:])
    assert re.search(message, line), line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ((CONFIG, "--config.grid.gama=(0.3,)"), "gama.*gamma"),
        ((CONFIG.replace("smoke", "smokey"),), "preset 'smokey': one of smoke, cpu, gpu, paper"),
        (("--config=nowhere.py",), "nowhere.py"),
    ],
)
def test_mistake_in_naming_a_config_earns_a_line_of_ours(tmp_path, capsys, config, message):
    line = refusal(capsys, "train", f"--workdir={tmp_path / 'w'}", *config)
    assert re.search(message, line) and "\\" not in line and "Traceback" not in line, line


def test_missing_argument_is_named(capsys):
    for argv, name in ((["train", CONFIG], "--workdir"), (["reproduce"], "study"), (["reproduc"], "reproduce")):
        with pytest.raises(SystemExit) as stopped:
            run(*argv)
        assert stopped.value.code == 2 and name in capsys.readouterr().err.splitlines()[-1]


def test_folder_of_another_config_is_refused_with_the_difference(reproduced, capsys):
    before = written(reproduced)
    line = refusal(
        capsys, "reproduce", "composition", "--preset=smoke", f"--workdir={reproduced}", *TINY, "--config.batch_size=9"
    )
    assert "holds another training" in line and "batch_size: 8 -> 9" in line
    others = [arg for arg in TINY if "grid.seed" not in arg]
    line = refusal(capsys, "train", f"--workdir={reproduced}", CONFIG, *others, "--config.grid.seed=(0,)")
    assert re.search(r"Changed: grid.seed: \[0, 1\] -> \[0\]$", line)
    assert written(reproduced) == before


def test_training_that_has_not_ended_is_not_analyzed_or_reported(reproduced, tmp_path, capsys):
    begun = tmp_path / "w" / "unseen"
    begun.mkdir(parents=True)
    for name in ("config.json", "grid.json"):
        (begun / name).write_bytes((reproduced / "unseen" / name).read_bytes())
    for command in ("analyze", "report"):
        line = refusal(capsys, command, f"--workdir={tmp_path / 'w'}")
        assert "variant unseen is not trained to its last step; train first" in line


def test_damaged_result_is_named_and_not_reported(reproduced, tmp_path, capsys):
    copy = shutil.copytree(reproduced, tmp_path / "w")
    (copy / "unseen" / "metrics" / "4.npz").write_bytes(b"PK")
    assert "metrics/4.npz: damaged" in refusal(capsys, "report", f"--workdir={copy}")
    (copy / "claims.json").write_text("[{")
    assert "no claims table" in refusal(capsys, "claims", f"--workdir={copy}")


def test_mistake_of_ours_shows_where_it_is(capsys, monkeypatch):
    def broken(name):
        raise RuntimeError("ours")

    monkeypatch.setattr(studies, "get", broken)
    with pytest.raises(SystemExit) as stopped:
        run("list")
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and "Traceback" in said and "RuntimeError: ours" in said


def test_lab_debug_shows_where_a_users_mistake_was_noticed(capsys, monkeypatch):
    monkeypatch.setenv("LAB_DEBUG", "1")
    with pytest.raises(SystemExit) as stopped:
        run("reproduce", "compo")
    assert stopped.value.code == 1 and "Traceback" in capsys.readouterr().err
