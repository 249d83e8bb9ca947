"""The trajectories of a task of fields: computed once and cached with their hash, or read from a published file."""

import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import cache, rng, tables
from lab.tasks import spectral

FORMAT = 1  # of what is cached: another number for other trajectories
AT_ONCE = 20  # trajectories
SUFFIXES = (".npy", ".npz", ".mat", ".h5", ".hdf5")
NO_REGION = -1
KEY = "u"  # of the array in a published file, (trajectories, side, side, times)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that trajectories depend on: options of `lab.tasks.Fields` of the same names; `n_frames` of each are kept."""

    equation: spectral.Equation
    size: int
    n_frames: int
    skip: int
    interval: float
    step: float
    refine: int
    start: str
    low: int
    high: int
    amplitude: float
    seed: int
    precision: str
    n_of: tuple[tuple[str, int], ...]


class Pools(NamedTuple):
    """By split: `fields` (N, K, S, S) float32 over K times, `region` (N,) int32 or -1; and the sha256 of all."""

    fields: Mapping[str, np.ndarray]
    region: Mapping[str, np.ndarray]
    sha256: str


@functools.lru_cache(maxsize=4)
def computed(recipe: Recipe) -> Pools:
    """The trajectories of a recipe, from the cache if they lie there whole.

    Raises:
      ValueError: a time step at which the method is unstable, or no folder for caches.
    """
    said = json.dumps({"format": FORMAT, **dataclasses.asdict(recipe)}, sort_keys=True)
    folder = cache.folder("fields") / hashlib.sha256(said.encode()).hexdigest()[:32]
    arrays = _load(folder)
    if arrays is None:
        arrays = _compute(recipe)
        _keep(folder, arrays)
    return _pools(arrays)


