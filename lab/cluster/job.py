"""A cluster job: trains one variant, saves when preempted, and continues when queued again."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Mapping

import jax
import ml_collections

from lab import config as configs
from lab import user_code
from lab.engine import train

PORTS = range(61440, 65536)  # for the tasks of one job to find each other; each job its own


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """Trains one variant: what is pickled, run by submitit, and run again after a preemption or time-out.

    Attributes:
      config: the resolved variant as plain JSON, so that later edits of its file change nothing.
      workdir: the variant's folder, absolute.
      config_file: imported for the tasks and models that it registers; absolute; None where the library's own do.
      set_up: called before all else in the job's process, a function of an importable module.
    """

    config: Mapping
    workdir: str
    config_file: str | None
    set_up: Callable[[], None]

    def __call__(self) -> None:
        self.set_up()
        _join_other_tasks()
        if self.config_file is not None:
            user_code.import_file(self.config_file)
        _train_to_the_end(configs.from_json(self.config), self.workdir)

    def checkpoint(self):
        """submitit's question before it queues the job again: the same job, for the folder knows how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _train_to_the_end(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains under submitit, whose two signals mean different things.

    SIGUSR2 comes before a preemption and before the end of the job's time: training saves and stops, and then
    submitit's own handler queues the job again and exits. SIGTERM alone comes when SLURM is about to kill: training
    saves and goes on, for if it ended here, the job would count as ended and SLURM would not queue it again.
    """
    from submitit import JobEnvironment

    number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
    requeue, idle = signal.getsignal(number), signal.getsignal(signal.SIGTERM)
    leaving = threading.Event()

    def leave(*received):
        if signal.getsignal(signal.SIGTERM) is idle:  # `train` does not listen: there is nothing to save
            requeue(*received)
        leaving.set()
        signal.raise_signal(signal.SIGTERM)

    signal.signal(number, leave)
    while True:
        try:
            train.train(config, workdir)
            return
        except train.Interrupted as stopped:
            if stopped.number == signal.SIGINT:  # the user's: a job in his own shell hears it too
                raise KeyboardInterrupt from None
            if leaving.is_set():
                requeue(number, None)  # which exits, in the first task; the others have nothing to queue
                raise SystemExit from None


def _join_other_tasks() -> None:
    """Where a job has several tasks, one a node, JAX in each is told of the others: their devices train together."""
    from submitit import JobEnvironment

    here = JobEnvironment()
    if here.num_tasks > 1:
        address = f"{here.hostnames[0]}:{PORTS[int(here.raw_job_id) % len(PORTS)]}"
        # Said in full: from SLURM's variables JAX would conclude that a task has one GPU.
        jax.distributed.initialize(address, here.num_tasks, here.global_rank, cluster_detection_method="deactivate")
