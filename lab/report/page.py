"""The self-contained HTML page of a report: claims, pictures, facts of the run, commands.

The page loads nothing: pictures, styles and, where there is a grid to explore, our own script are embedded.
"""

import base64
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from lab.claims import FAILS, HOLDS, OPEN
from lab.report import claims_table, explore, style
from lab.runs import MissingData, Run, Runs

VERDICTS = (HOLDS, FAILS, OPEN)
FOLDER = Path(__file__).parent
EMBEDDED = ("page.css", "chart.js", "explore.js")  # of the folder


@dataclass(frozen=True)
class Picture:
    """`name` (of a-z, 0-9, - and _) becomes the file name; `figure` is drawn as PNG and as SVG.

    `title` is by default that of the figure. `film`, a GIF, is shown in place of `figure`, which stands for it where
    nothing moves.
    """

    name: str
    caption: str
    figure: Figure
    title: str = ""
    film: bytes = b""

    def __post_init__(self):
        object.__setattr__(self, "title", self.title or " ".join(self.figure.get_suptitle().split()).rstrip("."))


@dataclass(frozen=True)
class Section:
    """`text` is plain; blank lines part its paragraphs."""

    title: str
    text: str
    pictures: Sequence[Picture] = ()


def draw_section(
    title: str, text: str, run: Run | Runs, drawings: Sequence[Callable[[Run | Runs], Picture]], prefix: str = ""
) -> Section:
    """The section of one run's pictures; those for which the run lacks data are left out, and the text says why.

    Args:
      run: or the runs of several variants, where the pictures are of these.
      drawings: run -> `Picture`.
      prefix: put before the names of pictures, e.g. the variant; none where a study has one run.
    """
    pictures, lacking = [], {}
    for drawing in drawings:
        try:
            picture = drawing(run)
        except MissingData as missing:
            lacking[drawing.__name__.strip("_").replace("_", " ")] = missing
        else:
            pictures.append(replace(picture, name=f"{file_name(prefix)}-{picture.name}".removeprefix("-")))
    left_out = "; ".join(f"{name} (this run lacks {missing})" for name, missing in lacking.items())
    return Section(title, f"{text}\n\nNot drawn: {left_out}." if lacking else text, pictures)


def file_name(folder: str) -> str:
    """The name of a training's folder as part of a picture's name: what is not of a-z, 0-9, - and _ becomes a dash."""
    return re.sub(r"[^a-z0-9_-]+", "-", folder.lower())


@dataclass(frozen=True)
class Page:
    """`claims` are rows of `lab.claims.table`, `explored` data of `lab.report.explore` by variant."""

    title: str
    lead: str
    run_facts: Mapping[str, object]
    claims: Sequence[Mapping[str, object]]
    sections: Sequence[Section]
    commands: Sequence[str]
    explored: Mapping[str, Mapping] = field(default_factory=dict)


def write_page(folder, page):
    """Write `folder`/index.html and `folder`/figures/<name>.{png,svg}; returns the path of the page.

    Every file is replaced whole, the page last: a reader sees the old report or the new one. Raises
    ValueError for a picture name or a verdict that is not accepted, before anything is written.
    """
    _check(page)
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    embedded = {}
    for picture in _pictures(page):
        png = _draw(picture.figure, "png", dpi=style.PNG_DPI, metadata={"Software": None})
        svg = _draw(picture.figure, "svg", metadata={"Date": None})
        _replace(folder / "figures" / f"{picture.name}.png", png)
        _replace(folder / "figures" / f"{picture.name}.svg", svg)
        if picture.film:
            _replace(folder / "figures" / f"{picture.name}.gif", picture.film)
        embedded[picture.name] = base64.b64encode(picture.film or png).decode()
    _replace(folder / "index.html", render(page, embedded).encode())
    return folder / "index.html"


def render(page, embedded):
    """The page as HTML; `embedded` holds every picture's PNG in base64 under its name."""
    counts = {verdict: sum(claim["verdict"] == verdict for claim in page.claims) for verdict in VERDICTS}
    foot = claims_table.foot(page.claims)
    return fill("page.html.j2", page=page, embedded=embedded, counts=counts, foot=foot)


def fill(template, **values):
    """A template of this folder as HTML, with these values; it may embed our style and script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": _value, "paragraphs": _paragraphs, "slug": _slug, "json": _json}
    environment.filters |= {"seeds": claims_table.seeds, "margin": claims_table.margin}
    style_text, *scripts = ((FOLDER / name).read_text(encoding="utf-8") for name in EMBEDDED)
    environment.globals |= {"colours": explore.colours, "style": style_text, "script": "".join(scripts)}
    return environment.get_template(template).render(values)


def _pictures(page):
    return [picture for section in page.sections for picture in section.pictures]


def _check(page):
    names = [picture.name for picture in _pictures(page)]
    for name in names:
        if not re.fullmatch(r"[a-z0-9_-]+", name) or names.count(name) > 1:
            raise ValueError(f"picture name {name!r}: names are unique and made of a-z, 0-9, - and _")
    for claim in page.claims:
        verdict = claim["verdict"]
        if verdict not in VERDICTS:
            raise ValueError(f"claim {claim['id']}: verdict {verdict!r} is none of {', '.join(VERDICTS)}")


def _draw(figure, kind, **options):
    buffer = io.BytesIO()
    with style.paper():
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _replace(path, data):
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _value(value):
    """A claim's number in three digits, its text as it is, a dash for what was not measured."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _paragraphs(text):
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _json(value):
    """For a script of the page, which no text in it may end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
