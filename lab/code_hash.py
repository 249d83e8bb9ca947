"""Hash of an object without a place in a file: its code, what it is bound to, what it names in its own module."""

import ast
import contextlib
import copyreg
import dataclasses
import dis
import functools
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from types import ModuleType

import numpy as np

LIBRARIES = ("lab", "jax", "jaxlib", "flax", "optax", "numpy", "builtins")  # whose versions a training records
ACCEPTED = "functions, classes, plain values, arrays, and objects of them that can be pickled"
PLAIN = str | int | float | complex | bool | bytes | range | slice | None
WRAPPERS = ("jaxlib", "functools")  # `jax.jit` and `functools.cache` add nothing to what they wrap
GENERATED = {f"__{name}__" for name in ("init", "eq", "repr", "hash", "lt", "le", "gt", "ge", "replace")}
GENERATED |= {"__setattr__", "__delattr__"}  # of a frozen one
REDUCERS = copyreg.dispatch_table


def code_hash(thing) -> str:
    """Of a function, a class, a value, or an object of these.

    Raises:
      ValueError: it holds something else, such as a lock or a generator.
    """
    counted, seen, waiting = [], {}, [("", thing)]
    while waiting:
        name, one = waiting.pop()
        if isinstance(one, PLAIN):
            counted.append((name, repr(one)))
        elif id(one) in seen:
            counted.append((name, f"again {seen[id(one)][0]}"))
        else:
            seen[id(one)] = len(seen), one  # held, for else its id may become another's
            said, parts = _taken_apart(name, one)
            counted.append((name, said))
            waiting += parts
    return hashlib.sha256(repr(sorted(counted)).encode()).hexdigest()


def fields(kind: type) -> dict[str, dataclasses.Field]:
    """The fields that a dataclass is made of; not those that Flax adds to a module."""
    return {
        field.name: field for field in dataclasses.fields(kind) if field.init and field.name not in ("parent", "name")
    }


def _taken_apart(name: str, one) -> tuple[str, list[tuple[str, object]]]:
    """What an object is, in words, and its parts by name."""
    if isinstance(one, ModuleType):
        return one.__name__, []
    if place := _place_in_a_library(one):
        return place, []
    if isinstance(one, functools.partial):
        return "partial", [(name, one.func), *_numbered(name, one.args), *one.keywords.items()]
    if inspect.isfunction(one) or inspect.isclass(one):
        return _text(one), _named_by(one)
    if inspect.ismethod(one):
        return "method", [(name, one.__func__), (f"{name}.self", one.__self__)]
    if hasattr(one, "__wrapped__") and _library(type(one).__module__) in WRAPPERS:
        return "wrapped", [(name, one.__wrapped__)]
    if dataclasses.is_dataclass(one):
        return "dataclass", [(name, type(one)), *((key, getattr(one, key, None)) for key in fields(type(one)))]
    if isinstance(one, Mapping):
        return f"mapping of {len(one)}", [(f"{name}.{key}", value) for key, value in one.items()]
    if isinstance(one, tuple | list):
        return f"sequence of {len(one)}", _numbered(name, one)
    if isinstance(one, set | frozenset):
        return f"set of {len(one)}", _numbered(name, sorted(one, key=lambda e: getattr(e, "__qualname__", repr(e))))
    if hasattr(one, "__array__") and _library(type(one).__module__) in ("numpy", "jax", "jaxlib"):
        return _numbers(one), []
    return _pickled(name, one)


def _place_in_a_library(one) -> str:
    """Where a class or function of a library is; empty for others, and for what such a function returned."""
    module, inside = getattr(one, "__module__", None), getattr(one, "__qualname__", None)
    known = isinstance(module, str) and isinstance(inside, str) and "<" not in inside and _library(module)
    return f"{module}:{inside}" if known else ""


def _library(module: str) -> str:
    """The name of an installed library, or of Python's own module; empty for others."""
    first = module.partition(".")[0]
    installed = "site-packages" in str(getattr(sys.modules.get(first), "__file__", ""))
    return first if first in LIBRARIES or first in sys.stdlib_module_names or installed else ""


