"""Measurements of a transformer on questions of several hops: what it says, where it holds the bridge, what routes it.

Positions are named after what stands there: `h r1 r2`, and with a chain of thought the bridge `b` and the answer `t`.
"""

import jax
import jax.numpy as jnp

from lab import models, rng
from lab.analysis import estimate, lens, patching
from lab.analysis.estimate import errors, named
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.models import decode
from lab.tasks import swapped_hops

SEQUENCES = 256
QUESTION = ("h", "r1", "r2")
BRIDGE, ANSWER = "b", "t"
FROM_QUESTION, FROM_BRIDGE = ("h", "r1"), ("h", "r1", "r2", BRIDGE)  # what is swapped


def generation(experiment: Experiment) -> Measure:
    """Exact match of what the model says by itself, up to the end token, on the splits of several hops."""
    task = experiment.task
    splits = tuple(name for name in task.splits if name.endswith(("hop_id", "hop_ood")))

    def function(row):
        found = {}
        for split in splits:
            batch = task.sample(rng.named(row.key, split), SEQUENCES, split, row.hparams)
            found |= named(split, estimate.mean(decode.exact_match(row.model, row.params, task, batch)))
        return found

    return Measure("generation", function, errors(dict.fromkeys(splits, "share of questions")), snapshots="last")


def readability(experiment: Experiment) -> Measure:
    """Mean reciprocal rank of bridge and answer in the logit lens, by state of the stream and position."""
    names = tuple(patching.stream_names(experiment.model.n_layers))
    positions = _positions(experiment)

    def function(row):
        tokens_BxL = row.batch.tokens_BxL[:, : len(positions)]
        _, acts = models.forward(row.model, row.params, tokens_BxL)
        found = {}
        for part in ("bridge", "answer"):
            found |= named(part, lens.lens_mrr(row.model, row.params, acts, row.batch.info[f"{part}_B"], names))
        return found

    units = errors(dict.fromkeys(("bridge", "answer"), "mean reciprocal rank"))
    dims = dict.fromkeys(units, ("state", "place"))
    coords = {"state": names, "place": positions}
    return Measure("readability", function, units, dims, coords, "last", "two_hop_id", SEQUENCES)


def routing(experiment: Experiment) -> Measure:
    """Share of questions that lose the bridge, or the answer after it, to the state of a run with one part swapped.

    `bridge`: read after `h r1 r2`; `answer`: read after `h r1 r2 b`. A part is swapped for one that makes another fact
    of the world; where there is none, it stays. Of blocks' inputs, and of questions in distribution.
    """
    names = tuple(patching.stream_names(experiment.model.n_layers))[:-1]

    def function(row):
        parts = swapped_hops.parts(experiment.task, row.batch)
        swapped = swapped_hops.tokens(experiment.task, parts, row.key)

        def stage(swaps, n_tokens, answer_B):
            tokens_BxL = row.batch.tokens_BxL[:, :n_tokens]
            found = []
            for place, part in enumerate(swaps):
                other_BxL = tokens_BxL.at[:, place].set(swapped[part])
                found.append(patching.interchange(row.model, row.params, tokens_BxL, other_BxL, answer_B, names))
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

        bridge = stage(FROM_QUESTION, len(QUESTION), row.batch.info["bridge_B"])
        answer = stage(FROM_BRIDGE, len(FROM_BRIDGE), row.batch.info["answer_B"])
        shares = named("bridge", bridge.share) | named("answer", answer.share)
        return shares | {"n_bridge": bridge.n[0], "n_answer": answer.n[0]}

    units = errors(dict.fromkeys(("bridge", "answer"), "share of questions answered right"))
    dims = {
        name: (f"{part}_swap", "input", f"{part}_place") for part in ("bridge", "answer") for name in errors({part: ""})
    }
    coords = {"bridge_swap": FROM_QUESTION, "bridge_place": QUESTION, "answer_swap": FROM_BRIDGE,
              "answer_place": FROM_BRIDGE, "input": names}  # fmt: skip
    units |= dict.fromkeys(("n_bridge", "n_answer"), "questions")
    return Measure("routing", function, units, dims, coords, "last", "two_hop_id", SEQUENCES)


def overlapping_pairs(experiment: Experiment) -> Measure:
    """Of questions of three hops, never trained: whether both overlapping questions of two hops are answered.

    `h r1 r2 r3` with bridges b and b' is `h r1 r2 -> b b'` and `b r2 r3 -> b' t`, each after the true bridge
    (arXiv 2502.04667's probe). `first_bridge`, `first_answer` and `second_answer` are the three parts, `all` their
    conjunction.
    """
    task = experiment.task
    splits = tuple(name for name in task.splits if name.startswith("three_hop"))
    parts = ("first_bridge", "first_answer", "second_answer", "all")

    def function(row):
        found = {part: [] for part in parts}
        for split in splits:
            batch = task.sample(rng.named(row.key, split), SEQUENCES, split, row.hparams)
            head, first, second, third, bridge, following, answer = batch.tokens_BxL.T
            pairs = [(head, first, second, bridge), (bridge, second, third, following)]
            logits = [models.forward(row.model, row.params, jnp.stack(pair, axis=1))[0] for pair in pairs]
            said = [jnp.argmax(each_BxLxV, axis=-1).astype(jnp.int32) for each_BxLxV in logits]
            right = [said[0][:, 2] == bridge, said[0][:, 3] == following, said[1][:, 3] == answer]
            for part, right_B in zip(parts, [*right, right[0] & right[1] & right[2]], strict=True):
                found[part].append(estimate.mean(right_B.astype(logits[0].dtype)))
        stacked = {part: jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for part, each in found.items()}
        return {name: value for part in parts for name, value in named(part, stacked[part]).items()}

    units = errors(dict.fromkeys(parts, "share of questions"))
    return Measure("pairs", function, units, dict.fromkeys(units, ("split",)), {"split": splits}, snapshots="last")


def _positions(experiment: Experiment) -> tuple[str, ...]:
    return (*QUESTION, BRIDGE, ANSWER) if experiment.task.chain_of_thought else (*QUESTION, ANSWER)
