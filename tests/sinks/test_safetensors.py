"""A row that was exported is the row that was trained: read back, it says the same."""

import json

import jax
import numpy as np
import pytest

import lab
from lab import config as configs
from lab import models, sinks
from lab.configs import base
from lab.models import pretrained_files

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

SIZES = dict(vocab_size=8, max_length=3, n_layers=2, n_heads=2, d_model=8, d_head=4, d_ff=12)
KINDS = {  # as configs say them
    "gpt2": base.transformer(**SIZES, activation="gelu_tanh", use_bias=True, tied_head=True),
    "gpt_neox": base.decoder(
        **SIZES, activation="gelu", gated=False, norm_kind="layer", use_bias=True, parallel=True, rope_share=0.5
    ),
    "llama": base.decoder(**SIZES, n_kv_heads=1),
    "qwen3": base.decoder(**SIZES, qk_norm=True, tied_head=True),
}
TOKENS = np.array([[1, 7, 0], [3, 3, 5]], np.int32)
forward = jax.jit(models.forward, static_argnums=0)


@pytest.fixture
def trained(echo, untrained, tmp_path):
    """Three seeds of a kind at two snapshots, every leaf drawn, and a tokenizer as a task on text keeps it."""

    def make(kind):
        grid = dict(gamma=(0.5,), weight_decay=(0.1,), learning_rate=(0.01,), seed=(4, 5, 6))
        config = echo.config(model=KINDS[kind], grid=grid)
        model, draw = configs.experiment(config).model, np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0), TOKENS))

        def drawn():
            return jax.tree.map(lambda leaf: draw.normal(size=(3, *leaf.shape)).astype(np.float32), shapes)

        work = untrained(tmp_path / "w", config, {0: drawn(), 24: drawn()})
        work.data.mkdir()
        (work.data / "tokenizer.json").write_bytes(b"of the text")
        return work

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_row_read_back_has_the_logits_that_it_had(trained, kind):
    work = trained(kind)
    place = lab.export(work.path, "safetensors", rows=[2, 0])
    assert place == work.path / "export" / "safetensors"
    folders = {0: place / "w" / "row-000,seed=4", 2: place / "w" / "row-002,seed=6"}
    assert sorted(place.glob("*/*")) == [*folders.values()]
    of_training = lab.load(work.path).lab
    for row, folder in folders.items():
        assert json.loads((folder / "config.json").read_text())["model_type"] == kind
        model, params = pretrained_files.read(folder)
        expected = of_training.work.params(24, row)
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        logits, _ = forward(of_training.model, expected, TOKENS)
        np.testing.assert_array_equal(forward(model, params, TOKENS)[0], logits)
        assert (folder / "tokenizer.json").read_bytes() == b"of the text"
        said = json.loads((folder / "row.json").read_text())
        assert (said["variant"], said["row"], said["seed"], said["step"]) == ("w", row, 4 + row, 24)
        assert said["config"]["model"] == KINDS[kind]


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_exported_row_says_the_same_in_the_code_of_its_checkpoint(trained, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    place = lab.export(trained(kind).path, "safetensors", rows=[1])
    (folder,) = place.glob("*/*")
    (folder / "tokenizer.json").unlink()  # the stand-in of a tokenizer
    ours, params = pretrained_files.read(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS, dtype=torch.int64)).logits[:, -1].numpy()
    np.testing.assert_allclose(forward(ours, params, TOKENS)[0][:, -1], expected, atol=1e-4)


def test_what_weights_do_not_have_and_what_is_too_many_is_refused_and_nothing_written(trained, monkeypatch):
    work = trained("llama")
    monkeypatch.setattr(sinks, "RUNS", 2)
    for options, said in (
        (dict(metrics=["odd"]), "--metrics=odd: --to=safetensors holds weights and no metrics; leave it out"),
        (dict(), "3 rows are as many folders: --rows=all writes them, or name some"),
        (dict(rows=[3]), "row 3: .*w has rows 0 to 2"),
    ):
        with pytest.raises(ValueError, match=f"^{said}"):
            lab.export(work.path, "safetensors", **options)
    assert not (work.path / "export").exists()
    lab.export(work.path, "safetensors", rows="all")
    with pytest.raises(ValueError, match=r"holds something already, which would be mixed; .*name another --out"):
        lab.export(work.path, "safetensors", rows=[0])
