"""A name finds the object that it was made of; objects without a place are known by their code and what is bound."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab import families, user_code
from lab.tasks import Anchor

SCALE = 2.0


def scaled(x):
    return SCALE * x


def make(bound):
    return lambda x: x + bound


@pytest.mark.parametrize(
    ("thing", "name"),
    [(nn.relu, "jax.nn:relu"), (nn.Dense, "flax.linen:Dense"), (optax.lion, "optax:lion"), (jnp.float32, None),
     (scaled, f"{__name__}:scaled"), (make(1), None), (functools.partial(scaled, 1), None)],
)  # fmt: skip
def test_name_finds_the_object(thing, name):
    found = user_code.name_of(thing)
    assert user_code.find(found) is thing
    assert name is None or found == name


@pytest.mark.parametrize("bound", [2, 1.5, "a", np.ones(3), (1, 3), scaled])
def test_hash_of_a_closure_is_of_what_it_is_bound_to(bound):
    assert user_code.code_hash(make(bound)) == user_code.code_hash(make(bound))
    assert user_code.code_hash(make(bound)) != user_code.code_hash(make(1))


def test_hash_is_of_the_values_that_a_function_names(monkeypatch):
    before = user_code.code_hash(make(scaled))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert user_code.code_hash(make(scaled)) != before


def test_object_that_another_process_held_is_named_in_one_line():
    with pytest.raises(ValueError, match=r"make.<locals>.<lambda> of mine cannot be imported; define it at the top"):
        user_code.find("mine:make.<locals>.<lambda>#12345678")


GUARD = 'if __name__ == "__main__":\n'
SCRIPT = """
import json
from lab import user_code

class Net:
    pass

{before}
{guard}    place = user_code.describe(Net)
    assert user_code.find(user_code.name_of(Net)) is Net
    if place["file"]:
        assert user_code.reload(place["module"], user_code.Path(place["file"])).Net is Net
    print(json.dumps([user_code.name_of(Net), place]))
"""


@pytest.mark.parametrize(
    ("before", "guard", "name"),
    [
        ("", GUARD, "afternoon:Net"),
        (
            "SIZES = tuple(range(3))\ntry:\n    import no_such_package\nexcept ImportError:\n    n = None",
            GUARD,
            "afternoon:Net",
        ),
        ("", "if True:\n", "__main__:Net"),
        ("print(end='')", GUARD, "__main__:Net"),
        ("class Run:\n    def train(self): return self\n\nrun = Run().train()", GUARD, "__main__:Net"),
        ("for i in range(3): pass", GUARD, "__main__:Net"),
    ],
)
def test_class_of_a_script_is_found_by_others_where_they_may_import_it(tmp_path, monkeypatch, before, guard, name):
    """And by the script itself: it is no other class there."""
    file = tmp_path / "afternoon.py"
    file.write_text(SCRIPT.format(before=before, guard=guard))
    ran = subprocess.run([sys.executable, file], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    named, place = json.loads(ran.stdout)
    assert named == name and (place["file"] is None) == (name == "__main__:Net")
    if place["file"]:
        monkeypatch.setattr(sys, "path", [*sys.path])
        found = user_code.reload(place["module"], Path(place["file"])).Net
        assert user_code.describe(found) == place
        del sys.modules["afternoon"]  # not by monkeypatch, which would bring it back


@pytest.mark.parametrize(
    "value",
    [
        3, 0.5, "a", None, (1, 2.0), nn.relu, jnp.float32, nn.Dense(3, use_bias=False), (nn.relu, nn.Dense(2), 3),
        nn.Sequential((nn.Dense(4), nn.relu, nn.Sequential((nn.Dense(2),)))), {"a": nn.tanh, "b": 1}, Anchor(),
        nn.Dense(3, kernel_init=nn.initializers.zeros),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_value_of_a_config_is_built_again(value):
    assert families.build(families.express(value, "model"), "model") == value


def test_lists_become_tuples_so_that_a_model_can_be_hashed():
    built = families.build(families.express(nn.Sequential([nn.Dense(4), nn.relu]), "model"), "model")
    assert built == nn.Sequential((nn.Dense(4), nn.relu)) and isinstance(hash(built), int)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"family": "flax.linen:Dens"}, "model.family='flax.linen:Dens': module 'flax.linen' has no attribute 'Dens'"),
        ({"object": "jax.nn:rel"}, "model.object='jax.nn:rel': module 'jax.nn' has no attribute 'rel'"),
        ({"family": "flax.linen:Dense", "featurs": 3}, "model: .*unexpected keyword argument 'featurs'"),
    ],
)
def test_what_a_config_names_and_is_not_there_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        families.build(value, "model")
