"""The Fourier neural operator in two dimensions, for the next frames of a field.

"Fourier Neural Operator for Parametric Partial Differential Equations" (arXiv 2010.08895): a layer adds a product in
Fourier space, on the lowest modes, to a linear map of the channels at each point,

    h <- activation(F^-1(R_k F(h)_k) + W h + b),        k in -m ... m-1 along one axis, 0 ... m-1 along the other.

The transform onto the few modes that are kept is a product with cosines and sines: no complex number, no FFT. Frames
are predicted one after the other, each from those before (the roll-out).

**Init rate of spectral weights.** R_k is a complex matrix of as many inputs as there are channels, d_in. Its parts are
kept as two real numbers of std d_in^-gamma, and R_k = (real + i imaginary) / sqrt(2): so an entry of R_k has
E|r|^2 = d_in^(-2 gamma), as the entries of every other matrix of d_in inputs, and at gamma = 1/2 a mode keeps its
power. For ranks and condensation it is one matrix as a convolution is: a column holds all that enters an output
channel, of every mode.

Activations of the frame t + 1 of T (B fields of H x W points, D = `width`, i from 0): `lift` (B T H W D),
`block_i/spectral`, `block_i/local`, `block_i/out` (B T H W D), `hidden` (B T H W `projection`), `frame` (B T H W).
An edit is given them without the axis T, at every step.
"""

import functools
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lab import limits
from lab.models.acts import Tape
from lab.models.layers import ACTIVATIONS, Model, UnitNormal, dense

UNROLLED = 4  # steps of a roll-out that are one piece of program: a quarter faster on a CPU than one by one


class FNO2D(Model):
    """`__call__(fields_BxFxHxW, edits) -> (frames_BxTxHxW, acts)`: F frames in, the oldest first, the T next ones out.

    F = 1 is the Markov form; the published one reads ten. Two channels with the coordinates i / H and j / W are added.
    With `width` 20, 8 modes, `projection` 128, an `instance_norm` and ten frames it has the 414,517 parameters of the
    paper's table 1, in which the norm is over a batch: what couples the fields of a batch no model here may have.

    Attributes:
      modes: m, kept along each axis; at most half of the points.
      projection: hidden units at each point after the last layer.
      horizon: T.
      residual: what is predicted is the change from the last frame.
      padding: points of zeros behind the field along each axis, for fields that are not periodic.
      instance_norm: whether channels are normalized over a field's points, after each layer's sum.

    Raises:
      ValueError: inputs that are no fields, more modes than there are, an unknown activation.
    """

    width: int
    modes: int
    n_layers: int
    projection: int
    horizon: int
    residual: bool = False
    padding: int = 0
    instance_norm: bool = False
    activation: str = "gelu"

    reads = "fields"
    least = {"padding": 0}

    def __post_init__(self):
        limits.check("model", self, {"activation": ACTIVATIONS})
        super().__post_init__()

    @nn.compact
    def __call__(self, fields_BxFxHxW, edits: Mapping[str, Callable]):
        operator = Operator(
            self.width, self.modes, self.n_layers, self.projection, self.padding, self.instance_norm, self.activation,
            name="operator",
        )  # fmt: skip

        def step(operator, fields_BxFxHxW):
            tape = Tape(edits)
            frame_BxHxW = operator(with_coordinates(fields_BxFxHxW), tape)
            frame_BxHxW = frame_BxHxW + fields_BxFxHxW[:, -1] if self.residual else frame_BxHxW
            return tape("frame", frame_BxHxW), tape.finish()

        return roll_out(operator, step, fields_BxFxHxW, self.horizon)


def roll_out(module: nn.Module, step: Callable, fields_BxFxHxW, horizon: int):
    """`(frames_BxTxHxW, acts)` of T = `horizon` steps, each of which reads the last F frames, of the model's own too.

    Args:
      module: whose parameters the steps share.
      step: `(module, fields_BxFxHxW) -> (frame_BxHxW, acts)`; of the acts the axis T becomes the second.

    Raises:
      ValueError: inputs that are no fields.
    """
    if getattr(fields_BxFxHxW, "ndim", 0) != 4 or not jnp.issubdtype(fields_BxFxHxW.dtype, jnp.floating):
        raise ValueError("model.family: an operator reads fields, floats (B, frames, H, W): use task.family='fields'")

    def body(module, fields_BxFxHxW, _):
        frame_BxHxW, acts = step(module, fields_BxFxHxW)
        fields_BxFxHxW = jnp.concatenate([fields_BxFxHxW[:, 1:], frame_BxHxW[:, None]], axis=1)
        return fields_BxFxHxW, (frame_BxHxW, acts)

    shared = dict(variable_broadcast="params", split_rngs={"params": False})
    scan = nn.scan(body, **shared, length=horizon, out_axes=1, unroll=min(horizon, UNROLLED))
    return scan(module, fields_BxFxHxW, None)[1]


def with_coordinates(fields_BxFxHxW):
    """Channels last, and two more: the coordinates i / H and j / W."""
    b, _, h, w = fields_BxFxHxW.shape
    dtype = fields_BxFxHxW.dtype
    x_HxW, y_HxW = np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing="ij")
    place_HxWx2 = jnp.asarray(np.stack([x_HxW, y_HxW], axis=-1), dtype)
    channels_BxHxWxF = jnp.moveaxis(fields_BxFxHxW, 1, -1)
    return jnp.concatenate([channels_BxHxWxF, jnp.broadcast_to(place_HxWx2[None], (b, h, w, 2))], axis=-1)


