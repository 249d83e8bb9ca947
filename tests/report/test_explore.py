"""The interactive part shows the numbers of the dataset: as data, and as a browser draws them."""

import base64
import html
import json
import re

import matplotlib
import numpy as np
import pytest
import xarray as xr
from browser import browse, needs_chromium
from hypothesis import given
from hypothesis import strategies as st
from on_disk import AXES, ROWS, SCHEDULE, write_training

from lab import grid as grids
from lab.disk.load import load
from lab.report import explore, style
from lab.report.page import Page, write_page
from lab.runs import Run

pytestmark = pytest.mark.usefixtures("echo_is_a_task")
ROUNDED = 2.0**-16  # of a value: half of the last of 15 bits after the first
LATE = 5  # the step at which row 1 diverges
VARYING = [axis for axis, values in AXES.items() if len(values) > 1]


@pytest.fixture(scope="module")
def trained(echo, echo_is_a_task, tmp_path_factory):
    """(the run, the numbers that were written): two gammas, three decays, two seeds; row 1 diverges."""
    path = tmp_path_factory.mktemp("w") / "main"
    raw = write_training(path, echo.config(grid=AXES, **SCHEDULE), grids.product(AXES))
    return Run(load(path)), raw


def unpacked(entry, *shape):
    """Read anew: 24 bits a number."""
    bytes_Nx3 = np.frombuffer(base64.b64decode(entry["data"]), np.uint8).reshape(-1, 3)
    return np.pad(bytes_Nx3, ((0, 0), (1, 0))).view("<f4").reshape(shape)


def named(entries, name):
    (entry,) = [entry for entry in entries if entry["name"] == name]
    return entry


# --- the data ---


@pytest.mark.parametrize("name", ["train_loss", "grad_norm", "odd.accuracy"])
def test_data_holds_every_number_of_the_dataset_and_none_after_divergence(trained, name):
    run, raw = trained
    found = explore.data(run)
    assert found["n_rows"] == 12 and found["diverged_at"] == [-1, LATE] + [-1] * 10
    assert found["axes"] == {axis: list(AXES[axis]) for axis in VARYING} and found["note"] == ""
    steps = np.arange(16) if name != "odd.accuracy" else np.arange(0, 17, 4)
    entry = named(found["metrics"], name)
    assert entry["steps"] == steps.tolist() and "of" not in entry
    values_TxR = unpacked(entry, len(steps), 12)
    for row, place in enumerate(ROWS):
        here = {axis: found["axes"][axis][found["rows"][axis][row]] for axis in VARYING}
        assert here == {axis: value for axis, value in zip(AXES, place, strict=True) if axis in VARYING}
        wanted = np.where((row != 1) | (steps < LATE), raw[name][:, row], np.nan)
        np.testing.assert_allclose(values_TxR[:, row], wanted, rtol=ROUNDED)


def test_grid_that_is_no_product_has_the_rows_that_there_are(echo, tmp_path):
    rows = {axis: tuple(place[i] for place in ROWS[:5]) for i, axis in enumerate(AXES)}
    raw = write_training(tmp_path / "main", echo.config(grid=AXES, **SCHEDULE), grids.zipped(rows))
    found = explore.data(Run(load(tmp_path / "main")))
    assert found["n_rows"] == 5 and found["usual"] == {}
    here = [tuple(found["axes"][axis][found["rows"][axis][row]] for axis in found["axes"]) for row in range(5)]
    order = [here.index(tuple(rows[axis][row] for axis in found["axes"])) for row in range(5)]
    values = unpacked(named(found["metrics"], "odd.accuracy"), 5, 5)[0, order]
    np.testing.assert_allclose(values, raw["odd.accuracy"][0], rtol=ROUNDED)  # at step 0 none has diverged


@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_packed_number_is_four_characters_and_has_sixteen_bits(values):
    values = np.array(values, np.float32)
    packed = explore.pack(values)
    assert len(packed) == 4 * len(values)
    largest = 2.0**127 * (2 - 2.0**-16)  # half way from the largest number of so many bits to the next power
    wanted = np.where(np.abs(values) >= largest, np.copysign(np.inf, values), values)
    # numbers below 2^-126 are evenly spaced: half of their last bit but 8
    np.testing.assert_allclose(unpacked({"data": packed}, len(values)), wanted, rtol=ROUNDED, atol=2.0**-142)


@given(st.integers(1, 3000), st.integers(2, 60))
def test_thinned_steps_are_in_order_few_enough_and_keep_both_ends(n, most):
    kept = explore.thin(n, most)
    assert len(kept) <= most and kept[0] == 0 and kept[-1] == n - 1 and (np.diff(kept) > 0).all()
    assert n > most or kept.tolist() == list(range(n))


