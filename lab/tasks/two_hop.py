"""Two facts and the question that joins them: does a model that knows both hops answer (h, r1, r2)?

| kind | question | answer | with a chain of thought |
|---|---|---|---|
| fact | `h r1` | `t` | `t` |
| identity | `e` | `e` | `e` |
| two hops | `h r1 r2` | `t` | `b t` |
| three hops, never trained | `h r1 r2 r3` | `t` | `b b' t` |

Every fact is trained. Which questions of two hops are, a row says; those both of whose hops are out of distribution
never are. Two worlds (`lab.tasks.worlds`): `layers` of subjects, bridges and objects ("Identity Bridge", arXiv
2509.24653; sizes are ours) and a random `graph` ("Unveiling the Mechanisms of Explicit CoT Training", arXiv
2502.04667). Items of the training set are drawn at random, each as likely, so that what a ratio changes is how often
each is seen, as in the papers, whose epochs visit every item once. A batch that has room for all of them is the full
batch: each item once, in order, and what is left of the batch has no weight.

Sequences begin at the left. In `layers` without trained questions nothing is ever answered after three tokens: there
use a model without absolute positions (a transformer with `max_length=0`, or a bag of tokens). A transformer reads `e`
of an identity in the residual stream of `e` itself, and the `e` of a fact by attention, with other weights: `asked`
decides whether the two can share anything.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits, rng
from lab.objective import PAD
from lab.tasks import answers, worlds, wrong_hops
from lab.tasks.task import Batch, Task, check_split

WORLDS = {"layers": worlds.layers, "graph": worlds.graph}
ASKED = ("plain", "relation", "question")
END, FIRST_RELATION = 1, 2
FACT, IDENTITY, TWO_HOP, THREE_HOP = range(4)  # `info["kind_B"]`
HOPS = {FACT: 1, TWO_HOP: 2, THREE_HOP: 3}


@dataclasses.dataclass(frozen=True)
class TwoHop(Task):
    """The task as a value.

    Splits, those that are not empty: `train`; `fact_id`, `fact_ood`, `identity`; `two_hop_train` (what a row trains of
    them, with its noise), `two_hop_id` (held out, both hops in distribution), `two_hop_ood`; `three_hop_id`,
    `three_hop_ood`.

    Attributes:
      world: `layers` or `graph`.
      n_entities: of each set of `layers`; all of a `graph`.
      n_relations: of a `graph`; of `layers` the first relations, and as many second ones: the complexity k.
      out_degree: facts of a head. In `layers` n_relations (heads share all relations) or 1.
      ood_share: of facts (`graph`) or subjects (`layers`) that are out of distribution: 1: no question is trained.
      test_share: of the other questions, held out for `two_hop_id`.
      chain_of_thought: the bridge is said before the answer.
      three_hop: whether there are questions of three hops; of a `graph`.
      asked: `plain`, as above; `relation`: identities have a relation of their own, `e ? -> e`; `question`: all
        questions end with `?`, so that all answers are read at the same token.
      end_token: answers end with a token of their own.
      identity: share of the bridges (`graph`: entities) whose identity is trained, at random by `world_seed`.
      ratio: trained questions of two hops for each fact in distribution: lambda.
      xi_first, xi_second, xi_both: probability that a trained question has a wrong bridge, a wrong answer, both; the
        wrong entity is uniform and belongs to the question, and of two probabilities the higher one changes all that
        the lower one does.
      xi_leaking: a wrong bridge, as in the authors' code: it stays for the later questions of the same (h, r1).
      world_seed: of the world and its splits.
    """

    world: str
    n_entities: int
    n_relations: int
    out_degree: int
    ood_share: float
    test_share: float = 0.0
    chain_of_thought: bool = False
    three_hop: bool = False
    asked: str = "plain"
    end_token: bool = False
    identity: float = 0.0
    ratio: float = 0.0
    xi_first: float = 0.0
    xi_second: float = 0.0
    xi_both: float = 0.0
    xi_leaking: float = 0.0
    world_seed: int = 0

    has_answer = True
    end = END  # for `lab.models.decode`
    stream_only = "the training set is the world's own, and sampled from it; use train_size=0"
    hparams = ("identity", "ratio", *wrong_hops.XI)

    def __post_init__(self):
        shares = dict.fromkeys(("ood_share", "test_share", "identity", *wrong_hops.XI), (0, 1))
        limits.check(
            "task", self, {"world": WORLDS, "asked": ASKED}, shares | {"world_seed": (0, limits.SEED_BOUND - 1)}
        )
        limits.check_sizes("task", self, dict(n_entities=2, n_relations=1, out_degree=1))
        degrees = (1, self.n_relations) if self.world == "layers" else range(1, self.n_relations + 1)
        if self.out_degree not in degrees:
            ends = f"{degrees[0]} {'or' if self.world == 'layers' else 'to'} {degrees[-1]}"
            raise ValueError(f"task.out_degree={self.out_degree}: {ends}, of task.n_relations={self.n_relations}")
        if self.world == "layers" and self.out_degree < self.n_relations > self.n_entities:
            raise ValueError(f"task.n_entities={self.n_entities}: at least task.n_relations={self.n_relations}")
        if self.three_hop and self.world == "layers":
            raise ValueError("task.three_hop=True: objects of world 'layers' have no facts; use 'graph'")
        if not self.questions.two_hop_ood.size:
            raise ValueError(f"task.ood_share={self.ood_share}: leaves no question of two hops out of distribution")
        if not 0 <= self.ratio <= self.most_ratio:
            raise ValueError(
                f"task.ratio={self.ratio}: from 0 to {self.most_ratio:.6g}, the questions that may be trained for each "
                "fact in distribution"
            )

    @property
    def facts(self) -> worlds.World:
        return _facts(*self._world)

    @property
    def questions(self) -> worlds.Questions:
        return _questions(*self._world, self.test_share, self.three_hop)

    @property
    def _world(self) -> tuple:
        return self.world, self.n_entities, self.n_relations, self.out_degree, self.ood_share, self.world_seed

    @property
    def most_ratio(self) -> float:
        """The most questions that may be trained for each fact in distribution."""
        return len(self.questions.pool) / self._n_id if self._n_id else 0.0

    @property
    def _n_id(self) -> int:
        return int((~self.facts.is_ood_A).sum())

    @property
    def words(self) -> tuple[str, ...]:
        n_relations = self.first_entity - FIRST_RELATION
        entities = range(len(self.facts.start_E))
        mark = () if self.asked == "plain" else ("?",)
        return ("", "end", *(f"r{i}" for i in range(n_relations)), *(f"e{i}" for i in entities), *mark)

    @property
    def first_entity(self) -> int:
        """The token of entity 0."""
        return FIRST_RELATION + self.n_relations * (2 if self.world == "layers" else 1)

    @property
    def mark(self) -> int:
        """The token `?`, where questions have it."""
        return self.vocab_size - 1

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    @property
    def length(self) -> int:
        return max(self._size(kind) for kind in ((TWO_HOP, THREE_HOP) if self.three_hop else (TWO_HOP,))) - 1

    @property
    def longest_answer(self) -> int:
        return max(len(self._form(kind)[1]) for kind in HOPS) + self.end_token

    @property
    def answer_alphabet(self) -> range:
        return range(self.first_entity, self.first_entity + len(self.facts.start_E))

    @property
    def context_alphabet(self) -> range:
        return range(FIRST_RELATION, self.vocab_size)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", *(name for name, (_, numbers) in self._tested.items() if len(numbers)))

    def decode(self, tokens) -> str:
        """A sequence as text for people."""
        return " ".join(self.words[int(token)] for token in tokens if token != PAD)

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences of a split; those of evaluation splits come all before one comes again, from a random one on.

        `info`: `kind_B`, `answer_B`, `bridge_B` (the true entity's token; 0 of facts and identities), and of two hops
        `subject_B` (the answer to (h, r2); 0 where that is no fact). A value of `hparams` that is not possible gives
        weights of NaN, and so does `two_hop_train` where a row trains no question.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        if split == "train":
            return self._train(key, n, hparams)
        kind, numbers = self._tested[split]
        count = self._counts(hparams)[TWO_HOP] if split == "two_hop_train" else len(numbers)
        place_B = jax.random.randint(key, (), 0, len(numbers), jnp.int32) + jnp.arange(n, dtype=jnp.int32)
        number_B = jnp.asarray(numbers)[place_B % jnp.clip(jnp.int32(count), 1, len(numbers))]
        xi = self._xi(hparams) if split == "two_hop_train" else {}
        sequence_BxM, is_answer_M, info = self._items(kind, number_B, xi)
        if kind == TWO_HOP:
            world = self.facts.on_device()
            parts = world.parts(2, number_B)
            tail_B = world.apply(parts["head"], parts["second"])
            info["subject_B"] = jnp.where(tail_B == worlds.NO_FACT, 0, tail_B + self.first_entity)
        batch = answers.pack(sequence_BxM, jnp.broadcast_to(is_answer_M, sequence_BxM.shape), info)
        return batch._replace(weights_BxL=jnp.where(count > 0, batch.weights_BxL, jnp.nan))

    def score(self, logits_BxLxV, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy` (all of the answer, as greedy decoding would give it) and `token_accuracy`; of two hops more.

        Without a chain of thought, shares of what is answered in place of the answer: `says_bridge`; of a `graph`
        `says_subject` (the second relation applied to the subject: in `layers` no subject has it); `right_type` (an
        entity that answers questions of these relations, right or wrong), and `within_type` (accuracy among those
        alone). With one: `bridge_accuracy`, and `answer_accuracy` given the true bridge.

        Raises:
          ValueError: as `answers.token_correct`.
        """
        right_BxL = answers.token_correct(logits_BxLxV, batch)
        is_answer_BxL = batch.weights_BxL > 0
        counts_B = jnp.any(is_answer_BxL, axis=1).astype(jnp.float32)  # not what fills up a full batch

        def share(holds_B):
            return jnp.sum(counts_B, where=holds_B) / jnp.sum(counts_B)

        scores = {
            "accuracy": share(jnp.all(right_BxL | ~is_answer_BxL, axis=1)),
            "token_accuracy": jnp.mean(right_BxL, where=is_answer_BxL, dtype=jnp.float32),
        }
        if "subject_B" not in batch.info:
            return scores
        first_B = jnp.argmax(is_answer_BxL, axis=1).astype(jnp.int32)[:, None]
        if self.chain_of_thought:
            right = {"bridge_accuracy": first_B, "answer_accuracy": first_B + 1}
            return scores | {
                name: share(jnp.take_along_axis(right_BxL, place, axis=1)[:, 0]) for name, place in right.items()
            }
        logits_BxV = jnp.take_along_axis(logits_BxLxV, first_B[..., None], axis=1)[:, 0]
        kind_V = np.full(self.vocab_size, -1, np.int32)
        kind_V[self.answer_alphabet.start : self.answer_alphabet.stop] = self.facts.kind_E
        kind_V = jnp.asarray(kind_V)
        answer_B, says_B = batch.info["answer_B"], jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
        of_type_BxV = kind_V[None] == kind_V[answer_B][:, None]
        within_B = jnp.argmax(jnp.where(of_type_BxV, logits_BxV, -jnp.inf), axis=-1).astype(jnp.int32)
        if self.world == "graph":
            scores["says_subject"] = share(says_B == batch.info["subject_B"])
        return scores | {
            "says_bridge": share(says_B == batch.info["bridge_B"]),
            "right_type": share(kind_V[says_B] == kind_V[answer_B]),
            "within_type": share(within_B == answer_B),
        }

    @property
    def _tested(self) -> dict[str, tuple[int, np.ndarray]]:
        """Split of evaluation -> kind and numbers of its items."""
        fact_A, bridge_I = (np.arange(len(table)) for table in (self.facts.head_A, self.facts.bridge_I))
        given = self.questions
        return {
            "fact_id": (FACT, _shuffled(fact_A[~self.facts.is_ood_A])),
            "fact_ood": (FACT, _shuffled(fact_A[self.facts.is_ood_A])),
            "identity": (IDENTITY, _shuffled(bridge_I)),
            "two_hop_train": (TWO_HOP, given.pool),
            "two_hop_id": (TWO_HOP, given.two_hop_id),
            "two_hop_ood": (TWO_HOP, given.two_hop_ood),
            "three_hop_id": (THREE_HOP, given.three_hop_id),
            "three_hop_ood": (THREE_HOP, given.three_hop_ood),
        }

    def _counts(self, hparams: Mapping) -> list:
        """How many facts, identities and questions of two hops a row trains, int32."""
        identity, ratio = (
            jnp.asarray(hparams.get(name, getattr(self, name)), jnp.float32) for name in self.hparams[:2]
        )
        counts = jnp.float32(len(self.facts.head_A)), identity * len(self.facts.bridge_I), ratio * self._n_id
        return [jnp.round(count).astype(jnp.int32) for count in counts]

    def _train(self, key, n: int, hparams: Mapping) -> Batch:
        tables = [np.arange(len(table), dtype=np.int32) for table in (self.facts.head_A, self.facts.bridge_I)]
        tables.append(self.questions.pool)
        counts = self._counts(hparams)
        total = counts[FACT] + counts[IDENTITY] + counts[TWO_HOP]
        in_order_B, drawn_B = jnp.arange(n, dtype=jnp.int32), jax.random.randint(key, (n,), 0, total, jnp.int32)
        index_B = jnp.where(n >= total, in_order_B, drawn_B)
        kind_B, first, of_kinds = jnp.zeros((n,), jnp.int32), 0, []
        for kind in [kind for kind, table in enumerate(tables) if len(table)]:
            kind_B = jnp.where(index_B >= first, kind, kind_B)
            number_B = jnp.asarray(tables[kind])[jnp.clip(index_B - first, 0, len(tables[kind]) - 1)]
            of_kinds.append((kind, *self._items(kind, number_B, self._xi(hparams) if kind == TWO_HOP else {})))
            first = first + counts[kind]

        size = max(sequence_BxM.shape[1] for _, sequence_BxM, _, _ in of_kinds)
        sequences = None
        for kind, sequence_BxM, is_answer_M, info in of_kinds:
            beyond = size - sequence_BxM.shape[1]
            is_answer_BxM = jnp.broadcast_to(np.pad(is_answer_M, (0, beyond)), (n, size))
            item = jnp.pad(sequence_BxM, ((0, 0), (0, beyond))), is_answer_BxM, info
            choose = functools.partial(_choose, kind_B == kind)
            sequences = item if sequences is None else jax.tree.map(choose, item, sequences)
        batch = answers.pack(*sequences)
        weight_B = jnp.where(index_B < total, self._weight(hparams), jnp.float32(0))
        return batch._replace(weights_BxL=batch.weights_BxL * weight_B[:, None])

    def _weight(self, hparams: Mapping):
        """1, or NaN where a row's numbers are not possible."""
        given = {name: jnp.asarray(hparams[name], jnp.float32) for name in self.hparams if name in hparams}
        inside = [
            (value >= 0) & (value <= (self.most_ratio if name == "ratio" else 1)) for name, value in given.items()
        ]
        return jnp.where(jnp.all(jnp.stack([jnp.bool_(True), *inside])), jnp.float32(1), jnp.nan)

    def _xi(self, hparams: Mapping) -> dict:
        """The probabilities of noise that are asked for: those of the row, and those of the task that are not 0."""
        names = [name for name in wrong_hops.XI if name in hparams or getattr(self, name)]
        return {name: jnp.asarray(hparams.get(name, getattr(self, name)), jnp.float32) for name in names}

    def _form(self, kind: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Question and answer of a kind, by the names of their parts."""
        n_hops = HOPS.get(kind, 0)
        has_mark = self.asked == "question" or (self.asked == "relation" and kind == IDENTITY)
        between = worlds.BRIDGES[: max(n_hops - 1, 0)] if self.chain_of_thought else ()
        return ("head", *worlds.RELATIONS[:n_hops], *(("mark",) * has_mark)), (*between, "answer")

    def _size(self, kind: int) -> int:
        """Tokens of a sequence."""
        return sum(map(len, self._form(kind))) + self.end_token

    def _items(self, kind: int, number_B, xi: Mapping) -> tuple:
        """Sequences (B, M) of the items of a kind with these numbers, which of their tokens answer (M), and info."""
        world = self.facts.on_device()
        if kind == IDENTITY:
            parts = dict.fromkeys(("head", "answer"), world.bridge_I[number_B])
        else:
            parts = world.parts(HOPS[kind], number_B)
        trained = parts
        if xi:
            size = len(self.facts.start_E), self.facts.degree
            trained = parts | wrong_hops.entities(number_B, parts, xi, *size, rng.key(self.world_seed, "two_hop/noise"))
        question, answer = self._form(kind)
        token = {
            name: value + (FIRST_RELATION if name in worlds.RELATIONS else self.first_entity)
            for name, value in trained.items()
        } | {"mark": jnp.full_like(number_B, self.mark)}
        columns = [token[name] for name in (*question, *answer)] + [jnp.full_like(number_B, END)] * self.end_token
        info = {
            "kind_B": jnp.full_like(number_B, kind),
            "answer_B": parts["answer"] + self.first_entity,
            "bridge_B": parts["bridge"] + self.first_entity if "bridge" in parts else jnp.zeros_like(number_B),
        }
        return jnp.stack(columns, axis=1), np.arange(len(columns)) >= len(question), info


def _choose(is_B, one, other):
    """Rows of `one` where `is_B`, else of `other`."""
    return jnp.where(jnp.expand_dims(is_B, range(1, one.ndim)), one, other)


def _shuffled(numbers: np.ndarray) -> np.ndarray:
    return np.random.RandomState(0).permutation(numbers).astype(np.int32)


_facts = functools.cache(lambda world, *options: WORLDS[world](*options))


@functools.cache
def _questions(*options) -> worlds.Questions:
    *world, test_share, three_hop = options
    return worlds.questions(_facts(*world), test_share, three_hop, seed=world[-1] + 1)
