"""Trajectories: what is read and said, the cache they come from, and published files."""

import contextlib
import dataclasses
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.io import savemat

from lab.tasks import Fields, field_pools, spectral

KEY = jax.random.key(0)
SMALL = Fields("advection_diffusion", size=16, horizon=2, frames=2, low=1, high=4, n_train=23, n_test=5)


@pytest.fixture(autouse=True)
def forget(tmp_path, monkeypatch):
    """A cache of one's own, on disk and in this process."""
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))
    for remembered in (field_pools.computed, field_pools.published):
        remembered.cache_clear()


def everything(task):
    """All trajectories of a split, in the order of the pool."""
    return {split: np.array(fields) for split, fields in task.pools.fields.items()}


def test_frames_that_are_said_follow_those_that_are_read():
    pools = SMALL.pools
    batch = jax.jit(lambda key: SMALL.sample(key, 23, "train", {}))(KEY)
    assert batch.tokens_BxL.shape == batch.targets_BxL.shape == (23, 2, 16, 16)
    drawn = np.concatenate([batch.tokens_BxL, batch.targets_BxL], axis=1)
    place_B = [int(np.flatnonzero((pools.fields["train"] == one).all(axis=(1, 2, 3)))[0]) for one in drawn]
    assert sorted(place_B) == [*range(23)]  # the whole split, each once
    np.testing.assert_array_equal(batch.info["region_B"], pools.region["train"][place_B])


def test_a_frame_is_the_solver_s_at_its_time():
    pools = SMALL.pools
    equation = spectral.Equation("advection_diffusion", SMALL.viscosity, flow="uniform")
    first, *rest = pools.fields["test"][0]
    again = np.asarray(spectral.solve(equation, jnp.asarray(first), 0.01, 10, 4))
    np.testing.assert_allclose(again[1:], rest, atol=1e-5)  # float32, of numbers of about 1


def test_trajectories_are_those_of_their_seed_whatever_their_number_and_the_precision_that_is_set():
    first = everything(SMALL)
    with jax.enable_x64(True):
        field_pools.computed.cache_clear()
        assert SMALL.pools.sha256 == dataclasses.replace(SMALL).pools.sha256
    more = everything(dataclasses.replace(SMALL, n_train=25))
    np.testing.assert_array_equal(more["train"][:20], first["train"][:20])
    np.testing.assert_allclose(more["train"][20:23], first["train"][20:], atol=1e-5)  # another width of the program
    assert not np.allclose(everything(dataclasses.replace(SMALL, fields_seed=1))["test"], first["test"])
    double = everything(dataclasses.replace(SMALL, precision="float64"))
    np.testing.assert_allclose(double["train"], first["train"], atol=1e-4)
    assert not np.array_equal(double["train"], first["train"]) and double["train"].dtype == np.float32


def test_cached_trajectories_are_read_and_damaged_ones_computed_again(tmp_path, monkeypatch):
    sha256 = SMALL.pools.sha256
    (folder,) = (tmp_path / "cache" / "fields").iterdir()

    def forbidden(recipe):
        raise AssertionError("computed again")

    field_pools.computed.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(field_pools, "_compute", forbidden)
        assert SMALL.pools.sha256 == sha256
    content = bytearray((folder / "test.npy").read_bytes())
    content[-1] ^= 1
    (folder / "test.npy").write_bytes(content)
    field_pools.computed.cache_clear()
    assert SMALL.pools.sha256 == sha256
    assert [path.name for path in (tmp_path / "cache" / "fields").iterdir()] == [folder.name]
    assert sha256 in SMALL.files()["fields.json"].decode()


def test_loss_is_the_relative_error_of_a_whole_trajectory():
    batch = SMALL.sample(KEY, 3, "test", {})
    true = batch.targets_BxL
    assert float(SMALL.mean_loss(1.5 * true, batch)) == pytest.approx(0.5, rel=1e-5)
    assert float(SMALL.mean_loss(jnp.zeros_like(true), batch)) == pytest.approx(1, rel=1e-5)
    late = true.at[:, 1].set(0.0)
    scores = SMALL.score(late, batch)
    assert float(scores["first_error"]) < 1e-9 and 0.5 < float(scores["error"]) < 1
    gradient = jax.grad(lambda said: SMALL.mean_loss(said, batch))(true)
    assert bool(jnp.all(jnp.isfinite(gradient)))  # where nothing is wrong, too
    with pytest.raises(ValueError, match=r"\(1, 16, 16\) of a trajectory, expected \(2, 16, 16\): model.horizon"):
        SMALL.mean_loss(true[:, :1], batch)