@functools.lru_cache(maxsize=4)
def published(path: str, size: int, n_frames: int, skip: int, n_of: tuple[tuple[str, int], ...]) -> Pools:
    """The first trajectories of a file are split `train`, its last ones are split `test`.

    Raises:
      ValueError: a file that is missing or of another form, or has too few trajectories, times or points.
    """
    fields_NxSxSxT = _read(Path(path).expanduser())
    n, side, _, n_times = fields_NxSxSxT.shape
    wanted = sum(dict(n_of).values())
    if n < wanted:
        raise ValueError(f"{path}: has {n} trajectories; task.n_train and task.n_test ask for {wanted}")
    if n_times < skip + n_frames:
        raise ValueError(f"{path}: has {n_times} times; task.skip, frames and horizon ask for {skip + n_frames}")
    if side % size:
        raise ValueError(f"task.size={size}: {path} has a grid of {side}, of which it must be a divisor")
    thin = fields_NxSxSxT[:, :: side // size, :: side // size, skip : skip + n_frames]
    moved = np.ascontiguousarray(np.moveaxis(thin, -1, 1), np.float32)
    parts = {"train": moved[: dict(n_of)["train"]], "test": moved[n - dict(n_of)["test"] :]}
    if not all(np.isfinite(part).all() for part in parts.values()):
        raise ValueError(f"{path}: holds numbers that are not finite")
    return _pools(parts | {f"{split}_region": np.full(len(part), NO_REGION, np.int32) for split, part in parts.items()})


def _pools(arrays: Mapping[str, np.ndarray]) -> Pools:
    splits = [name for name in arrays if f"{name}_region" in arrays]
    region = {split: arrays[f"{split}_region"] for split in splits}
    return Pools({split: arrays[split] for split in splits}, region, tables.hash_of(arrays))


def _compute(recipe: Recipe) -> dict[str, np.ndarray]:
    arrays = {}
    is_double = recipe.precision == "float64"
    # outside of whatever program asks for them, and in the precision that the recipe names
    with jax.ensure_compile_time_eval(), jax.enable_x64(is_double), jax.threefry_partitionable(True):
        for split, n in recipe.n_of:
            chunks = []
            for first in range(0, n, AT_ONCE):
                index = jnp.arange(first, min(first + AT_ONCE, n), dtype=jnp.int32)
                keys = jax.vmap(functools.partial(rng.key, recipe.seed, f"fields/{split}"))(index)
                chunks.append([np.asarray(part) for part in _trajectories(recipe, keys)])
            fields, region, fastest = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
            _check_step(recipe, fields, float(np.max(fastest)))
            arrays |= {split: fields.astype(np.float32), f"{split}_region": region}
    return arrays


@functools.partial(jax.jit, static_argnames="recipe")
def _trajectories(recipe: Recipe, keys_N):
    dtype = jnp.dtype(recipe.precision)
    fine = recipe.size * recipe.refine
    per_frame = round(recipe.interval / recipe.step)

    def one(key):
        region = jnp.int32(NO_REGION)
        if recipe.start == "two_scales":
            start, region = spectral.two_scales(key, fine, recipe.low, recipe.high, dtype)
        else:
            start = spectral.gaussian(key, fine, dtype)
        n_frames = recipe.skip + recipe.n_frames
        fields = spectral.solve(recipe.equation, recipe.amplitude * start, recipe.step, per_frame, n_frames)
        fastest = jnp.max(jax.vmap(lambda field: spectral.fastest(recipe.equation, field))(fields))
        return spectral.coarsen(fields[recipe.skip :], recipe.size), region, fastest

    return jax.vmap(one)(keys_N)


def _check_step(recipe: Recipe, fields: np.ndarray, fastest: float) -> None:
    largest = spectral.largest_step(recipe.size * recipe.refine, fastest)
    if recipe.step > largest or not np.isfinite(fields).all():
        most = f"at most {largest:.2g} at the speeds that are reached" if np.isfinite(largest) else "a smaller one"
        raise ValueError(f"task.step={recipe.step:g}: unstable; use {most}")


def _keep(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Takes its name when it is complete; another process may have been first."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"{folder.parent}: cannot be written to ({error.strerror}); set GAMMALAB_CACHE") from error
    try:
        for name, content in tables.files(arrays).items():
            (temporary / name).write_bytes(content)
        (temporary / "sha256").write_text(tables.hash_of(arrays))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        if _load(folder) is None:
            raise ValueError(f"{folder}: cannot be written ({error.strerror}); set GAMMALAB_CACHE") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(folder: Path) -> dict[str, np.ndarray] | None:
    """None where it is not there, or is not what was written."""
    try:
        contents = {path.stem: path.read_bytes() for path in sorted(folder.glob(f"*{tables.SUFFIX}"))}
        arrays = {name: np.load(io.BytesIO(content)) for name, content in contents.items()}
        return arrays if (folder / "sha256").read_text() == tables.hash_of(arrays) else None
    except (OSError, ValueError):
        return None


def _read(path: Path) -> np.ndarray:
    """(N, S, S, T) of a published file."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"task.path={str(path)!r}: expected a file {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"task.path={str(path)!r}: no such file")
    try:
        found = _array(path)
    except KeyError as error:
        raise ValueError(f"{path}: holds no array {KEY!r}") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as fields ({str(error).splitlines()[0]})") from error
    if found.ndim != 4 or found.shape[1] != found.shape[2]:
        raise ValueError(f"{path}: {KEY!r} has shape {found.shape}; expected (trajectories, side, side, times)")
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{path}: {KEY!r} holds {found.dtype}; expected real numbers")
    return found


def _array(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    if path.suffix == ".npz":
        return np.load(path)[KEY]
    if path.suffix == ".mat":
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError

        try:
            return loadmat(path)[KEY]
        except MatReadError as error:
            raise ValueError(str(error)) from error
        except NotImplementedError:  # version 7.3, an HDF5 file whose axes are reversed
            return _of_hdf5(path).T
    return _of_hdf5(path)


def _of_hdf5(path: Path) -> np.ndarray:
    try:
        import h5py
    except ImportError as error:
        raise ValueError("HDF5 needs h5py: pip install 'gammalab[fields]'") from error
    with h5py.File(path) as file:
        return np.asarray(file[KEY])
