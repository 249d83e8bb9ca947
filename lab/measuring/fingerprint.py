"""Fingerprints of code: a hash of all source that decides a result; comments, docstrings and layout do not count."""

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import NamedTuple

import lab

ROOT = Path(lab.__file__).parents[1]
RUNNER = "lab.measuring.run"  # decides what every function is given
# of what trains and keeps, what draws sequences and defines the loss; the rest spreads rows over devices and disks. Of
# pictures, which a study's module imports too, measurements may use nothing
DECIDING = ("lab.engine.batches", "lab.engine.step")
OTHERS = ("lab.engine", "lab.disk", "lab.cluster", "lab.report")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Source(NamedTuple):
    """Normalized text, and the modules of this package that it imports or names."""

    text: str
    imports: frozenset[str]


def fingerprint(function: Callable) -> str:
    """A hash of the function's module and of all that it imports of this package, transitively.

    A function without a file, of a notebook say, counts by its own source, that of the functions without a file which
    it names, and what these name of this package. Of what is bound to a function (by `functools.partial`, in its
    closure, and in a notebook globally) numbers, strings and tuples of them count. The user's own modules that the
    function's module imports do not count, nor do arrays and lists that are bound.

    Files are read once in a process: what is edited while it runs is not what it runs. A function's own file is read
    again when the function has been, in a notebook.
    """
    inner, bound = _unwrapped(function)
    path = _file(inner)
    sources = {"": _parsed(path, inner.__code__) if path else _loose(inner, set())}
    waiting = {*sources[""].imports, *filter(_counts, [RUNNER])}
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name] = _parsed(_module_file(name))
            waiting |= sources[name].imports
    texts = [(name, source.text) for name, source in sorted(sources.items())]
    return hashlib.sha256(repr((bound, texts)).encode()).hexdigest()


def unwrapped(function: Callable) -> Callable:
    """The function inside partials, wrappers and objects that are called."""
    return _unwrapped(function)[0]


def _unwrapped(function: Callable) -> tuple[Callable, list]:
    """The function inside, and the plain values bound to it."""
    bound = []
    while isinstance(function := inspect.unwrap(function), functools.partial):
        bound += [*function.args, *sorted(function.keywords.items())]
        function = function.func
    function = function if inspect.isroutine(function) else type(function).__call__
    function = getattr(function, "__func__", function)
    bound += sorted(inspect.getclosurevars(function).nonlocals.items())
    return function, [value for value in bound if _plain(value)]


@functools.cache
def _parsed(path: Path, of: CodeType | None = None) -> Source:
    """Of a file as it was when first asked for, by itself or with this code of it."""
    tree = ast.parse(path.read_text())
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            # `from lab.engine import data` imports a module, `from lab.engine.batches import batches` a name of one
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= {name if _module_file(name) else node.module for name in inside}
    return Source(_normalized(tree), frozenset(filter(_counts, named)))


def _loose(function: Callable, seen: set) -> Source:
    """Of a function that has no file."""
    seen.add(function)
    codes = list(_codes(function.__code__))
    try:
        texts = [_normalized(ast.parse(textwrap.dedent(inspect.getsource(function))))]
    except (OSError, TypeError, SyntaxError):
        texts = [repr((code.co_code, code.co_names, [c for c in code.co_consts if _plain(c)])) for code in codes]
    names = sorted({name for code in codes for name in code.co_names} & function.__globals__.keys())
    imports = set()
    for name in names:
        value = function.__globals__[name]
        inner = inspect.unwrap(value) if callable(value) else value
        module = value.__name__ if inspect.ismodule(value) else getattr(inner, "__module__", None)
        if _plain(value):
            texts.append(f"{name} = {value!r}")
        elif _counts(module):
            imports.add(module)
        elif inspect.isfunction(inner) and not _file(inner) and inner not in seen:
            other = _loose(inner, seen)
            texts.append(other.text)
            imports |= other.imports
    return Source("\n".join(texts), frozenset(imports))


def _normalized(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _counts(module) -> bool:
    if not isinstance(module, str) or not module.startswith("lab.") or not _module_file(module):
        return False  # `lab` itself only hands on what stands elsewhere
    return not module.startswith(OTHERS) or module in DECIDING


def _module_file(name: str) -> Path | None:
    place = ROOT.joinpath(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _file(function: Callable) -> Path | None:
    try:
        path = Path(inspect.getfile(function))
    except TypeError:
        return None
    return path if path.is_file() else None


def _plain(value) -> bool:
    """Whether its text says all of a value, in every process the same."""
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)
