"""Configs as plain JSON values, and what differs between two of them; knows nothing of models and tasks."""

import json
from collections.abc import Mapping

import ml_collections


def to_json(config: ml_collections.ConfigDict) -> dict:
    """Plain JSON values; `from_json` undoes it."""
    return json.loads(json.dumps(config.to_dict()))


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
