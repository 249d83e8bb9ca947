import json
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lab import models
from lab.analysis import rank, weights
from lab.models import pretrained
from lab.models.pretrained_files import gpt2, read, write

D, VOCAB, LENGTH = 4, 5, 3
CONFIG = {"n_layer": 1, "n_head": 2, "n_embd": D, "vocab_size": VOCAB, "n_positions": LENGTH}


def checkpoint():
    """Random tensors under GPT-2's names."""
    draw = np.random.default_rng(0).standard_normal
    affine = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}
    shapes = {"wte.weight": (VOCAB, D), "wpe.weight": (LENGTH, D)}
    shapes |= {f"h.0.{name}.weight": shape for name, shape in affine.items()}
    shapes |= {f"h.0.{name}.bias": shape[1:] for name, shape in affine.items()}
    shapes |= {f"{name}.{leaf}": (D,) for name in ("h.0.ln_1", "h.0.ln_2", "ln_f") for leaf in ("weight", "bias")}
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def saved(folder, tensors, **config):
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


@pytest.mark.parametrize("readout", ["all", "last"])
def test_model_is_that_of_the_config_and_tensors_in_the_files(tmp_path, readout):
    tensors = checkpoint()
    model, params = gpt2(saved(tmp_path, tensors, activation_function="relu"), readout)
    expected_model, expected = pretrained.gpt2(CONFIG | {"activation_function": "relu"}, tensors, readout)
    assert model == expected_model
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    np.testing.assert_array_equal(params["embed"]["token"]["embedding"], tensors["wte.weight"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{'n_layer': 2}\n\n", "config.json is not JSON .*accepted: a checkpoint's config.json"),
        ("config.json", b"\xff\xfe\n", "config.json is not JSON"),
        ("config.json", b"[2]", "config.json holds a list; accepted: an object"),
        ("model.safetensors", b"", "model.safetensors is not a safetensors file"),
        ("model.safetensors", b"\x80\x02pickle\n" * 9, "model.safetensors is not a safetensors file"),
        ("model.safetensors", "float8", "model.safetensors holds a tensor of another type .*accepted: float32"),
        ("config.json", None, r"no config\.json in .*it holds model\.safetensors; accepted: a folder with"),
        ("model.safetensors", None, r"no model\.safetensors in .*: it holds config\.json; accepted: a folder with"),
    ],
)
def test_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content, message):
    saved(tmp_path, checkpoint())
    if content is None:
        (tmp_path / name).unlink()
    elif content == "float8":  # a type that numpy does not have, in the format's own bytes
        header = json.dumps({"wte.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        gpt2(tmp_path)
    assert "\n" not in str(caught.value)


def test_absent_folder_is_refused_and_what_its_files_lack_is_said_with_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in .*nowhere: there is no such folder"):
        gpt2(tmp_path / "nowhere")
    folder = saved(tmp_path, checkpoint(), n_layer=2)
    with pytest.raises(ValueError, match=rf"^{folder}: missing tensors: h\.1\.") as caught:
        gpt2(folder)
    assert "\n" not in str(caught.value)


def test_absence_of_safetensors_names_the_extra_that_brings_it(tmp_path, monkeypatch):
    folder = saved(tmp_path, checkpoint())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"pip install 'gammalab\[pretrained\]'"):
        gpt2(folder)


# --- shards, half precision, and back ---

PYTHIA = dict(
    model_type="gpt_neox", vocab_size=40, hidden_size=16, intermediate_size=64, num_hidden_layers=3,
    num_attention_heads=2, max_position_embeddings=32, rotary_pct=0.25, rotary_emb_base=10000, hidden_act="gelu",
    layer_norm_eps=1e-5, use_parallel_residual=True, tie_word_embeddings=False, torch_dtype="float16",
)  # fmt: skip
PYTHIA_70M = PYTHIA | dict(
    vocab_size=50304, hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8,
    max_position_embeddings=2048,
)  # fmt: skip


def pythia(folder, config, n_shards=3):
    """A random Pythia in bfloat16, in shards with an index, with the constants that Pythia's files have."""
    d, f, v, rng = (
        *(config[name] for name in ("hidden_size", "intermediate_size", "vocab_size")),
        np.random.default_rng(0),
    )
    shapes = {"gpt_neox.embed_in.weight": (v, d), "embed_out.weight": (v, d)}
    for i in range(config["num_hidden_layers"]):
        at = f"gpt_neox.layers.{i}"
        affine = {
            "attention.query_key_value": (3 * d, d), "attention.dense": (d, d), "mlp.dense_h_to_4h": (f, d),
            "mlp.dense_4h_to_h": (d, f),
        }  # fmt: skip
        for name, shape in affine.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{at}.{name}.weight": (d,), f"{at}.{name}.bias": (d,)}
    shapes |= {f"gpt_neox.final_layer_norm.{leaf}": (d,) for leaf in ("weight", "bias")}
    tensors = {name: rng.standard_normal(shape, np.float32).astype(jnp.bfloat16) for name, shape in shapes.items()}
    tensors["gpt_neox.layers.0.attention.bias"] = np.tri(4, dtype=bool)[None, None]
    tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    names = [f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors" for i in range(n_shards)]
    places = {name: names[i % n_shards] for i, name in enumerate(tensors)}
    for name in names:
        save_file({t: tensors[t] for t in tensors if places[t] == name}, folder / name, {"format": "pt"})
    index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return tensors


@pytest.mark.parametrize("config", [PYTHIA, pytest.param(PYTHIA_70M, marks=pytest.mark.long)])
def test_sharded_pythia_in_bfloat16_is_read_measured_in_three_lines_and_written_back_bit_for_bit(tmp_path, config):
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    tensors = pythia(there, config)

    model, params = read(there)
    layouts = weights.layouts_of(model, jnp.zeros((1, 1), jnp.int32))
    found = dict(zip(weights.matrix_names(params, layouts), rank.ranks(params, layouts)["stable"], strict=True))

    assert len(found) == 6 * config["num_hidden_layers"] + 2
    matrix = tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"].astype(np.float64)
    stable = np.sum(matrix**2) / np.linalg.norm(matrix, 2) ** 2
    np.testing.assert_allclose(found["blocks/mlp/in/kernel[1]"], stable, rtol=1e-5)  # of float32 singular values

    write(model, params, back, like=there)
    assert sorted(path.name for path in back.iterdir()) == sorted(path.name for path in there.iterdir())
    for path in there.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("largest_shard", [10**9, 3000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_row_that_is_written_is_read_again(tmp_path, dtype, largest_shard):
    model = models.Decoder(9, 8, 2, 4, 16, 4, 24, 1e-6, n_kv_heads=2)
    params = models.init(model, jax.random.key(0), np.zeros((1, 1), np.int32))
    written = write(model, params, tmp_path / "row", dtype=dtype, largest_shard=largest_shard)
    assert (len(written) > 2) is (largest_shard == 3000)
    same, read_params = read(tmp_path / "row")
    assert same == model
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, read_params, rounded)
    sizes = [path.stat().st_size for path in written if path.suffix == ".safetensors"]
    assert len(sizes) == 1 or max(sizes) < 3000 + 2000  # and a header

    with pytest.raises(
        ValueError, match=r"row holds config\.json, model.*; give a new folder, nothing is written over"
    ):
        write(model, params, tmp_path / "row")
    with pytest.raises(ValueError, match=r"row is of another model: Decoder\("):
        write(model.clone(n_layers=1), params, tmp_path / "other", like=tmp_path / "row")
    with pytest.raises(ValueError, match="dtype='float8'; accepted: float32, float16, bfloat16"):
        write(model, params, tmp_path / "other", dtype="float8")
    assert not (tmp_path / "other").exists()


def test_gpt2_is_written_back_with_the_names_and_the_head_of_its_file(tmp_path):
    tensors = checkpoint() | {"lm_head.weight": checkpoint()["wte.weight"]}
    there = tmp_path / "there"
    there.mkdir()
    saved(there, tensors)
    model, params = gpt2(there)
    write(model, params, tmp_path / "back", like=there)
    assert (tmp_path / "back/model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()
    write(model, params, tmp_path / "fresh")
    same, again = read(tmp_path / "fresh")
    assert same == model
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_shard_or_tensor_that_the_index_names_and_is_not_there_is_refused(tmp_path):
    pythia(tmp_path, PYTHIA)
    index = tmp_path / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-00001-of-00003\.safetensors lacks x, which model.*index\.json says"):
        read(tmp_path)
    index.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(ValueError, match=r"index\.json has no weight_map of tensors to files"):
        read(tmp_path)
    index.write_text(json.dumps(held))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model-00002-of-00003\.safetensors in .*; accepted: a folder with config"):
        read(tmp_path)
