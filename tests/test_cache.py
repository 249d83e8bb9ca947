"""Where caches lie, by the environment alone."""

from pathlib import Path

import pytest

from lab import cache

NAMES = ("GAMMALAB_CACHE", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "{home}/.cache/gammalab/text"),
        ({"XDG_CACHE_HOME": "/shared"}, "/shared/gammalab/text"),
        ({"XDG_CACHE_HOME": "/shared", "GAMMALAB_CACHE": "/ours"}, "/ours/text"),
        ({"GAMMALAB_CACHE": "~/ours"}, "{home}/ours/text"),
        ({"GAMMALAB_CACHE": "", "XDG_CACHE_HOME": ""}, "{home}/.cache/gammalab/text"),
    ],
)
def test_the_nearest_variable_says_where(monkeypatch, home, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache.folder("text") == Path(expected.format(home=home))
    assert list(home.iterdir()) == []  # it is only named


@pytest.mark.parametrize("variable", [None, *NAMES])
def test_a_user_without_a_home_is_told_which_variable_to_set(monkeypatch, variable):
    def no_home(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.setattr(Path, "home", lambda: no_home(None))
    if variable:
        monkeypatch.setenv(variable, "~/cache")
    with pytest.raises(ValueError, match=r"no folder for caches \(.*home.*\): set GAMMALAB_CACHE to one") as error:
        cache.folder("text")
    assert "\n" not in str(error.value)
