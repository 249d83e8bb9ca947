"""Both objectives on a file of questions, from the command line to the page; its numbers, claims, and best guesses.

GAMMALAB_PRONTOQA and GAMMALAB_PROSQA: paths of the published files, on which answers without deduction are counted.
"""

import json
import os

import numpy as np
import pytest
from synthetic import Grid, measured, reproduce

from lab import models
from lab.cli import main
from lab.disk.load import load
from lab.disk.workdir import Workdir
from lab.objective import CTP, NTP
from lab.studies import ntp_ctp_files
from lab.text import question_files

pytest.importorskip("tokenizers")
NAMES = ("Tom", "Eva", "Jack", "Davis", "Carol", "Oliver", "Sam", "Rex", "Fae", "Wren")


def question(name, right, wrong):
    return {
        "question": f"Every yumpus is a {right}. {name} is a yumpus. Bob is a {wrong}. Is {name} a {right} or {wrong}?",
        "answer": f"{name} is a {right}.",
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Trained, measured and reported; 6 of the 20 questions are held out."""
    folder = tmp_path_factory.mktemp("questions")
    items = [question(name, *pair) for pair in (("impus", "rompus"), ("rompus", "impus")) for name in NAMES]
    (folder / "items.json").write_text(json.dumps(items))
    changes = [f"--config.task.path={folder / 'items.json'}", "--config.task.test_share=0.3", "--config.task.length=40"]
    return reproduce("ntp_ctp_files", folder / "w", *changes)


def test_held_out_accuracy_is_that_of_every_held_out_question_once(root):
    dataset, task = load(root / "main"), Workdir(root / "main").experiment.task
    place = dict(ntp_weight=1.0, gamma=0.5, weight_decay=0.01, learning_rate=2e-3, seed=1)
    model, params = dataset.lab.model, dataset.lab.params(**place)
    sequence_NxM, is_answer_NxM, candidates_Nx2 = map(np.asarray, task.prepared.tables["test"])
    right = could = 0
    for sequence, is_answer, candidates in zip(sequence_NxM, is_answer_NxM, candidates_Nx2, strict=True):
        logits_1xLxV, _ = models.forward(model, params, sequence[None, :-1])
        said = int(logits_1xLxV[0, np.flatnonzero(is_answer)[0] - 1].argmax())
        right, could = right + (said == sequence[is_answer][0]), could + (said in candidates)
    found = dataset.sel(place, method="nearest")
    assert found["held_out.questions"] == len(sequence_NxM) == 6
    p = right / 6
    assert found["held_out.accuracy"] == pytest.approx(p, abs=2.0**-22)  # a mean of six float32 numbers
    assert found["held_out.plausible"] == pytest.approx(could / 6, abs=2.0**-22)
    assert found["held_out.accuracy_error"] == pytest.approx(np.sqrt(p * (1 - p) / 6), abs=2.0**-20)


def test_page_has_its_pictures_and_claims(root):
    assert {path.stem for path in (root / "report" / "figures").glob("*.png")} >= {"training", "held-out"}
    rows = json.loads((root / "claims.json").read_text())["claims"]
    assert [row["id"] for row in rows] == ["Q1", "Q2", "Q3"]


def test_claims_are_the_lead_of_ntp_and_the_standard_errors_above_a_coin():
    made, study = Grid(ntp_weight=(CTP, NTP), gamma=(0.5,), weight_decay=(0.01,)), ntp_ctp_files.STUDY
    for objective, accuracies in ((CTP, [0.5, 0.6, 0.7, 0.8, 0.9]), (NTP, 0.7)):
        accuracy_Sx1 = np.broadcast_to(accuracies, 5)[:, None]
        for name, values in (("accuracy", accuracy_Sx1), ("plausible", 0.9), ("questions", 25)):
            made.put(f"held_out.{name}", values, time=None, ntp_weight=objective)
    found = {claim.id: measured(study, claim.id, main=made) for claim in study.claims}
    np.testing.assert_allclose(found["Q1"].values_S, [0.2, 0.1, 0, -0.1, -0.2], atol=1e-15)
    # of 25 questions a standard error is 0.1
    np.testing.assert_allclose(found["Q2"].values_S, [2] * 5)
    np.testing.assert_allclose(found["Q3"].values_S, range(5), atol=1e-14)
    assert found["Q2"].note.startswith("Accuracy 0.70 on 25 held-out questions; 90% of the answers")


def test_a_path_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "ntp_ctp_files", "--preset=smoke"])
    assert "task.path='': the path of a PrOntoQA or ProsQA file, --config.task.path=FILE" in capsys.readouterr().err


def published(variable):
    if variable not in os.environ:
        pytest.skip(f"{variable} names no file")
    return question_files.read(os.environ[variable])


def test_three_of_four_prontoqa_answers_are_the_later_sentence_on_the_property():
    right = []
    for asked, answer, _ in published("GAMMALAB_PRONTOQA"):
        told, question = " ".join(asked).split(" is the following statement true or false ? ")
        *_, what, _ = question.split()
        *_, last = (sentence for sentence in told.split(" . ") if sentence.removesuffix(" .").split()[-1] == what)
        agrees = ("not" in last.split()) == ("not" in question.split())
        right.append(answer == ("true" if agrees else "false"))
    assert np.mean(right) == pytest.approx(0.742)


def test_two_of_three_prosqa_answers_are_the_candidate_named_less_often():
    shares = []
    for asked, answer, candidates in published("GAMMALAB_PROSQA"):
        first, second = (asked.count(candidate) for candidate in candidates)
        shares.append(0.5 if first == second else answer == candidates[int(first > second)])
    assert np.mean(shares) == pytest.approx(0.662)