def _numbers(one) -> str:
    if "key<" in str(getattr(one, "dtype", "")):
        from jax.random import key_data

        one = key_data(one)
    array = np.asarray(one)
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _pickled(name: str, one) -> tuple[str, list[tuple[str, object]]]:
    """An object as it would be pickled: its class, what makes it, and its state without what it computes once."""
    try:
        reduced = REDUCERS[type(one)](one) if type(one) in REDUCERS else one.__reduce_ex__(4)
    except Exception as error:
        if _library(type(one).__module__) in LIBRARIES[:-1]:
            return f"{type(one).__module__}:{type(one).__qualname__}", []
        raise ValueError(f"{name or 'what is given'}: a {type(one).__qualname__}; accepted are {ACCEPTED}") from error
    if isinstance(reduced, str):
        return f"{type(one).__qualname__} {reduced}", []
    state = reduced[2] if len(reduced) > 2 else None
    if isinstance(state, dict):
        state = {key: value for key, value in state.items() if not _computed(type(one), key)}
    parts = [type(one), *reduced[:2], state]
    return "object", _numbered(name, [*parts, *(list(items) for items in reduced[3:5] if items is not None)])


def _computed(kind: type, name) -> bool:
    return isinstance(inspect.getattr_static(kind, str(name), None), functools.cached_property)


def _numbered(name: str, values) -> list[tuple[str, object]]:
    return [(f"{name}.{i}", value) for i, value in enumerate(values)]


def _text(one) -> str:
    """The source, normalized; of a lambda, which shares its line with others, and where there is none, bytecode."""
    code = getattr(one, "__code__", None)
    if one.__name__ != "<lambda>":
        with contextlib.suppress(OSError, TypeError, SyntaxError):
            # of the code object: `inspect` would pass over a wrapper to what is wrapped
            return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(code or one))))
    return one.__qualname__ if code is None else repr(_bytecode(code))


def _bytecode(code) -> tuple:
    return code.co_code, code.co_names, [_constant(value) for value in code.co_consts]


def _constant(value):
    if isinstance(value, frozenset):
        return sorted(map(repr, value))  # their order is another in another process
    return _bytecode(value) if inspect.iscode(value) else value


def _named_by(one) -> list[tuple[str, object]]:
    """Name -> object of what a function is bound to and names in its own module; bases and attributes of a class."""
    if inspect.isclass(one):
        return [(base.__qualname__, base) for base in one.__bases__] + [*_attributes(one)]
    found = [(f"default {i}", value) for i, value in enumerate(one.__defaults__ or ())]
    found += [(f"default {key}", value) for key, value in (one.__kwdefaults__ or {}).items()]
    for key, cell in zip(one.__code__.co_freevars, one.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty one
            found.append((key, cell.cell_contents))
    known, module = one.__globals__, one.__globals__.get("__name__", "")
    if not _library(module):
        named = ((key, known[key]) for key in _global_names(one.__code__) if key in known)
        found += [(key, value) for key, value in named if _counts(value, module)]
    return found


def _attributes(kind: type) -> Iterator[tuple[str, object]]:
    """Functions of a class and its plain values; not what `dataclasses` wrote."""
    for key, value in vars(kind).items():
        if isinstance(value, PLAIN) and not key.startswith("__"):
            yield key, value
        for function in _inside(value):
            generated = key in GENERATED and function.__code__.co_filename == "<string>"
            if not generated and not _library(function.__globals__.get("__name__", "")):
                yield key, function


def _inside(value) -> Iterator:
    """The functions of an attribute: of a property, a class method, what a decorator wraps."""
    if isinstance(value, property):
        for function in filter(None, (value.fget, value.fset, value.fdel)):
            yield from _inside(function)
    elif isinstance(value, functools.cached_property):
        yield from _inside(value.func)
    elif isinstance(value, classmethod | staticmethod):
        yield from _inside(value.__func__)
    elif not inspect.isclass(value):
        if inspect.isfunction(value):
            yield value
        if (wrapped := inspect.getattr_static(value, "__wrapped__", None)) is not None:
            yield from _inside(wrapped)


def _global_names(code) -> dict[str, None]:
    """The globals that code names, lambdas, comprehensions and inner functions with it."""
    own = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inside = [name for nested in code.co_consts if inspect.iscode(nested) for name in _global_names(nested)]
    return dict.fromkeys([*own, *inside])


def _counts(value, module: str) -> bool:
    if inspect.ismodule(value):
        return False
    return not (inspect.isfunction(value) or inspect.isclass(value)) or value.__module__ == module
