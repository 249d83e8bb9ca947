"""Imports point down: values <- models, tasks <- disk, engine <- measuring, runs <- report, studies <- stages, cli."""

import ast
import graphlib
from pathlib import Path

import pytest

import lab
from lab.configs import base

LAB = Path(lab.__file__).parent
VALUES = {
    "grid",
    "init",
    "optim",
    "losses",
    "rng",
    "schedule",
    "tree",
    "perturb",
    "objective",
    "controller",
    "limits",
    "cache",
    "verdicts",
    "config_json",
    "module",
    "layouts",
    "matrices",
    "nnx_matrices",
    "user_code",
    "code_hash",
    "own_optim",
    "tables",
}
TOP = {
    "config": "experiment",
    "experiment": "experiment",
    "families": "experiment",
    "runs": "runs",
    "series": "runs",
    "difference": "runs",
    "claims": "runs",
    "configure": "front",
    "row": "front",
    "training": "front",
    "__main__": "cli",
}

# layer -> the layers its modules may import, beside themselves
ALLOWED = {
    "values": set(),
    "models": {"values"},
    "text": {"values"},
    "tasks": {"values", "text"},
    "analysis": {"values", "models"},
    "configs": {"values"},
    "experiment": {"values", "models", "tasks"},
    "disk": {"values", "experiment"},
    "engine": {"values", "models", "tasks", "experiment", "disk"},
    "cluster": {"values", "experiment", "disk", "engine"},
    "measuring": {"values", "models", "tasks", "experiment", "disk", "engine", "analysis"},
    "runs": {"values", "experiment", "disk", "analysis"},
    "report": {"values", "runs", "analysis"},
}
ALLOWED["studies"] = {*ALLOWED, "configs"} - {"cluster"}
ALLOWED["sinks"] = {"values", "models", "disk", "runs"}
ALLOWED["stages"] = {"values", "models", "configs", "experiment", "disk", "engine"}
ALLOWED["stages"] |= {"measuring", "runs", "report", "studies"}
ALLOWED["front"] = {*ALLOWED, "configs"} - {"cluster"}
ALLOWED["cli"] = {*ALLOWED, "configs"}
MODULES = {
    ".".join(("lab", *path.relative_to(LAB).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(LAB.rglob("*.py"))
} | {f"lab.configs.{path.stem}": path for path in sorted(Path(base.__file__).parent.glob("[a-z]*.py"))}


def layer(module):
    """Of a module's dotted name; None for the package itself, which holds nothing but its version and `load`."""
    name = module.split(".")[1] if "." in module else None
    return "values" if name in VALUES else TOP.get(name, name)


def imports(module, source=None):
    """The modules of lab that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            # `from lab.engine import store` imports a module, `from lab.disk.store import save` a name of one
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


def test_every_folder_with_modules_is_a_package():
    """Or a wheel would lack it: packages are found by their `__init__.py`."""
    for path in MODULES.values():
        assert path.with_name("__init__.py").is_file(), path


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


# what touches the world outside a program, by the name that is called: of modules, and of paths and files
PROCESS = {"print", "sys.exit", "sys.stdout.write", "sys.stderr.write", "jax.config.update", "os.putenv"}
WRITING = {"np.save", "np.savez", "np.savez_compressed", "np.savetxt", "json.dump", "pickle.dump"}
WRITING |= {f"os.{name}" for name in ("replace", "rename", "remove", "unlink", "mkdir", "makedirs", "rmdir", "open")}
METHODS = {
    "write_text",
    "write_bytes",
    "mkdir",
    "touch",
    "unlink",
    "rmdir",
    "symlink_to",
    "hardlink_to",
    "tofile",
    "savefig",
}
ACTING = {
    "lab.engine.progress": {"tqdm.write"},  # lines, beside the bars that `tqdm` draws
    "lab.engine.numerics": {"jax.config.update"},  # and undoes it
    "lab.engine.program_cache": {"jax.config.update"},  # where JAX keeps compiled programs
    "lab.text.notes": {"print"},  # what a user should know of the text that was read
}
WRITERS = {
    "lab.tasks.field_pools",
    "lab.disk.files",  # the only writer of single files
    "lab.disk.store",  # folders of saves, renamed into place
    "lab.disk.metrics",  # deletes chunks that will be written again
    "lab.disk.lock",
    "lab.models.pretrained_files",  # checkpoints for other packages
    "lab.engine.program_cache",
    "lab.report.page",
    "lab.text.corpus",  # a cache of text
    "lab.text.hub",
    "lab.cli.output",  # sends the output to nowhere when nobody reads it any more
}


def side_effects(source):
    """Every call in a module that prints, sets JAX's or the process's options, or writes, renames or deletes a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in PROCESS | WRITING | {"tqdm.write"} or name.startswith(("shutil.", "tempfile.")):
                found.add(name)
            elif name.split(".")[-1] == "open" and _mode(node) & set("wax+"):
                found.add("open")
            elif name == "files.write_bytes":  # the disk's own, which is on the list
                continue
            elif isinstance(node.func, ast.Attribute) and (node.func.attr in METHODS or _moves(node)):
                found.add(node.func.attr)
    return found


def _mode(call):
    """Of `open(path, mode)` or `path.open(mode)`; any mode where it is no constant."""
    given = [word.value for word in call.keywords if word.arg == "mode"]
    given += call.args[isinstance(call.func, ast.Name) :][:1]
    return set("".join(value.value if isinstance(value, ast.Constant) else "w" for value in given))


def _moves(call):
    """`path.rename(new)`, `path.replace(new)`: not those of strings, of dataclasses or of xarray."""
    if call.func.attr not in {"rename", "replace"} or len(call.args) != 1 or call.keywords:
        return False
    return not isinstance(call.args[0], ast.Dict | ast.Constant)


@pytest.mark.parametrize("module", MODULES)
def test_side_effects_live_in_the_few_places_named_here(module):
    """No print, no file and no setting of JAX's outside the command line, the disk, the caches and the report."""
    found = side_effects(MODULES[module].read_text())
    if layer(module) != "cli":
        assert not found & (PROCESS | {"tqdm.write"}) - ACTING.get(module, set())
    if module not in WRITERS:
        assert not found - PROCESS - {"tqdm.write"}


def test_places_that_may_write_do():
    """A name that stays in the list when its module does not write any more would let the next one through."""
    for module in WRITERS:
        assert side_effects(MODULES[module].read_text()) - PROCESS, module
    for module, names in ACTING.items():
        assert names <= side_effects(MODULES[module].read_text())


@pytest.mark.parametrize(
    "source",
    [
        "print('x')", "jax.config.update('jax_enable_x64', True)", "sys.exit(1)", "tqdm.write('x')",
        "open('x', 'w')", "open('x', mode='a')", "open(path, mode)", "path.open('w')", "(folder / 'x').open('ab')",
        "path.open('r+')", "path.open(mode='x')", "path.write_text('')", "path.write_bytes(b'')", "path.mkdir()",
        "path.parent.mkdir(parents=True)", "path.rename(other)", "path.rename(path.with_suffix('.old'))",
        "path.replace(other)", "path.touch()", "path.unlink()", "path.rmdir()", "path.symlink_to(other)",
        "os.replace(a, b)", "os.remove(a)", "os.makedirs(a)", "shutil.rmtree(a)", "shutil.copy(a, b)",
        "shutil.move(a, b)", "tempfile.mkdtemp()", "np.savez(path, a=1)", "np.save(path, a)", "a.tofile(path)",
        "json.dump(a, file)", "pickle.dump(a, file)", "figure.savefig(path)",
        "def f():\n    return [p.unlink() for p in x]",
    ],
)  # fmt: skip
def test_side_effects_are_seen_in_every_form(source):
    assert side_effects(source)


@pytest.mark.parametrize(
    "source",
    [
        "open('x')", "path.open()", "path.open('rb')", "path.read_text()", "text.replace('a', 'b')",
        "text.replace(a, b, 1)", "dataclasses.replace(plan, width=2)", "values.rename('phase')",
        "values.rename({'a': 'b'})", "values.rename(a='b')", "state.update(a=1)", "json.dumps(a)",
        "tree.replace(step=1)", "fingerprint(x)", "printed('x')", "store.save(a, b)",
    ],
)  # fmt: skip
def test_what_only_reads_or_computes_is_no_side_effect(source):
    assert not side_effects(source)
