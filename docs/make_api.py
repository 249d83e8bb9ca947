"""Writes docs/api.md, the reference of the public face, from the docstrings of the package.

python docs/make_api.py
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

import lab
from lab import analysis
from lab import config as configs
from lab.configs import base
from lab.measuring import catalogue
from lab.measuring.declare import summary

DOCS = Path(__file__).parent
HEAD = """\
# Reference

The public face of the package, from its docstrings, by `python docs/make_api.py`. How the pieces go together:
[from_python.md](from_python.md). All of it is there after `import lab`, and imported when it is first used."""

# heading -> (name as a user has it, where it is); all public methods of a class come with it
SECTIONS = {
    "A training": [
        ("lab.Training", "lab.training:Training"),
        ("What a training is made of", "lab.configure:config"),
        ("What a report returns", "lab.training:Report"),
    ],
    "Tasks and claims": [
        ("lab.task", "lab.configure:task"),
        ("lab.examples", "lab.configure:examples"),
        ("Losses and scores of both", "lab.tasks.pairs:"),
        ("lab.Task", "lab.tasks:Task"),
        ("lab.Batch", "lab.tasks:Batch"),
        ("lab.claim", "lab.training:claim"),
        ("Arguments of a claim", "lab.claims:claim"),
        ("A claim, and what its function returns", "lab.claims:Claim"),
    ],
    "Stages": [
        ("lab.train", "lab.training:train"),
        ("lab.extend", "lab.training:extend"),
        ("lab.analyze", "lab.training:analyze"),
        ("Which measurements", "lab.stages:analyze"),
        ("Of which rows and snapshots", "lab.measuring.run:Selection"),
        ("lab.report", "lab.training:report"),
        ("lab.plan", "lab.training:plan"),
    ],
    "Numbers": [
        ("lab.load", "lab.disk.load:load_all"),
        ("What it gives", "lab.disk.load:load"),
        ("dataset.lab", "lab.disk.load:Rows"),
        ("A row, of run.row(...)", "lab.row:Row"),
        ("lab.export", "lab.sinks:export"),
        ("lab.diff", "lab.difference:diff"),
        ("What it finds", "lab.difference:Difference"),
    ],
    "Runs, as claims and figures take them": [
        ("Runs", "lab.runs:Runs"),
        ("Run", "lab.runs:Run"),
        ("lab.report.figures.phase_diagram", "lab.report.figures:phase_diagram"),
        ("lab.report.figures.training_curves", "lab.report.figures:training_curves"),
        ("lab.report.figures.curves_against_gamma", "lab.report.figures:curves_against_gamma"),
        ("lab.report.figures.scatter_against_gamma", "lab.report.figures:scatter_against_gamma"),
    ],
    "Grids": [
        ("lab.grid.product", "lab.grid:product"),
        ("lab.grid.zipped", "lab.grid:zipped"),
        ("lab.grid.concat", "lab.grid:concat"),
        ("lab.grid.Grid", "lab.grid:Grid"),
    ],
    "Models and their initialization": [
        ("lab.models.init", "lab.models:init"),
        ("lab.models.forward", "lab.models:forward"),
        ("lab.models.Transformer", "lab.models:Transformer"),
        ("What any module is given and must return", "lab.module:"),
        ("lab.init", "lab.init:"),
        ("lab.init.leaves_of", "lab.init:leaves_of"),
        ("lab.init.rescale", "lab.init:rescale"),
        ("lab.init.table", "lab.init:table"),
    ],
}
FIELDS = ("Args", "Attributes", "Returns", "Raises")


def page() -> str:
    parts = [HEAD]
    for heading, entries in {**SECTIONS, **_others()}.items():
        parts.append(f"## {heading}")
        for name, place in entries:
            parts += _entry(name, place)
    return "\n\n".join([*parts, *_variables(), *_analysis()]) + "\n"


def _others() -> dict[str, list[tuple[str, str]]]:
    """What the package's face has beside these sections."""
    known = {name for entries in SECTIONS.values() for name, _ in entries}
    face = [(f"lab.{name}", f"{module}:{name}") for name, module in lab._FACE.items()]
    others = [entry for entry in face if entry[0] not in known]
    return {"Further": others} if others else {}


def _entry(name: str, place: str) -> list[str]:
    module, _, inside = place.partition(":")
    thing = importlib.import_module(module)
    if not inside:
        return [f"### {_title(name)}", _rendered(inspect.getdoc(thing))]
    thing = getattr(thing, inside)
    parts = [f"### {_title(name)}", _code(_signature(thing, name if name.startswith("lab.") else inside))]
    parts.append(_rendered(_own_doc(thing)))
    if inspect.isclass(thing):
        parts.append(_rendered(inspect.cleandoc(_texts(thing).get("__init__", ""))))
        parts += [part for member, value in vars(thing).items() for part in _member(thing, member, value)]
    return [part for part in parts if part]


def _title(name: str) -> str:
    return f"`{name}`" if re.fullmatch(r"[\w.]+", name) else name


def _member(kind: type, name: str, value) -> list[str]:
    """A public method or property with a docstring, in the order of the source."""
    function = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", value)
    if (name.startswith("_") and name not in ("__getitem__", "__contains__")) or not inspect.isfunction(function):
        return []
    text = _texts(kind).get(name)
    if not text or getattr(inspect.unwrap(function), "__qualname__", "") != f"{kind.__qualname__}.{name}":
        return []
    is_value = isinstance(value, property | functools.cached_property)
    shown = name if is_value else _signature(function, name)
    return [f"**`{shown}`**" if "\n" not in shown else _code(shown), _rendered(inspect.cleandoc(text))]


