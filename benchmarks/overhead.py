"""What checkpoints, snapshots, metrics and progress cost: the demo's training with and without them, in one run.

    python benchmarks/overhead.py            # 4 minutes on two cores

Both train the same rows through the same chunks and evaluations; one goes on to write everything, in the background as
`lab.engine.train` does. Rounds alternate; the target is at most 3 %.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm
from workload import cores

TARGET = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each way (default: 3)")
    parser.add_argument("--rows", type=int, default=18, help="trained together (default: 18, as the demo's)")
    parser.add_argument("--steps", type=int, default=500, help="of a round (default: 500)")
    args = parser.parse_args()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores())

    from lab import config as configs
    from lab import schedule
    from lab.configs import composition
    from lab.disk.workdir import Workdir
    from lab.engine import parts, shard, sweep, train
    from lab.engine.background import Writer
    from lab.engine.parts import Pace
    from lab.engine.rows import Rows

    config = configs.variants(composition.get_config("cpu_full"))["unseen"]
    config.update(steps=args.steps)
    config.grid.update(gamma=(0.5,), weight_decay=(0.01,), seed=tuple(range(args.rows)))
    grid = configs.grid(config)
    layout = shard.layout(shard.run_mesh(len(grid)), len(grid), 1)
    rows = Rows(configs.experiment(config), grid, layout, schedule.longest_part(config), sweep.Options())
    pace = Pace(schedule.longest_part(config))
    ends, evaluated, kept = schedule.boundaries(config)
    saved = {*schedule.checkpointed(config)}

    def run(work: Workdir | None) -> float:
        """Seconds of a training that writes to a folder, or nowhere."""
        rows.start()
        rows.wait()
        begun, done = time.perf_counter(), 0
        with Writer() as writer, tqdm(total=args.steps, disable=work is None, leave=False) as progress:
            for end in ends:
                metrics = parts.advance(rows, done, end, pace)
                scores = rows.evaluate() if end in evaluated else None
                if work is None:
                    jax.block_until_ready(scores)
                else:
                    chunk = train.Chunk(done, end, metrics, scores, rows.diverged_at())
                    state = rows.fetch() if end in kept or end in saved else None
                    writer.write(train._save, work, layout, chunk, state, end in kept, end in saved)
                progress.update(end - done)
                done = end
        return time.perf_counter() - begun

    costs = []
    run(None)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.rounds):
            written, bare = run(Workdir(Path(folder) / str(i))), run(None)
            costs.append(written / bare - 1)
            print(f"round {i}: {written:.2f} s with, {bare:.2f} s without: {costs[-1]:+.1%}", flush=True)
    low, middle, high = np.quantile(costs, (0.25, 0.5, 0.75))
    writes = f"{len(ends)} chunks of metrics, {len(kept)} snapshots and {len(saved)} checkpoints"
    verdict = "met" if middle <= TARGET else "missed"
    print(f"{writes} in {args.steps} steps of {len(grid)} rows cost {middle:+.1%} [{low:+.1%}, {high:+.1%}]: ", end="")
    print(f"target at most {TARGET:.0%}: {verdict}")


if __name__ == "__main__":
    main()
