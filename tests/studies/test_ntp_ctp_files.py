"""Both objectives on a file of questions, from the command line to the page; its numbers, claims, and best guesses.

GAMMALAB_PRONTOQA and GAMMALAB_PROSQA: paths of the published files, on which answers without deduction are counted.
"""

import json
import os

import jax
import numpy as np
import pytest

from lab import models
from lab.cli import main
from lab.configs import composition
from lab.engine import config as configs
from lab.engine import table
from lab.engine.workdir import Workdir
from lab.studies import claims
from lab.studies import ntp_ctp_files as study
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
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to whole numbers
        main(["reproduce", "ntp_ctp_files", "--preset=smoke", *changes, f"--workdir={folder / 'w'}"])
    return folder / "w"


def test_held_out_accuracy_is_that_of_every_held_out_question_once(root):
    dataset, task = table.load(root / "main"), Workdir(root / "main").experiment.task
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
    assert [row["id"] for row in json.loads((root / "claims.json").read_text())] == ["Q1", "Q2", "Q3"]


def verdicts(dataset, accuracy_of):
    """Of the trained dataset with other accuracies: (objective, seed) -> share."""
    changed = dataset.copy(deep=True)
    for (objective, seed), value in accuracy_of.items():
        changed["held_out.accuracy"].loc[{"ntp_weight": objective, "seed": seed}] = value
    return {row["id"]: row["verdict"] for row in claims.evaluate(study.CLAIMS, {"main": changed}, "c")}


def test_claims_hold_where_ntp_is_ahead_and_a_coin_is_beaten_by_two_errors(root):
    dataset = table.load(root / "main")
    coin = 0.5 + 1 / np.sqrt(6)  # two standard errors, 1/2 / sqrt(6) each, of six questions
    seeds = range(3)
    clear = {(w, seed): coin + 0.01 + 0.01 * w for w in (0.0, 1.0) for seed in seeds}
    assert verdicts(dataset, clear) == dict.fromkeys(("Q1", "Q2", "Q3"), "holds")
    assert verdicts(dataset, clear | {(0.0, 2): coin - 0.01}) == {"Q1": "holds", "Q2": "holds", "Q3": "does not hold"}
    assert verdicts(dataset, clear | {(1.0, 0): coin + 0.005})["Q1"] == "does not hold"


def test_a_path_is_asked_for_and_other_tasks_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "ntp_ctp_files", "--preset=smoke"])
    assert "task.path='': the path of a PrOntoQA or ProsQA file, --config.task.path=FILE" in capsys.readouterr().err
    with pytest.raises(ValueError, match="measures question files, not Composition"):
        study.measures(configs.experiment(composition.smoke()))


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
