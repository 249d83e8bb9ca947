"""Other people's models: every way in which a Flax module holds its weights, and what the lab has to know of each."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

V, D, L = 60, 48, 9
TOKENS = jnp.arange(2 * L, dtype=jnp.int32).reshape(2, L)


class Layers(nn.Module):
    """Layers one after the other; those of `parts` make (B, L, D) of (B, L, D)."""

    parts: tuple = ()

    @nn.compact
    def __call__(self, tokens_BxL):
        h_BxLxD = nn.Embed(V, D, name="table")(tokens_BxL)
        for part in self.parts:
            h_BxLxD = part(h_BxLxD)
        return nn.Dense(V, name="head")(h_BxLxD)


class Param(nn.Module):
    """A raw parameter."""

    @nn.compact
    def __call__(self, h):
        return h @ self.param("w", nn.initializers.normal(0.02), (D, D), jnp.float32)


class SaidInputs(Param):
    fan_in = {"w": D}


class SaidAxes(Param):
    fan_in = {"w": (0,)}
    groups = {"w": "vo"}


class Kept(Param):
    fan_in = {"w": None}


class Field(Param):
    """Says it in a field."""

    fan_in: nn.FrozenDict = nn.FrozenDict({"w": 7})


class Unit(Param):
    """Draws at unit rate itself, and says so."""

    fan_in = {"w": D}
    unit_leaves = ("w",)

    @nn.compact
    def __call__(self, h):
        return h @ self.param("w", nn.initializers.normal(D**-0.5), (D, D), jnp.float32)


class Fixed(nn.Module):
    """Matrices that no key changes."""

    @nn.compact
    def __call__(self, h):
        waves = self.param(
            "waves", lambda key, shape: jnp.sin(jnp.arange(L * D, dtype=jnp.float32).reshape(shape)), (L, D)
        )
        return (h + waves[None]) @ self.param("zeros", nn.initializers.zeros, (D, D), jnp.float32)


class LoRA(nn.Module):
    """A low-rank addition to a layer whose scope it shares."""

    fan_in = {"lora_a": (0,)}

    @nn.compact
    def __call__(self, h):
        base = nn.Dense(D)
        nn.share_scope(self, base)
        a, b = (
            self.param("lora_a", nn.initializers.normal(0.01), (D, 4), jnp.float32),
            self.param("lora_b", nn.initializers.zeros, (4, D), jnp.float32),
        )
        return base(h) + h @ a @ b


class Block(nn.Module):
    """For `nn.scan`."""

    @nn.compact
    def __call__(self, h, _):
        h = h + nn.SelfAttention(4, qkv_features=32, name="mixer", dropout_rate=0.1)(nn.LayerNorm()(h))
        return nn.Dropout(0.5)(h + nn.Dense(D, name="mlp")(h)), None


class Stack(nn.Module):
    """Three blocks whose weights are stacked along a first axis."""

    @nn.compact
    def __call__(self, h):
        rngs = {"params": True, "dropout": True}
        blocks = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs=rngs, length=3)
        return blocks(name="blocks")(h, None)[0]


class Heads(nn.Module):
    @nn.compact
    def __call__(self, h):
        h = nn.DenseGeneral((4, 8), name="proj", bias_init=nn.initializers.normal(1.0))(h)
        return nn.DenseGeneral(D, axis=(-2, -1), name="join")(h)


class Products(nn.Module):
    @nn.compact
    def __call__(self, h):
        h = nn.Einsum((4, D, 8), "bld,hdk->blhk", name="split", use_bias=False)(h)
        return nn.Einsum((4, 8, D), name="sum")(h, "blhk, hkd -> bld")


class Normed(nn.Module):
    @nn.compact
    def __call__(self, h):
        return nn.WeightNorm(nn.Dense(D))(h)


class Bridged(nnx.Module):
    def __init__(self, *, rngs):
        self.table, self.attention = (
            nnx.Embed(V, D, rngs=rngs),
            nnx.MultiHeadAttention(4, D, 32, rngs=rngs, decode=False),
        )
        self.head = nnx.Linear(D, V, rngs=rngs)

    def __call__(self, tokens_BxL):
        return self.head(self.attention(self.table(tokens_BxL)))


class BridgedDropout(Bridged):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


class BridgedNorm(Bridged):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.norm = nnx.BatchNorm(V, rngs=rngs)


TABLE, HEAD = {"table/embedding": ("embed", D, "unit")}, {"head/kernel": ("head", D, "unit")}


def prefixed(layer, leaves):
    return {f"{layer}/{name}": entry for name, entry in leaves.items()}


def layers(*parts):
    return Layers(tuple(parts))


# name -> model, and group, d_in and way of drawing of every matrix, of `Layers` beside table and head
KINDS = {
    "dense": (layers(nn.Dense(D)), {"parts_0/kernel": ("mlp", D, "unit")}),
    "own initializer": (
        layers(nn.Dense(D, kernel_init=nn.initializers.orthogonal())),
        {"parts_0/kernel": ("mlp", D, "anew")},
    ),
    "partitioned": (
        layers(nn.Dense(D, kernel_init=nn.with_partitioning(nn.initializers.normal(3.0), (None, "x")))),
        {"parts_0/kernel": ("mlp", D, "anew")},
    ),
    "zeros": (layers(nn.Dense(D, kernel_init=nn.initializers.zeros)), {"parts_0/kernel": ("mlp", D, "constant")}),
    "dense general": (
        layers(Heads()),
        {"parts_0/proj/kernel": ("mlp", D, "unit"), "parts_0/join/kernel": ("mlp", 32, "unit")},
    ),
    "einsum": (
        layers(Products()),
        {"parts_0/split/kernel": ("mlp", D, "anew"), "parts_0/sum/kernel": ("mlp", 32, "unit")},
    ),
    "convolutions": (
        layers(
            nn.Conv(16, (3,), feature_group_count=4),
            nn.ConvLocal(8, (3,)),
            nn.ConvTranspose(D, (3,), transpose_kernel=True),
        ),
        {
            "parts_0/kernel": ("mlp", 3 * D // 4, "unit"),
            "parts_1/kernel": ("mlp", 3 * 16, "anew"),
            "parts_2/kernel": ("mlp", 3 * 8, "anew"),
        },
    ),
    "embedding": (
        layers(nn.Dense(V), nn.Dense(D)),
        {"parts_0/kernel": ("mlp", D, "unit"), "parts_1/kernel": ("mlp", V, "unit")},
    ),
    "attention, stacked": (
        layers(Stack()),
        prefixed(
            "parts_0/blocks",
            {
                "mixer/query/kernel": ("qk", D, "unit"),
                "mixer/key/kernel": ("qk", D, "unit"),
                "mixer/value/kernel": ("vo", D, "unit"),
                "mixer/out/kernel": ("vo", 32, "unit"),
                "mlp/kernel": ("mlp", D, "unit"),
            },
        ),
    ),
    "recurrent": (
        layers(nn.RNN(nn.OptimizedLSTMCell(D))),
        prefixed(
            "parts_0/cell",
            {f"i{gate}/kernel": ("mlp", D, "unit") for gate in "ifgo"}
            | {f"h{gate}/kernel": ("mlp", D, "anew") for gate in "ifgo"},
        ),
    ),
    "raw, its inputs said": (layers(SaidInputs()), {"parts_0/w": ("mlp", D, "anew")}),
    "raw, its axes said": (layers(SaidAxes()), {"parts_0/w": ("vo", D, "anew")}),
    "raw, said in a field": (layers(Field()), {"parts_0/w": ("mlp", 7, "anew")}),
    "raw, kept": (layers(Kept()), {}),
    "raw, unit": (layers(Unit()), {"parts_0/w": ("mlp", D, "unit")}),
    "constants": (layers(Fixed()), {}),
    "low rank": (layers(LoRA()), {"parts_0/kernel": ("mlp", D, "unit"), "parts_0/lora_a": ("mlp", D, "anew")}),
    "sequence": (
        nn.Sequential((nn.Embed(V, D), nn.LayerNorm(), nn.Dense(V))),
        {"layers_0/embedding": ("embed", D, "unit"), "layers_2/kernel": ("mlp", D, "unit")},
    ),
    "nnx": (
        nnx.bridge.ToLinen(Bridged),
        {
            "table/embedding": ("embed", D, "anew"),
            "attention/query/kernel": ("qk", D, "anew"),
            "attention/key/kernel": ("qk", D, "anew"),
            "attention/value/kernel": ("vo", D, "anew"),
            "attention/out/kernel": ("vo", 32, "anew"),
            "head/kernel": ("head", D, "anew"),
        },
    ),
}
KINDS = {
    kind: (model, (TABLE | HEAD if isinstance(model, Layers) else {}) | matrices)
    for kind, (model, matrices) in KINDS.items()
}
