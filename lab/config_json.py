"""Configs as plain JSON values, and what differs between two of them; knows nothing of models and tasks."""

import json
from collections.abc import Mapping

import ml_collections
import numpy as np


def to_json(config: ml_collections.ConfigDict) -> dict:
    """Plain JSON values; `from_json` undoes it."""
    return json.loads(json.dumps(plain(config).to_dict()))


def plain(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy, not locked, in which NumPy's and JAX's scalars are numbers of Python and their arrays tuples."""

    def python(value):
        if isinstance(value, Mapping):
            return {name: python(entry) for name, entry in value.items()}
        if isinstance(value, tuple | list):
            return (list if isinstance(value, list) else tuple)(map(python, value))
        if isinstance(value, np.generic) or hasattr(value, "__array__"):
            found = np.asarray(value)
            return tuple(map(python, found)) if found.ndim else found.item()
        return value

    return ml_collections.ConfigDict(python(config.to_dict()))


def from_json(data: Mapping) -> ml_collections.ConfigDict:
    def tuples(value):
        if isinstance(value, Mapping):
            return {name: tuples(entry) for name, entry in value.items()}
        return tuple(tuples(entry) for entry in value) if isinstance(value, list) else value

    return ml_collections.ConfigDict(tuples(data))


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """`name: old -> new` for every leaf that differs."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before} -> {after}")
    return lines
