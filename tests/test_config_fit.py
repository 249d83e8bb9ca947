"""What a model can and cannot be asked of a task: the dtype of its products, where it answers, and what it reads."""

import pytest

from lab import config as configs
from lab import models
from lab.configs import composition, concept_graph, focus_dilution, ntp_ctp
from lab.objective import Objective


def variant(**model):
    """Composition, and a transformer that answers everywhere but for these changes."""
    (made, *_) = configs.variants(composition.smoke()).values()
    made.model.readout = "all"
    made.model.update(model)
    return made


def test_products_are_of_float32_unless_a_config_says_otherwise():
    made = variant()
    assert configs.experiment(made).model.compute_dtype == "float32"
    with made.model.unlocked():
        del made.model["compute_dtype"]  # as in trainings older than the option
    assert configs.experiment(made).model.compute_dtype == "float32"
    assert configs.experiment(variant(compute_dtype="bfloat16")).model.compute_dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", "bf16", ""])
def test_other_dtypes_are_refused_with_what_there_is(dtype):
    with pytest.raises(ValueError, match=f"model.compute_dtype='{dtype}': one of float32, bfloat16") as caught:
        configs.experiment(variant(compute_dtype=dtype))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.5,)])
def test_next_token_training_of_a_model_that_answers_at_the_end_alone_is_refused(weights):
    (made, *_) = configs.variants(ntp_ctp.smoke()).values()
    made.grid.ntp_weight = weights
    assert configs.experiment(made).model.readout == "all"
    made.model.readout = "last"
    with pytest.raises(ValueError, match=r"model\.readout='last' with ntp_weight=\(.*\): .* use 'all'"):
        configs.experiment(made)
    made.grid.ntp_weight = (0.0,)
    assert configs.experiment(made).model.readout == "last"


def test_so_it_is_where_the_objective_says_it_and_no_axis_does():
    made = variant(readout="last")
    made.objective.ntp_weight = 1.0
    with pytest.raises(ValueError, match=r"model\.readout='last' with ntp_weight=1\.0"):
        configs.experiment(made)
    with made.grid.unlocked():
        made.grid.ntp_weight = (0.0,)
    assert configs.experiment(made).objective.ntp_weight == 1.0


def test_an_objective_is_refused_where_a_task_has_no_answer_or_its_values_are_impossible():
    (made, *_) = configs.variants(focus_dilution.smoke()).values()
    assert configs.experiment(made).objective == Objective()
    made.objective.label_noise = 0.1
    with pytest.raises(ValueError, match=r"objective\.label_noise=0\.1: Anchor has no answer apart from its context"):
        configs.experiment(made)
    with made.grid.unlocked():
        made.grid.label_noise = (0.0, 0.1)
    with pytest.raises(ValueError, match=r"label_noise"):
        configs.grid(made)
    made = variant()
    made.objective.context_noise = 1.5
    with pytest.raises(ValueError, match=r"objective\.context_noise=1\.5: a number from 0 to 1"):
        configs.experiment(made)
    with made.objective.unlocked():
        made.objective = dict(ntp_weight=0.0, lable_noise=0.0)
    with pytest.raises(ValueError, match=r"objective\.lable_noise: unknown option; did you mean 'label_noise'"):
        configs.experiment(made)


def test_a_task_says_itself_that_no_training_set_may_be_kept():
    made = configs.variants(concept_graph.smoke())["main"]
    made.train_size = 64
    with pytest.raises(ValueError, match=r"train_size=64: would fix noise and times; use train_size=0 and task\."):
        configs.experiment(made)


def test_models_say_what_they_read_and_a_task_that_gives_something_else_is_refused():
    others = {"unet": "noised pictures", "vector_attention": "sequences of vectors", "fno2d": "fields", "m2m": "fields"}
    for name, family in models.FAMILIES.items():
        assert ":" in name or models.reads(family) == others.get(name, "tokens")
    assert models.reads(models.TwoLayerMLP) == "vectors"
    made = variant()
    made.model = configs.variants(concept_graph.smoke())["main"].model
    with pytest.raises(ValueError, match=r"UNet reads noised pictures, Composition gives tokens; .* emb_mlp"):
        configs.experiment(made)
