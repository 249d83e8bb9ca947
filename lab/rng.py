"""Every random key of the laboratory: a pure function of (seed, stream name, index).

Keys are threefry, always: under `rbg` a vmapped draw differs from a loop's, and a row of a grid would no longer
be the row trained alone. No key is carried in a training state, so a resumed run draws what an uninterrupted one did.
"""

import zlib

import jax


def key(seed, stream: str, index=None) -> jax.Array:
    """The key of one named stream.

    Args:
      seed: integer, traced or not.
      stream: what the key is for, e.g. `"init"`, `"data"`; hashed, so adding a stream moves no other.
      index: position in the stream, e.g. the training step; traced or not. `None`: the stream's own key.
    """
    stream_key = named(jax.random.key(seed, impl="threefry2x32"), stream)
    return stream_key if index is None else jax.random.fold_in(stream_key, index)


def named(key, name: str) -> jax.Array:
    """The key of one named part of what `key` is for, e.g. of a parameter: more or fewer parts change no other's."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
