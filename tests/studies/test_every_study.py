"""What every study promises, found as users find them."""

import collections

import pytest

from lab import claims, studies
from lab import config as configs
from lab.configs import base
from lab.runs import Runs

NAMES = studies.names()


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


def test_unknown_study_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown study 'compo'.*composition"):
        studies.get("compo")
