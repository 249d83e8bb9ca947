"""Kinship: the table against simulated families, and every answer against the family that its text tells of."""

import collections
import functools
import itertools
import random
import runpy
import types
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lab.tasks import Kinship
from lab.tasks.kinship import COMPOSED, MEN, RELATIONS, SELF, WOMEN, chains

ALPHA = 1e-3  # level of the tests on counts; the seeds are fixed, so they pass or fail for good
N = 2000
SMALL = Kinship(hops_train=(2, 3), hops_ood=(4,))
LARGE = Kinship(hops_train=(2, 3, 4), hops_ood=(6, 8))
WORD = {word: (kind, gender) for kind, words in RELATIONS.items() for gender, word in enumerate(words)}
draw = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("draw.py"))))
drawn, cases = functools.partial(draw.drawn, n=N), functools.partial(draw.cases, (SMALL, LARGE))


def items(task, batch):
    """Facts (whose, relation, who), the two people asked about, answer: as words."""
    for tokens, answer in zip(batch.tokens_BxL, batch.targets_BxL[:, -1], strict=True):
        words = task.decode(tokens).split()
        told, (one, other, mark) = words[:-3], words[-3:]
        assert mark == "?" and told[3::4] == ["."] * (len(told) // 4)
        yield list(zip(told[::4], told[1::4], told[2::4], strict=True)), (one, other), task.words[answer]


class Families:
    """People and the couple each was born to and the couple each belongs to, joined as facts come in."""

    def __init__(self):
        self.same, self.gender = {}, {}

    def find(self, couple):
        while self.same.get(couple, couple) != couple:
            couple = self.same[couple]
        return couple

    def born(self, person):
        return self.find(("born", person))

    def own(self, person):
        return self.find(("own", person))

    def tell(self, whose, kind, who):
        one, other = {
            "parent": (self.born(whose), self.own(who)),
            "child": (self.own(whose), self.born(who)),
            "sibling": (self.born(whose), self.born(who)),
            "spouse": (self.own(whose), self.own(who)),
        }[kind]
        self.same[one] = other

    def check(self, people):
        """At most one man and one woman make a couple, and nobody is an ancestor of their own."""
        for couple in {self.own(person) for person in people}:
            genders = [self.gender[person] for person in people if self.own(person) == couple]
            assert len(genders) == len(set(genders))
        up = {self.own(person): set() for person in people}
        for person in people:
            up[self.own(person)].add(self.born(person))
        while removed := [couple for couple, above in up.items() if not above & up.keys()]:
            for couple in removed:
                del up[couple]
        assert not up

    def relations(self, a, c, people):
        born, own = self.born, self.own
        between = [b for b in people if b not in (a, c)]
        found = {
            "parent": own(c) == born(a),
            "child": born(c) == own(a),
            "sibling": born(c) == born(a),
            "spouse": own(c) == own(a),
            "grandparent": any(own(b) == born(a) and own(c) == born(b) for b in between),
            "grandchild": any(born(b) == own(a) and born(c) == own(b) for b in between),
            "parent's sibling": any(own(b) == born(a) and born(c) == born(b) for b in between),
            "sibling's child": any(born(b) == born(a) and born(c) == own(b) for b in between),
            "spouse's parent": any(own(b) == own(a) and own(c) == born(b) for b in between),
            "child's spouse": any(born(b) == own(a) and own(c) == own(b) for b in between),
        }
        return [kind for kind, holds in found.items() if holds]


def name(case):
    return case if isinstance(case, str) else f"depth-{case.depth}"


DEFAULT = [*((SMALL, split) for split in SMALL.splits), (LARGE, "ood")]


@pytest.mark.parametrize(("task", "split"), cases(*DEFAULT), ids=name)
def test_every_answer_holds_in_the_only_family_that_the_text_tells_of(task, split):
    batch = drawn(task, split)
    assert batch.tokens_BxL.shape == (N, task.length)
    assert (batch.weights_BxL == (np.arange(task.length) == task.length - 1)).all()
    assert set(batch.info["hops_B"].tolist()) == set(task.hops_ood if split == "ood" else task.hops_train)
    for i, (facts, (one, other), answer) in enumerate(items(task, batch)):
        families, people = Families(), {name for whose, _, who in facts for name in (whose, who)}
        families.gender = {name: int(name in WOMEN) for name in people}
        assert len(people) == len(facts) + 1 == task.depth + 1  # all different, and all of one family
        for whose, word, who in facts:
            kind, gender = WORD[word]
            assert gender == families.gender[who]
            families.tell(whose, kind, who)
        families.check(people)
        kind, gender = WORD[answer]
        assert families.relations(one, other, people) == [kind]
        assert gender == families.gender[other]
        hops = len(path(facts, one, other))
        assert hops == batch.info["hops_B"][i]
        assert sorted(task.words[token] for token in batch.info["candidates_BxC"][i]) == sorted(
            words[gender] for words in RELATIONS.values()
        )


def path(facts, one, other):
    """The facts on the way from one to the other, each read forwards."""
    reached = {one: []}
    for _ in facts:
        reached |= {who: [*reached[whose], word] for whose, word, who in facts if whose in reached}
    return reached[other]


@pytest.mark.parametrize("seed", range(3))
def test_the_table_holds_in_simulated_families_and_lacks_nothing_that_does(seed):
    """Every composition of two relations of three people among four generations."""
    families, people = simulated(seed)
    named = {(a, c): families.relations(a, c, people) for a, c in itertools.permutations(people, 2)}
    assert all(len(kinds) <= 1 for kinds in named.values())
    outcomes = collections.defaultdict(set)
    for a, b, c in itertools.permutations(people, 3):
        if named[a, b] and named[b, c]:
            outcomes[named[a, b][0], named[b, c][0]].add((named[a, c] or [None])[0])
    decided = {pair: kinds.pop() for pair, kinds in outcomes.items() if len(kinds) == 1}
    decided = {pair: kind for pair, kind in decided.items() if kind is not None}
    assert decided == {pair: kind for pair, kind in COMPOSED.items() if kind != SELF}
    assert ("spouse", "spouse") not in outcomes  # of three people


def simulated(seed):
    """Four generations of two families: everyone but some of the youngest has a spouse, mostly from outside."""
    rng, families, people = random.Random(seed), Families(), []

    def person(gender):
        people.append(len(people))
        families.gender[people[-1]] = gender
        return people[-1]

    def couple(one=None):
        one = person(rng.randrange(2)) if one is None else one
        other = person(1 - families.gender[one])
        families.tell(one, "spouse", other)
        return one

    parents = [couple(), couple()]
    for generation in range(3):
        born = [[(person(0), person(1), person(rng.randrange(2))), parent] for parent in parents]
        for children, parent in born:
            for child in children:
                families.tell(child, "parent", parent)
        if generation == 0:  # two weddings of the two families would make their children relatives twice
            (bride, *_), (_, groom, *_) = born[0][0], born[1][0]
            families.tell(bride, "spouse", groom)
            rest = [child for children, _ in born for child in children if child not in (bride, groom)]
            parents = [bride, *(couple(child) for child in rng.sample(rest, 3))]
        else:
            parents = [couple(child) for children, _ in rng.sample(born, min(3, len(born))) for child in children[:2]]
    return families, people


@pytest.mark.parametrize("n_steps", range(2, 9))
def test_composition_does_not_depend_on_where_it_begins(n_steps):
    """All ways to put brackets around a chain that lead anywhere lead to the same relation."""
    for steps, named in chains(n_steps):

        @functools.cache
        def outcomes(first, end, steps=steps):
            if end - first == 1:
                return {steps[first]}
            pairs = (
                (one, other)
                for middle in range(first + 1, end)
                for one in outcomes(first, middle)
                for other in outcomes(middle, end)
            )
            return {COMPOSED[pair] for pair in pairs if pair in COMPOSED}

        assert outcomes(0, n_steps) == {named[0, n_steps]}


def test_there_are_as_many_chains_as_the_docstring_says():
    assert [len(chains(n_steps)) for n_steps in (1, 2, 3, 4)] == [4, 13, 29, 52]


@pytest.mark.parametrize("split", ["train", "test", "ood"])
def test_kinds_and_genders_of_answers_are_even(split):
    counts = collections.Counter(answer for _, _, answer in items(SMALL, drawn(SMALL, split)))
    kinds = [sum(counts[word] for word in words) for words in RELATIONS.values()]
    assert stats.chisquare(kinds).pvalue > ALPHA
    assert stats.binomtest(sum(counts[words[0]] for words in RELATIONS.values()), N).pvalue > ALPHA


def test_people_of_the_test_split_are_never_asked_about_in_training():
    asked = {split: {people for _, people, _ in items(SMALL, drawn(SMALL, split))} for split in SMALL.splits}
    assert not asked["test"] & (asked["train"] | asked["ood"])
    assert {one for one, _ in asked["test"]} == {other for _, other in asked["train"]} == set(MEN + WOMEN)
    assert len(asked["test"]) == pytest.approx(32 * 31 / 5, rel=0.05)


def test_chains_of_the_ood_split_are_longer_than_any_in_training():
    kinds = {
        split: {
            tuple(WORD[word][0] for word in path(facts, *people))
            for facts, people, _ in items(SMALL, drawn(SMALL, split))
        }
        for split in ("train", "ood")
    }
    assert kinds["train"] == {steps for n_steps in (2, 3) for steps, _ in chains(n_steps)}
    assert kinds["ood"] == {steps for steps, _ in chains(4)}
