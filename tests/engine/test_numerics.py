"""JAX's switches change no number: each is set, compared or refused where programs are built."""

import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import config as configs
from lab import init, models, rng
from lab.configs import composition
from lab.disk import files, provenance
from lab.disk.files import WorkdirError
from lab.disk.workdir import Workdir
from lab.engine import numerics, train, verify_row
from lab.engine import step as steps
from lab.measuring import catalogue
from lab.measuring.declare import Measure
from lab.measuring.run import measure

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

HPARAMS = {"gamma": 0.45, "weight_decay": 0.1, "learning_rate": 0.01, "seed": 3}
TOKENS = np.zeros((1, 4), np.int32)
EXAMPLES = {
    "transformer": (models.Transformer(
        vocab_size=7, max_length=4, n_layers=2, n_heads=2, d_model=8, d_head=4, d_ff=12, activation="relu", norm="pre",
        use_bias=True, head_bias=True, final_norm=True, tied_head=False, readout="last"), TOKENS),
    "emb_mlp": (models.EmbMLP(7, 8, 12, "tanh"), TOKENS),
    "attention": (models.OneLayerAttention(7, 8), TOKENS),
    "attention_mlp": (models.AttentionMLP(7, 8, 12, "tanh"), TOKENS),
    "two_layer_mlp": (models.TwoLayerMLP(5, 12, 3, "relu", use_bias=True), np.zeros((1, 5), np.float32)),
}  # fmt: skip


@contextlib.contextmanager
def switched():
    """Everything that would change numbers is set as a user might have it in his environment."""
    with jax.enable_x64(True), jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        jax.config.update("jax_random_seed_offset", 3)
        try:
            yield
        finally:
            jax.config.update("jax_random_seed_offset", 0)


@pytest.fixture(scope="module")
def trained(echo, tmp_path_factory):
    """Two steps, one of them saved before the end."""
    return train.train(short(echo), tmp_path_factory.mktemp("trained") / "w")


def short(echo, **changes):
    optim = echo.OPTIM | {"warmup_steps": 1}
    return echo.config(steps=2, eval_every=1, checkpoint_every=1, snapshots=2, optim=optim, **changes)


# --- what the numbers are ---


@pytest.mark.parametrize("family", EXAMPLES)
@pytest.mark.parametrize("convention", init.CONVENTIONS)
def test_initial_weights_are_the_same_bits_in_64_bit_mode(same_bits, family, convention):
    if convention == "authors" and family != "transformer":
        pytest.skip("defined for the transformer")
    model, example = EXAMPLES[family]

    def drawn():
        params = models.init(model, rng.key(3, "init"), example)
        return init.rescale(params, init.rates(HPARAMS), convention)

    with jax.enable_x64(False):
        narrow = drawn()
    with jax.enable_x64(True):
        wide = drawn()
    same_bits(wide, narrow)


def test_start_of_a_row_is_the_same_bits_in_64_bit_mode(echo, same_bits):
    with jax.enable_x64(False):
        narrow = steps.start(echo.experiment(), HPARAMS)
    with jax.enable_x64(True):
        wide = steps.start(echo.experiment(), HPARAMS)
    same_bits(wide, narrow)


def test_key_of_every_measurement_is_the_same_in_64_bit_mode():
    (variant, *_) = configs.variants(composition.smoke()).values()
    names = [measured.name for measured in catalogue.measures(configs.experiment(variant))]
    streams = [f"analysis/{name}{part}" for name in names for part in ("", "/noise")]

    def words():
        return [jax.random.key_data(rng.key(variant.data_seed, stream)).tolist() for stream in streams]

    with jax.enable_x64(False):
        narrow = words()
    with jax.enable_x64(True):
        assert words() == narrow


def test_measurements_are_declared_alike_whatever_the_switches():
    """Some name the most frequent tokens of sequences that they draw."""
    (variant, *_) = configs.variants(composition.smoke()).values()

    def coords():
        return {made.name: made.coords for made in catalogue.measures(configs.experiment(variant))}

    plain = coords()
    assert "query_token" in plain["focus"]
    with switched():
        assert coords() == plain


def test_within_the_gate_draws_and_constants_are_those_without_switches(same_bits):
    def draws():
        key = jax.random.key(5)
        return {
            "choice": jax.random.choice(key, 9, (4,), replace=False), "coin": jax.random.bernoulli(key, 0.3, (9,)),
            "normal": jax.random.normal(key, (3,)), "numbers": jnp.arange(3), "third": jnp.asarray(1 / 3),
        }  # fmt: skip

    with jax.enable_x64(False):
        plain = draws()
    with switched():
        with numerics.settled():
            same_bits(draws(), plain)
        assert jnp.arange(3).dtype == jnp.int64 and jax.config.jax_random_seed_offset == 3  # the user's again


