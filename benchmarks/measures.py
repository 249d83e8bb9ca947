"""How long the cheap measurements take of everything that a training left: condensation and focus.

    python benchmarks/measures.py --preset=cpu            # 2 minutes on two cores

Writes the workdir of a training that never was: the demo's model, and parameters that drift at random.
Then it takes the catalogue's `directions` and `focus` of every row and snapshot as `lab analyze` does: snapshots are
read and verified, programs compiled, results written. All of that is in the times; the target is a minute for both.
"""

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import harness
import numpy as np

TARGET = 60.0  # seconds


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model of configs/composition.py, and how much of it was trained."""

    accelerator: str
    config: str
    rows: int
    snapshots: int


PRESETS = {
    "cpu": Preset("cpu", "cpu_full", 100, 30),
    "gpu": Preset("gpu", "cpu_full", 100, 30),
    "smoke": Preset("cpu", "smoke", 3, 2),
}


def drifting(folder: Path, preset: Preset):
    """A workdir with a snapshot every 100 steps, each 1 % of every tensor's size away from the one before."""
    import jax

    from lab import config as configs
    from lab.configs import composition
    from lab.disk import files, store
    from lab.disk.workdir import Workdir
    from lab.measuring.catalogue.weights import shapes

    config = configs.variants(composition.get_config(preset.config))["unseen"]
    config.grid.update(gamma=(0.5,), weight_decay=(0.01,), seed=tuple(range(preset.rows)))
    work = Workdir(folder)
    files.write_json(folder / "config.json", {"config": configs.to_json(config), "data": {}, "start": {}})
    files.write_json(folder / "grid.json", configs.grid(config).to_json())
    draw = np.random.default_rng(0)

    def some(leaf):
        return draw.standard_normal((preset.rows, *leaf.shape), np.float32) / np.sqrt(np.float32(leaf.shape[0]))

    params_R = jax.tree.map(some, shapes(work.experiment))
    for i in range(preset.snapshots):
        store.save(work.snapshots, 100 * i, params_R)
        params_R = jax.tree.map(lambda leaf_R: leaf_R + np.float32(0.01) * some(leaf_R[0]), params_R)
    return work


def timed(function) -> tuple[float, float]:
    """Seconds, and the share of the machine's cores that other programs took meanwhile."""
    begun, busy, own = time.perf_counter(), harness.busy_seconds(), time.process_time()
    function()
    seconds = time.perf_counter() - begun
    others = harness.busy_seconds() - busy - (time.process_time() - own)
    return seconds, max(0.0, others) / (seconds * os.cpu_count())


def run(preset: Preset) -> dict:
    """Seconds of reading all snapshots once, and of every measurement; the worst disturbance."""
    from lab.measuring.catalogue import attention, weights
    from lab.measuring.run import measure

    with tempfile.TemporaryDirectory() as folder:
        work = drifting(Path(folder), preset)
        n_bytes = sum(path.stat().st_size for path in work.snapshots.rglob("*") if path.is_file())
        measures = [weights.directions(work.experiment), attention.attention(work.experiment)]
        times = {"reading": timed(lambda: [work.params(step) for step in work.snapshot_steps()])}
        times |= {one.name: timed(lambda one=one: measure(work, [one])) for one in measures}
    return {
        "n_bytes": n_bytes,
        "seconds": {name: seconds for name, (seconds, _) in times.items()},
        "disturbance": max(share for _, share in times.values()),
    }


def show(preset: Preset, result: dict) -> None:
    total = sum(seconds for name, seconds in result["seconds"].items() if name != "reading")
    print(f"{preset.rows} rows, {preset.snapshots} snapshots, {result['n_bytes'] / 1e9:.2f} GB on disk")
    for name, seconds in result["seconds"].items():
        print(f"  {name:12}{seconds:8.1f} s" + "  (alone; every measurement reads too)" * (name == "reading"))
    print(f"  measuring   {total:8.1f} s", end="")
    if result["disturbance"] >= harness.QUIET:
        print(f"  disturbed: other programs took up to {result['disturbance']:.0%} of the machine; no target is judged")
    else:
        print(f"  target at most {TARGET:.0f} s: {'met' if total <= TARGET else 'missed'}")


def main(argv: list[str] | None = None) -> None:
    parser = harness.Parser(__doc__, PRESETS)
    parser.add_json()
    args = parser.parse_args(argv)
    preset = PRESETS[args.preset]
    parser.use_jax(preset.accelerator)
    result = run(preset)
    show(preset, result)
    if args.json:
        args.json.write_text(json.dumps({"preset": args.preset, **result}, indent=1))


if __name__ == "__main__":
    main()
