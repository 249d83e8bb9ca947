"""What JAX is told before it starts: its devices, and the other processes that train."""

import contextlib
import os


def use_cores(n_devices: int | None = None) -> None:
    """One XLA host device per core: rows side by side beat one row over all cores. No effect on a GPU's programs."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # JAX is running already, in a notebook say, with the devices it has
        jax.config.update("jax_num_cpu_devices", n_devices or cores)
        if n_devices:
            jax.config.update("jax_platforms", "cpu")


def join_processes(args) -> bool:
    """Joins this process with the others that train, if it is said how; returns whether it is the one that speaks."""
    import jax

    by_hand = (args.coordinator, args.processes, args.process)
    if any(part is not None for part in by_hand):
        complete = None not in by_hand and 0 <= args.process < args.processes and not args.distributed
        if not complete or not args.coordinator.rpartition(":")[2].isdigit():
            raise ValueError("--coordinator=HOST:PORT, --processes=N and --process=0..N-1 go together, and alone")
        jax.distributed.initialize(*by_hand)
    elif args.distributed:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise ValueError("--distributed finds no SLURM and no TPU pod; use --coordinator, see --help") from error
    return jax.process_index() == 0


def missing() -> ValueError | None:
    """What is to be said where JAX finds no device of the kind asked for; it says it in many ways, and late."""
    from lab.engine import numerics

    try:
        numerics.find_devices()
    except ValueError as error:
        return error
    return None
