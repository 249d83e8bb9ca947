"""Curvature operators of a mean loss: products with the Hessian and the Gauss-Newton matrix, and gradients.

All act on the vector_P of the parameters that `where` chooses by name (`lab.analysis.loss_fn.flatten`); the others
stay as they are, so that a subset's operator is a diagonal block of the whole one. Losses are sums and weights
(`lab.analysis.loss_fn`), whose weight may not depend on the parameters; batches are minibatched (leaves (M, size,
...)) and read one minibatch after the other. Everything is exact up to rounding, in the dtype of the parameters; on a
GPU under `jax.default_matmul_precision("highest")`.

An operator is the pair `(matvec, vector_P)` that `lab.analysis.sharpness` takes as its first two arguments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lab.analysis.loss_fn import Loss, everything, flatten, over_minibatches


def hessian(loss: Loss, params, batches, where: Callable[[str], bool] = everything):
    """`(matvec, vector_P)` with matvec(v_P) = H v, H_ij = d^2 L / dw_i dw_j of the mean loss L at vector_P.

    Forward over reverse: the derivative along v of the gradient (Pearlmutter 1994), about two gradients of the data.

    Raises:
      ValueError: `where` chooses no parameter.
    """
    vector_P, rebuild = flatten(params, where)

    def matvec(v_P):
        def product(batch):
            gradient = jax.grad(lambda vector_P: loss(rebuild(vector_P), batch), has_aux=True)
            _, product_P, weight = jax.jvp(gradient, (vector_P,), (v_P,), has_aux=True)
            return product_P, weight

        return _mean(over_minibatches(product, batches))

    return matvec, vector_P


def gauss_newton(outputs: Callable, loss_of_outputs: Loss, params, batches, where: Callable[[str], bool] = everything):
    """`(matvec, vector_P)` with matvec(v_P) = G v, G = J^T H_out J: the Hessian of the loss with its model linearized
    (Schraudolph 2002). Positive semidefinite for a loss convex in the outputs; for cross-entropy it is the Fisher
    information of the model's own answers (Martens 2020, section 9.2).

    Args:
      outputs: `(params, batch) -> z`, any pytree: the logits. J is its Jacobian.
      loss_of_outputs: `(z, batch) -> (sum, weight)`; H_out is the Hessian of the sum in z.

    Raises:
      ValueError: `where` chooses no parameter.
    """
    vector_P, rebuild = flatten(params, where)

    def matvec(v_P):
        def product(batch):
            z, pull_back = jax.vjp(lambda vector_P: outputs(rebuild(vector_P), batch), vector_P)
            _, z_along_v = jax.jvp(lambda vector_P: outputs(rebuild(vector_P), batch), (vector_P,), (v_P,))
            gradient = jax.grad(lambda z: loss_of_outputs(z, batch), has_aux=True)
            _, curved, weight = jax.jvp(gradient, (z,), (z_along_v,), has_aux=True)
            return pull_back(curved)[0], weight

        return _mean(over_minibatches(product, batches))

    return matvec, vector_P


def gradient(loss: Loss, params, batches, where: Callable[[str], bool] = everything):
    """gradient_P of the mean loss over all minibatches, each token weighing alike.

    Raises:
      ValueError: `where` chooses no parameter.
    """
    gradient_of = _gradient_of_sum(loss, *flatten(params, where))
    return _mean(over_minibatches(gradient_of, batches))


def second_moment(loss: Loss, params, batches, batch_size: int, where: Callable[[str], bool] = everything):
    """nu_P = E[g^2] of the mean gradient g of `batch_size` examples: what Adam's second moment estimates when the
    parameters stand still (Kingma & Ba 2015).

    The square of the mean gradient plus its noise, which falls as 1 / `batch_size`. It is estimated without bias from
    the mean m and the variance S^2 of the gradients of M minibatches of n examples of equal weight, whatever n is:
    nu = m^2 + S^2 (n / batch_size - 1 / M). With batch_size = n it is the mean of their squares. No error bar: with
    small M it is small by chance here and there, and a Hessian divided by it large.

    Raises:
      ValueError: `batch_size` is below 1 or above M n, where the estimate may be negative; fewer than two minibatches;
        `where` chooses no parameter.
    """
    n_minibatches, size = jax.tree.leaves(batches)[0].shape[:2]
    if n_minibatches < 2 or not 1 <= batch_size <= n_minibatches * size:
        raise ValueError(
            f"batch_size={batch_size} from {n_minibatches} minibatches of {size}: want at least two of them, and "
            f"batch_size from 1 to all {n_minibatches * size} examples"
        )
    gradient_of = _gradient_of_sum(loss, *flatten(params, where))

    def first_two(batch):
        mean_P = _mean(gradient_of(batch))
        return mean_P, jnp.square(mean_P)

    mean_P, square_P = (total_P / n_minibatches for total_P in over_minibatches(first_two, batches))
    variance_P = jnp.maximum(square_P - jnp.square(mean_P), 0) * (n_minibatches / (n_minibatches - 1))
    return jnp.square(mean_P) + variance_P * (size / batch_size - 1 / n_minibatches)


def preconditioned(matvec: Callable, scale_P):
    """The product with D^-1/2 H D^-1/2, D = diag(scale_P), of a product with H; symmetric as H is.

    Its eigenvalues are those of D^-1 H, the Hessian as an optimizer sees it that divides its step by D. Adam's is
    `scale_P = sqrt(nu_P) + eps` (Cohen et al. 2022, arXiv 2207.14484, section 2). Scales must be positive.
    """
    half_P = jax.lax.rsqrt(scale_P)
    return lambda v_P: half_P * matvec(half_P * v_P)


def _gradient_of_sum(loss: Loss, vector_P, rebuild: Callable):
    """`batch -> (gradient_P of the sum, weight)`."""
    return lambda batch: jax.grad(lambda vector_P: loss(rebuild(vector_P), batch), has_aux=True)(vector_P)


def _mean(total_and_weight):
    total_P, weight = total_and_weight
    return total_P / weight
