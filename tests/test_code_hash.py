"""A hash is another one for whatever changes what an object does, and the same for the same thing made again."""

import dataclasses
import functools
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import user_code
from lab.code_hash import code_hash

BODY = """
import dataclasses, functools, jax
import jax.numpy as jnp
K = 2

def helper(x):
    return x * K

def plain(x):
    return [helper(e) for e in x]

def nested(x):
    def inner(e):
        return (lambda: helper(e))()
    return inner(x)

def keyword(x, *, scale=helper):
    return scale(x)

jitted = jax.jit(helper)
mapped = jax.vmap(helper)
cached = functools.cache(helper)

def wrapping(function):
    @functools.wraps(function)
    def wrapped(x):
        return K * function(x)
    return wrapped

@wrapping
def decorated(x):
    return x

class Plain:
    def __init__(self, by=1):
        self.by = by
    @property
    def first(self):
        return helper(1)
    @functools.cached_property
    def second(self):
        return helper(1)
    @classmethod
    def third(cls):
        return helper(1)
    def __call__(self, x):
        return x * self.by

class First(Plain):
    second = third = None
class Second(Plain):
    @functools.cached_property
    def only(self):
        return helper(1)

@dataclasses.dataclass
class Fields:
    by: int = 1
    def __call__(self, x):
        return helper(x)

instance = Plain()
method = instance.__call__
"""
PARTS = re.findall(
    r"\w+", "plain nested keyword jitted mapped cached decorated Plain First Second Fields instance method"
)


class Within:
    def __init__(self, bound):
        self.bound = bound

    def __call__(self, outputs, targets):
        return abs(outputs - targets) < self.bound

    def loose(self, outputs, targets):
        return self(outputs, targets)


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("bound",)
    bound: int


def defined(text=BODY):
    made = {"__name__": "not_a_file"}
    exec(compile(text, "<elsewhere>", "exec"), made)
    return made


@pytest.mark.parametrize("part", PARTS)
def test_what_is_named_inside_counts(part):
    before, again, after = (defined(text)[part] for text in (BODY, BODY, BODY.replace("K = 2", "K = 3")))
    assert code_hash(before) == code_hash(again) != code_hash(after)


@pytest.mark.parametrize("part", PARTS)
def test_own_code_of_what_is_named_counts(part):
    after = defined(BODY.replace("return x * K", "return x + K").replace("return K * f", "return K + f"))[part]
    assert code_hash(defined()[part]) != code_hash(after)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Within(1), Within(2)),
        (Within(1).loose, Within(2).loose),
        (functools.partial(Within, 1), functools.partial(Within, 2)),
        ({1, 2}, {1, 3}),
        (range(3), range(4)),
        (b"a", b"b"),
        ((1, 1, 2), (2, 1, 2)),
        ((), {}),
        (Slotted(1), Slotted(2)),
        (np.arange(3), np.arange(3) + 1),
        (jnp.arange(3), jnp.arange(3) + 1),
        (np.dtype("int32"), np.dtype("int64")),
        (np.sin, np.cos),
        (re.compile("a"), re.compile("b")),
        (lambda o: o + 1, lambda o: o + 2),
        (jax.jit(lambda o: o + 1), jax.jit(lambda o: o + 2)),
        (jax.random.key(0), jax.random.key(1)),
    ],
)
def test_content_counts(one, other):
    assert code_hash(one) != code_hash(other) and code_hash(one) == code_hash(one)


def test_what_was_computed_meanwhile_does_not_count():
    made = defined()["instance"]
    before = code_hash(made)
    assert made.second == 2 and code_hash(made) == before


@pytest.mark.parametrize("thing", [threading.Lock(), (i for i in range(3)), Within(threading.Lock())])
def test_what_has_no_content_is_refused_in_one_line(thing):
    with pytest.raises(ValueError, match=r"a (lock|generator); accepted are functions, classes, .*pickled$"):
        code_hash(thing)


def test_objects_of_one_class_have_names_of_their_own():
    names = [user_code.name_of(Within(bound)) for bound in (1, 2, 1)]
    assert names[0] == names[2] != names[1]
    assert [user_code.find(name).bound for name in names] == [1, 2, 1]
    assert user_code.name_of(np.arange(3)) == user_code.name_of(np.arange(3)) != user_code.name_of(np.arange(4))


def test_an_object_that_changed_under_its_name_is_not_another_one():
    first = Within(11)
    user_code.name_of(first)
    first.bound = 12
    with pytest.raises(ValueError, match="Within: another one was given before, and changed since"):
        user_code.name_of(Within(11))
