"""A measurement is another one when code that decides its numbers is another, and at no other time."""

import functools
import importlib.util
import shutil

import jax
import pytest

from lab.measuring import fingerprint as code
from lab.measuring.fingerprint import fingerprint, unwrapped

MINE = """
import numpy
from lab.analysis import rank  # what it stands on
from lab.models import acts as a
import lab.engine.step
from lab.report import style  # as a study's module does

def function(row):
    '''Says what it is.'''
    return {"x": rank.ranks(row.params)}
"""
PACKAGE = {
    "analysis/rank.py": "from lab.tree import leaves\n\ndef ranks(params):\n    'Of all.'\n    return leaves(params)\n",
    "analysis/flow.py": "x = 1\n",
    "analysis/__init__.py": "",
    "tree.py": "from lab.analysis import rank\n\ndef leaves(tree):\n    return [1, tree]\n",  # a cycle ends, too
    "models/__init__.py": "from lab.models import mlp\n",
    "models/acts.py": "from lab.models import Model\n",
    "models/mlp.py": "x = 1\n",
    "engine/step.py": "def loss():\n    from lab.losses import mean\n",
    "disk/store.py": "x = 1\n",
    "report/__init__.py": "",
    "report/style.py": "x = 1\n",
    "engine/batches.py": "from lab.disk import store\n",
    "losses.py": "x = 1\n",
    "init.py": "x = 1\n",
    "__init__.py": "",
}


@pytest.fixture(autouse=True)
def forgotten():
    """Copies of the lab are not what other tests run."""
    yield
    code._parsed.cache_clear()


def write(path, text):
    """As another process would find it."""
    path.write_text(text)
    code._parsed.cache_clear()


class Files:
    """A package that is read in place of the lab, and the module of a measurement outside it."""

    def __init__(self, root):
        self.root = root
        for name, text in PACKAGE.items():
            self.write(f"lab/{name}", text)
        self.write("mine.py", MINE)
        self.function = self.again()

    def again(self):
        names = {"__name__": "mine"}
        exec(compile((self.root / "mine.py").read_text(), self.root / "mine.py", "exec"), names)
        return names["function"]

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, text)

    def edit(self, name, old, new):
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return Files(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        ("mine.py", '"x"', '"y"'),
        ("lab/analysis/rank.py", "leaves(params)\n", "leaves(params)[:1]\n"),
        ("lab/tree.py", "[1, tree]", "[2, tree]"),
        ("lab/models/mlp.py", "x = 1", "x = 2"),
        ("lab/engine/step.py", "import mean", "import mean, total"),
        ("lab/losses.py", "x = 1", "x = 2"),
    ],
)
def test_code_that_is_reached_by_imports_counts(files, change):
    before = fingerprint(files.function)
    files.edit(*change)
    assert fingerprint(files.function) != before


@pytest.mark.parametrize(
    "change",
    [
        ("mine.py", "# what it stands on", "# another comment"),
        ("mine.py", "Says what it is.", "Says it otherwise."),
        ("mine.py", "    return", "\n    # why\n\n    return"),
        ("lab/analysis/rank.py", "'Of all.'", "'''Of\n    all.'''"),
        ("lab/analysis/flow.py", "x = 1", "x = 2"),
        ("lab/init.py", "x = 1", "x = 2"),
        ("lab/disk/store.py", "x = 1", "x = 2"),
        ("lab/report/style.py", "x = 1", "x = 2"),
    ],
    ids=["comment", "docstring", "layout", "docstring below", "sibling", "not imported", "kept rows", "pictures"],
)
def test_what_decides_no_number_does_not_count(files, change):
    before = fingerprint(files.function)
    files.edit(*change)
    assert fingerprint(files.function) == before


def test_code_that_is_put_back_is_the_same_again(files):
    before = fingerprint(files.function)
    files.edit("lab/tree.py", "[1, tree]", "[2, tree]")
    files.edit("lab/tree.py", "[2, tree]", "[1, tree]")
    assert fingerprint(files.function) == before


