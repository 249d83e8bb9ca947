"""Configs on the command line: by name or by file, with the user's word above that of every variant."""

from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from lab import config as configs
from lab.cli import config
from lab.configs import base, composition


def read(*argv):
    return config.read(list(argv), [])


@pytest.fixture
def two_variants(tmp_path):
    """A config of which one variant sets three options for itself."""
    (tmp_path / "mine.py").write_text(
        "from lab.configs import composition\n"
        "def get_config():\n"
        "    config = composition.get_config('smoke')\n"
        "    own = dict(steps=30, grid=dict(gamma=(0.4,), learning_rate=(0.5,)), task=dict(setting='34_wrong'))\n"
        "    config.variants = dict(plain={}, special=own)\n"
        "    return config\n"
    )
    return f"--config={tmp_path / 'mine.py'}"


def test_users_word_at_top_level_wins_over_the_variants(two_variants):
    before = configs.variants(read(two_variants))
    said = ("--config.steps=7", "--config.grid.gamma=(0.1,)", "--config.optim.warmup_steps=1")
    after = configs.variants(read(two_variants, *said))
    assert (before["special"].steps, before["special"].grid.gamma) == (30, (0.4,))
    for variant in after.values():
        assert (variant.steps, variant.grid.gamma, variant.optim.warmup_steps) == (7, (0.1,), 1)
    # and what was not said stays
    assert (after["special"].grid.learning_rate, after["special"].task.setting) == ((0.5,), "34_wrong")
    assert after["plain"].grid.learning_rate == before["plain"].grid.learning_rate != (0.5,)


def test_axis_that_the_file_does_not_vary_can_be_said(two_variants):
    for variant in configs.variants(read(two_variants, "--config.grid.sam_radius=(0.0,0.1)")).values():
        assert variant.grid.sam_radius == (0.0, 0.1) and len(configs.grid(variant)) % 2 == 0


def test_users_word_for_one_variant_counts_there_only(two_variants):
    before = configs.variants(read(two_variants))
    after = configs.variants(read(two_variants, "--config.variants.special.steps=9"))
    assert (after["special"].steps, after["plain"].steps) == (9, before["plain"].steps)


# --- how a config is named ---


def test_name_file_and_python_give_the_same_config():
    file = composition.__file__
    ours = [base.load("composition", "smoke"), composition.get_config("smoke"), read("--config=composition:smoke")]
    theirs = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=theirs, sys_argv=["", f"--config={file}:smoke"])
    theirs(["", f"--config={file}:smoke"])
    for made in (*ours, read(f"--config={file}:smoke"), theirs.config):
        assert made.to_dict() == ours[0].to_dict() and (made.study, made.preset) == ("composition", "smoke")


def test_preset_that_is_not_said_is_cpu_or_the_smallest():
    assert read("--config=composition").preset == "cpu" and read("--config=large").preset == "reduced"
    assert read(f"--config={composition.__file__}").preset == "cpu"


def test_last_config_counts():
    assert read("--config=composition:cpu", "--config=ntp_ctp:smoke").study == "ntp_ctp"


def test_users_file_needs_no_more_than_its_presets(tmp_path):
    file = tmp_path / "wide.py"
    file.write_text(
        "from lab.configs import composition\n"
        "from lab.configs.composition import gpu\n"
        "def narrow():\n"
        "    return _config(4)\n"
        "def wide():\n"
        "    return _config(8)\n"
        "def _config(d_model):\n"
        "    config = composition.smoke()\n"
        "    config.model.d_model = d_model\n"
        "    return config\n"
    )
    first, second = read(f"--config={file}"), read(f"--config={file}:wide")
    assert [(made.study, made.preset, made.model.d_model) for made in (first, second)] == [
        ("wide", "narrow", 4),
        ("wide", "wide", 8),
    ]


def test_file_that_names_no_study_is_one(tmp_path):
    file = tmp_path / "mine.py"
    for said, study in (("", "mine"), ("ntp_ctp", "ntp_ctp")):
        file.write_text(
            "from lab.configs import base\n"
            "def get_config():\n"
            f"    config = base.config(study='{said}')\n"
            "    config.eval_every = config.get_ref('checkpoint_every')\n"
            "    return config.lock()\n"
        )
        made = read(f"--config={file}", "--config.checkpoint_every=7")
        assert made.study == study and made.eval_every == 7  # a reference follows the user's word


def test_preset_goes_to_the_users_own_function(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from lab.configs import base\n"
        "def get_config(words='none'):\n"
        "    return base.config(variants={word: {} for word in words.split('+')})\n"
    )
    assert list(read(f"--config={file}:a+b").variants) == ["a", "b"] and list(read(f"--config={file}").variants) == [
        "none"
    ]


def test_file_of_a_job_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.file(["--config=mine.py:cpu", "--config.steps=3"]) == str(Path.cwd() / "mine.py")
    assert config.file(["--config=composition:cpu"]) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef get_config(:\n    pass\n", r"mine\.py, line 2: "),
        ("from lab.configs import base\ndef cpu():\n    return base.config(\n", r"mine\.py, line 3: "),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
            r"config\.\w+ is missing",
        ),
        (
            "from lab.configs import base\n"
            "def get_config():\n"
            "    made = base.config()\n"
            "    del made.variants\n"
            "    return made\n",
            "config.variants is missing",
        ),
    ],
)
def test_mistake_in_a_users_file_is_one_line(tmp_path, source, message):
    (tmp_path / "mine.py").write_text(source)
    for said in ((), ("--config.grid.gamma=(0.3,)",), ("--config.steps=3",)):
        with pytest.raises(ValueError, match=message) as caught:
            read(f"--config={tmp_path / 'mine.py'}", *said)
        assert "\n" not in str(caught.value)
