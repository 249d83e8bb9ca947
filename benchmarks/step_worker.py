"""The step of whatever laboratory is imported here, timed: `python benchmarks/step_worker.py`, a worker of `harness`.

It has to run at commits that differ in the engine, so it asks of them only what all have: `lab.engine.train.train`
trains a config, and calls `Rows.advance(first, end)` for its chunks and `Rows.wait()` for the devices. The training
builds its rows as that commit builds them; at the first call of `advance` this program takes over and calls it itself
for as many steps as it is asked. What it is told: `task`, `model` and `batch_size` of the experiment, `rows`, `width`
and `chunk`, the steps of one call.
"""

import json
import math
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping

import jax
from worker import answer_commands, open_replies
from workload import cores

CHUNKS = 2000  # of the schedule; then its steps come again


def config_of(told: Mapping):
    from lab.configs import base, composition

    seeds, steps = tuple(range(told["rows"])), CHUNKS * told["chunk"]
    return base.config(
        study="composition", task=composition.TASK | told["task"], model=base.transformer(**told["model"]),
        grid=dict(gamma=(0.5,), weight_decay=(0.01,), learning_rate=(2e-3,), seed=seeds), steps=steps,
        batch_size=told["batch_size"], eval_every=told["chunk"], eval_size=told["batch_size"], snapshots=2,
        checkpoint_every=steps, block_width=told["width"],
    )  # fmt: skip


def use_devices() -> None:
    """As the command line of this commit does."""
    try:
        from lab.cli import devices

        devices.use_cores()
    except (ImportError, AttributeError):
        jax.config.update("jax_num_cpu_devices", cores())


def on_first_advance(take_over: Callable) -> None:
    """`take_over(rows, advance)` is called in place of the first chunk."""
    from lab.engine import rows

    advance = rows.Rows.advance
    rows.Rows.advance = lambda self, first, end: take_over(self, advance)


def losses(rows, recorded, n_steps: int) -> list[float] | None:
    """Every row's training loss at the last of the first chunk's steps; None where a commit keeps them otherwise."""
    try:
        return [float(loss) for loss in rows.layout.to_host(recorded)["train_loss"][:, n_steps - 1]]
    except (AttributeError, KeyError, IndexError, TypeError):
        return None


def main() -> None:
    reply, told = open_replies(), json.loads(sys.stdin.readline())
    chunk = told["chunk"]

    def take_over(rows, advance):
        done = 0

        def run(n_steps):
            nonlocal done
            for _ in range(math.ceil(n_steps / chunk)):
                first = chunk * (done % CHUNKS)
                recorded = advance(rows, first, first + chunk)
                done += 1
            rows.wait()
            return recorded

        reply({
            "n_rows": told["rows"], "chunk": chunk, "device": jax.devices()[0].device_kind,
            "n_devices": jax.device_count(), "losses": losses(rows, run(chunk), chunk),
        })  # fmt: skip
        answer_commands(reply, lambda n_steps: run(n_steps) and None, None)
        raise SystemExit

    try:
        use_devices()
        on_first_advance(take_over)
        from lab.engine import train

        with tempfile.TemporaryDirectory() as folder:
            train.train(config_of(told), folder)
    except Exception as error:  # whatever another commit may raise: the one line says what
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"})


if __name__ == "__main__":
    main()