class Operator(nn.Module):
    """One step of an operator: channels (B, H, W, C) -> one number at each point (B, H, W). Fields as `FNO2D`'s."""

    width: int
    modes: int
    n_layers: int
    projection: int
    padding: int = 0
    instance_norm: bool = False
    activation: str = "gelu"

    @nn.compact
    def __call__(self, channels_BxHxWxC, tape: Callable):
        """
        Args:
          tape: `(name, activation) -> activation`, which is asked of every one.
        """
        width, activation = self.width, ACTIVATIONS[self.activation]
        height, breadth = channels_BxHxWxC.shape[1:3]
        h = tape("lift", dense(channels_BxHxWxC.shape[-1], width, True, "lift")(channels_BxHxWxC))
        h = jnp.pad(h, ((0, 0), (0, self.padding), (0, self.padding), (0, 0)))
        for i in range(self.n_layers):
            spectral = tape(f"block_{i}/spectral", SpectralConv(width, self.modes, name=f"block_{i}_spectral")(h))
            local = tape(f"block_{i}/local", dense(width, width, True, f"block_{i}_local")(h))
            h = spectral + local
            if self.instance_norm:
                h = nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False, name=f"block_{i}_norm")(h)
            h = tape(f"block_{i}/out", activation(h) if i < self.n_layers - 1 else h)
        h = h[:, :height, :breadth]
        hidden = tape("hidden", activation(dense(width, self.projection, True, "projection")(h)))
        return dense(self.projection, 1, True, "head")(hidden)[..., 0]


class SpectralConv(nn.Module):
    """A product with R_k of every mode k that is kept: (B, H, W, I) -> (B, H, W, O), see the module.

    The leaf `spectrum` is real, (2, 2m, m, I, O): real and imaginary parts; modes 0 ... m-1, -m ... -1 along H; modes
    0 ... m-1 along W; inputs and outputs. Those along W of negative sign are the conjugates, since fields are real.
    """

    features: int
    modes: int

    fan_in = {"spectrum": (3,)}
    matrix_rows = {"spectrum": (0, 1, 2, 3)}
    unit_leaves = ("spectrum",)

    @nn.compact
    def __call__(self, h_BxHxWxI):
        height, width, d_in = h_BxHxWxI.shape[1:]
        m = self.modes
        most = min(height, width) // 2
        if m > most:
            raise ValueError(f"model.modes={m}: {height} x {width} points, padding included, have at most {most}")
        spectrum = self.param("spectrum", UnitNormal(d_in), (2, 2 * m, m, d_in, self.features), jnp.float32)
        forward, backward = (
            [jnp.asarray(matrix, h_BxHxWxI.dtype) for matrix in matrices]
            for matrices in (analysis(height, width, m), synthesis(height, width, m))
        )
        # A transform is no weight: rounded as a GPU's products are by default it would lose what an FFT keeps
        transform = functools.partial(jnp.einsum, precision="highest")
        modes = transform("bhwi,wpm->bhpmi", h_BxHxWxI, forward[1])
        modes = transform("bhpmi,hpqk->bkmqi", modes, forward[0])
        modes = jnp.einsum("bkmqi,kmqiro->bkmro", modes, as_real(spectrum) / math.sqrt(2))
        modes = transform("bkmro,krsh->bhsmo", modes, backward[0])
        return transform("bhsmo,smw->bhwo", modes, backward[1])


def as_real(spectrum_2xKxMxIxO):
    """Products with complex matrices, as real ones from (real, imaginary) to (real, imaginary): (K, M, 2, I, 2, O)."""
    real, imaginary = spectrum_2xKxMxIxO
    of_real = jnp.stack([real, imaginary], axis=3)
    of_imaginary = jnp.stack([-imaginary, real], axis=3)
    return jnp.stack([of_real, of_imaginary], axis=2)


def analysis(height: int, width: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Onto the modes: along H (H, 2, 2, K) from (real, imaginary) to both, K = 2m; along W (W, 2, m), of a real field.

    One after the other they are the modes of `numpy.fft.rfft2`.
    """
    return _rotations(height, m, -1), np.stack(_waves(width, np.arange(m), -1), axis=1)


def synthesis(height: int, width: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Back from them: along H (K, 2, 2, H), along W (2, m, W) to a real field.

    One after the other they are `numpy.fft.irfft2` where all other modes are zero.
    """
    twice_M = np.where(np.arange(m) == 0, 1, 2) / (height * width)  # a mode and its conjugate
    cosine_WxM, sine_WxM = _waves(width, np.arange(m), 1)
    along_width = np.stack([cosine_WxM * twice_M, -sine_WxM * twice_M]).transpose(0, 2, 1)
    return _rotations(height, m, 1).transpose(3, 1, 2, 0), along_width


def _waves(n: int, modes_K: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part, (n, K), of exp(sign 2 pi i j k / n)."""
    angle_NxK = 2 * np.pi * (np.arange(n)[:, None] * modes_K % n) / n
    return np.cos(angle_NxK), sign * np.sin(angle_NxK)


def _rotations(n: int, m: int, sign: int) -> np.ndarray:
    """(n, 2, 2, 2m): the product of (real, imaginary) with exp(sign 2 pi i j k / n), k in 0 ... m-1, -m ... -1."""
    cosine_NxK, sine_NxK = _waves(n, np.r_[0:m, -m:0], sign)
    of_real, of_imaginary = np.stack([cosine_NxK, sine_NxK], axis=1), np.stack([-sine_NxK, cosine_NxK], axis=1)
    return np.stack([of_real, of_imaginary], axis=1)
