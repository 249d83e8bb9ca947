"""Which tokens of a text to look at: some of every frequency, and those that the paper names (arXiv 2605.01199).

Deciles are of token mass, not of rank: each holds a tenth of what the model reads, and so of what its loss is a mean
over. By Zipf's law nine tenths of the ranks are tokens seen a few times, whose attention no sample can tell.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

N_DECILES = 10
NAMED = {  # what the paper follows: in WikiText, and in TinyStories
    "wikitext": ("continue",),
    "tinystories": ("the", ",", "a", "full", "been"),
}
LEADING_SPACE = "Ġ"  # as byte-level BPE writes it


class Probes(NamedTuple):
    """Tokens and the decile of mass each is in, 0 the most frequent; both int64, (I)."""

    token_I: np.ndarray
    decile_I: np.ndarray


def decile_probes(count_V, n_per_decile: int, least_count: int) -> Probes:
    """Up to `n_per_decile` tokens of each decile, evenly spaced in rank, from frequent to rare.

    A token lies where the middle of its mass does, see `deciles`. Those that lie inside one token, or whose tokens are
    all rarer than `least_count`, have no probe; those with fewer tokens have all of them.

    Args:
      count_V: how often each token stands in the text.
      least_count: rarer tokens are not chosen: a mean over that many queries would say nothing.

    Raises:
      ValueError: no token at all, or numbers below 1.
    """
    for name, value in (("n_per_decile", n_per_decile), ("least_count", least_count)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    count_V = np.asarray(count_V)
    decile_V = deciles(count_V)
    ranked_V = np.argsort(-count_V, kind="stable")
    chosen = []
    for decile in range(N_DECILES):
        token_M = ranked_V[(decile_V[ranked_V] == decile) & (count_V[ranked_V] >= least_count)]
        n = min(n_per_decile, token_M.size)
        place_n = ((np.arange(n) + 0.5) * token_M.size / max(n, 1)).astype(int)
        chosen.append(token_M[place_n])
    token_I = np.concatenate(chosen)
    return Probes(token_I, decile_V[token_I])


def deciles(count_V) -> np.ndarray:
    """The decile of mass of every token, 0 the most frequent; 9 for tokens that never occur. int64, (V).

    Of tokens with equal counts the one with the smaller id comes first.

    Raises:
      ValueError: all counts are zero.
    """
    count_V = np.asarray(count_V)
    if not count_V.sum() > 0:
        raise ValueError("count_V: no token occurs")
    ranked_V = np.argsort(-count_V, kind="stable")
    mass_V = count_V[ranked_V] / count_V.sum()
    middle_V = np.cumsum(mass_V) - mass_V / 2
    decile_V = np.empty(count_V.size, np.int64)
    decile_V[ranked_V] = np.minimum((N_DECILES * middle_V).astype(np.int64), N_DECILES - 1)
    return decile_V


def named_probes(count_V, id_of: Callable[[str], int | None], names: Sequence[str], least_count: int) -> Probes:
    """Those of some words that are tokens, by themselves or after a space, and occur at least `least_count` times."""
    count_V = np.asarray(count_V)
    spelled = (next((t for t in (id_of(LEADING_SPACE + name), id_of(name)) if t is not None), None) for name in names)
    kept = [token for token in spelled if token is not None and count_V[token] >= least_count]
    token_I = np.array(kept, np.int64)
    return Probes(token_I, deciles(count_V)[token_I])
