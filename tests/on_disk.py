"""Folders as training leaves them, of numbers drawn here."""

import itertools

import numpy as np

from lab import config as configs
from lab.disk import files, store

AXES = {"gamma": (0.3, 0.5), "weight_decay": (0.0, 0.1, 1.0), "learning_rate": (1e-3,), "seed": (0, 7)}
ROWS = list(itertools.product(*AXES.values()))
SCHEDULE = dict(steps=16, eval_every=4, snapshots=2, checkpoint_every=6)  # of a config
CHUNKS = {0: [0], 4: [4], 6: [], 8: [8], 12: [12], 16: [16]}  # by that, last step -> evaluation; "16" sorts before "4"


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_training(path, config, grid):
    """A folder as training leaves it, of numbers drawn here; returns them joined, by name."""
    path.mkdir(parents=True)
    files.write_json(path / "config.json", {"config": configs.to_json(config), "data": {}, "start": {}})
    files.write_json(path / "grid.json", grid.to_json())
    n_rows, begun, raw = len(grid), 0, {}
    for seed, (end, evaluations) in enumerate(CHUNKS.items()):
        chunk = {
            "train_step": np.arange(begun, end), "train_loss": random(seed, end - begun, n_rows),
            "grad_norm": random(seed + 10, end - begun, n_rows),
            "diverged_at": np.where(np.arange(n_rows) == 1, min(end, 5) if end >= 5 else -1, -1).astype(np.int32),
        }  # fmt: skip
        if evaluations:
            chunk["step"] = np.array(evaluations)
            chunk["odd.accuracy"] = random(seed + 20, len(evaluations), n_rows)
            chunk["odd.share"] = random(seed + 30, len(evaluations), n_rows, 8)
        files.write_npz(path / "metrics" / f"{end}.npz", chunk)
        begun = end
        for name, values in chunk.items():
            raw.setdefault(name, []).append(values)
    raw["diverged_at"] = raw["diverged_at"][-1:]
    for step in (0, 16):
        store.save(path / "snapshots", step, {"in": {"kernel": random(step, n_rows, 3, 2)}})
    return {name: np.concatenate(parts) for name, parts in raw.items()}
