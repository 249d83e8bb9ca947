"""The command line as its users meet it: the whole study in small, and one line for every mistake."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import lab
from lab import models, rng, studies
from lab.claims import OPEN
from lab.cli import unchanged
from lab.configs import base
from lab.disk import claims_file, measurements
from lab.disk.workdir import Workdir
from lab.measuring import catalogue
from lab.report import page

TINY = (
    "--config.model.n_layers=1", "--config.model.d_model=8", "--config.model.d_head=8", "--config.model.d_ff=8",
    "--config.steps=8", "--config.batch_size=8", "--config.eval_size=32", "--config.eval_every=4",
    "--config.checkpoint_every=4", "--config.snapshots=2", "--config.optim.warmup_steps=2",
    "--config.grid.gamma=(0.5,0.8)", "--config.grid.weight_decay=(0.01,1.0)", "--config.grid.learning_rate=(0.001,)",
    "--config.grid.seed=(0,1)",
)  # fmt: skip


@pytest.fixture(autouse=True)
def texts_are_read_anew(tmp_path, monkeypatch):
    """Not remembered from another test."""
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, run):
    """The study, trained, analyzed and reported once."""
    root = tmp_path_factory.mktemp("runs") / "smoke"
    run("reproduce", "composition", "--preset=smoke", f"--workdir={root}", *TINY)
    return root


def written(root):
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


# --- what it does ---


def test_reproducing_again_says_nothing_to_do_and_touches_nothing(reproduced, capsys, run):
    before = written(reproduced)
    run("reproduce", "composition", "--preset=smoke", f"--workdir={reproduced}", *TINY)
    said = capsys.readouterr().out
    assert said.startswith(f"nothing to do: no file in {reproduced} has changed") and said.count("\n") == 1
    assert written(reproduced) == before


def test_reproducing_again_does_not_even_import_jax(reproduced):
    words = ["reproduce", "composition", "--preset=smoke", f"--workdir={reproduced}", *TINY]
    program = f"import sys, lab.cli; lab.cli.main({words!r}); print('jax' in sys.modules, 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "False True", ran.stderr


@pytest.mark.parametrize("change", ["package", "switch", "source", "link"])
def test_another_program_or_a_workdir_with_links_is_looked_at(reproduced, monkeypatch, tmp_path, change):
    words = ["composition", "preset=smoke"]
    program = unchanged.program(words)
    root = shutil.copytree(reproduced, tmp_path / "w")
    unchanged.remember(root, program)
    assert unchanged.is_done(root, unchanged.program(words))
    if change == "package":
        monkeypatch.setattr(unchanged.metadata, "distributions", list)
    elif change == "switch":
        monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    elif change == "source":
        monkeypatch.setattr(unchanged, "_states", lambda folder, paths: [])
    else:
        (root / "elsewhere").symlink_to(tmp_path)
        unchanged.remember(root, program)
    assert not unchanged.is_done(root, unchanged.program(words))


def test_what_was_touched_since_is_looked_at(reproduced, capsys, run):
    """Nothing is trained or measured again where the content is what it was."""
    page = (reproduced / "report" / "index.html").stat().st_mtime_ns
    (chunk, *_) = (reproduced / "wrong" / "metrics").iterdir()
    os.utime(chunk)
    for line in ("nothing to do: .*index.html is up to date", "nothing to do: no file in .* has changed .*"):
        run("reproduce", "composition", "--preset=smoke", f"--workdir={reproduced}", *TINY)
        said = capsys.readouterr().out
        assert re.fullmatch(line, said.splitlines()[-1])
        assert ("analyzed: nothing new" in said) == ("up to date" in line)
    assert (reproduced / "report" / "index.html").stat().st_mtime_ns == page


def test_analyzing_again_takes_nothing(reproduced, capsys, run):
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


def test_claims_table_is_the_one_of_the_page(reproduced, capsys, run):
    run("claims", f"--workdir={reproduced}", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((reproduced / "claims.json").read_text())["claims"]
    page = (reproduced / "report" / "index.html").read_text()
    study = studies.get("composition")
    ordered = sorted(study.claims, key=lambda claim: not claim.headline)
    assert [row["id"] for row in rows] == [claim.id for claim in ordered]
    for row in rows:
        assert row["verdict"] == OPEN  # two seeds
        assert re.search(rf">\s*{row['id']}\s*<", page), row["id"]
    run("claims", f"--workdir={reproduced}")
    text = capsys.readouterr().out
    assert all(row["id"] in text and row["statement"] in text for row in rows)
    run("claims", f"--workdir={reproduced}", "--markdown")
    head, _, *lines, between, foot = capsys.readouterr().out.splitlines()
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").replace(r"\|", "/").split("|")]
        named = f"**{row['id']}** {row['statement']}" + " (headline)" * row["headline"]
        assert len(cells) == head.count("|") - 1 and cells[0] == named
    assert not between and foot.startswith(f"{len(rows)} claims: ")


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
    (row,) = [row for row in claims_file.read(reproduced) if row["id"] == "C3a"]
    assert (row["low"], row["high"]) == pytest.approx((min(rises), max(rises)), rel=1e-5)


def test_claims_without_a_workdir_are_what_the_studies_claim(capsys, run):
    run("claims", "--json")
    rows = json.loads(capsys.readouterr().out)
    claimed = {(name, claim.id): claim for name in studies.names() for claim in studies.get(name).claims}
    assert {(row["study"], row["id"]) for row in rows} == set(claimed)
    for row in rows:
        claim = claimed[row["study"], row["id"]]
        assert (row["statement"], row["threshold"]) == (claim.statement, claim.threshold.text)
    run("claims")
    said = capsys.readouterr().out
    assert all(claim.statement in said and claim.threshold.text in said for claim in claimed.values())


# --- measurements by name ---


@pytest.fixture
def copied(reproduced, tmp_path):
    """The study's folder, to measure in."""
    return shutil.copytree(reproduced, tmp_path / "w")


