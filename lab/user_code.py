"""Objects of a user's own code: named by where they are, found again, and known by a hash of their source."""

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from lab.code_hash import LIBRARIES, code_hash

PUBLIC = ("jax.nn", "jax.numpy", "flax.linen", "optax", "optax.losses")  # where their objects have lasting names
WHAT_TO_DO = (
    "define it at the top of a .py file and import it from there, or put what the script does below "
    "`if __name__ == '__main__':`"
)
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass)
STAGES = ("train", "extend", "measure", "analyze", "report")  # what a script does rather than defines
HELD: dict[str, object] = {}  # name -> an object that no import gives: of a function, a lambda, a partial


def import_file(path: str | Path) -> ModuleType:
    """A Python file as a module, read anew at each call; its name in `sys.modules` is another for every file.

    Raises:
      ValueError: there is no such file, or it is not Python.
    """
    path = Path(path).absolute()
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{path}: no such Python file")
    name = f"lab_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]  # half a module would be taken for the whole one
        if isinstance(error, SyntaxError):
            raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
        raise
    return module


@functools.cache
def load_file(file: Path) -> ModuleType:
    """A file as a module, once a process: another one would be another class, and another program to compile."""
    for module in [*sys.modules.values()]:
        held = inspect.getattr_static(module, "__file__", None)
        if isinstance(held, str) and module.__name__ != "__main__" and Path(held) == file:
            return module
    return import_file(file)


def import_module(name: str) -> ModuleType:
    """A module by name, also one in the working folder; the installed command does not look there by itself."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        here = str(Path.cwd())
        if here in sys.path:
            raise
        sys.path.append(here)
        importlib.invalidate_caches()
        return importlib.import_module(name)


def find(name: str) -> object:
    """The object of `module:Name` or `file.py:Name`, or one that this process named by `name_of`.

    Raises:
      ValueError: there is none.
    """
    if name in HELD:
        return HELD[name]
    where, _, inside = name.rpartition(":")
    if "#" in inside:
        raise ValueError(f"{inside.partition('#')[0]} of {where} cannot be imported; {WHAT_TO_DO}")
    try:
        module = load_file(Path(where).absolute()) if where.endswith(".py") else import_module(where)
        return functools.reduce(getattr, inside.split("."), module)
    except (ImportError, OSError, AttributeError, SyntaxError, ValueError) as error:
        raise ValueError(str(error)) from error


def name_of(thing) -> str:
    """`module:Name` of a class, function or value; what no import gives is held by this process under a name with a
    hash of its source.

    Raises:
      ValueError: what `code_hash` refuses; or what is held under that name has changed since.
    """
    module = getattr(thing, "__module__", None)
    inside = getattr(thing, "__qualname__", getattr(thing, "__name__", None))
    if script := _script_of(thing):
        name = f"{script.module}:{inside}"
        HELD[name] = thing  # no import of the file: that would be another class
        return name
    if isinstance(module, str) and isinstance(inside, str):
        public = PUBLIC if module.partition(".")[0] in LIBRARIES else ()
        for where in (*public, module):
            if _is_at(where, inside, thing):
                return f"{where}:{inside}"
    else:
        module, inside = type(thing).__module__, type(thing).__qualname__
    name = f"{module}:{inside}#{code_hash(thing)[:8]}"
    held = HELD.setdefault(name, thing)
    if held is not thing and code_hash(held) != code_hash(thing):
        raise ValueError(
            f"{module}:{inside}: another one was given before, and changed since; give an object of its own"
        )
    HELD[name] = thing
    return name


def describe(thing) -> dict:
    """Class (or function), module, file and hash of its source; empty for what is of the package or of its libraries.

    `file` is None for what no other process can import: of a notebook, of a script that was run, of a function.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        module, name = type(thing).__module__, f"{type(thing).__qualname__} (a value)"
    elif module.partition(".")[0] in LIBRARIES and "<" not in name:
        return {}
    elif script := _script_of(thing):
        file = str(script.file)
        return {"class": name, "module": script.module, "file": file, "sha256": source_hash(file, name)}
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module == "__main__" or name != getattr(thing, "__name__", None):
        return {"class": name, "module": module, "file": None, "sha256": code_hash(thing)}
    file = str(Path(file).resolve())
    return {"class": name, "module": module, "file": file, "sha256": source_hash(file, name)}


