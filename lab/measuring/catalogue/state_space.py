"""Measurements of a Mamba: what its state space reads, its convolution's taps, and what cutting either does."""

import jax
import jax.numpy as jnp
import numpy as np

from lab import models
from lab.analysis import copying, estimate, state_space
from lab.analysis.estimate import errors, named
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.tasks import CopyStrings
from lab.tree import stack

SEQUENCES = 256
CUT = 512  # sequences of which what is cut is counted
FUSED = 3  # tokens: a key and two anchors
GAP_LENGTHS, DECAY_LENGTHS = (64, 128, 256, 512, 1024), (32, 48, 64, 96)
RATES = (0.5, 0.8, 0.9)  # of decay
STATES, TOKENS = 8, (1, 2, 4, 6, 7, 8, 9, 10, 12, 16)  # of constructed weights, and tokens that they are to copy


def mixing(experiment: Experiment) -> Measure:
    """Flow through the state: what each token reads of the others, as a share of |S dt|; and how long its steps are."""

    def function(row):
        _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
        layers = range(row.model.n_layers)
        return {
            "read": jnp.mean(state_space.reads(acts, row.model.n_layers), axis=1),
            "step": jnp.stack([jnp.mean(acts[f"block_{i}/ssm/dt"]) for i in layers]),
        }

    dims = {"read": ("layer", "query", "position"), "step": ("layer",)}
    return Measure("mixing", function, {"read": "share", "step": "dt"}, dims, snapshots="last", n=SEQUENCES)


def taps(experiment: Experiment) -> Measure:
    """Cosines between the taps of the convolution, over channels, layer by layer; the largest of two different taps."""
    n_layers = experiment.model.n_layers

    def function(row):
        cosine_NxTxT = state_space.tap_cosines(row.params, n_layers)
        other_TxT = 1 - np.eye(cosine_NxTxT.shape[1], dtype=np.float32)
        largest_N = jnp.max(jnp.abs(cosine_NxTxT * other_TxT[None].astype(cosine_NxTxT.dtype)), axis=(1, 2))
        return {"cosine": cosine_NxTxT, "largest": largest_N}

    dims = {"cosine": ("layer", "tap", "other_tap"), "largest": ("layer",)}
    return Measure("taps", function, dict.fromkeys(dims, "cosine"), dims)


def cut(experiment: Experiment) -> Measure:
    """How often the answer stays where nothing reads key and anchors through the state (`agreement`)."""

    def function(row):
        tokens_BxL, first_B = row.batch.tokens_BxL, row.batch.info["key_position_B"]
        edits = state_space.cut_columns(row.model.n_layers, first_B, FUSED)
        same_B = _answer(row, tokens_BxL) == _answer(row, tokens_BxL, edits)
        return named("agreement", estimate.mean(same_B.astype(jnp.float32)))

    return Measure("cut", function, errors({"agreement": "share"}), split="test_seen", n=CUT, snapshots="last")


def substitution(experiment: Experiment) -> Measure:
    """How often the answer becomes that of the unseen pair (4,3) where later tokens get its convolution's output.

    Of sequences with tokens after the second anchor. `before`: how often it is that answer without.
    """

    def function(row):
        tokens_BxL, info = row.batch.tokens_BxL, row.batch.info
        last_B, token_L = info["key_position_B"] + 2, jnp.arange(tokens_BxL.shape[1], dtype=jnp.int32)
        other_BxL = tokens_BxL
        for back, anchor in ((1, 4), (0, 3)):
            other_BxL = jnp.where(token_L[None] == last_B[:, None] - back, anchor, other_BxL)
        logits, acts = models.forward(row.model, row.params, other_BxL)
        other_B = jnp.argmax(logits[:, -1], axis=-1)
        edits = state_space.substitute_convolved(acts, row.model.n_layers, last_B)
        counts_B = last_B < tokens_BxL.shape[1] - 1
        answers = {"collapse": _answer(row, tokens_BxL, edits), "before": _answer(row, tokens_BxL)}
        return {name: jnp.mean(answer_B == other_B, where=counts_B) for name, answer_B in answers.items()}

    units = {"collapse": "share", "before": "share"}
    return Measure("substitution", function, units, split="test_seen", n=CUT, snapshots="last")


def flow(experiment: Experiment) -> Measure:
    """`reads` of one sequence with (4,3), in the place of attention, and its tokens."""

    def function(row):
        tokens_BxL = row.batch.tokens_BxL
        _, acts = models.forward(row.model, row.params, tokens_BxL)
        example = jnp.argmin(jnp.abs(row.batch.info["key_position_B"] - 1))
        return {
            "pattern": state_space.reads(acts, row.model.n_layers)[:, example],
            "tokens": tokens_BxL[example],
        }

    dims = {"pattern": ("layer", "query", "position"), "tokens": ("position",)}
    units = {"pattern": "share", "tokens": "token"}
    return Measure("flow", function, units, dims, snapshots="last", split="ood_43", n=SEQUENCES)


def scores_needed(experiment: Experiment) -> Measure:
    """Scores at which softmax, and a state that decays, single out one of L tokens; of no trained weights."""

    def function(row):
        return {
            "softmax": jnp.stack([copying.softmax_gap(length) for length in GAP_LENGTHS]),
            "decay": jnp.stack(
                [jnp.stack([copying.decay_log_score(n, rate) for n in DECAY_LENGTHS]) for rate in RATES]
            ),
        }

    dims = {"softmax": ("length",), "decay": ("rate", "distance")}
    coords = {"length": GAP_LENGTHS, "rate": RATES, "distance": DECAY_LENGTHS}
    return Measure("scores", function, {"softmax": "score", "decay": "log score"}, dims, coords, snapshots="last")


def states_needed(experiment: Experiment) -> Measure:
    """Errors of constructed weights of eight states that copy strings, of random letters for each seed."""

    def of_length(n_tokens, key):
        task = CopyStrings(longest=n_tokens, shortest=n_tokens)
        batch = task.sample(key, SEQUENCES, "train", {})
        model, params = copying.copier(n_tokens, STATES, task.vocab_size, task.end)
        logits, _ = model.apply({"params": params}, batch.tokens_BxL, {})
        error = copying.copy_error(model, params, batch.tokens_BxL, batch.targets_BxL)
        return {"error": error, "accuracy": task.score(logits, batch)["accuracy"]}

    def function(row):
        key = jax.random.fold_in(row.key, row.hparams["seed"].astype(jnp.int32))
        return stack([of_length(n_tokens, key) for n_tokens in TOKENS])

    units = {"error": "of a unit vector", "accuracy": "share of strings"}
    return Measure("copier", function, units, dict.fromkeys(units, ("token",)), {"token": TOKENS}, snapshots="last")


def _answer(row, tokens_BxL, edits=None):
    logits_BxLxV, _ = models.forward(row.model, row.params, tokens_BxL, edits or {})
    return jnp.argmax(logits_BxLxV[:, -1], axis=-1)
