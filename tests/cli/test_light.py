"""Small questions import nothing heavy, so that the answer is there at once."""

import os
import subprocess
import sys

import pytest

from lab import cache, studies, verdicts
from lab import config as configs
from lab.cli import texts
from lab.configs import composition
from lab.disk import claims_file, files

HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "matplotlib", "scipy", "xarray", "pandas", "submitit"}
TEXT = {
    "title": "A title", "papers": [], "presets": {"cpu": "Minutes"}, "decides": {"cpu": "all claims"},
    "claims": [{"id": "Z1", "statement": "It is so", "quantity": "share", "threshold": "at least 0.5",
                "headline": True}],
    "measures": {"own": {"mine": "Of mine."}, "catalogue": {}},
}  # fmt: skip


def heavy_modules(*words):
    """What is printed, and which heavy packages were imported for it."""
    program = f"""
import sys
from lab.cli import main
try:
    main({list(words)!r})
finally:
    print("HEAVY", *sorted({{name.partition(".")[0] for name in sys.modules}} & {HEAVY!r}))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    said, _, heavy = ran.stdout.rpartition("HEAVY")
    return said + ran.stderr, heavy.split()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A study's folder with a training that was begun and a claims table; texts of all studies are remembered."""
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))
    for name in studies.names():
        files.write_json(cache.folder("studies") / f"{name}-{texts._source()}.json", TEXT)
    (config, *_) = configs.variants(composition.smoke()).values()
    begun = tmp_path / "w" / "unseen"
    files.write_json(begun / "config.json", {"config": configs.to_json(config), "data": {}, "start": {}})
    files.write_json(begun / "grid.json", configs.grid(config).to_json())
    row = dict(
        id="C1", verdict="open", statement="Stated", quantity="share", threshold="above 0", measured=None, scale="",
        headline=False, note="", exact=False, margin=None,
    )  # fmt: skip
    files.write_json(tmp_path / "w" / claims_file.NAME, {"version": verdicts.VERSION, "claims": [row]})
    return tmp_path / "w"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--help", "COMMAND"),
        ("train --help", "--workdir"),
        ("export --help", "tensorboard"),
        ("list", "composition  "),
        ("list composition", "--preset=cpu    Minutes\n                  decides all claims\n"),
        ("claims", "Z1   It is so\n     needs: share at least 0.5"),
        ("claims --workdir=W", "C1   open"),
        ("claims --workdir=W --json", '"statement": "Stated"'),
        ("claims --workdir=W/unseen", "no claims table"),
        ("status W", "unseen   stopped  0/40  8     ?"),
        ("analyze W --wrkdir=x", "did you mean --workdir"),
    ],
)
def test_small_question_imports_nothing_heavy(root, typed, said):
    text, heavy = heavy_modules(*typed.replace("W", str(root)).split())
    assert said in text
    assert heavy == []


def test_list_fits_a_screen_and_names_every_study(capsys, run):
    run("list")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and [line.split()[0] for line in lines[: len(studies.names())]] == [*studies.names()]


def test_text_of_a_study_is_remembered_until_its_source_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path))
    read = []
    monkeypatch.setattr(texts, "_read", lambda name: read.append(name) or TEXT)
    assert texts.study("composition") == texts.study("composition") == TEXT and len(read) == 1
    monkeypatch.setattr(texts, "_source", lambda: "other")
    assert texts.study("composition") == TEXT and len(read) == 2


def test_text_of_a_study_is_had_without_a_folder_for_caches(monkeypatch):
    def nowhere(name):
        raise ValueError("no folder for caches")

    monkeypatch.setattr(cache, "folder", nowhere)
    monkeypatch.setattr(texts, "_read", lambda name: TEXT)
    assert texts.study("composition") == TEXT


def test_watching_ends_quietly(capsys, root, run, monkeypatch):
    looks = []

    def pause(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", pause)
    run("status", str(root), "--watch")
    said = capsys.readouterr()
    assert said.out.count("variant ") == len(looks) == 2 and said.err == ""
