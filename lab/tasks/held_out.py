"""Random strings of symbols, some held out by a rule that no symbol and no place tells: the sum of all of them.

With V symbols (V even), numbered from 0, and M = V/2, a string is held out where its sum is divisible by M. All but
the last symbol are drawn freely; two of the last one's values have each remainder. So training and test strings are
uniform on their sets, of every length, and disjoint.
"""

import jax
import jax.numpy as jnp


def draw(key, length_B, longest: int, n_symbols: int, held_out: bool):
    """Strings (B, longest), int32 from 0 to below `n_symbols`; what lies beyond a string's length is of no meaning.

    Args:
      length_B: int32, from 1 to `longest`.
      n_symbols: even, at least 4.
    """
    free_key, rest_key, half_key = jax.random.split(key, 3)
    (n,), modulus = length_B.shape, n_symbols // 2
    place_N, last_Bx1 = jnp.arange(longest, dtype=jnp.int32), length_B[:, None] - 1
    free_BxN = jax.random.randint(free_key, (n, longest), 0, n_symbols, jnp.int32)
    others_B = jnp.sum(free_BxN, axis=1, where=place_N[None] < last_Bx1, dtype=jnp.int32)
    rest_B = jnp.zeros(n, jnp.int32) if held_out else jax.random.randint(rest_key, (n,), 1, modulus, jnp.int32)
    half_B = jax.random.randint(half_key, (n,), 0, 2, jnp.int32)
    last_B = (rest_B - others_B) % modulus + modulus * half_B
    return jnp.where(place_N[None] == last_Bx1, last_B[:, None], free_BxN)


def check_symbols(name: str, n_symbols: int) -> None:
    """
    Raises:
      ValueError: an odd number of symbols, or fewer than 4.
    """
    if n_symbols < 4 or n_symbols % 2:
        raise ValueError(f"task.{name}={n_symbols}: an even number of at least 4, so that strings can be held out")
