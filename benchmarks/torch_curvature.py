"""Their side of `sharpness.py`: the same eigenvalues and traces by two PyTorch packages, one row after the other.

hessian-eigenthings computes gradient and product anew for every vector; PyHessian keeps the gradient's graph, finds the
eigenvalues largest in magnitude by power iteration, and has no Lanczos that runs with a PyTorch of today.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import hessian_eigenthings
import numpy as np
import pyhessian
import torch
import torch.nn.functional as F
import torch_model
from our_curvature import EIGENVALUES, LOOP, Found, Problem

from lab.disk import store

MOST_ITERATIONS = 2000  # of power iteration, for one eigenvalue


class Side:
    """The model in PyTorch with one row's parameters at a time, and the sequences, in a device's memory."""

    def __init__(self, problem: Problem, device: str):
        self.problem, self.device = problem, device
        self.module = torch_model.Transformer(problem.fixed.model).to(device).eval()
        read = problem.batch.tokens_BxL, problem.batch.targets_BxL[:, -1]
        self.data = tuple(torch.from_numpy(np.array(array, np.int64)).to(device) for array in read)

    def load(self, row: int) -> None:
        torch_model.load(self.module, store.take_row(self.problem.params_R, row))

    def operator(self) -> hessian_eigenthings.HessianOperator:
        return hessian_eigenthings.HessianOperator(self.module, [self.data], loss)

    def eigenthings(self, n_matvecs: int, rows: Sequence[int]) -> Found:
        """Lanczos, reorthogonalized as ours is, and Hutchinson."""
        found = []
        for row in rows:
            self.load(row)
            operator = self.operator()
            top = hessian_eigenthings.lanczos(
                operator, k=EIGENVALUES, max_iter=n_matvecs, reorthogonalize=True, which="LA", seed=0
            )
            trace = hessian_eigenthings.hutchinson(operator, num_samples=self.problem.n_probes, seed=0)
            found.append((top.eigenvalues.cpu().numpy(), trace.estimate, trace.stderr))
        return Found(*map(np.array, zip(*found, strict=True)))

    def pyhessian(self, tolerance: float, rows: Sequence[int]) -> Found:
        """Power iteration until an eigenvalue changes by less than `tolerance` of itself, and Hutchinson."""
        found = []
        for row in rows:
            self.load(row)
            torch.manual_seed(0)
            computer = self.graph()
            values, _ = computer.eigenvalues(MOST_ITERATIONS, tolerance, EIGENVALUES)
            samples = computer.trace(self.problem.n_probes, tol=-math.inf)  # it never stops before
            self.module.zero_grad(set_to_none=True)  # the graph hangs on them
            error = np.std(samples, ddof=1) / math.sqrt(len(samples))
            found.append((sorted(values, reverse=True), np.mean(samples), error))
        return Found(*map(np.array, zip(*found, strict=True)))

    def graph(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the memory it keeps, see `pyhessian`
            return pyhessian.hessian(
                self.module, lambda logits, labels_B: F.cross_entropy(logits[:, -1], labels_B), data=self.data,
                cuda=self.device == "cuda",
            )  # fmt: skip

    def gradients(self, rows: Sequence[int]) -> None:
        """LOOP gradients of every row."""
        for row in rows:
            self.load(row)
            for _ in range(LOOP):
                gradient = torch.autograd.grad(loss(self.module, self.data), list(self.module.parameters()))
            gradient[0].sum().item()  # waits for the device

    def products(self, rows: Sequence[int]) -> None:
        """LOOP products of every row's Hessian, by hessian-eigenthings."""
        for row in rows:
            self.load(row)
            operator = self.operator()
            vector_P = torch.randn(operator.size, device=self.device)
            for _ in range(LOOP):
                product_P = operator.matvec(vector_P)
            product_P.sum().item()

    def products_on_graph(self, rows: Sequence[int]) -> None:
        """LOOP products of every row's Hessian, by PyHessian."""
        for row in rows:
            self.load(row)
            computer = self.graph()
            vectors = [torch.randn_like(param) for param in computer.params]
            for _ in range(LOOP):
                product = pyhessian.utils.hessian_vector_product(computer.gradsH, computer.params, vectors)
            product[0].sum().item()
            self.module.zero_grad(set_to_none=True)

    def memory(self, function: Callable[[Sequence[int]], object]) -> int:
        """Most bytes that one row has allocated at once, parameters and data left out."""
        if self.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            function([0])
            return torch.cuda.max_memory_allocated() - before
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            function([0])
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return int(np.cumsum(changes).max())


def loss(module, data) -> torch.Tensor:
    tokens_BxL, labels_B = data
    return F.cross_entropy(module(tokens_BxL)[:, -1], labels_B)


def side(problem: Problem, accelerator: str, threads: int) -> Side:
    torch.set_float32_matmul_precision("highest")  # no TF32, as ours
    torch.set_num_threads(threads)
    return Side(problem, {"cpu": "cpu", "gpu": "cuda"}[accelerator])