@pytest.mark.parametrize("equation", ["burgers", "navier_stokes"])
def test_a_step_too_long_for_the_speeds_that_are_reached_is_refused(equation):
    task = dataclasses.replace(SMALL, equation=equation, amplitude=300.0, step=0.05)
    with pytest.raises(ValueError, match=r"^task.step=0.05: unstable; use (at most|a smaller one)"):
        _ = task.pools


# --- published files ---


def published(folder, suffix, shape=(4, 32, 32, 9)):
    fields = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = folder / f"fields{suffix}"
    if suffix == ".npz":
        np.savez(path, u=fields, a=fields[..., 0])
    elif suffix == ".npy":
        np.save(path, fields)
    else:
        savemat(path, {"u": fields})
    return path, fields


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".mat"])
def test_published_files_are_cut_into_splits_times_and_points(tmp_path, suffix):
    path, fields = published(tmp_path, suffix)
    task = dataclasses.replace(SMALL, n_train=3, n_test=1, skip=3, path=str(path))
    pools = task.pools
    np.testing.assert_array_equal(pools.fields["train"], np.moveaxis(fields[:3, ::2, ::2, 3:7], -1, 1))
    np.testing.assert_array_equal(pools.fields["test"], np.moveaxis(fields[3:, ::2, ::2, 3:7], -1, 1))
    assert set(task.sample(KEY, 2, "train", {}).info["region_B"].tolist()) == {-1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(n_train=4), r"has 4 trajectories; task.n_train and task.n_test ask for 5"),
        (dict(skip=6), r"has 9 times; task.skip, frames and horizon ask for 10"),
        (dict(size=12), r"task.size=12: .* has a grid of 32, of which it must be a divisor"),
    ],
)
def test_published_files_that_are_too_small_are_refused(tmp_path, changes, message):
    path, _ = published(tmp_path, ".npz")
    task = dataclasses.replace(SMALL, path=str(path), **dict(n_train=3, n_test=1) | changes)
    with pytest.raises(ValueError, match=message):
        _ = task.pools


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npz", None, r"no such file"),
        ("fields.txt", b"", r"expected a file .npy, .npz, .mat"),
        ("bad.npz", b"nothing", r"cannot be read as fields"),
        ("bad.mat", b"nothing", r"cannot be read as fields"),
        ("half.npz", b"PK\x03\x04", r"cannot be read as fields"),  # as a zip file begins
        ("bad.h5", b"nothing", r"cannot be read as fields"),
    ],
)
def test_files_that_are_no_fields_are_refused_in_a_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        _ = dataclasses.replace(SMALL, path=str(tmp_path / name)).pools
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "stored"), [("fields.h5", np.asarray), ("fields.mat", np.transpose)])
def test_hdf5_is_read_as_it_lies_and_that_of_matlab_with_its_axes_reversed(tmp_path, monkeypatch, name, stored):
    """By a stand-in for h5py; of MATLAB's version 7.3 the header says that it is HDF5."""
    path, fields = tmp_path / name, np.random.default_rng(0).normal(size=(4, 16, 16, 4)).astype(np.float32)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384))
    file = contextlib.nullcontext({"u": stored(fields)})
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=lambda at: file))
    pools = dataclasses.replace(SMALL, n_train=3, n_test=1, path=str(path)).pools
    np.testing.assert_array_equal(pools.fields["train"], np.moveaxis(fields[:3], -1, 1))


@pytest.mark.parametrize("save", [np.savez, lambda path, **arrays: savemat(path, arrays)], ids=["npz", "mat"])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(v=np.zeros((4, 16, 16, 4))), r"fields\.\w+: holds no array 'u'$"),
        (dict(u=np.zeros((4, 16, 16))), r"'u' has shape \(4, 16, 16\); expected \(trajectories, side, side, times\)"),
        (dict(u=np.zeros((4, 16, 16, 4), complex)), r"'u' holds complex128; expected real numbers"),
    ],
)
def test_arrays_that_are_no_fields_are_refused(tmp_path, save, arrays, message):
    path = tmp_path / ("fields.npz" if save is np.savez else "fields.mat")
    save(path, **arrays)
    with pytest.raises(ValueError, match=message):
        _ = dataclasses.replace(SMALL, path=str(path)).pools


def test_hdf5_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "fields.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"h5py: pip install 'gammalab\[fields\]'"):
        _ = dataclasses.replace(SMALL, path=str(tmp_path / "fields.h5")).pools
