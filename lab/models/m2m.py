"""Operators of different capacity, each patch of a field sent to one of them by a gate (M2M, arXiv 2410.11617).

The field is cut into g x g patches. At every step of the roll-out the gate looks at each patch and gives probabilities
of E experts, Fourier operators or U-Nets; patches are brought to one resolution, predicted, brought back and joined:

    u_{t+1} = sum_e w_e(patch) expert_e(patch),    w: the gate's, or of its first choice alone.

The paper prints neither sizes nor the gate; what it does not say is ours. Its router is pulled to a prior over experts.
Here KL(gate || prior) is an activation, `gate/kl`, which enters no task's loss: a controller of the training doses it
(`lab.controller`), or nothing does. Frames that are predicted are read again, by the gate as well: the gradient of
their KL reaches the experts through what they predicted. The prior is a constant to every gradient.

Activations of step t + 1 of T, in B fields of H x W points, P = g^2 patches row by row, of h x w points:
`gate/logits`, `gate/prob` and `gate/prior` (B T P E), `gate/choice` (B T P, int32), `gate/kl` and `gate/entropy` (B T),
means over patches in nats, `experts` (B T P h w E), what each predicts, and `frame` (B T H W). Inside Fourier experts,
of all B P patches: `expert_0/lift` and so on, as in `lab.models.fno`. An edit is given them without the axis T; one of
`gate/choice` sends patches elsewhere. The prior, the KL and the entropy enter no frame.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lab import limits
from lab.models.acts import Tape
from lab.models.fno import Operator, roll_out, with_coordinates
from lab.models.layers import ACTIVATIONS, Model, dense
from lab.models.unet import Conv, UNet

GATES = ("soft", "straight_through", "top1")
KINDS = ("fno", "unet")
FLAT = 0.01  # of the field's variance, added to a patch's: one without any structure is not rough


class M2M(Model):
    """`__call__(fields_BxFxHxW, edits, train) -> (frames_BxTxHxW, acts)`, frames in and out as in `FNO2D`.

    Attributes:
      patches: g, along each axis.
      widths, modes: of the experts, the first of the greatest capacity; of a U-Net, whose modes do not count, the width
        is its `base_width`.
      n_layers, projection, horizon, residual, activation: as in `FNO2D`, the experts' alike.
      kinds: `fno` or `unet` for each; (): Fourier operators all.
      resolution: points along each axis that patches are brought to for the experts, by linear interpolation; 0: as
        many as the field has along its first.
      halo: points of the torus around a patch that experts see beside it and whose answers are dropped: a patch is not
        periodic, and what a Fourier layer makes of its border is wrong.
      gate: what weighs the experts in training steps: `soft`: the probabilities; `straight_through`: the first choice,
        with the gradient of the probabilities; `top1`: the first choice, and the gate learns from its prior alone.
        Outside of training steps the first choice counts, whatever it was trained as.
      gate_width: channels of the gate's two convolutions.
      prior: probabilities of the experts that every patch is pulled to; (): by its roughness, see `roughness_prior`.
      prior_width: how far in roughness an expert is likely, for that.

    Raises:
      ValueError: sizes of another number of experts, a field that g does not divide, and as `FNO2D`.
    """

    patches: int
    widths: tuple[int, ...]
    modes: tuple[int, ...]
    n_layers: int
    projection: int
    horizon: int
    kinds: tuple[str, ...] = ()
    resolution: int = 0
    halo: int = 0
    residual: bool = False
    gate: str = "soft"
    gate_width: int = 8
    prior: tuple[float, ...] = ()
    prior_width: float = 0.5
    activation: str = "gelu"

    reads = "fields"
    least = {"resolution": 0, "halo": 0}

    def __post_init__(self):
        limits.check("model", self, {"activation": ACTIVATIONS, "gate": GATES}, {"prior_width": (1e-3, None)})
        for name in ("widths", "modes", "kinds", "prior"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"model.{name}={getattr(self, name)!r}: expected a tuple, one entry for each expert")
        for name in ("modes", "kinds", "prior"):
            if len(given := getattr(self, name)) != len(self.widths) and (given or name == "modes"):
                raise ValueError(f"model.{name}={given!r}: one for each of {len(self.widths)} widths {self.widths}")
        for name in ("widths", "modes"):
            if not all(isinstance(size, int | np.integer) and size > 0 for size in getattr(self, name)):
                raise ValueError(f"model.{name}={getattr(self, name)!r}: expected integers of at least 1")
        if not self.widths or any(kind not in KINDS for kind in self.kinds):
            raise ValueError(
                f"model.widths={self.widths}, model.kinds={self.kinds}: at least one, of {', '.join(KINDS)}"
            )
        if self.prior and not (min(self.prior) > 0 and abs(sum(self.prior) - 1) < 1e-6):
            raise ValueError(f"model.prior={self.prior!r}: expected probabilities above 0 whose sum is 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, fields_BxFxHxW, edits: Mapping[str, Callable], train: bool = False):
        def step(mixture, fields_BxFxHxW):
            tape = Tape(edits)
            frame_BxHxW = mixture(fields_BxFxHxW, tape, train)
            frame_BxHxW = frame_BxHxW + fields_BxFxHxW[:, -1] if self.residual else frame_BxHxW
            return tape("frame", frame_BxHxW), tape.finish()

        return roll_out(Mixture(self, name="mixture"), step, fields_BxFxHxW, self.horizon)


class FieldUNet(UNet):
    """A U-Net whose one channel out is the next frame."""

    outputs = 1


class Mixture(nn.Module):
    """One step of all experts and the gate: fields (B, F, H, W) -> (B, H, W)."""

    sizes: M2M

    @nn.compact
    def __call__(self, fields_BxFxHxW, tape: Callable, train: bool):
        sizes, side = self.sizes, fields_BxFxHxW.shape[2]
        if any(n % sizes.patches for n in fields_BxFxHxW.shape[2:]):
            raise ValueError(
                f"model.patches={sizes.patches}: does not divide a field of {fields_BxFxHxW.shape[2:]} points"
            )
        prob_BxPxE, choice_BxP = self._gate(fields_BxFxHxW, tape)
        weight_BxPxE = jax.nn.one_hot(choice_BxP, len(sizes.widths), dtype=prob_BxPxE.dtype)
        if train and sizes.gate == "soft":
            weight_BxPxE = prob_BxPxE
        elif train and sizes.gate == "straight_through":
            weight_BxPxE = weight_BxPxE + prob_BxPxE - jax.lax.stop_gradient(prob_BxPxE)

        patches_BxPxhxwxC = cut(with_coordinates(fields_BxFxHxW), sizes.patches, sizes.halo)
        b, p, h, w, channels = patches_BxPxhxwxC.shape
        resolution = sizes.resolution or side
        if "unet" in sizes.kinds and resolution % 4:
            raise ValueError(f"model.resolution={resolution}: a U-Net halves it twice; use a multiple of 4")
        seen = resize(patches_BxPxhxwxC.reshape(b * p, h, w, channels), resolution, resolution)
        said = jnp.stack([self._expert(e, seen, tape) for e in range(len(sizes.widths))], axis=-1)
        inside = slice(sizes.halo, h - sizes.halo), slice(sizes.halo, w - sizes.halo)
        said = resize(said, h, w)[:, *inside]
        said_BxPxhxwxE = tape("experts", said.reshape(b, p, *said.shape[1:]))
        return join(jnp.sum(said_BxPxhxwxE * weight_BxPxE[:, :, None, None], axis=-1), sizes.patches)

    def _gate(self, fields_BxFxHxW, tape: Callable):
        """Probabilities (B, P, E) and first choices (B, P), of several that are likeliest the first."""
        sizes = self.sizes
        frames_BxPxhxwxF = cut(jnp.moveaxis(fields_BxFxHxW, 1, -1), sizes.patches, 0)
        flat = (frames_BxPxhxwxF.shape[0], -1, len(sizes.widths))
        logits = Gate(sizes.gate_width, len(sizes.widths), name="gate")(
            frames_BxPxhxwxF.reshape(-1, *frames_BxPxhxwxF.shape[2:])
        )
        logits_BxPxE = tape("gate/logits", logits.reshape(flat))
        log_prob_BxPxE = nn.log_softmax(logits_BxPxE)
        prob_BxPxE = tape("gate/prob", jnp.exp(log_prob_BxPxE))
        choice_BxP = tape("gate/choice", jnp.argmax(prob_BxPxE, axis=-1).astype(jnp.int32))
        last_BxPxhxw = jax.lax.stop_gradient(frames_BxPxhxwxF[..., -1])
        if sizes.prior:
            log_prior_BxPxE = jnp.broadcast_to(jnp.log(jnp.asarray(sizes.prior, prob_BxPxE.dtype)), prob_BxPxE.shape)
        else:
            log_prior_BxPxE = roughness_prior(last_BxPxhxw, len(sizes.widths), sizes.prior_width)
        tape("gate/prior", jnp.exp(log_prior_BxPxE))
        kl_BxP = jnp.sum(prob_BxPxE * (log_prob_BxPxE - log_prior_BxPxE), axis=-1)
        tape("gate/kl", jnp.mean(kl_BxP, axis=-1))
        tape("gate/entropy", -jnp.mean(jnp.sum(prob_BxPxE * log_prob_BxPxE, axis=-1), axis=-1))
        return prob_BxPxE, choice_BxP

    def _expert(self, e: int, patches_NxSxSxC, tape: Callable):
        """What expert e predicts, (N, S, S)."""
        sizes, name = self.sizes, f"expert_{e}"
        if sizes.kinds and sizes.kinds[e] == "unet":
            n = patches_NxSxSxC.shape[0]
            nothing = jnp.zeros((n,), patches_NxSxSxC.dtype), jnp.zeros((n, 0), jnp.int32)
            said, _ = FieldUNet(sizes.widths[e], name=name)((patches_NxSxSxC, *nothing), {})
            return said[..., 0]
        expert = Operator(
            sizes.widths[e], sizes.modes[e], sizes.n_layers, sizes.projection, activation=sizes.activation, name=name
        )
        return expert(patches_NxSxSxC, lambda said, value: tape(f"{name}/{said}", value))


class Gate(nn.Module):
    """Two convolutions, a mean over points, and one linear map: patches (N, h, w, F) -> logits (N, E).

    Each patch is seen with its frames' mean taken off and their standard deviation divided by: the size of a field says
    nothing of which expert it needs.
    """

    width: int
    n_experts: int

    @nn.compact
    def __call__(self, frames_NxhxwxF):
        centred = frames_NxhxwxF - jnp.mean(frames_NxhxwxF, axis=(1, 2, 3), keepdims=True)
        rate = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=(1, 2, 3), keepdims=True) + 1e-8)
        hidden = nn.relu(Conv(self.width, name="in")(centred * rate))
        hidden = nn.relu(Conv(self.width, name="middle")(hidden))
        return dense(self.width, self.n_experts, True, "out")(jnp.mean(hidden, axis=(1, 2)))


def roughness_prior(field_BxPxhxw, n_experts: int, width: float):
    """log p (B, P, E): the roughest patch of a field is for the expert of the greatest capacity, the smoothest for the
    last one, and one of roughness r between, r in [0, 1], for those whose place c_e = 1 - e / (E - 1) is near:
    p_e in proportion to exp(-((r - c_e) / width)^2).
    """
    rough_BxP = roughness(field_BxPxhxw)
    least, most = (of(rough_BxP, axis=1, keepdims=True) for of in (jnp.min, jnp.max))
    relative_BxP = (rough_BxP - least) / jnp.where(most > least, most - least, 1)
    place_E = jnp.asarray(np.linspace(1, 0, n_experts), field_BxPxhxw.dtype)
    away_BxPxE = (relative_BxP[..., None] - place_E[None, None]) / width
    return nn.log_softmax(-jnp.square(away_BxPxE))


def roughness(field_BxPxhxw):
    """Mean square difference of neighbours over the variance, (B, P): of a wave of k cycles over n points about
    (2 pi k / n)^2, and 2 of white noise."""
    centred = field_BxPxhxw - jnp.mean(field_BxPxhxw, axis=(2, 3), keepdims=True)
    variance_BxP = jnp.mean(jnp.square(centred), axis=(2, 3))
    # What is flat has neighbours that differ by rounding: it is measured against the whole field
    whole_Bx1 = jnp.mean(variance_BxP, axis=1, keepdims=True)
    down, right = (jnp.mean(jnp.square(jnp.diff(field_BxPxhxw, axis=axis)), axis=(2, 3)) for axis in (2, 3))
    return (down + right) / (variance_BxP + FLAT * whole_Bx1 + jnp.finfo(field_BxPxhxw.dtype).tiny)


def cut(field_BxHxWxC, g: int, halo: int):
    """g x g patches, row by row, with `halo` points of the torus around each: (B, P, H/g + 2 halo, W/g + 2 halo, C)."""
    b, height, width, channels = field_BxHxWxC.shape
    h, w = height // g, width // g
    if not halo:
        rows = field_BxHxWxC.reshape(b, g, h, g, w, channels)
        return jnp.swapaxes(rows, 2, 3).reshape(b, g * g, h, w, channels)
    around = jnp.pad(field_BxHxWxC, ((0, 0), (halo, halo), (halo, halo), (0, 0)), mode="wrap")
    size = h + 2 * halo, w + 2 * halo
    found = [around[:, i * h : i * h + size[0], j * w : j * w + size[1]] for i in range(g) for j in range(g)]
    return jnp.stack(found, axis=1)


def join(patches_BxPxhxw, g: int):
    """The field (B, H, W) of g x g patches without halo."""
    b, _, h, w = patches_BxPxhxw.shape
    return jnp.swapaxes(patches_BxPxhxw.reshape(b, g, g, h, w), 2, 3).reshape(b, g * h, g * w)


def resize(field_NxHxWxC, height: int, width: int):
    """By linear interpolation; as it is where it has as many points."""
    if field_NxHxWxC.shape[1:3] == (height, width):
        return field_NxHxWxC
    return jax.image.resize(field_NxHxWxC, (field_NxHxWxC.shape[0], height, width, field_NxHxWxC.shape[3]), "linear")
