"""The coordinate check: how the size of activations goes with width, over the first steps of training.

A parametrization says how initial weights and learning rates go with width d, by group of matrices. It is good for all
widths if every activation keeps its size, at the start and after each step of Adam ("Tensor Programs V", arXiv
2203.03466, appendix D). docs/parametrizations.md has the table that this checks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lab import init, losses, models, rng, tree
from lab.analysis import statistics

NO_SIZES = ("attn/score", "attn/pattern")  # -1e9 where a query may not look; rows that sum to one


class Parametrization(NamedTuple):
    """By group of `lab.init.GROUPS`.

    Attributes:
      gammas: initial weights have std d_in^-gamma.
      slopes: Adam's learning rate of the group's matrices is eta (d / d_0)^-slope, d_0 the smallest width.
    """

    gammas: Mapping[str, float]
    slopes: Mapping[str, float]


def _groups(embed: float, hidden: float, head: float) -> dict[str, float]:
    return dict(embed=embed, qk=hidden, vo=hidden, mlp=hidden, head=head)


STANDARD = Parametrization(_groups(0, 0.5, 0.5), _groups(0, 0, 0))
TANGENT_KERNEL = Parametrization(_groups(0, 0.5, 0.5), _groups(0, 0.5, 0.5))
MAXIMAL_UPDATE = Parametrization(_groups(0, 0.5, 1), _groups(0, 1, 1))
PARAMETRIZATIONS = {"standard": STANDARD, "NTK": TANGENT_KERNEL, "maximal update": MAXIMAL_UPDATE}


def coordinate_check(
    model_of: Callable[[int], nn.Module],
    widths: Sequence[int],
    tokens_BxL,
    learning_rate: float,
    n_steps: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    parametrizations: Mapping[str, Parametrization] = PARAMETRIZATIONS,
) -> xr.DataArray:
    """RMS of every activation before and after each of some steps of Adam on one batch.

    Args:
      model_of: width -> a language model that answers at all positions, of the same layers at every width.
      widths: at least two, the smallest first.
      tokens_BxL: int32; the loss is that of every next token.
      learning_rate: eta, of all matrices at the smallest width, and of biases and norms at all.

    Returns:
      Dims parametrization, activation, width, seed and step (0 to `n_steps`). Exact up to rounding; the spread over
      seeds is that of initial weights.

    Raises:
      ValueError: fewer than two widths, or not ascending; activations that not all widths have.
    """
    widths = [int(width) for width in widths]
    if len(widths) < 2 or widths != sorted(set(widths)):
        raise ValueError(f"widths={tuple(widths)}: at least two, the smallest first")
    found = []
    for width in widths:
        ratio = width / widths[0]
        sizes = _of_width(model_of(width), ratio, tokens_BxL, learning_rate, n_steps, seeds, parametrizations)
        if found and sizes.keys() != found[0].keys():
            raise ValueError(f"width {width} has other activations than {widths[0]}: the same layers at every width")
        found.append(sizes)
    values = np.stack([[np.asarray(sizes[name]) for name in found[0]] for sizes in found])  # W A P S T
    coords = {
        "parametrization": list(parametrizations),
        "activation": list(found[0]),
        "width": widths,
        "seed": list(seeds),
        "step": np.arange(n_steps + 1),
    }
    return xr.DataArray(np.moveaxis(values, 2, 0).swapaxes(1, 2), coords, tuple(coords), "rms")


def exponents(sizes: xr.DataArray) -> xr.DataArray:
    """The slope of log size against log width, by least squares, of each seed: 0 where the size does not go with width.

    Args:
      sizes: of `coordinate_check`; those that vanish have slope NaN.
    """
    return statistics.slope(np.log(sizes.where(sizes > 0)), np.log(sizes["width"]), "width")


def _of_width(model, ratio: float, tokens_BxL, learning_rate, n_steps: int, seeds, parametrizations) -> dict:
    """Activation -> (P, S, T) sizes."""
    tokens_BxL = jnp.asarray(tokens_BxL, jnp.int32)
    inputs_BxL, targets_BxL = tokens_BxL[:, :-1], tokens_BxL[:, 1:]
    leaves = init.leaves_of(model, inputs_BxL[:1])
    optimizer = optax.adam(learning_rate)

    def loss(params):
        logits_BxLxV, acts = models.forward(model, params, inputs_BxL)
        sum_nll, n = losses.cross_entropy(logits_BxLxV, targets_BxL, jnp.ones(targets_BxL.shape, jnp.float32))
        sizes = {name: jnp.sqrt(jnp.mean(jnp.square(act))) for name, act in acts.items() if not name.endswith(NO_SIZES)}
        return sum_nll / n, sizes

    def trained(gammas, factors, seed):
        """Sizes of one row, (T) each."""
        params = init.rescale(models.init(model, rng.key(seed, "init"), inputs_BxL[:1]), gammas, leaves=leaves)

        def step(state, _):
            params, moments = state
            gradient, sizes = jax.grad(loss, has_aux=True)(params)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to powers that are int32
                updates, moments = optimizer.update(gradient, moments, params)
            updates = tree.map_named(lambda name, x: x * factors[leaves[name].group] if name in leaves else x, updates)
            return (optax.apply_updates(params, updates), moments), sizes

        return jax.lax.scan(step, (params, optimizer.init(params)), length=n_steps + 1)[1]

    def numbers(function):
        return {
            group: jnp.array([function(each, group) for each in parametrizations.values()], jnp.float32)
            for group in init.GROUPS
        }

    gammas = numbers(lambda each, group: each.gammas[group])
    factors = numbers(lambda each, group: ratio ** -each.slopes[group])
    rows = jax.vmap(jax.vmap(trained, in_axes=(None, None, 0)), in_axes=(0, 0, None))
    return jax.jit(rows)(gammas, factors, jnp.asarray(seeds, jnp.int32))