def wide_run(n_seeds=40, n_steps=300, n_scores=6):
    """`n_seeds` seeds at two gammas; spectra of three matrices, the last of which has 30 of 40 singular values."""
    axes, steps = {"gamma": [0.3, 0.5], "seed": list(range(n_seeds))}, [0, 10, 20, 100, 200, 300]
    draw, size = np.random.default_rng(0).random, (2, n_seeds)
    data = {f"test.score_{i}": (("step", *axes), draw((n_steps, *size))) for i in range(n_scores)}
    data["diverged_at"] = (tuple(axes), np.full(size, -1))
    data["norm.whole"] = (tuple(axes), draw(size))
    data["rank.stable"] = (("snapshot", *axes, "matrix"), draw((6, *size, 3)))
    data["spectrum.matrix"] = (("snapshot", *axes, "matrix", "index"), draw((6, *size, 3, 40)))
    data["spectrum.matrix"][1][..., 2, 30:] = np.nan
    data["spectrum.matrix"][1][1] = np.nan  # not measured at step 10
    coords = {"step": np.arange(n_steps), "snapshot": steps, "matrix": ["a", "b", "c"]}
    return Run(xr.Dataset(data, axes | coords))


def test_spectrum_is_of_one_matrix_has_its_length_and_the_snapshots_that_were_measured():
    run = wide_run()
    found = explore.data(run)
    assert [entry["name"] for entry in found["spectra"]] == ["matrix a", "matrix b", "matrix c"]
    entry = found["spectra"][2]
    assert (
        entry["of_index"] == 30
        and entry["of"] == 5
        and entry["index"][0] == 1
        and entry["index"][-1] == 30
        and len(entry["index"]) <= 24
    )
    assert entry["steps"] == [0, 20, 100, 300]  # of 0, 20, 100, 200, 300
    assert "Spectra show 4 snapshots at most" in found["note"] and "24 singular values at most" in found["note"]
    values = unpacked(entry, 4, 80, len(entry["index"]))
    wanted = run["spectrum.matrix"].sel(matrix="c", snapshot=entry["steps"]).values.reshape(4, 80, 40)
    np.testing.assert_allclose(values, wanted[..., np.array(entry["index"]) - 1], rtol=ROUNDED)
    assert named(found["metrics"], "norm.whole")["steps"] is None
    np.testing.assert_allclose(
        unpacked(named(found["metrics"], "rank.stable[b]"), 6, 80),
        run["rank.stable"].sel(matrix="b").values.reshape(6, 80), rtol=ROUNDED,
    )  # fmt: skip


@pytest.mark.parametrize("most", [400_000, 200_000, 60_000, 5_000])
def test_data_of_any_size_fits_keeps_every_row_and_says_what_it_lost(most):
    found = explore.data(wide_run(), most=most)
    assert len(json.dumps(found)) <= 1.02 * most  # beside the numbers: the sentence itself
    assert found["n_rows"] == len(found["rows"]["seed"]) == len(found["diverged_at"]) == 80
    there = {entry["name"] for entry in found["metrics"] + found["spectra"]}
    for entry in found["metrics"]:
        assert len(entry["data"]) == 4 * 80 * len(entry["steps"] or [0])
        if entry["name"].startswith("test."):
            assert entry["of"] == 300 and len(entry["steps"]) <= 60
    (points,) = re.findall(r"Curves of test.score_0, .* show (\d+) steps at most", found["note"])
    assert int(points) == (60 if most >= 200_000 else 30 if most == 60_000 else 2)
    assert ("left out" in found["note"]) == (len(there) < 6 + 1 + 3 + 3)
    assert "test.score_0" in there


@pytest.mark.parametrize(("kind", "name"), [("share", style.ORDERED), ("other", style.UNBOUNDED)])
def test_colours_are_those_of_the_phase_diagrams(kind, name):
    wanted = matplotlib.colormaps[name](np.arange(33) / 32)[:, :3]
    np.testing.assert_allclose(explore.colours()[kind], 255 * wanted, atol=1)


# --- the page ---


def page(tmp_path, **explored):
    return write_page(tmp_path / "report", Page("Report", "Lead.", {}, [], [], [], explored))


def test_page_has_a_section_a_training_loads_nothing_and_no_name_ends_its_script(trained, tmp_path):
    data = explore.data(trained[0])
    evil = "</script><script>alert(1)</script>"
    text = page(tmp_path, **{"main": data, evil: data}).read_text()
    assert re.findall(r'<h2 id="explored-\d">(.*?)</h2>', text)[0] == "Explore (main)"
    assert text.count('<div class="explore"') == 2 and "<noscript>" in text and "alert(1)</script" not in text
    embedded = re.search(r'<script type="application/json" id="explored">\s*(.*?)\s*</script>', text, re.S).group(1)
    assert json.loads(embedded)["trainings"] == {"main": data, evil: data}
    outside = re.findall(r"\b(?:src|href)=[\"']?(?!data:|#)([^\"' >]+)|(fetch\(|XMLHttpRequest|import\()", text)
    assert not outside
    assert all(name.startswith("http://www.w3.org/") for name in re.findall(r"https?://[^\"' ]+", text))  # of elements


