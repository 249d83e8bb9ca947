"""A small U-Net that says which noise is in a picture, given how noisy it is and which concepts it shows.

Residual blocks as in "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239, appendix B), without attention and
dropout, at three resolutions of widths w, 2 w, 2 w. What time and concepts say is added to the channels of every block.

Activations (B pictures of side S, w = `base_width`): `condition` (B 4w), `stem` and `down_0` (B S S w), `down_1`
(B S/2 S/2 2w), `middle` (B S/4 S/4 2w), `up_1` (B S/2 S/2 2w), `up_0` (B S S w), `noise` (B S S C).
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from lab.models.acts import Tape
from lab.models.layers import Model, UnitNormal, dense, embedding

SLOWEST, TICKS = 10_000, 1000  # longest wavelength of a time's sinusoids, and how many units of it a chain lasts


class UNet(Model):
    """`__call__((image_BxSxSxC, time_B, bits_BxK), edits) -> (noise_BxSxSxC, acts)`; floats of one dtype, bits integer.

    `time_B` in [0, 1]: the share of the chain that noise was added for. `bits_BxK` in {0, 1}: every concept has its own
    two embeddings and they are added, so that a combination never seen has parts that were.

    Kernels are normal of std d_in^-1/2 with d_in = 9 x channels for a convolution, brought to d_in^-gamma by
    `lab.init.rescale`. Biases start at zero: that leaves them alone, and at unit rate they would drown small weights.
    arXiv 2501.08537 draws both uniform on +-d_in^-gamma: a std smaller by sqrt(3), and biases sqrt(d_in) times smaller
    than what they are added to.

    Raises:
      ValueError: inputs of another kind, e.g. tokens, or a side that is not divisible by 4.
    """

    base_width: int

    outputs = 0  # channels out; 0: as many as in
    reads = "noised pictures"
    least = {"base_width": 2}  # a quarter as many sinusoids of the time

    @nn.compact
    def __call__(self, inputs, edits: Mapping[str, Callable]):
        if not isinstance(inputs, tuple):
            raise ValueError("model.family='unet' reads noised pictures, times and concepts: use task.family='shapes'")
        image_BxSxSxC, time_B, bits_BxK = inputs
        side, channels = image_BxSxSxC.shape[2:]
        if side % 4:
            raise ValueError(f"task.size={side}: the U-Net halves it twice; use a multiple of 4")
        tape, w = Tape(edits), self.base_width
        condition_BxE = tape("condition", Condition(4 * w, name="condition")(time_B, bits_BxK))

        def block(name, width, h_BxSxSxD):
            return tape(name, Residual(width, name=name)(h_BxSxSxD, condition_BxE))

        whole = block("down_0", w, tape("stem", Conv(w, name="stem")(image_BxSxSxC)))
        half = block("down_1", 2 * w, coarser(whole))
        middle = block("middle", 2 * w, coarser(half))
        h = block("up_1", 2 * w, jnp.concatenate([finer(middle), half], axis=-1))
        h = block("up_0", w, jnp.concatenate([finer(h), whole], axis=-1))
        h = nn.silu(norm(w, "final_norm")(h))
        return tape("noise", Conv(self.outputs or channels, name="head")(h)), tape.finish()


class Condition(nn.Module):
    """Sinusoids of the time through an MLP, plus an embedding of every concept's bit: (B,), (B, K) -> (B, width)."""

    width: int

    @nn.compact
    def __call__(self, time_B, bits_BxK):
        n_waves = self.width // 8
        rate_F = jnp.exp(-math.log(SLOWEST) * jnp.arange(n_waves, dtype=time_B.dtype) / n_waves)
        angle_BxF = TICKS * time_B[:, None] * rate_F[None]
        waves_BxW = jnp.concatenate([jnp.sin(angle_BxF), jnp.cos(angle_BxF)], axis=-1)
        hidden_BxE = nn.silu(dense(2 * n_waves, self.width, False, "time_in")(waves_BxW))
        h_BxE = dense(self.width, self.width, False, "time_out")(hidden_BxE)
        for i in range(bits_BxK.shape[1]):
            h_BxE = h_BxE + embedding(2, self.width, f"concept_{i}")(bits_BxK[:, i])
        return nn.silu(h_BxE)


class Conv(nn.Module):
    """3 x 3, zeros around: as `nn.Conv` and with its parameters, as one product of all the neighbours.

    XLA's own convolution took sixty times as long inside a loop on a CPU, and rows side by side make it a grouped one.
    """

    features: int

    fan_in = {"kernel": (0, 1, 2)}
    unit_leaves = ("kernel",)

    @nn.compact
    def __call__(self, h_BxSxSxD):
        b, side, _, d_in = h_BxSxSxD.shape
        kernel_3x3xDxF = self.param("kernel", UnitNormal(9 * d_in), (3, 3, d_in, self.features))
        bias_F = self.param("bias", nn.initializers.zeros, (self.features,))
        around = jnp.pad(h_BxSxSxD, ((0, 0), (1, 1), (1, 1), (0, 0)))
        seen = [around[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
        flat = jnp.concatenate(seen, axis=-1).reshape(-1, 9 * d_in) @ kernel_3x3xDxF.reshape(9 * d_in, -1)
        return (flat + bias_F[None]).reshape(b, side, side, -1)


class Residual(nn.Module):
    """Two convolutions, each of the normalized input, beside a connection that skips them."""

    width: int

    @nn.compact
    def __call__(self, h_BxSxSxD, condition_BxE):
        d_in = h_BxSxSxD.shape[-1]
        inner_BxSxSxF = Conv(self.width, name="in")(nn.silu(norm(d_in, "norm_in")(h_BxSxSxD)))
        said_BxF = dense(condition_BxE.shape[1], self.width, False, "condition")(condition_BxE)
        inner_BxSxSxF = inner_BxSxSxF + said_BxF[:, None, None]
        inner_BxSxSxF = Conv(self.width, name="out")(nn.silu(norm(self.width, "norm_out")(inner_BxSxSxF)))
        skip = h_BxSxSxD if d_in == self.width else dense(d_in, self.width, False, "skip")(h_BxSxSxD)
        return skip + inner_BxSxSxF


def norm(d_in: int, name: str) -> nn.GroupNorm:
    """Groups of at least eight channels' equal parts; variance and eps as in `lab.models.layers.LayerNorm`."""
    return nn.GroupNorm(math.gcd(8, d_in), epsilon=1e-5, use_fast_variance=False, name=name)


def coarser(h_BxSxSxD):
    """Half as large: means of 2 x 2."""
    b, side, _, d = h_BxSxSxD.shape
    return h_BxSxSxD.reshape(b, side // 2, 2, side // 2, 2, d).mean(axis=(2, 4))


def finer(h_BxSxSxD):
    """Twice as large: every pixel four times."""
    return jnp.repeat(jnp.repeat(h_BxSxSxD, 2, axis=1), 2, axis=2)