def test_measurements_of_the_catalogue_stand_on_the_values_models_and_tasks_but_not_on_each_other(
    tmp_path, monkeypatch
):
    """On a copy of the lab itself."""
    shutil.copytree(code.ROOT / "lab", tmp_path / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    spec = importlib.util.spec_from_file_location("copied", tmp_path / "lab" / "measuring" / "catalogue" / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    counted, before = {}, fingerprint(weights.ranks)
    for name in (
        "losses", "init", "models/transformer", "tasks/composition", "analysis/rank", "measuring/run",
        "analysis/patching", "measuring/catalogue/loss", "disk/store", "stages",
    ):  # fmt: skip
        path = tmp_path / "lab" / f"{name}.py"
        whole = path.read_text()
        write(path, whole + "\nnothing_but_a_name = 1\n")
        counted[name] = fingerprint(weights.ranks) != before
        write(path, whole)
    assert [name for name, counts in counted.items() if not counts] == [
        "analysis/patching", "measuring/catalogue/loss", "disk/store", "stages",
    ]  # fmt: skip


def test_what_is_edited_while_a_process_runs_is_not_what_it_runs(files):
    before = fingerprint(files.function)
    for name in ("mine.py", "lab/tree.py"):
        (files.root / name).write_text("half a line (")
    assert fingerprint(files.function) == before


def test_function_that_is_read_again_is_another(files):
    before = fingerprint(files.function)
    (files.root / "mine.py").write_text(MINE.replace('"x"', '"y"'))
    assert fingerprint(files.again()) != before


def scaled(factor, row, *, shift=0.0, kept=None):
    return {"x": factor * row + shift}


def test_what_is_bound_to_a_function_counts_as_far_as_its_text_says_it_all():
    def of(factor, **options):
        return fingerprint(functools.partial(scaled, factor, **options))

    assert of(2.0) == of(2.0) != of(3.0)
    assert of(2.0, shift=1.0) != of(2.0, shift=2.0)
    assert of(2.0, kept=(1, ("a", None))) != of(2.0, kept=(1, ("b", None)))
    assert of(2.0, kept=[1]) == of(2.0, kept=[2])  # it may change while measuring
    assert of(2.0, kept=(object(),)) == of(2.0, kept=(object(),))  # its text is an address
    assert fingerprint(functools.partial(functools.partial(scaled, 2.0), shift=1.0)) == of(2.0, shift=1.0)

    def enclosed(threshold):
        return lambda row: {"x": row > threshold}

    assert fingerprint(enclosed(0.5)) == fingerprint(enclosed(0.5)) != fingerprint(enclosed(0.7))


def test_wrappers_and_objects_are_their_functions():
    class Scaled:
        def __call__(self, row):
            return {"x": row}

    class Holder:
        def method(self, row):
            return {"x": row}

    assert unwrapped(jax.jit(functools.partial(scaled, 2.0))) is scaled
    assert unwrapped(functools.partial(jax.jit(scaled), 2.0)) is scaled
    assert fingerprint(jax.jit(scaled)) == fingerprint(scaled)
    assert unwrapped(Scaled()) is Scaled.__call__ and unwrapped(Holder().method) is Holder.method
    assert fingerprint(Scaled()) == fingerprint(Holder().method)  # of this file, both


NOTEBOOK = """
import functools
from lab import tree
THRESHOLD = 0.7

def helper(x):
    return x + 1

@functools.wraps(helper)
def wrapped(x):
    return helper(x)

def function(row):
    return {"x": [helper(leaf) > THRESHOLD for leaf in tree.named_leaves(row)]}
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("THRESHOLD = 0.7", "THRESHOLD = 0.7  # as published", True),
        ("def function", "OTHER = 1\n\ndef function", True),
        ("THRESHOLD = 0.7", "THRESHOLD = 0.8", False),
        ("x + 1", "x + 2", False),
        ('{"x": [', '{"y": [', False),
        ("helper(leaf) >", "wrapped(leaf) + helper(leaf) >", False),
    ],
)
def test_function_without_a_file_is_known_by_its_source_and_what_it_names(old, new, same):
    """As a notebook or a prompt makes them."""

    def made(text):
        names = {"__name__": "__main__"}
        exec(compile(text, "<cell>", "exec"), names)
        return fingerprint(names["function"])

    assert (made(NOTEBOOK.replace(old, new)) == made(NOTEBOOK)) == same


def test_function_without_a_file_stands_on_what_it_names_of_the_package(files):
    names = {"__name__": "__main__"}
    exec(compile(NOTEBOOK, "<cell>", "exec"), names)
    before = fingerprint(names["function"])
    files.edit("lab/analysis/flow.py", "x = 1", "x = 2")
    assert fingerprint(names["function"]) == before
    files.edit("lab/tree.py", "[1, tree]", "[2, tree]")
    assert fingerprint(names["function"]) != before