def reading(dom):
    return re.sub("<[^>]+>", "\n", re.search(r'<p class="reading"[^>]*>(.*?)</p>', dom, re.S).group(1)).strip()


def title(dom):
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", dom)[1]))


def rounded(value):
    return f"{value:.4g}"


ADDRESSES = [  # what it says beside the variant and the metric, the step, and the rows that are meant
    ({"x": "gamma", "y": "weight_decay", "cell": "0.5,0.1"}, 16, {"gamma": 0.5, "weight_decay": 0.1}),
    ({"x": "gamma", "y": "weight_decay", "cell": "0.3,1", "step": 8}, 8, {"gamma": 0.3, "weight_decay": 1.0}),
    ({"x": "weight_decay", "y": "seed", "cell": "0.1,7", "gamma": 0.3}, 16,
     {"gamma": 0.3, "weight_decay": 0.1, "seed": 7}),
    ({"x": "gamma", "y": "", "cell": "0.5", "weight_decay": 0, "seed": "median"}, 16,
     {"gamma": 0.5, "weight_decay": 0.0}),
    ({"x": "gamma", "y": "", "cell": "0.5", "weight_decay": "median"}, 16, {"gamma": 0.5}),
]  # fmt: skip


@needs_chromium
def test_browser_shows_the_numbers_of_the_cell_that_the_address_names(trained, tmp_path):
    run, _ = trained
    path = page(tmp_path, main=explore.data(run))
    fixed = {"explore": "main", "metric": "odd.accuracy"}
    fragments = ["&".join(f"{key}={value}" for key, value in (fixed | said).items()) for said, _, _ in ADDRESSES]
    probe = f"""<script>(async () => {{
      const cells = document.getElementsByClassName("cell");
      const read = () => [document.querySelector(".reading").textContent,
        [...cells].filter(cell => cell.getAttribute("aria-pressed") === "true").length];
      const said = [read()];
      for (const fragment of {json.dumps(fragments[1:])}) {{
        const changed = new Promise(tell => addEventListener("hashchange", tell, {{ once: true }}));
        location.hash = fragment;
        await changed;
        said.push(read());
      }}
      document.title = JSON.stringify(said);
    }})()</script></body>"""
    path.write_text(path.read_text().replace("</body>", probe))
    dom, errors = browse(f"{path.as_uri()}#{fragments[0]}", tmp_path / "profile", 1200)
    for (said, pressed), (_, step, at) in zip(title(dom), ADDRESSES, strict=True):
        values = run["odd.accuracy"].sel(step=step, **at).values.ravel()
        assert f"odd.accuracy {rounded(np.median(values))}" in said and f" at step {step}" in said and pressed == 1
        if len(values) > 1:
            assert f", median of {len(values)} [{rounded(values.min())}, {rounded(values.max())}]" in said
            assert {*re.search("One by one: (.*)[.]$", said)[1].split(", ")} == {*map(rounded, values)}
    assert not errors


@needs_chromium
def test_browser_shows_a_diverged_row_as_such(trained, tmp_path):
    run, _ = trained
    path = page(tmp_path, main=explore.data(run))
    dom, errors = browse(f"{path.as_uri()}#explore=main&metric=odd.accuracy&cell=0.3,0", tmp_path / "profile", 400)
    healthy = float(run["odd.accuracy"].sel(gamma=0.3, weight_decay=0, seed=0, step=16).squeeze())
    assert f"{rounded(healthy)}, median of 1" in reading(dom) and "1 of 2 diverged" in reading(dom)
    assert f"One by one: {rounded(healthy)}, diverged." in reading(dom)
    assert "1/2 ×" in dom and dom.count("1 of 2 diverged") == 2 and 'class="diverged" d="' in dom and not errors


# what a user does, and what the page made of it: in its title, as JSON
PROBE = """<script>addEventListener("load", () => {
  const said = [], place = document.querySelector(".explore");
  const name = () => place.querySelector(".reading b").textContent;
  const cell = label => place.querySelector(`.cell[aria-label^="${label}"]`);
  const pressed = () => place.querySelector("[aria-pressed=true]");
  const choose = (control, value) => {
    const node = place.querySelector(`[name="${control}"]`);
    node.focus(); node.value = value;
    node.dispatchEvent(new Event(node.type === "range" ? "input" : "change", { bubbles: true }));
    return document.activeElement.name === control;
  };
  cell("γ 0.3, weight decay 0:").dispatchEvent(new Event("click"));
  said.push(name(), new URLSearchParams(location.hash.slice(1)).get("cell"));
  cell("γ 0.5, weight decay 1:").dispatchEvent(new Event("pointerenter")); said.push(name());
  cell("γ 0.5, weight decay 1:").dispatchEvent(new Event("pointerleave")); said.push(name());
  pressed().focus();
  for (const key of ["ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp"])
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  said.push(name(), document.activeElement === pressed());
  said.push(choose("colour", "train_loss"), choose("step", 3), place.querySelector("label.wide span").textContent);
  said.push(choose("up", "seed"), [...place.querySelectorAll(".cell")].length, name());
  said.push(choose("singular values of", "matrix b"), choose("over training", "odd.accuracy"));
  said.push(Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
  said.push(document.documentElement.scrollWidth > innerWidth ? "wide" : "fits");
  document.title = JSON.stringify(said);
})</script></body>"""


