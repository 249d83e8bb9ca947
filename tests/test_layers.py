"""Imports point down: values <- models, tasks (<- text) <- engine <- studies, report <- cli; analysis beside these."""

import ast
import graphlib
from pathlib import Path

import pytest

import lab

LAB = Path(lab.__file__).parent
VALUES = {"grid", "init", "optim", "losses", "rng", "tree", "perturb", "objective", "limits", "cache"}
# what analysis may use of the engine: what reads, the lock, which sequences were trained on, and how rows are spread
# over devices; never what trains
READING = {"store", "table", "workdir", "step", "config", "data", "files", "process", "shard", "sweep"}

# layer -> the layers its modules may import, beside themselves
ALLOWED = {
    "values": set(),
    "models": {"values"},
    "text": {"values"},
    "tasks": {"values", "text"},
    "engine": {"values", "models", "tasks"},
    "analysis": {"values", "models", "tasks", "engine"},
    "report": set(),
    "studies": {"values", "models", "tasks", "engine", "analysis", "report"},
    "cli": {"engine", "studies"},
}
MODULES = {
    ".".join(("lab", *path.relative_to(LAB).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(LAB.rglob("*.py"))
}


def layer(module):
    """Of a module's dotted name; None for the package itself, which holds nothing but its version and `load`."""
    name = module.split(".")[1] if "." in module else None
    if name in VALUES:
        return "values"
    return "cli" if name in {"__main__", "cli", "arguments"} else name


def imports(module, source=None):
    """The modules of lab that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            # `from lab.engine import store` imports a module, `from lab.engine.store import save` a name of one
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "lab"}
    return found


def test_every_module_belongs_to_a_layer():
    assert {layer(module) for module in MODULES} == {None, *ALLOWED}
    assert {module.removeprefix("lab.") for module in MODULES} >= VALUES


@pytest.mark.parametrize("module", [module for module in MODULES if module != "lab"])
def test_module_imports_only_what_is_below_it(module):
    mine = layer(module)
    for other in imports(module):
        theirs = layer(other)
        assert theirs in {None, mine, *ALLOWED[mine]}, f"{module} ({mine}) imports {other} ({theirs})"
        if mine == "analysis" and theirs == "engine":
            assert other.removeprefix("lab.engine.") in READING, f"{module} imports {other}"


def test_package_itself_imports_nothing_until_asked():
    """`import lab` stays instant, and no import of it makes a cycle."""
    tree = ast.parse(MODULES["lab"].read_text())
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_imports_make_no_cycle():
    graph = {module: imports(module) - {"lab", module} for module in MODULES if module != "lab"}
    # a package's own modules may import what the package re-exports, and the package imports them: leave those out
    graph = {
        module: {other for other in others if not module.startswith(f"{other}.")} for module, others in graph.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(graph) <= set(order)


def test_no_module_is_called_utils():
    assert not [module for module in MODULES if {"utils", "util", "helpers", "misc"} & set(module.split("."))]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from lab.engine import train", {"lab.engine.train"}),
        ("from lab.engine.train import train", {"lab.engine.train"}),
        ("def f():\n    import lab.engine.sweep as s", {"lab.engine.sweep"}),
        ("from lab import rng, load", {"lab.rng", "lab"}),
        ("import laboratory\nfrom numpy import lab", set()),
    ],
)
def test_imports_are_found_in_every_form(source, found):
    assert imports("lab.cli", source) == found


def calls(tree):
    """Dotted names of everything a module calls."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("module", MODULES)
def test_side_effects_live_in_four_places(module):
    """No print, no file and no setting of JAX's outside the command line, training, store, table and the report."""
    called = calls(ast.parse(MODULES[module].read_text()))
    if layer(module) != "cli":
        assert not {"print", "jax.config.update", "sys.exit"} & called
    writers = {"lab.engine.train", "lab.engine.files", "lab.engine.store", "lab.engine.table", "lab.report.page"}
    writers |= {"lab.text.corpus", "lab.text.hub"}  # what they write is a cache of text, not results
    if module not in writers:
        written = {name for name in called if name.endswith((".write_text", ".write_bytes", ".savez", ".unlink"))}
        assert not written
        assert "open" not in called