def reload(name: str, file: Path) -> ModuleType:
    """A module from the file that it was in: by its name where that leads there, so that its neighbours are found."""
    if (script := _script()) and script.file == file:
        return sys.modules["__main__"]
    parts = name.split(".")
    if [*file.parts[-len(parts) : -1], file.stem] == parts and file.is_file():
        root = str(file.parents[len(parts) - 1])
        if root not in sys.path:
            sys.path.append(root)
            importlib.invalidate_caches()
        module = importlib.import_module(name)
        if module.__file__ and Path(module.__file__).resolve() == file:
            return module
    return load_file(file)


def source_hash(file: str | Path, name: str) -> str:
    """Of a class or function and of all that it names in its file, transitively; comments and layout do not count."""
    definitions: dict[str, list[ast.stmt]] = {}
    for node in ast.parse(Path(file).read_text()).body:
        for defined in _defined(node):
            definitions.setdefault(defined, []).append(node)
    counted, waiting = {}, [name]
    while waiting:
        name = waiting.pop()
        if name not in counted and name in definitions:
            counted[name] = [ast.unparse(node) for node in definitions[name]]
            inside = (node for statement in definitions[name] for node in ast.walk(statement))
            waiting += [node.id for node in inside if isinstance(node, ast.Name)]
    return hashlib.sha256(repr(sorted(counted.items())).encode()).hexdigest()


class Script(NamedTuple):
    """The script that runs: its name as a module, its file, and what it defines at its top."""

    module: str
    file: Path
    names: frozenset[str]


def _script() -> Script | None:
    """None where there is none that another process could import, which is one that guards what it does."""
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    return _script_in(Path(file).resolve(), spec.name if spec else Path(file).stem)


@functools.cache
def _script_in(file: Path, module: str) -> Script | None:
    try:
        body = ast.parse(file.read_text()).body
    except (OSError, SyntaxError):
        return None
    if not any(map(_is_guard, body)) or not all(map(_only_defines, body)):
        return None
    names = (_defined(node) for node in body if not isinstance(node, ast.If))
    return Script(module, file, frozenset().union(*names))


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "'__main__'" in ast.unparse(node.test)


def _only_defines(node: ast.stmt) -> bool:
    """Whether an import of a file may run a statement: what trains or measures there would do so in every process."""
    if _is_guard(node) or isinstance(node, DEFINITIONS):
        return True
    if isinstance(node, ast.Assign | ast.AnnAssign):
        calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
        return not any(getattr(f, "attr", getattr(f, "id", "")) in STAGES for f in calls)
    if isinstance(node, ast.If | ast.Try):  # an import for types alone, or of what may not be installed
        handlers = [part for handler in getattr(node, "handlers", ()) for part in handler.body]
        return all(map(_only_defines, [*node.body, *handlers, *node.orelse, *getattr(node, "finalbody", ())]))
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # a docstring


def _script_of(thing) -> Script | None:
    """The script, of a class or function at its top."""
    name = getattr(thing, "__qualname__", None)
    if getattr(thing, "__module__", None) != "__main__" or not isinstance(name, str):
        return None
    script = _script()
    return script if script and name in script.names and _is_at("__main__", name, thing) else None


def _is_at(module: str, inside: str, thing) -> bool:
    if "<" in inside or module not in sys.modules:
        return False
    try:
        return functools.reduce(getattr, inside.split("."), sys.modules[module]) is thing
    except AttributeError:
        return False


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
