"""A task or model of a user's own is named, recorded and found again; what its source decides is known by a hash."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from lab import config as configs
from lab import families, tasks, user_code
from lab.configs import base
from lab.disk import files
from lab.disk.files import WorkdirError
from lab.disk.workdir import Workdir
from lab.engine import train
from lab.tasks import Anchor

TASK = '''
"""A task of a user's own."""
import dataclasses
import jax, jax.numpy as jnp
from lab.tasks import Batch, Task

UNUSED = 3
BITS = 2

def parity(bits_BxL):
    return bits_BxL.sum(1) % 2

@dataclasses.dataclass(frozen=True)
class Parity(Task):
    vocab_size: int = BITS
    length: int = 4
    splits = ("train", "test")

    def sample(self, key, n, split, hparams):
        bits_BxL = jax.random.bernoulli(key, 0.5, (n, self.length)).astype(jnp.int32)
        targets_BxL = jnp.broadcast_to(parity(bits_BxL)[:, None], bits_BxL.shape)
        return Batch(bits_BxL, targets_BxL, jnp.ones(bits_BxL.shape, jnp.float32), {})

    def score(self, logits_BxQxV, batch):
        return {"accuracy": jnp.float32(0)}

class Other:
    pass

@dataclasses.dataclass
class Thawed(Task):
    length: int = 4

@dataclasses.dataclass(frozen=True)
class Empty(Task):
    size: int = 4

