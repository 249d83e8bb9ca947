import json
import struct
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lab.models import pretrained
from lab.models.pretrained_files import gpt2

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
        ("config.json", b"{'n_layer': 2}\n\n", "config.json is not JSON .*accepted: GPT-2's config.json"),
        ("config.json", b"\xff\xfe\n", "config.json is not JSON"),
        ("config.json", b"[2]", "config.json holds a list; accepted: an object with n_layer"),
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