def _texts(kind: type) -> dict[str, str]:
    """Method -> docstring, of those that the source of a class has: not of what is inherited or generated."""
    functions = _functions(kind).items()
    return {name: text for name, one in functions if (text := ast.get_docstring(one, clean=False))}


def _own_doc(thing) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def _signature(thing, name: str) -> str:
    """As the source has it; of a class, of what makes one."""
    if inspect.isclass(thing) and "__init__" not in _functions(thing):
        if dataclasses.is_dataclass(thing):
            fields = [one for one in dataclasses.fields(thing) if one.init and one.name not in ("parent", "name")]
            return _wrapped(name, [f"{one.name}{_default(one)}" for one in fields], "")
        names = getattr(thing, "_fields", ())
        return _wrapped(name, list(names), "") if names else name
    function = _functions(thing)["__init__"] if inspect.isclass(thing) else _parsed(inspect.unwrap(thing))
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    said = [_argument(one, default) for one, default in zip(plain, defaults, strict=True)]
    if said and plain[0].arg in ("self", "cls"):
        said = said[1:]
    said += [f"*{ast.unparse(arguments.vararg)}"] if arguments.vararg else ["*"] if arguments.kwonlyargs else []
    said += [_argument(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    said += [f"**{ast.unparse(arguments.kwarg)}"] if arguments.kwarg else []
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return _wrapped(name, said, returns.replace("'", "").replace('"', ""))


@functools.cache
def _parsed(thing) -> ast.FunctionDef | ast.ClassDef:
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def _functions(kind: type) -> dict[str, ast.FunctionDef]:
    return {one.name: one for one in _parsed(kind).body if isinstance(one, ast.FunctionDef)}


def _argument(one: ast.arg, default) -> str:
    equals = "=" if one.annotation is None else " = "
    said = ast.unparse(one) + (f"{equals}{ast.unparse(default)}" if default is not None else "")
    return said.replace("claim_values.", "").replace("'", '"')


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "" if field.default_factory is dataclasses.MISSING else f"={field.default_factory()!r}"
    return f"={getattr(field.default, '__name__', None) or repr(field.default)}"


def _wrapped(name: str, arguments: list[str], returns: str) -> str:
    line = f"{name}({', '.join(arguments)}){returns}"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){returns}"


def _code(text: str) -> str:
    return f"```text\n{text}\n```"


def _rendered(text: str | None) -> str:
    """A docstring as Markdown: paragraphs as they are, sections of fields as lists."""
    parts, lines = [], (text or "").splitlines()
    while lines:
        n = next((i for i, line in enumerate(lines) if line.rstrip(":") in FIELDS and line.endswith(":")), len(lines))
        parts.append("\n".join(lines[:n]).strip())
        if n == len(lines):
            break
        end = next((i for i in range(n + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
        parts.append(_listed(lines[n].rstrip(":"), textwrap.dedent("\n".join(lines[n + 1 : end])).strip()))
        lines = lines[end:]
    return "\n\n".join(part for part in parts if part)


def _listed(section: str, text: str) -> str:
    if section == "Returns":
        return f"*Returns* {' '.join(text.split())}"
    entries = re.split(r"\n(?=\S)", text)
    named = (re.sub(r"^([\w*, ]+): ", r"`\1`: ", " ".join(entry.split())) for entry in entries)
    return f"*{section}*\n\n" + "\n".join(f"- {entry}" for entry in named)


def _variables() -> list[str]:
    """Every measurement of the catalogue with its variables, as a transformer has them."""
    experiment = configs.experiment(next(iter(configs.variants(base.load("composition", "smoke")).values())))
    lines = []
    for measure in catalogue.measures(experiment):
        names = [_variable(name, measure.dims.get(name, ()), unit) for name, unit in measure.units.items()]
        lines.append(f"- **{measure.name}**. {summary(measure)} {'; '.join(names)}")
    about = (
        "Variables of `run.dataset`, by measurement: `<measurement>.<name>`, with the dimensions that it has beside "
        "those of the grid and, where it is taken more than once, `snapshot`; then its unit. What each is, how exact "
        "and what it costs: [analysis.md](analysis.md). Measurements of attention are of transformers alone."
    )
    return ["## What measurements leave", about, "\n".join(lines)]


def _variable(name: str, dims: tuple[str, ...], unit: str) -> str:
    return f"`{name}`" + (f" ({', '.join(dims)})" if dims else "") + f", {unit}"


def _analysis() -> list[str]:
    parts = [
        "## Analysis",
        "Pure functions, for any model: three lines each in [others_models.md](others_models.md), formulas and error "
        "bars in [analysis.md](analysis.md). A docstring says the shapes.",
    ]
    for found in pkgutil.iter_modules(analysis.__path__):
        module = importlib.import_module(f"lab.analysis.{found.name}")
        functions = [
            f"- `{name}`: {' '.join(inspect.getdoc(value).split(chr(10) * 2)[0].split())}"
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
        first = inspect.getdoc(module).splitlines()[0]
        parts += [f"### `lab.analysis.{found.name}`", first, "\n".join(functions)]
    return [part for part in parts if part]


if __name__ == "__main__":
    (DOCS / "api.md").write_text(page())
