"""The one gate to JAX's switches: those that would change numbers are set here, the others are recorded or refused."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jax.extend import backend

from lab import config as configs
from lab.disk import provenance
from lab.disk.files import WorkdirError
from lab.engine import compiled, program_cache

# Debugging switches that no training can run under, and why; whatever else JAX offers for debugging works.
REFUSED = {
    "jax_debug_nans": "a row that diverges is NaN from there on while the others go on",
    "jax_debug_infs": "a row may pass through infinity while the others go on",
    "jax_debug_key_reuse": "what shall be drawn alike is drawn from the same key",
    "jax_disable_jit": "rows are mapped over devices by compiled programs",
    "jax_no_tracing": "programs are traced before they are compiled",
    "jax_no_execution": "training computes",
    **{
        f"jax_transfer_guard{way}": "data are moved between host and devices as they are needed"
        for way in ("", "_host_to_device", "_device_to_host", "_device_to_device")
    },
}
HARMLESS = (False, None, "allow", "log", "log_explicit")  # settings of these

_depth = 0  # of `settled` within `settled`


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """`fixed`, for what trains or measures, with compiled programs kept on disk; also a decorator.

    Raises:
      ValueError: a debugging switch is on that no training can run under, or there is no device of the kind asked for.
    """
    for name, reason in REFUSED.items():
        if getattr(jax.config, name) not in HARMLESS:
            raise ValueError(f"{name.upper()}={getattr(jax.config, name)}: {reason}; run without this switch")
    global _depth
    find_devices()
    program_cache.enable()
    _depth += 1
    try:
        with fixed():
            yield
    finally:
        _depth -= 1
        program_cache.seal()
        if not _depth:  # by the next command, the code that programs were made of may be other code
            compiled.forget()


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Within it, or within a function that it decorates, numbers are the same whatever JAX's switches say.

    Set are 64-bit mode (off: what measures in float64 says so itself), the layout and implementation of random bits,
    the offset of seeds and the rule for the derivative of softmax. Precision of products is left to the user and
    recorded, see `refuse_other`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.threefry_partitionable(True))
        stack.enter_context(jax.default_prng_impl("threefry2x32"))
        stack.enter_context(jax.softmax_custom_jvp(False))
        if offset := jax.config.jax_random_seed_offset:
            jax.config.update("jax_random_seed_offset", 0)
            stack.callback(jax.config.update, "jax_random_seed_offset", offset)
        yield


def refuse_other(path: Path, held: Mapping, what: str) -> None:
    """
    Args:
      held: of a training's `config.json`.
      what: what is asked for, e.g. `continue`.

    Raises:
      WorkdirError: the training computed with another precision of products or other random bits, or on another kind
        of device, than this process does.
    """
    now = provenance.numerics()
    changed = configs.differences({name: held.get(name, now[name]) for name in now}, now)
    if changed:
        raise WorkdirError(
            f"{path} was trained with other numerics; to {what} would mix them. Changed: {'; '.join(changed)}"
        )


def find_devices() -> None:
    """
    Raises:
      ValueError: there are none of the kind that JAX's variables ask for; says which there are.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.jax_platforms
        if not asked:  # by `JAX_PLATFORM_NAME`, or not at all; JAX says what there is
            name = os.environ.get("JAX_PLATFORM_NAME", "")
            told = f"JAX_PLATFORM_NAME={name}: " if name else "no device: "
            raise ValueError(told + (str(error).splitlines() or [repr(error)])[0]) from error
        jax.config.update("jax_platforms", None)
        try:
            there = ", ".join(sorted({"cpu", *(device.platform for device in jax.devices())}))
        finally:
            jax.config.update("jax_platforms", asked)
            backend.clear_backends()
        raise ValueError(f"JAX_PLATFORMS={asked}: no such devices here; there are: {there}") from error
