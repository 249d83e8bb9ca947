"""The page is judged as a reader meets it: its text, its files, and what a browser makes of it."""

import base64
import io
import re

import pytest
import xarray as xr
from browser import browse, needs_chromium
from matplotlib.figure import Figure
from PIL import Image

from lab import claims
from lab.report.page import Page, Picture, Section, draw_section, write_page
from lab.runs import MissingData, Runs


def claim(id="C1", values=(0.941, 0.99, 0.973, 0.97, 0.98), **changes):
    """A row as the claims table has it."""
    made = claims.claim(
        id, "Larger γ reasons", quantity="accuracy", source="paper, Fig. 2", published="≈ 1", at_least=0.9
    )(lambda runs: xr.DataArray(list(values), dims="seed"))  # fmt: skip
    return claims.evaluate(made, Runs({})).row("lab claim C1", "") | changes


def picture(name="curves", caption="A caption."):
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 3, 2])
    return Picture(name, caption, figure, "A line")


def page(**changes):
    parts = dict(
        title="Report",
        lead="First.\n\nSecond.",
        run_facts={"rows": 27, "jax": "0.10"},
        claims=[
            claim(),
            claim("C2", [0.2] * 5, headline=True),
            claim("C3", []),
        ],
        sections=[Section("What is seen", "One.\n\nTwo.", [picture(), picture("phase")])],
        commands=["lab run composition --preset=cpu"],
    )
    return Page(**(parts | changes))


def cells(html, id):
    row = re.search(rf'<tr id="claim-{id}">(.*?)</tr>', html, re.S).group(1)
    return {
        label: " ".join(re.sub("<[^>]+>", " ", cell).split())
        for label, cell in re.findall(r'<td data-label="(\w+)">(.*?)</td>', row, re.S)
    }


def test_pictures_are_embedded_and_lie_beside_the_page(tmp_path):
    path = write_page(tmp_path / "report", page())
    embedded = re.findall(r'<img alt="[^"]+" src="data:image/png;base64,([^"]+)"', path.read_text())
    assert len(embedded) == 2
    for name, data in zip(["curves", "phase"], embedded, strict=True):
        png = base64.b64decode(data, validate=True)
        assert png == (path.parent / "figures" / f"{name}.png").read_bytes()
        assert len(png) < 300_000
        with Image.open(io.BytesIO(png)) as image:
            assert image.format == "PNG" and image.size == (440, 330)  # 4 x 3 inches at 110 dpi
        assert "<svg" in (path.parent / "figures" / f"{name}.svg").read_text()


def test_page_loads_nothing(tmp_path):
    html = write_page(tmp_path, page()).read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    assert sources and not [source for source in sources if "http" in source or source.startswith("//")]
    assert "<script" not in html and "@import" not in html and "url(" not in html


def test_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    html = write_page(
        tmp_path,
        page(
            title=evil,
            lead=evil,
            run_facts={evil: evil},
            commands=[evil],
            claims=[claim(statement=evil, source=evil, published=evil, note=evil, command=evil)],
            sections=[Section(evil, evil, [picture(caption='">' + evil)])],
        ),
    ).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 12


def test_claims_show_measurement_interval_seeds_and_a_worded_verdict(tmp_path):
    html = write_page(tmp_path, page()).read_text()
    held = cells(html, "C1")
    assert list(held) == ["id", "statement", "source", "published", "measured", "verdict", "note"]
    assert held["measured"] == "0.973 [0.941, 0.99], 5 seeds; margin +0.073"
    assert held["published"] == "≈ 1 accuracy at least 0.9 (printed number)"
    assert held["statement"] == "Larger γ reasons" and cells(html, "C2")["statement"] == "Larger γ reasons headline"
    assert "lab claim C1" in held["note"]
    verdicts = [cells(html, id)["verdict"] for id in ("C1", "C2", "C3")]
    assert verdicts == ["holds", "does not hold", "open"]
    assert cells(html, "C3")["measured"] == "–"
    assert '<span class="badge does-not-hold">does not hold</span>' in html


def test_foot_says_how_many_verdicts_chance_gets_wrong(tmp_path):
    html = write_page(tmp_path, page()).read_text()
    assert "3 claims: 1 hold, 1 do not hold, 1 open." in html
    assert "at most 0.1 of them" in html  # two verdicts, each wrong with probability 2^-5 at most


def test_pictures_without_data_are_left_out_and_named():
    def training_curves(run):
        raise MissingData("train_loss")

    section = draw_section("Title", "Text.", None, [training_curves, lambda run: picture()], "unseen")
    assert section.text == "Text.\n\nNot drawn: training curves (this run lacks train_loss)."
    assert [one.name for one in section.pictures] == ["unseen-curves"]


def test_contents_point_at_headings(tmp_path):
    html = write_page(tmp_path, page()).read_text()
    targets = re.findall(r'<a href="#([^"]+)"', html)
    assert targets == ["claims", "section-1", "run", "commands"]
    assert all(f'id="{target}"' in html for target in targets)


def test_page_without_claims_or_sections_has_neither(tmp_path):
    html = write_page(tmp_path, page(claims=[], sections=[])).read_text()
    assert 'id="claims"' not in html and "Claims" not in html


def test_same_page_gives_same_bytes_and_leaves_no_drafts(tmp_path):
    first, second = write_page(tmp_path / "a", page()), write_page(tmp_path / "b", page())
    a, b = (
        {str(file.relative_to(path.parent)): file.read_bytes() for file in path.parent.rglob("*.*")}
        for path in (first, second)
    )
    assert a == b
    pictures = ["figures/curves.png", "figures/curves.svg", "figures/phase.png", "figures/phase.svg"]
    assert sorted(a) == [*pictures, "index.html"]


def test_failed_write_keeps_the_old_page(tmp_path):
    path = write_page(tmp_path, page())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'not sure' is none of holds, does not hold"):
        write_page(tmp_path, page(claims=[claim(verdict="not sure")]))
    with pytest.raises(ValueError, match="picture name 'Fig 1'"):
        write_page(tmp_path, page(sections=[Section("s", "", [picture("Fig 1")])]))
    with pytest.raises(ValueError, match="picture name 'twice'"):
        write_page(tmp_path, page(sections=[Section("s", "", [picture("twice"), picture("twice")])]))
    assert path.read_bytes() == before


@needs_chromium
@pytest.mark.parametrize("width", [1200, 400])
def test_browser_shows_every_picture_without_errors_or_sideways_scrolling(tmp_path, width):
    path = write_page(tmp_path / "report", page())
    dom, errors = browse(path.as_uri(), tmp_path / "profile", width)
    assert "<h1>Report</h1>" in dom and not errors
    # This page has no scripts; its copy asks the browser what it made of it.
    probe = """<script>addEventListener("load", () => {
      const images = [...document.images], wide = document.documentElement.scrollWidth;
      const broken = images.filter(image => !(image.complete && image.naturalWidth)).length;
      document.title = `${images.length} images, ${broken} broken, ${wide > innerWidth ? "wide" : "fits"}`;
    })</script></body>"""
    copy = path.with_name("probe.html")
    copy.write_text(path.read_text().replace("</body>", probe))
    dom, errors = browse(copy.as_uri(), tmp_path / "profile", width)
    assert "<title>2 images, 0 broken, fits</title>" in dom and not errors
