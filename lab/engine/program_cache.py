"""Compiled programs on disk: JAX's persistent compilation cache, in the one folder for caches.

One folder for each version of jaxlib and kind of machine. Beside every entry lies its sha256. A process that starts
deletes those that have none or another: they were not written to their end, or have changed since. One that is torn
while it runs does not unpack, and JAX compiles again. The user's own choice (`JAX_COMPILATION_CACHE_DIR`,
`JAX_ENABLE_COMPILATION_CACHE=false`) wins.
"""

import contextlib
import hashlib
import platform
import tempfile
from pathlib import Path

import jax
import jaxlib
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from lab import cache
from lab.disk import files
from lab.disk.files import DamagedError, SaveError

WORTH_SECONDS = 0.1  # what compiles faster is not kept
LARGEST = 2**29  # bytes of a folder; beyond, the oldest entries go
ENTRIES = "*-cache"
ACCEPTED = "accepted.json"  # whether this machine's programs are accepted when they are read again


_folder: Path | None = None  # of this process; None: JAX keeps nothing, or where the user says


def enable() -> None:
    """Keeps compiled programs from now on, unless the user decided otherwise; a folder that refuses is no error.

    Not where several processes train together, of which JAX lets one write and the others might wait for it. On a CPU
    only where a program that is read again is accepted, which is tried once: XLA may find that it was compiled for
    features that it does not see in this machine.
    """
    global _folder
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache or jax.process_count() > 1:
        return
    try:
        folder = cache.folder("programs") / _machine()
        folder.mkdir(parents=True, exist_ok=True)
        _drop_damaged(folder)
        _drop_oldest(folder)
    except (ValueError, OSError):
        return
    if jax.default_backend() != "cpu" or _accepted(folder):
        _point_to(folder)
        _folder = folder


def seal() -> None:
    """Writes the hashes of entries that have none yet: those are deleted when the next process starts."""
    if _folder is None or jax.config.jax_compilation_cache_dir != str(_folder):
        return
    with contextlib.suppress(OSError):  # `SaveError` is one
        for entry in _folder.glob(ENTRIES):
            if not _seal(entry).exists():
                files.write_bytes(_seal(entry), _hash(entry))


def _machine() -> str:
    """Version and kind of machine: programs of another are never read."""
    backend = jax.default_backend()
    described = sorted({device.device_kind for device in jax.devices()})
    if backend == "cpu":
        described += [platform.machine(), *_cpu_features()]
    kind = hashlib.sha256(repr(described).encode()).hexdigest()[:12]
    return f"jaxlib-{jaxlib.__version__}-{backend}-{kind}"


def _cpu_features() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return [platform.processor()]
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})


def _point_to(folder: Path | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder and str(folder))
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # which would lie there without hashes
    if folder and jax.config.jax_persistent_cache_min_compile_time_secs == 1.0:  # JAX's default
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_SECONDS)
    compilation_cache.reset_cache()  # JAX looks where to keep programs once, when it first compiles


def _accepted(folder: Path) -> bool:
    """Whether a program that is read again is accepted, and computes the same; tried once a machine."""
    path = folder / ACCEPTED
    try:
        return files.read_json(path)["accepted"]
    except (DamagedError, KeyError):
        with tempfile.TemporaryDirectory(dir=folder) as trial:  # where no other process reads or deletes
            _point_to(Path(trial))
            accepted = _reads_again()
            _point_to(None)
    with contextlib.suppress(SaveError):
        files.write_json(path, {"accepted": accepted})
    return accepted


def _reads_again() -> bool:
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    hits, results, worth = [], [], jax.config.jax_persistent_cache_min_compile_time_secs

    def hear(event: str, **_) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(hear)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        for _ in range(2):

            def read_again(x):  # made anew: nothing in memory knows it
                return jax.nn.softmax(x @ x).sum(axis=0)

            results.append(np.asarray(jax.jit(read_again).lower(x).compile()(x)).tobytes())
    except jax.errors.JaxRuntimeError:
        return False
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", worth)
        jax.monitoring.unregister_event_listener(hear)
    return len(hits) > 0 and results[0] == results[1]


def _drop_damaged(folder: Path) -> None:
    for entry in folder.glob(ENTRIES):
        with contextlib.suppress(FileNotFoundError):  # another process dropped it
            if not _seal(entry).exists() or _seal(entry).read_bytes() != _hash(entry):
                _drop(entry)


def _drop_oldest(folder: Path) -> None:
    found = []
    for entry in folder.glob(ENTRIES):
        with contextlib.suppress(FileNotFoundError):
            found.append((entry.stat().st_mtime, entry.stat().st_size, entry))
    n_bytes = sum(size for _, size, _ in found)
    for _, size, entry in sorted(found):
        if n_bytes > LARGEST:
            n_bytes -= size
            _drop(entry)


def _drop(entry: Path) -> None:
    for path in (entry, _seal(entry)):
        path.unlink(missing_ok=True)


def _seal(entry: Path) -> Path:
    return entry.with_name(entry.name + ".sha256")


def _hash(entry: Path) -> bytes:
    return hashlib.sha256(entry.read_bytes()).hexdigest().encode()