@needs_chromium
@pytest.mark.parametrize("width", [1200, 400])
def test_pointer_keys_and_controls_choose_and_the_address_says_what(trained, tmp_path, width):
    data = explore.data(trained[0])
    spectra = [{"name": f"matrix {m}", "steps": [0], "index": [1, 2], "data": explore.pack(np.ones(24))} for m in "ab"]
    path = page(tmp_path, main=data | {"spectra": spectra})
    path.write_text(path.read_text().replace("</body>", PROBE))
    dom, errors = browse(path.as_uri(), tmp_path / "profile", width)
    said = title(dom)
    assert not errors and said[:4] == [
        "γ 0.3, weight decay 0",
        "0.3,0",
        "γ 0.5, weight decay 1",
        "γ 0.3, weight decay 0",
    ]
    assert said[4:6] == ["γ 0.5, weight decay 1", True]  # past the edge it stays
    assert said[6:9] == [True, True, "step 3"] and said[9:11] == [True, 4] and said[11].startswith("γ ")
    assert said[12:14] == [True, True] and said[15] == "fits"
    wanted = {"explore": "main", "x": "gamma", "y": "seed", "metric": "train_loss", "step": "3"}
    wanted |= {"spectrum": "matrix b", "curve": "odd.accuracy"}
    assert {key: value for key, value in said[14].items() if key in wanted} == wanted
    assert said[14]["weight_decay"] == "0.1"  # the usual value, by its place in the middle


def updated(tmp_path, older, newer, fragment):
    """(what the page says of a cell before and after newer data, console lines)."""
    path = page(tmp_path, main=older)
    probe = f"""<script>addEventListener("load", () => {{
      const place = document.createElement("div"), {{ colours, trainings }} = explored;
      document.querySelector("main").replaceChildren(place);
      const update = explore(place, "main", trainings.main, colours);
      const before = place.querySelector(".reading").textContent;
      update({json.dumps(newer)});
      document.title = JSON.stringify(before);
    }})</script></body>"""
    path.write_text(path.read_text().replace("</body>", probe))
    dom, errors = browse(f"{path.as_uri()}#explore=main&{fragment}", tmp_path / "profile", 1200)
    return title(dom), reading(dom), errors


@needs_chromium
def test_newer_data_are_drawn_and_what_was_chosen_stays(trained, tmp_path):
    run, _ = trained
    half = Run(run.dataset.sel(step=slice(0, 8), train_step=slice(0, 7)))
    fragment = "metric=odd.accuracy&cell=0.5,0"
    before, after, errors = updated(tmp_path, explore.data(half), explore.data(run), fragment)
    for said, step in ((before, 8), (after, 16)):
        median = run["odd.accuracy"].sel(gamma=0.5, weight_decay=0, step=step).median()
        assert f"odd.accuracy {rounded(float(median))}, median of 2" in said and f"at step {step}." in said
    assert not errors


@needs_chromium
def test_values_that_were_added_before_the_chosen_ones_do_not_move_the_choice(trained, tmp_path):
    run, _ = trained
    fewer = Run(run.dataset.sel(weight_decay=[0.1, 1.0]))
    fragment = "metric=odd.accuracy&x=gamma&y=seed&cell=0.5,7&weight_decay=0.1"
    before, after, errors = updated(tmp_path, explore.data(fewer), explore.data(run), fragment)
    value = float(run["odd.accuracy"].sel(gamma=0.5, weight_decay=0.1, seed=7, step=16).squeeze())
    for said in (before, after):
        assert "γ 0.5, seed 7" in said and f"odd.accuracy {rounded(value)} at step 16" in said
    assert not errors


@needs_chromium
def test_address_counts_from_the_first_numbers_on(trained, tmp_path):
    data = explore.data(trained[0])
    fragment = "metric=odd.accuracy&cell=0.3,1"
    before, after, errors = updated(tmp_path, data | {"metrics": []}, data, fragment)
    assert before == "" and "γ 0.3, weight decay 1" in after and "odd.accuracy" in after and not errors