@dataclasses.dataclass(frozen=True)
class Scoreless(Task):
    vocab_size: int
    length = 4
    splits = ("train",)

    def sample(self, key, n, split, hparams):
        pass
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the task, where one works; nothing of it is known, before and after."""
    (tmp_path / "own_parity.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "own_parity", None)
    del sys.modules["own_parity"]
    before = dict(tasks.FAMILIES)
    user_code.load_file.cache_clear()
    yield tmp_path
    tasks.FAMILIES.clear()
    tasks.FAMILIES.update(before)


def config(family="own_parity:Parity"):
    model = dict(family="emb_mlp", vocab_size=2, d_model=4, d_ff=3, activation="tanh")
    made = base.config(task=dict(family=family), model=model, steps=2, study="mine", preset="x")
    made.optim.warmup_steps = 1
    del made["variants"]
    return made


def begun(path, settings):
    """What training writes before its first step."""
    files.write_json(path / "grid.json", configs.grid(settings).to_json())
    said = {"config": configs.to_json(settings), "data": {}, "start": {}, "classes": families.own(settings)}
    files.write_json(path / "config.json", said)
    return Workdir(path)


@pytest.mark.parametrize("family", ["own_parity:Parity", "own_parity.py:Parity", "{}/own_parity.py:Parity"])
def test_class_is_named_by_its_module_or_file(place, family):
    task = configs.experiment(config(family.format(place))).task
    assert type(task).__name__ == "Parity" and task.length == 4
    assert configs.experiment(config(family.format(place))).task == task  # the same class, so nothing compiles again


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("own_parity:Partiy", r"task.family='own_parity:Partiy': module 'own_parity' has no attribute 'Partiy'"),
        ("own_parity:Other", "task.family='own_parity:Other': not a frozen dataclass on top of lab.tasks.Task"),
        ("own_parity:BITS", "not a frozen dataclass"),
        ("nowhere:Parity", "task.family='nowhere:Parity': No module named 'nowhere'"),
        ("nowhere.py:Parity", r"nowhere\.py: no such Python file"),
        ("paritty", "task.family='paritty': one of composition, .* or a class of yours, as 'module:Class'"),
        ("own_parity:Thawed", "task.family='own_parity:Thawed': not a frozen dataclass on top of lab.tasks.Task"),
        ("own_parity:Empty", "Empty lacks splits, length, vocab_size, sample, score, see lab.tasks.Task"),
        ("own_parity:Scoreless", "Scoreless lacks score, see"),
        ("lab.models:Transformer", "not a frozen dataclass on top of lab.tasks.Task"),
    ],
)
def test_what_is_no_class_of_that_kind_is_refused(place, family, message):
    with pytest.raises(ValueError, match=message):
        configs.experiment(config(family))


def test_model_of_ones_own_is_named_alike(place):
    made = config()
    made.model = ConfigDict(dict(family="lab.models.mlp:EmbMLP", vocab_size=2, d_model=4, d_ff=3, activation="tanh"))
    assert configs.experiment(made) == configs.experiment(config())


@pytest.mark.parametrize("family", ["own_parity:Parity", "own_parity.py:Parity", "registered"])
def test_another_process_elsewhere_finds_the_class_again(place, family):
    if family == "registered":
        tasks.FAMILIES[family] = families.find("task", "own_parity:Parity", "task")
    work = begun(place / "w", config(family))
    (recorded,) = work.classes
    assert recorded["file"] == str(place / "own_parity.py") and recorded["class"] == "Parity"
    program = f"from lab.disk.workdir import Workdir; print(Workdir({str(work.path)!r}).experiment.task)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert ran.stdout == "Parity(vocab_size=2, length=4)\n", ran.stderr


def test_files_of_one_name_are_two_modules(place):
    other = place / "other" / "own_parity.py"
    other.parent.mkdir()
    other.write_text(TASK.replace("length: int = 4", "length: int = 5"))
    settings = [config("own_parity.py:Parity"), config(f"{other}:Parity")]
    found = [families.find("task", one.task.family, "task") for one in settings]
    assert [kind.length for kind in found] == [4, 5] and found[0].__module__ != found[1].__module__
    assert [families.own(one)[0]["file"] for one in settings] == [str(place / "own_parity.py"), str(other)]


def test_class_that_is_gone_is_named(place):
    tasks.FAMILIES["registered"] = families.find("task", "own_parity:Parity", "task")
    work = begun(place / "w", config("registered"))
    (place / "own_parity.py").unlink()
    del tasks.FAMILIES["registered"], sys.modules["own_parity"]
    with pytest.raises(ValueError, match=r"task.family='registered': class Parity was in .*own_parity.py when it was"):
        _ = work.experiment


def test_class_of_a_function_cannot_be_found_again_and_says_so(place):
    class Local(Anchor):
        pass

    recorded = [{"kind": "task", "family": "local", **user_code.describe(Local)}]
    assert recorded[0]["file"] is None
    with pytest.raises(ValueError, match=r"class .*Local was defined in .*, which cannot be imported; register it"):
        families.bring_back(recorded)


def test_class_that_this_process_defined_is_brought_back_and_one_of_other_code_is_not(monkeypatch):
    class Local(Anchor):
        pass

    name = user_code.name_of(Local)
    recorded = {"kind": "task", "family": name, **user_code.describe(Local)}
    families.bring_back([recorded])
    with pytest.raises(ValueError, match="which cannot be imported"):
        families.bring_back([recorded | {"sha256": "of other code"}])
    monkeypatch.delitem(user_code.HELD, name)
    with pytest.raises(ValueError, match=r"define it at the top of a \.py file"):
        families.bring_back([recorded])


def test_nothing_is_recorded_of_the_packages_own():
    assert families.own(config(family="composition")) == []


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("% 2", "% 3", True),  # in a function that the class calls
        ("BITS = 2", "BITS = 3", True),
        ("length: int = 4", "length: int = 5", True),
        ("UNUSED = 3", "UNUSED = 4", False),
        ("class Other:", "class Another:", False),
        ("bits_BxL.sum(1) % 2", "bits_BxL.sum(1)  %  2  # odd or even", False),
    ],
)
def test_hash_is_of_what_the_class_stands_on(place, old, new, counts):
    file = place / "own_parity.py"
    before = user_code.source_hash(file, "Parity")
    assert old in TASK
    file.write_text(TASK.replace(old, new))
    assert (user_code.source_hash(file, "Parity") != before) == counts


def test_training_whose_class_was_edited_is_not_continued(place):
    settings = config()
    begun(place / "w", settings)
    train.prepare(settings, place / "w", None)
    (place / "own_parity.py").write_text(TASK.replace("% 2", "% 3"))
    line = (
        r"w holds another training; .* Changed: source of task.family own_parity:Parity \(Parity in .*own_parity.py\)"
    )
    with pytest.raises(WorkdirError, match=line):
        train.prepare(settings, place / "w", None)


def test_model_of_the_package_inside_one_of_ones_own_is_not_looked_for(place):
    (place / "own_model.py").write_text(
        "import flax.linen as nn\n\nclass Outer(nn.Module):\n    inner: nn.Module\n\n"
        "    def __call__(self, x):\n        return self.inner(x)\n"
    )
    made = config("anchor")
    inner = dict(family="emb_mlp", vocab_size=2, d_model=4, d_ff=3, activation="tanh")
    made.model = ConfigDict(dict(family="own_model:Outer", inner=inner))
    assert [recorded["family"] for recorded in families.own(made)] == ["own_model:Outer"]


def test_looking_at_a_training_whose_class_was_edited_says_so(place):
    work = begun(place / "w", config())
    (place / "own_parity.py").write_text(TASK.replace("% 2", "% 3"))
    with pytest.warns(UserWarning, match=r"w: not as it was trained: source of task.family own_parity:Parity") as said:
        _ = work.experiment
    assert len(said) == 1 and "\n" not in str(said[0].message)
