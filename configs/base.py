"""Every option of a config, once, and how a study's presets are found.

A config file states what differs from `config()`. Its presets are its public functions without arguments, smallest
first. The first line of a preset's docstring is its cost, a paragraph that begins with "Decides" names the claims for
which it has the variants and seeds. `load` calls one and fills in `study` and `preset`:

    config = base.load("composition", "cpu")
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from lab import user_code

DEFAULT_PRESET = "cpu"
DECIDES = "Decides "
OPTIONS = dict(
    study="",  # `load` fills in the name of the file
    preset="",  # and of its function
    task=dict(),  # family: one of lab.tasks, and its options
    objective=dict(  # what is trained on; the task's answers alone, unless
        ntp_weight=0.0,  # weight of the other tokens' losses: 1 is next-token prediction
        label_noise=0.0,  # probability that an answer is replaced
        context_noise=0.0,  # probability that a token of the context is replaced
        shuffle_context=False,  # targets in the context come from other sequences
    ),
    model=dict(),  # family: one of lab.models, and its options; see `transformer`
    init="paper",  # std fan_in^-gamma; authors: d_model^-gamma, of residual outputs divided by sqrt(2 n_layers)
    start=dict(  # weights are drawn anew, or taken from
        variant="",  # another variant, trained before
        row=dict(),  # and this row of it, such as dict(ntp_weight=1.0); other axes as in the row that starts
    ),
    optim=dict(
        family="adamw",  # or sgd
        schedule="warmup_cosine",  # or constant, after the same warm-up
        warmup_steps=100,
        start_factor=0.04,  # warm-up starts at this share of the learning rate
        end_factor=0.04,  # the cosine ends at this share of it
        clip_norm=1.0,  # of the gradient of what is trained; inf: not clipped
        decay="scaled",  # by the learning rate, as AdamW's; independent: by its schedule alone
        decay_mask="all",  # or matrices: no biases, no norm parameters; or kernels: no embeddings either
        b1=0.9,  # adamw only
        b2=0.999,  # adamw only
        eps=1e-8,  # adamw only
        momentum=0.0,  # sgd only
        frozen=(),  # groups of matrices that stay as they are drawn: embed, qk, vo, mlp, head
        least_decay=0.0,  # training must last so many times 1 / (learning rate x decay) steps, or is refused
    ),
    grid=dict(  # rows: the product of these; `lab.grid` and the task know the names of more axes
        gamma=(0.5,),  # initial std fan_in^-gamma; (): beside an axis sigma, the std itself
        weight_decay=(0.01,),
        learning_rate=(2e-3,),  # the schedule's peak
        seed=(0, 1, 2),
    ),
    steps=2000,
    batch_size=128,
    train_size=0,  # sequences; 0: an endless stream, or all that a file has
    data_order="row",  # another seed: other weights and other data; shared: the same data for all rows
    data_seed=0,
    eval_every=200,  # steps, and at the first and the last one
    eval_size=1024,  # sequences of each split
    snapshots=5,  # of the parameters: the start, the end, and the end halved again and again
    snapshot_every=0,  # steps to one more snapshot; 0: none
    checkpoint_every=1000,  # steps
    block_width=0,  # rows at once; 0: as many as a measurement on this device says
    data_devices=1,  # over which a row's batch is split
    split_params=False,  # a row's large parameters are split over them, too
    deterministic=False,  # the same bits every time on a GPU, too
    variants=dict(),  # name -> what differs, for whatever makes another program
)
TRANSFORMER = dict(
    family="transformer",
    vocab_size=201,
    max_length=9,  # positions; 0: none, for sequences of any length
    n_layers=2,
    n_heads=1,
    d_model=64,
    d_head=64,
    d_ff=128,  # 0: attention alone
    activation="relu",  # or gelu, gelu_tanh, tanh, silu, identity
    norm="pre",  # or post, none
    use_bias=False,
    head_bias=False,
    final_norm=True,
    tied_head=False,  # the head is the embedding
    readout="last",  # answers at the last position alone, so nothing else is computed in the last block; or all
    compute_dtype="float32",  # of products; or bfloat16
    conv="none",  # or causal: over queries, keys and values, before attention
    alpha=0.0,  # of what a token reads of itself this share is left out
    beta=0.0,  # of each value this share of the mean of negatives is taken
    n_negatives=1,  # the tokens before that a token scores lowest
    augment="none",  # or serial, parallel: keys and values through an MLP each
    d_augment=32,  # of those, hidden units
)
MAMBA = dict(
    family="mamba2",
    vocab_size=201,
    max_length=29,
    n_layers=2,
    d_model=64,
    d_inner=128,  # channels of the state space
    d_state=128,
    n_heads=1,
    n_taps=4,  # of the convolution before the state space
    conv="learned",  # or ones, none
    past_conv="none",  # or added, gated: a path past the convolution
    taps_follow_gamma=False,
    has_positions=False,
    norm="none",  # or pre
    final_norm=False,
    readout="last",  # or all, as the transformer's
    start="published",  # or linear: near linear attention
)
MAMBA1 = {name: value for name, value in MAMBA.items() if name not in ("n_heads", "start")} | dict(
    family="mamba1",
    d_state=16,  # of each channel
    dt_rank=4,  # numbers that the step sizes of all channels are made of
)
DECODER = dict(
    family="decoder",
    vocab_size=201,
    max_length=64,  # of sequences; 0: any
    n_layers=2,
    n_heads=1,
    n_kv_heads=0,  # of keys and values, each read by several queries; 0: as many as n_heads
    d_model=64,
    d_head=64,
    d_ff=128,
    activation="silu",
    gated=True,  # SwiGLU; False: one matrix in, one out
    norm_kind="rms",  # or layer
    norm_eps=1e-12,  # 1e-5 shrinks a stream of size d_model^-1 at widths from 256 on
    rope_theta=10000.0,
    rope_share=1.0,  # of a head's channels, that are rotated
    use_bias=False,
    parallel=False,  # attention and MLP read the same stream
    tied_head=False,
    embed_norm=False,
    sandwich_norm=False,  # norms after attention and MLP, too
    qk_norm=False,
    scan_layers=True,  # one program for all layers
    remat=False,  # for the gradient, blocks are computed again rather than kept
    readout="all",  # or last
    compute_dtype="float32",  # of products; or bfloat16
)
FNO2D = dict(
    family="fno2d",
    width=20,
    modes=8,  # kept along each axis
    n_layers=4,
    projection=128,  # hidden units at each point after the last layer
    horizon=10,  # frames out, the task's
    residual=False,  # what is predicted is the change from the last frame
    padding=0,  # points of zeros behind the field, for fields that are not periodic
    instance_norm=False,
    activation="gelu",  # as the transformer's
)
M2M = dict(
    family="m2m",
    patches=2,  # along each axis
    widths=(20, 20),  # of the experts, the first of the greatest capacity
    modes=(7, 4),
    n_layers=4,  # this and the following as FNO2D's
    projection=128,
    horizon=10,
    residual=False,
    activation="gelu",
    kinds=(),  # fno or unet for each expert; (): fno all
    resolution=0,  # points along each axis that patches are brought to; 0: as many as the field has
    halo=0,  # points around a patch that experts see, too
    gate="soft",  # or straight_through, top1: the weights of experts in training
    gate_width=8,
    prior=(),  # a probability for each expert; (): by the roughness of a patch
    prior_width=0.5,  # how far in roughness an expert is likely, for that
)
CONTROLLER = dict(  # of a section `controller`, which a config has or not
    family="pi",  # or p, constant: the law of the coefficient
    signal="gate/kl",  # the penalty: an activation, of which the mean is taken; or loss, entropy, weight_norm
    measured="",  # what is held at the target: "": the penalty; an activation, loss, grad_norm, entropy, weight_norm
    least=0.0,  # coefficient
    most=1.0,
    control_target=0.0,  # this and the following may be axes of the grid
    control_gain_p=0.01,  # coefficient per unit of error
    control_gain_i=0.001,  # and step
    control_constant=0.0,  # the first coefficient
)


def config(**changes) -> ConfigDict:
    """All options with their usual values, changed; of a section only the named options are changed."""
    made = ConfigDict(OPTIONS)
    made.update(changes)
    return made


def transformer(**changes) -> dict:
    """The options of model family `transformer`, changed."""
    return TRANSFORMER | changes


def mamba(**changes) -> dict:
    """The options of model family `mamba2`, changed."""
    return MAMBA | changes


def mamba1(**changes) -> dict:
    """The options of model family `mamba1`, changed."""
    return MAMBA1 | changes


def decoder(**changes) -> dict:
    """The options of model family `decoder`, changed."""
    return DECODER | changes


def fno2d(**changes) -> dict:
    """The options of model family `fno2d`, changed."""
    return FNO2D | changes


def m2m(**changes) -> dict:
    """The options of model family `m2m`, changed."""
    return M2M | changes


def controller(**changes) -> dict:
    """The options of a controller of a penalty's coefficient, changed; see `lab.controller`."""
    return CONTROLLER | changes


