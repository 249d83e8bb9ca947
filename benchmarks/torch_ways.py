"""PyTorch's ways: one model after another, eagerly or compiled, as the papers' code trains."""

import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
import torch_mamba
import torch_model
from laboratory import LARGE, Experiment, experiment, first_row
from workload import Way, Workload

from lab import models, rng

POOL = 32  # batches drawn before the clock starts, gone through in turn


class Trainer:
    """One model under AdamW with clipping and a learning-rate schedule: a row's training, in PyTorch.

    Args:
      params: of the model, a `Transformer` or `Mamba2` of `lab.models`, to start from.
      compiled: forward and loss under `torch.compile`, on a GPU with CUDA graphs.
      fused: AdamW in one kernel, rather than what PyTorch takes by default.

    Raises:
      ValueError: an optimizer other than AdamW with scaled decay of all parameters.
    """

    def __init__(
        self,
        fixed: Experiment,
        hparams: Mapping,
        params,
        device: str = "cpu",
        compiled=False,
        fused: bool | None = None,
    ):
        optim = fixed.optim
        if (optim.family, optim.decay, optim.decay_mask) != ("adamw", "scaled", "all"):
            raise ValueError(f"the PyTorch side has AdamW with scaled decay of all parameters only, not {optim}")
        ours = {models.Transformer: torch_model.Transformer, models.Mamba2: torch_mamba.Mamba2}
        self.model = ours[type(fixed.model)](fixed.model)
        sys.modules[type(self.model).__module__].load(self.model, params)
        self.model.to(device)
        self.clip_norm = optim.clip_norm
        self.graphs = compiled and device == "cuda"
        mode = "reduce-overhead" if self.graphs else "default"
        self.compute = torch.compile(self.loss, mode=mode) if compiled else self.loss
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=hparams["learning_rate"], betas=(optim.b1, optim.b2), eps=optim.eps,
            weight_decay=hparams["weight_decay"], fused=fused,
        )  # fmt: skip
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule(fixed))

    def loss(self, tokens_BxL, labels_B):
        return F.cross_entropy(self.model(tokens_BxL)[:, -1], labels_B)

    def step(self, tokens_BxL, labels_B) -> torch.Tensor:
        """Trains on one batch; its mean loss before the step, left on the device."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # the last step's loss may be overwritten
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.compute(tokens_BxL, labels_B)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()


def schedule(fixed: Experiment) -> Callable[[int], float]:
    """`step -> lr_t / peak`, as `lab.optim.schedule`: linear warm-up, then cosine down to `end_factor` or constant."""
    optim, total = fixed.optim, fixed.steps

    def factor(step):
        if step < optim.warmup_steps:
            return optim.start_factor + (1 - optim.start_factor) * step / optim.warmup_steps
        if optim.schedule == "constant":
            return 1.0
        done = min(1.0, (step - optim.warmup_steps) / (total - optim.warmup_steps))
        return optim.end_factor + (1 - optim.end_factor) * (1 + math.cos(math.pi * done)) / 2

    return factor


def pool(fixed: Experiment, hparams: Mapping, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the laboratory's own task, (tokens, labels), in the device's memory."""
    keys = (rng.key(hparams["seed"], "data", step) for step in range(POOL))
    batches = (fixed.task.sample(key, fixed.batch_size, "train", hparams) for key in keys)
    on_device = lambda leaf: torch.from_numpy(np.array(leaf, np.int64)).to(device)  # noqa: E731
    return [(on_device(batch.tokens_BxL), on_device(batch.targets_BxL[:, -1])) for batch in batches]


def torch_way(workload: Workload, compiled: bool, fused: bool | None) -> Way:
    """One model at a time; `compiled` and `fused` as in `Trainer`."""
    device = {"cpu": "cpu", "gpu": "cuda"}[workload.accelerator]
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, which is JAX's default there
    if workload.threads:
        torch.set_num_threads(workload.threads)
    fixed = experiment(workload)
    hparams, params = first_row(workload)
    trainer = Trainer(fixed, hparams, params, device, compiled, fused)
    batches = itertools.cycle(pool(fixed, hparams, device))

    def run(n_steps):
        for batch in itertools.islice(batches, n_steps):
            loss = trainer.step(*batch)
        return loss.item()

    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return Way(1, run, functools.partial(matmul_rate, LARGE[workload.accelerator], device), name, 1)


def matmul_rate(size: int, device: str) -> float:
    """FLOP/s of a float32 product of two `size` x `size` matrices; the best of three."""
    ones = torch.ones(size, size, device=device)
    seconds = []
    for _ in range(4):  # the first warms up
        begun = time.perf_counter()
        (ones @ ones)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)
