"""What every study promises, found as users find them."""

import ast
import collections
from pathlib import Path

import pytest
from planned import decided

from lab import claims, studies
from lab import config as configs
from lab.configs import base
from lab.runs import Runs

NAMES = studies.names()
PRESETS = [(name, preset) for name in NAMES for preset in base.presets(name)]
NEED_DATA = ("complexity_control_language", "ntp_ctp_files")  # a published data set: nothing can be traced without
LONG_TEXTS = {("scaling_law", "gpu")}  # more text than is written here
COMPUTED = (("m2m", "gpu"), ("m2m", "paper"))  # trajectories that take many minutes to compute on a CPU
TRACED = {("composition", "cpu"), ("composition", "cpu_full"), ("concept_graph", "gpu"), ("focus_dilution", "cpu")}


@pytest.fixture(scope="module", params=NAMES)
def study(request):
    return studies.get(request.param)


def test_there_are_studies():
    assert {"composition", "ntp_ctp", "focus_dilution"} <= set(NAMES)


def test_claims_have_one_id_each_over_all_studies():
    ids = collections.Counter(claim.id for name in NAMES for claim in studies.get(name).claims)
    assert [id for id, count in ids.items() if count > 1] == []


def test_claims_say_what_is_published_and_what_the_threshold_rests_on(study):
    assert study.claims and study.papers and study.title and study.lead
    for claim in study.claims:
        said = (claim.statement, claim.quantity, claim.source, claim.published, claim.threshold.text)
        assert all(text.strip() == text and text for text in said), claim.id
        assert claim.threshold_from in (claims.PRINTED, claims.FIGURE, claims.DIRECTION, claims.OURS), claim.id


def test_without_any_training_every_claim_is_open_and_says_what_is_missing(study):
    for row in claims.table(study.claims, Runs({}), "command")["claims"]:
        assert (row["verdict"], row["measured"]) == (claims.OPEN, None), row["id"]
        assert row["note"].startswith("This run lacks "), row["id"]


def test_a_report_without_any_training_has_no_pictures(study):
    assert not [picture for section in study.sections(Runs({})) for picture in section.pictures]


@pytest.mark.parametrize("name", NAMES)
def test_trainings_of_another_study_are_refused_by_what_they_are(name):
    other = base.load("composition" if name == "concept_graph" else "concept_graph", "smoke")
    experiment = configs.experiment(next(iter(configs.variants(other).values())))
    with pytest.raises(ValueError, match=rf"{name}\b.*\bmeasures .*\bnot .*(UNet|Shapes|Composition)"):
        studies.get(name).measures(experiment)


def test_study_is_named_by_its_module(tmp_path, monkeypatch):
    text = "from lab.studies import Study\nSTUDY = Study('T', '', (), lambda experiment: [], (), '', lambda runs: [])"
    (tmp_path / "a_study_of_mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert studies.get("a_study_of_mine:STUDY").name == str(tmp_path / "a_study_of_mine.py")
    with pytest.raises(ValueError, match="nowhere_at_all:STUDY: No module named"):
        studies.get("nowhere_at_all:STUDY")


def test_unknown_study_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown study 'compo'.*composition"):
        studies.get("compo")


def uses(function) -> set[str]:
    """Names that a function takes from its module."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    own = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    own |= {node.name for node in ast.walk(function) if isinstance(node, ast.FunctionDef)}
    return {name.id for name in names} - own - {name.id for name in names if isinstance(name.ctx, ast.Store)}


@pytest.mark.parametrize("file", sorted(Path(studies.__file__).parent.rglob("*.py")), ids=lambda file: file.name)
def test_what_a_study_measures_uses_nothing_of_the_report(file):
    """Fingerprints of measurements leave `lab.report` out."""
    tree = ast.parse(file.read_text())
    drawn = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lab.report")
        for alias in node.names
    }
    functions = {node.name: uses(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    waiting, reached = [name for name, used in functions.items() if "Measure" in used], set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += functions[name] & functions.keys()
    assert not drawn & set().union(*(functions[name] for name in reached)), reached


# --- which claims a preset decides ---


def said(name, preset):
    """Ids of the claims that the preset's docstring says it decides."""
    words, _, _ = base.decides(name)[preset].partition(":")
    ids = tuple(claim.id for claim in studies.get(name).claims)
    if words in ("all claims", "no claim"):
        return ids if words == "all claims" else ()
    assert set(words.split(", ")) < set(ids), words
    return tuple(id for id in ids if id in words.split(", "))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file for those that need one."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"word{i % 40_000}" for i in range(400_000)))
    return path


def variants(name, preset, text):
    """A preset's variants, of that text where they need a file."""
    config = base.load(name, preset)
    if "path" in config.task:
        config.task.path = str(text)
    return configs.variants(config)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_preset_says_that_it_decides_claims_where_it_has_five_seeds(name, preset, text):
    n_seeds = [len(variant.grid.seed) for variant in variants(name, preset, text).values()]
    assert bool(said(name, preset)) == (max(n_seeds) >= claims.FEWEST_SEEDS)


@pytest.mark.usefixtures("standard_promotion")  # optax raises whole numbers
@pytest.mark.parametrize(
    ("name", "preset"),
    [
        pytest.param(*one, marks=[] if one in TRACED else [pytest.mark.long])
        for one in PRESETS
        if one[0] not in NEED_DATA
        and one not in LONG_TEXTS
        and one not in COMPUTED
        and (one[1] == "smoke" or not base.decides(one[0])[one[1]].startswith("no claim"))
    ],
)
def test_preset_decides_the_claims_that_it_says(name, preset, text):
    """A verdict needs the claim's variants, axes and measurements, and five seeds; traced, not trained.

    Of presets with fewer seeds smoke alone, which shows that no claim is decided without any.
    """
    assert decided(studies.get(name), variants(name, preset, text)) == said(name, preset)
