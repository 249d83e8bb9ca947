"""Compiled programs on disk: what is read again is what was written, and nothing else is ever run."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lab.engine import program_cache

HIT, ASKED = (f"/jax/compilation_cache/{name}" for name in ("cache_hits", "compile_requests_use_cache"))
OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")


@pytest.fixture(autouse=True)
def nobody_decided(monkeypatch, tmp_path):
    """JAX's own settings as a new process has them, and a folder for caches; all of them are put back."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(program_cache, "_folder", None)
    monkeypatch.setattr(program_cache, "WORTH_SECONDS", 0.0)
    start_process()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def start_process():
    """As far as the cache can tell."""
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()
    program_cache.enable()


@pytest.fixture
def heard():
    """Events of JAX's cache, as they come."""
    events = []

    def hear(event, **_):
        events.append(event)

    jax.monitoring.register_event_listener(hear)
    yield events
    jax.monitoring.unregister_event_listener(hear)


def compute():
    """A program that is compiled anew, or read."""

    def cosines(x):
        return jax.numpy.cos(x @ x.T)

    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    return np.asarray(jax.jit(cosines).lower(x).compile()(x))


def entries():
    return sorted(program_cache._folder.glob("jit_cosines*-cache"))


def test_next_process_reads_what_was_compiled_and_computes_the_same(heard):
    expected = compute()
    program_cache.seal()
    start_process()
    heard.clear()
    np.testing.assert_array_equal(compute(), expected)
    assert heard.count(HIT) == 1 and len(entries()) == 1


@pytest.mark.parametrize("damage", ["one bit", "half", "empty", "other seal", "no seal"])
def test_damaged_or_foreign_entry_costs_a_compilation_and_nothing_else(heard, damage):
    expected = compute()
    program_cache.seal()
    (entry,) = entries()
    content, seal = entry.read_bytes(), program_cache._seal(entry)
    if damage == "one bit":
        entry.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage in ("half", "empty"):
        entry.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
    elif damage == "other seal":
        seal.write_text("0" * 64)
    else:
        seal.unlink()
    start_process()
    assert entries() == []
    heard.clear()
    np.testing.assert_array_equal(compute(), expected)
    program_cache.seal()
    assert heard.count(HIT) == 0 and entries() == [entry] and seal.exists()


def test_every_bit_of_an_entry_counts():
    """Any one that flips is seen, since the seal is a hash of all."""
    compute()
    program_cache.seal()
    (entry,) = entries()
    content = entry.read_bytes()
    for place in np.random.default_rng(0).choice(len(content), 20, replace=False):
        entry.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert program_cache._seal(entry).read_bytes() != program_cache._hash(entry)


def test_folder_of_the_user_is_left_alone(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    compilation_cache.reset_cache()
    program_cache.enable()
    compute()
    program_cache.seal()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    assert not [*(tmp_path / "theirs").glob("*.sha256")]


def test_user_who_wants_no_cache_gets_none(monkeypatch):
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    program_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "file"))
    start_process()
    assert jax.config.jax_compilation_cache_dir is None
    compute()


def test_machine_that_does_not_accept_its_own_programs_keeps_none_and_is_asked_once(monkeypatch, tmp_path):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "another"))
    asked = []
    monkeypatch.setattr(program_cache, "_reads_again", lambda: asked.append(1) or False)
    for _ in range(2):
        start_process()
        assert jax.config.jax_compilation_cache_dir is None
    assert len(asked) == 1


def test_other_machines_have_other_folders(monkeypatch):
    ours = program_cache._machine()
    assert ours == program_cache._machine()
    monkeypatch.setattr(program_cache, "_cpu_features", lambda: ["flags : fewer"])
    assert program_cache._machine() != ours


def test_oldest_entries_go_where_there_are_too_many(monkeypatch):
    compute()
    program_cache.seal()
    monkeypatch.setattr(program_cache, "LARGEST", 0)
    start_process()
    assert entries() == [] and not [*program_cache._folder.glob("*.sha256")]
