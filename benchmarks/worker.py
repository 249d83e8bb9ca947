"""One way of training, in a process of its own: `python benchmarks/worker.py`, spoken to in lines of JSON.

The first line is a `Workload`, answered with facts about it or with `{"error": why}`. Then `{"steps": n}` is answered
with the seconds that n steps took, on the clock and of all cores, and the last loss; `{"peak": true}` with the rate of
a large matrix product. Between commands it waits on its pipe; it ends when the pipe closes. `step_worker.py` speaks
the same language.
"""

import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping

from workload import Way, Workload, cores


class Unavailable(Exception):
    """A way cannot run on this machine."""


def our_way(name: str, workload: Workload) -> Way:
    import jax
    import laboratory

    if workload.accelerator == "gpu" and jax.default_backend() != "gpu":
        raise Unavailable("JAX sees no GPU: pip install 'gammalab[cuda]'")
    if name == "grid" and workload.accelerator == "cpu":
        if workload.n_devices and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: workload.n_devices])
        # as the command line does: rows side by side beat one row over all cores
        jax.config.update("jax_num_cpu_devices", workload.n_devices or cores())
    return {"grid": laboratory.grid_way, "lone": laboratory.lone_way}[name](workload)


def torch_way(workload: Workload, **options) -> Way:
    try:
        import torch
    except ModuleNotFoundError:
        raise Unavailable("pip install 'gammalab[bench]'") from None
    import torch_ways

    if workload.accelerator == "gpu" and not torch.cuda.is_available():
        raise Unavailable("PyTorch sees no GPU")
    return torch_ways.torch_way(workload, **options)


WAYS: dict[str, Callable[[Workload], Way]] = {
    "grid": functools.partial(our_way, "grid"),
    "lone": functools.partial(our_way, "lone"),
    "eager": functools.partial(torch_way, compiled=False, fused=None),
    "compiled": functools.partial(torch_way, compiled=True, fused=None),
    "compiled_fused": functools.partial(torch_way, compiled=True, fused=True),
}


def begin(workload: Workload) -> tuple[Way, dict]:
    """The way, compiled, and what there is to say about it."""
    way = WAYS[workload.way](workload)
    way.run(3)  # CUDA graphs warm up, record and replay
    import laboratory

    return way, {
        "n_rows": way.n_rows,
        "chunk": way.chunk,
        "device": way.device,
        "n_devices": way.n_devices,
        "memory": way.memory,
        **laboratory.facts(workload),
    }


def open_replies() -> Callable[[Mapping], None]:
    """`reply(answer)`; what libraries print goes to the errors from here on, and never between the replies."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return lambda answer: print(json.dumps(answer), file=replies)


def answer_commands(reply: Callable[[Mapping], None], run: Callable[[int], float], peak: Callable[[], float]) -> None:
    """Until the pipe closes; `run` and `peak` as in `Way`."""
    for line in sys.stdin:
        command = json.loads(line)
        begun, cpu_before = time.perf_counter(), time.process_time()
        answer = {"peak": peak()} if "peak" in command else {"loss": run(command["steps"])}
        reply({**answer, "seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu_before})


def main() -> None:
    reply = open_replies()
    try:
        way, facts = begin(Workload(**json.loads(sys.stdin.readline())))
    except Unavailable as error:
        reply({"error": str(error)})
        return
    except Exception as error:  # whatever a compiler may raise: the other ways go on without this one
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"})
        return
    reply(facts)
    answer_commands(reply, way.run, way.peak)


if __name__ == "__main__":
    main()
