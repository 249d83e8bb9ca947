"""The paper's statements on one task each: those of its abstract, of which `claims` has the means over tasks."""

import functools
from collections.abc import Callable, Sequence

from lab.claims import Claim
from lab.runs import Run, Runs
from lab.studies.ntp_ctp.claims import LEARNT, convergence_ratio, line_ratio_of, ood_gap, paper_claim, robustness_gap
from lab.studies.ntp_ctp.tuning import of_tuned

TASKS = ("addition", "composition", "kinship", "ontology", "graph", "rules")
SECOND_TASKS = {"other_keys": "composition_then_other_keys", "addition": "composition_then_addition"}


def on_each(id: str, statement: str, number: Callable[[Run], object], tasks: Sequence[str], **how) -> tuple[Claim, ...]:
    """A headline claim for every task, `<id>-<task>`."""
    made = []
    for task in tasks:
        variant = SECOND_TASKS[task] if id == "N7" else task

        def measure(runs: Runs, variant=variant):
            return number(runs[variant])

        words = f"{statement}: {task.replace('_', ' ')}"
        made.append(paper_claim(f"{id}-{task}", words, headline=True, **how)(measure))
    return tuple(made)


LOST = "CTP's loss of accuracy minus NTP's"
STEPS = f"steps to {LEARNT:.0%} training accuracy, NTP over CTP"

CLAIMS = (
    *on_each("N2", "NTP generalizes better out of distribution", of_tuned(ood_gap), TASKS,
             quantity="NTP minus CTP", above=0),
    *on_each("N3", "NTP minima are flatter along random directions", of_tuned(line_ratio_of), TASKS,
             quantity="CTP's rise over NTP's", above=1),
    *on_each("N4a", "NTP is more robust to noise in the weights",
             of_tuned(functools.partial(robustness_gap, noise="weight")), TASKS, quantity=LOST, above=0),
    *on_each("N4b", "NTP is more robust to noise in the embeddings",
             of_tuned(functools.partial(robustness_gap, noise="input")), TASKS, quantity=LOST, above=0),
    *on_each("N7", "CTP finetunes faster from a model pretrained by NTP", convergence_ratio, tuple(SECOND_TASKS),
             quantity=STEPS, above=1),
)  # fmt: skip