def test_named_measurement_is_taken_of_the_rows_snapshots_and_variants_asked_for(copied, capsys, run):
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
def test_impossible_measurement_is_refused_and_nothing_measured(reproduced, asked, message, refusal):
    before = written(reproduced)
    assert re.search(message, refusal("analyze", f"--workdir={reproduced}", asked).rstrip())
    assert written(reproduced) == before


def test_report_leaves_out_what_other_code_measured_and_says_so(copied, capsys, monkeypatch, run):
    run("analyze", str(copied), "--measure=spectrum", "--snapshots=last")
    monkeypatch.setattr(page, "_draw", lambda *_, **options: b"")
    drawn = {}
    for code in ("now", "other"):
        if code == "other":
            work = Workdir(copied / "unseen")
            header, arrays = measurements.read(work, "spectrum")
            measurements.write(work, "spectrum", arrays, header | {"code": code})
        capsys.readouterr()
        run("report", str(copied))
        drawn[code] = capsys.readouterr().out, (copied / "report" / "index.html").read_text()
    (said, html), (said_after, html_after) = drawn.values()
    assert "left out" not in said + html
    assert "left out of unseen: spectrum (stale: measured by an older version of the code" in said_after
    assert "left out unseen" in html_after and "left out wrong" not in html_after
    pictures = [f"{variant}-measured-spectrum" for variant in ("unseen", "wrong")]
    assert [picture in html for picture in pictures] == [True, True]
    assert [picture in html_after for picture in pictures] == [False, True]
    run("analyze", str(copied), "--measure=spectrum", "--snapshots=last")
    assert capsys.readouterr().out.splitlines()[-1] == "analyzed: unseen/spectrum"


def test_list_names_every_measurement_that_analyze_takes(capsys, reproduced, run):
    run("list", "composition")
    said = capsys.readouterr().out
    experiment = Workdir(reproduced / "unseen").experiment
    taken = {one.name for one in [*catalogue.measures(experiment), *studies.get("composition").measures(experiment)]}
    lines = re.findall(r"^  --measure=(\S+) +(\S.*)$", said, re.MULTILINE)
    assert {name for name, _ in lines} >= taken
    assert ("spectrum", "Singular values of every matrix, and of every head's QK and OV product.") in lines


@pytest.mark.parametrize("name", studies.names())
def test_list_of_a_study_names_its_presets_and_claims(capsys, run, name):
    run("list", name)
    said, study = capsys.readouterr().out, studies.get(name)
    assert name in said and study.title in said
    assert all(f"--preset={preset}" in said for preset in base.presets(name))
    for claim in study.claims:
        assert f"  {claim.id:<4} {claim.statement}{' (headline)' * claim.headline}\n" in said


# --- what it refuses ---


def test_folder_of_another_config_is_refused_with_the_difference(reproduced, refusal):
    before = written(reproduced)
    line = refusal(
        "reproduce", "composition", "--preset=smoke", f"--workdir={reproduced}", *TINY, "--config.batch_size=9"
    )
    assert "holds another training" in line and "batch_size: 8 -> 9" in line
    others = [arg for arg in TINY if "grid.seed" not in arg]
    line = refusal("train", f"--workdir={reproduced}", "--config=composition:smoke", *others, "--config.grid.seed=(0,)")
    assert re.search(r"Changed: grid.seed: \[0, 1\] -> \[0\]$", line)
    assert written(reproduced) == before


def test_training_that_has_not_ended_is_not_analyzed_or_reported(reproduced, tmp_path, refusal):
    begun = tmp_path / "w" / "unseen"
    begun.mkdir(parents=True)
    for name in ("config.json", "grid.json"):
        (begun / name).write_bytes((reproduced / "unseen" / name).read_bytes())
    for command in ("analyze", "report"):
        line = refusal(command, f"--workdir={tmp_path / 'w'}")
        assert "variant unseen is not trained to its last step; train first" in line


def test_damaged_result_is_named_and_not_reported(reproduced, tmp_path, refusal):
    copy = shutil.copytree(reproduced, tmp_path / "w")
    (copy / "unseen" / "metrics" / "4.npz").write_bytes(b"PK")
    assert "metrics/4.npz: damaged" in refusal("report", f"--workdir={copy}")
    (copy / "claims.json").write_text("[{")
    assert "no claims table" in refusal("claims", f"--workdir={copy}")


def test_mistake_of_ours_shows_where_it_is(capsys, monkeypatch, run):
    def broken(name):
        raise RuntimeError("ours")

    monkeypatch.setattr(studies, "get", broken)
    with pytest.raises(SystemExit) as stopped:
        run("list", "composition")
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and "Traceback" in said and "RuntimeError: ours" in said


def test_lab_debug_shows_where_a_users_mistake_was_noticed(capsys, monkeypatch, run):
    monkeypatch.setenv("LAB_DEBUG", "1")
    with pytest.raises(SystemExit) as stopped:
        run("reproduce", "compo")
    assert stopped.value.code == 1 and "Traceback" in capsys.readouterr().err
