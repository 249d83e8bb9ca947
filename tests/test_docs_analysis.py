"""Pages on analysis: their lines run as they stand, their names are the code's, their anchors have the answers said."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lab import models
from lab.analysis import complexity, condensation, heads, laziness, rank, sharpness
from lab.measuring import catalogue
from lab.models import Transformer, acts, pretrained

DOCS = Path(__file__).parents[1] / "docs"
MODELS, ANALYSIS = (DOCS / name for name in ("others_models.md", "analysis.md"))


def table(text, heading):
    """The cells of the rows below a table's heading."""
    _, _, rest = text.partition(heading)
    rows = re.match(r"(?:\|.*\|\n)+", rest.split("\n", 1)[1].split("\n", 1)[1])
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[0].splitlines()]


def saved(folder, config, seed):
    """A checkpoint of random weights, and its tensors."""
    form, draw = pretrained.format_of(config), np.random.default_rng(seed)
    entries = pretrained.named_tensors(form, form.model(config), [form.prefix])
    tensors = {name: draw.normal(size=entry.shape).astype(np.float32) for name, entry in entries.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def test_lines_for_models_that_are_not_the_labs_run(tmp_path):
    gpt2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 12, "n_positions": 10}
    pythia = dict(
        model_type="gpt_neox", vocab_size=12, hidden_size=8, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=10, rotary_pct=0.5,
    )  # fmt: skip
    names = {"FOLDER": tmp_path / "gpt2", "PYTHIA": tmp_path / "pythia", "NEW": tmp_path / "new"}
    names["FILE"] = names["PYTHIA"] / "model.safetensors"
    saved(names["FOLDER"], gpt2, 0)
    neox = saved(names["PYTHIA"], pythia, 1)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as users have it
        exec("\n".join(re.findall(r"```python\n(.*?)```", MODELS.read_text(), re.DOTALL)), names)
    assert names["names"] == ["filters/kernel", "head/kernel"]
    filters = np.asarray(names["params"]["filters"]["kernel"], np.float64).reshape(9, 8)
    s_K = np.linalg.svd(filters, compute_uv=False)
    assert names["ranks"][0] == pytest.approx(np.sum(s_K**2) / s_K[0] ** 2, rel=1e-4)

    matvec, vector_P = names["hessian"]
    dense = jax.jit(jax.vmap(matvec))(jnp.eye(vector_P.size, dtype=vector_P.dtype))
    eigenvalue_P = np.linalg.eigvalsh(np.asarray(dense, np.float64))
    rounding = 1e-4 * np.abs(eigenvalue_P).max()  # of 3,000 parameters: some sqrt(P) eps of the largest
    for value, residual in zip(*names["top"][:2], strict=True):
        assert np.abs(eigenvalue_P - value).min() <= residual + rounding
    assert abs(names["total"].value - eigenvalue_P.sum()) < 6 * names["total"].standard_error + rounding

    assert names["scores"]["induction"].value.shape == (2,) and names["alike"].shape == (2, 2, 2)
    assert names["its_ranks"].shape == (6 * 2 + 2,) and names["others_ranks"].shape == (4 * 2 + 2,)
    assert (names["NEW"] / "model.safetensors").stat().st_size < names["FILE"].stat().st_size
    # as GPT-NeoX splits the outputs of its joint layer: by head, then into query, key and value
    value, out = (
        neox["gpt_neox.layers.0.attention.query_key_value.weight"],
        neox["gpt_neox.layers.0.attention.dense.weight"],
    )
    written = [out[:, 4 * h : 4 * h + 4].astype(np.float64) @ value[12 * h + 8 : 12 * h + 12] for h in range(2)]
    expected = np.sum(written[0] * written[1]) / np.linalg.norm(written[0]) / np.linalg.norm(written[1])
    assert names["pythia_alike"][0, 0, 1] == pytest.approx(expected, abs=1e-5)


def test_activations_beside_transformer_lens_are_those_there_are():
    said = [row[0].strip("`") for row in table(MODELS.read_text(), "| here | TransformerLens | differs |")]
    documented = re.findall(r"^\| `([\w/]+)`(?:, `/(\w+)`)?", acts.__doc__, re.MULTILINE)
    expected = [
        name for first, more in documented for name in (first, first.rpartition("/")[0] + f"/{more}")[: 1 + bool(more)]
    ]
    assert said == expected
    model = Transformer(
        vocab_size=7, max_length=5, n_layers=1, n_heads=2, d_model=4, d_head=3, d_ff=5, activation="relu", norm="pre",
        use_bias=False, head_bias=False, final_norm=True, tied_head=False, readout="all",
    )  # fmt: skip
    tokens = jnp.zeros((1, 5), jnp.int32)
    params = jax.eval_shape(lambda key: models.init(model, key, tokens), jax.random.key(0))
    _, there = jax.eval_shape(lambda params: models.forward(model, params, tokens), params)
    assert sorted(there) == sorted(name.replace("block_i", "block_0") for name in said)


ANCHORS = table(ANALYSIS.read_text(), "| measure | anchor | answer |")
COMPUTED = {words[0]: words[1:] for words in ANCHORS if not words[2].startswith("`tests/")}


@pytest.mark.parametrize("measure", COMPUTED)
def test_anchor_has_the_answer_that_the_page_gives(measure):
    line, answer = COMPUTED[measure]
    modules = (complexity, condensation, heads, laziness, rank, sharpness)
    names = {module.__name__.rsplit(".", 1)[-1]: module for module in modules}
    names |= {"jax": jax, "jnp": jnp, "key": jax.random.key(0)}
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        found = jax.jit(lambda: eval(line.strip("`"), names))()  # the page's own line
    assert float(found) == pytest.approx(float(answer), rel=1e-4)


def test_every_measure_of_the_catalogue_has_an_anchor():
    anchored = {re.match(r"`?(\w+)", row[0])[1] for row in ANCHORS}
    assert set(catalogue.CATALOGUE) <= anchored