def shrink(config: ConfigDict, steps: int, batch_size: int, checkpoints: int = 2) -> ConfigDict:
    """Seconds: every part runs, nothing is learnt. Changes the config in place, but for its variants.

    Args:
      checkpoints: how many, evenly spaced; there is a snapshot for each and one of the start.
    """
    if config.model.family in ("transformer", "decoder"):
        config.model.update(d_model=16, d_head=16 // config.model.n_heads, d_ff=32)
    elif config.model.family in ("mamba1", "mamba2"):
        config.model.update(d_model=16, d_inner=32, d_state=8)
    config.optim.warmup_steps = min(config.optim.warmup_steps, max(2, steps // 8))
    config.grid.seed = (0, 1)
    config.update(
        steps=steps,
        batch_size=batch_size,
        eval_every=steps // 2,
        eval_size=2 * batch_size,
        snapshots=checkpoints + 1,
        checkpoint_every=steps // checkpoints,
        block_width=1,
    )
    return config


def names() -> tuple[str, ...]:
    """The configs that are shipped, by the names of their files."""
    return tuple(found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name != "base")


def presets(of: str | ModuleType) -> dict[str, str]:
    """Preset -> its cost, smallest first, of a config module or its name: its public functions without arguments."""
    return {name: text.partition("\n")[0].removesuffix(".") for name, text in _documented(of).items()}


def decides(of: str | ModuleType) -> dict[str, str]:
    """Preset -> the claims that it decides, in its docstring's words: `C1, C3a`, `all claims`; empty where not said."""
    said = {}
    for name, text in _documented(of).items():
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        begun = [paragraph.removeprefix(DECIDES) for paragraph in paragraphs if paragraph.startswith(DECIDES)]
        said[name] = begun[0].removesuffix(".") if begun else ""
    return said


def _documented(of: str | ModuleType) -> dict[str, str]:
    """Preset -> its docstring."""
    module = _module(of)
    return {
        name: inspect.getdoc(function) or ""
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and not inspect.signature(function).parameters
    }


def load(of: str | ModuleType, preset: str | None = None) -> ConfigDict:
    """A preset of a config module; None: `cpu`, or the smallest where there is no `cpu`.

    Raises:
      ValueError: no such config or preset.
    """
    module = _module(of)
    path, known = Path(module.__file__), presets(module)
    study = str(path.absolute()) if hasattr(module, "STUDY") else path.stem
    if not known:
        raise ValueError(f"{study}: no preset, a public function without arguments, and no get_config")
    if preset is None:
        preset = DEFAULT_PRESET if DEFAULT_PRESET in known else next(iter(known))
    if preset not in known:
        raise ValueError(f"unknown preset {preset!r} of {study}; one of {', '.join(known)}")
    made = getattr(module, preset)()
    if not isinstance(made, ConfigDict):
        raise ValueError(f"{study}:{preset} returns {type(made).__name__}, expected a ConfigDict")
    made.update(study=made.study or study, preset=preset)
    return made


def get_config(module_name: str) -> Callable[..., ConfigDict]:
    """The function `get_config(preset)` of a config module: what ml_collections calls in a config file."""

    def get(preset: str | None = None) -> ConfigDict:
        return load(sys.modules[module_name], preset)

    return get


def _module(of: str | ModuleType) -> ModuleType:
    if isinstance(of, ModuleType):
        return of
    if of.endswith(".py"):
        return user_code.import_file(of)
    if of not in names():
        raise ValueError(f"unknown config {of!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__package__}.{of}")
