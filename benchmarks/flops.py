"""How much arithmetic a training step is: one convention for every way of doing it."""

from lab.models import Mamba2, Transformer


def train_step(model: Transformer | Mamba2, batch_size: int, length: int) -> int:
    """Floating-point operations of the matrix products in one training step of one model.

    A product (m, k) x (k, n) is 2 m k n operations. Backward makes two such products for each of forward's, one for
    each factor, so a step is three times forward. Not counted: whatever is elementwise, norms, softmax, embedding
    lookups, the optimizer. The masked half of the scores is counted, since nobody here skips it. `model.readout` says
    which positions the last block and the head compute. Of a Mamba, sums of decays are a product with a constant, which
    has no gradient; its convolution is elementwise here.
    """
    if isinstance(model, Mamba2):
        return _mamba_step(model, batch_size, length)
    d, heads = model.d_model, model.n_heads * model.d_head
    multiplications = 0
    for i in range(model.n_layers):
        answers_only = model.readout == "last" and i == model.n_layers - 1
        asked = 1 if answers_only else length
        multiplications += 2 * length * d * heads  # keys and values
        multiplications += 2 * asked * d * heads  # queries, output matrix
        multiplications += 2 * asked * length * heads  # scores, values mixed by the pattern
        multiplications += 2 * asked * d * model.d_ff  # MLP
    multiplications += (1 if model.readout == "last" else length) * d * model.vocab_size
    return 3 * 2 * batch_size * multiplications


def _mamba_step(model: Mamba2, batch_size: int, length: int) -> int:
    d, inner, states = model.d_model, model.d_inner, model.d_state
    multiplications, of_constants = 0, 0
    for i in range(model.n_layers):
        asked = 1 if model.readout == "last" and i == model.n_layers - 1 else length
        multiplications += length * d * (inner + 2 * states + model.n_heads)  # x, B, C, dt
        multiplications += 2 * asked * d * inner  # gate, output matrix
        multiplications += asked * length * (states + inner)  # C B^T, S (dt x)
        of_constants += asked * length * length * model.n_heads
    multiplications += (1 if model.readout == "last" else length) * d * model.vocab_size
    return 2 * batch_size * (3 * multiplications + 2 * of_constants)