def test_training_and_what_is_measured_of_it_are_the_same_bits_whatever_the_switches(echo, trained, tmp_path):
    drawn = Measure("drawn", _drawn, {"normal": "1", "token": "1"}, n=3)
    with switched():
        work = Workdir(train.train(short(echo), tmp_path / "w"))
        measure(work, [drawn])
    assert echo.digests(work.path) == echo.digests(trained)
    held = work.read_json("config.json")
    assert held["random_bits"] == {"impl": "threefry2x32", "partitionable": True}
    plain = Workdir(trained)
    measure(plain, [drawn])
    assert (work.analysis / "drawn.npz").read_bytes() == (plain.analysis / "drawn.npz").read_bytes()


def _drawn(row):
    return {"normal": jax.random.normal(row.key), "token": jnp.sum(row.batch.tokens_BxL)}


# --- what is compared ---


def changed(path, copy, **held):
    """A copy of a training whose config.json says other numerics, and which lacks its end."""

    workdir = shutil.copytree(path, copy)
    files.write_json(workdir / "config.json", Workdir(workdir).read_json("config.json") | held)
    return workdir


OTHERS = [
    ({"matmul_precision": "highest"}, r"matmul_precision: highest -> default \(a GPU"),
    ({"device_kind": "NVIDIA H200"}, "device_kind: NVIDIA H200 -> cpu"),
    ({"random_bits": {"impl": "threefry2x32", "partitionable": False}}, "random_bits.partitionable: False -> True"),
]


@pytest.mark.parametrize(("held", "difference"), OTHERS)
def test_training_under_other_numerics_is_neither_continued_nor_replayed_but_measured(
    echo, trained, tmp_path, held, difference
):
    workdir = changed(trained, tmp_path / "w", **held)
    with pytest.raises(WorkdirError, match=f"replay a row would mix them. Changed: {difference}"):
        verify_row.replay(workdir, 0)
    train.train(short(echo), workdir)  # trained already: nothing is mixed
    files.remove(workdir / "checkpoints" / "2")
    with pytest.raises(WorkdirError, match=f"continue would mix them. Changed: {difference}"):
        train.train(short(echo), workdir)
    assert not (workdir / "checkpoints" / "2").exists()
    measured = measure(
        Workdir(workdir), [Measure("mass", lambda row: {"x": row.params["in"]["kernel"].sum()}, {"x": "1"})]
    )
    assert measured == ["mass"]
    assert Workdir(workdir).read_json("analysis/mass.json")["device_kinds"] == [jax.devices()[0].device_kind]


def test_training_of_which_no_step_is_saved_begins_under_the_numerics_of_today(echo, trained, tmp_path):
    workdir = changed(trained, tmp_path / "w", matmul_precision="highest")
    for folder in ("checkpoints", "metrics", "snapshots"):
        files.remove(workdir / folder)
    train.train(short(echo), workdir)
    assert Workdir(workdir).read_json("config.json")["matmul_precision"] == provenance.GPU_DEFAULT
    assert echo.digests(workdir) == echo.digests(trained)


@pytest.mark.parametrize(("precision", "said"), [(None, provenance.GPU_DEFAULT), ("default", provenance.GPU_DEFAULT),
                                                  ("highest", "highest")])  # fmt: skip
def test_precision_is_recorded_by_one_name(precision, said):
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        assert provenance.numerics()["matmul_precision"] == said


# --- what is refused ---


@pytest.mark.parametrize("switch", numerics.REFUSED)
def test_debugging_switch_that_no_training_runs_under_is_named_in_a_line(echo, tmp_path, switch):
    value, before = ("disallow", "allow") if "guard" in switch else (True, False)
    jax.config.update(switch, value)
    try:
        with pytest.raises(ValueError, match=rf"^{switch.upper()}={value}: .*; run without this switch$"):
            train.train(short(echo), tmp_path / "w")
    finally:
        jax.config.update(switch, before)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("raised", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'")])
def test_platform_that_is_not_there_is_named_with_those_that_are(monkeypatch, raised):
    real, calls, before = jax.devices, [], jax.config.jax_platforms

    def devices():
        calls.append(jax.config.jax_platforms)
        if calls[-1] == "cuda":
            raise raised
        return real()

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(numerics.backend, "clear_backends", lambda: None)
    jax.config.update("jax_platforms", "cuda")
    try:
        with pytest.raises(ValueError, match=r"^JAX_PLATFORMS=cuda: no such devices here; there are: cpu"):
            numerics.find_devices()
        assert jax.config.jax_platforms == "cuda"
    finally:
        jax.config.update("jax_platforms", before)


def test_devices_that_fail_without_being_asked_for_are_told_of_in_the_words_of_jax(monkeypatch):
    def devices():
        raise RuntimeError("Unknown backend: 'gpu' requested, Platforms present are: cpu\nmore")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORM_NAME", "gpu")
    with pytest.raises(ValueError, match=r"^JAX_PLATFORM_NAME=gpu: Unknown backend.*cpu$"):
        numerics.find_devices()
