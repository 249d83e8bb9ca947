"""Greedy decoding with a key-value cache against a forward pass over everything at every step, side by side.

    python benchmarks/decoding.py --preset=cpu            # 2 minutes on two cores

Both are one compiled program that answers a batch of prompts of different lengths and never stops early; the one
without a cache computes the logits of one position a step, too. Rounds alternate between the two, a ratio is taken
within a round, and its median and quartiles are shown with the tokens a second of each.
"""

import dataclasses
import functools
import json
import os
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model, and what it is asked: prompts of 1 to `n_prompt` tokens, `n_new` tokens after each."""

    accelerator: str
    n_layers: int
    d_model: int
    vocab_size: int
    batch: int
    n_prompt: int
    n_new: int
    rows: int  # models at once, under vmap


PRESETS = {
    "cpu": Preset("cpu", 2, 128, 23, 64, 10, 49, 1),
    "cpu_rows": Preset("cpu", 2, 128, 23, 64, 10, 49, 4),
    "gpu": Preset("gpu", 12, 768, 811, 256, 24, 145, 1),
    "smoke": Preset("cpu", 1, 16, 11, 4, 3, 5, 2),
}


def without_cache(model, params, prompt_BxL, prompt_length_B, n_new):
    """What `decode.greedy` says if nothing stops it, by a forward pass over all tokens for each of them."""
    n_prompt = prompt_BxL.shape[1]

    def step(tokens_BxM, n):
        last_Bx1x1 = (prompt_length_B + n - 1)[:, None, None]
        edits = {"final": lambda h_BxMxD: jnp.take_along_axis(h_BxMxD, last_Bx1x1, axis=1)}
        logits_Bx1xV, _ = model.apply({"params": params}, tokens_BxM, edits)
        said_B = jnp.argmax(logits_Bx1xV[:, 0], axis=-1).astype(jnp.int32)
        here_BxM = jnp.arange(n_prompt + n_new, dtype=jnp.int32)[None] == (prompt_length_B + n)[:, None]
        return jnp.where(here_BxM, said_B[:, None], tokens_BxM), said_B

    padded_BxM = jnp.pad(prompt_BxL, ((0, 0), (0, n_new)))
    _, said_NxB = jax.lax.scan(step, padded_BxM, jnp.arange(n_new, dtype=jnp.int32))
    return said_NxB.T


def ways(preset: Preset):
    """Both as functions of nothing that return tokens (rows, batch, n_new)."""
    from lab import models
    from lab.models import decode

    heads = max(1, preset.d_model // 64)
    model = models.Transformer(
        vocab_size=preset.vocab_size, max_length=preset.n_prompt + preset.n_new, n_layers=preset.n_layers,
        n_heads=heads, d_model=preset.d_model, d_head=preset.d_model // heads, d_ff=4 * preset.d_model,
        activation="gelu", norm="pre", use_bias=True, head_bias=True, final_norm=True, tied_head=False, readout="all",
    )  # fmt: skip
    draw = np.random.default_rng(0)
    prompt_BxL = jnp.asarray(draw.integers(0, preset.vocab_size, (preset.batch, preset.n_prompt)), jnp.int32)
    length_B = jnp.asarray(draw.integers(1, preset.n_prompt + 1, preset.batch), jnp.int32)
    keys = jax.random.split(jax.random.key(0), preset.rows)
    params_R = jax.jit(jax.vmap(lambda key: models.init(model, key, prompt_BxL[:1])))(keys)

    def cached(params):
        never = preset.vocab_size
        return decode.greedy(model, params, prompt_BxL, length_B, preset.n_new, never)[0]

    def whole(params):
        return without_cache(model, params, prompt_BxL, length_B, preset.n_new)

    compiled = {name: jax.jit(jax.vmap(way)) for name, way in (("cached", cached), ("whole", whole))}
    return {name: functools.partial(way, params_R) for name, way in compiled.items()}


def run(preset: Preset, rounds: int) -> dict:
    """Tokens a second of each way in every round, the share of equal answers, and the worst disturbance."""
    both = ways(preset)
    said = {name: np.asarray(way()) for name, way in both.items()}  # compiles
    rates, disturbances = {name: [] for name in both}, []
    for i in range(rounds):
        for name in list(both)[:: 1 if i % 2 else -1]:
            begun, busy, own = time.perf_counter(), harness.busy_seconds(), time.process_time()
            jax.block_until_ready(both[name]())
            seconds = time.perf_counter() - begun
            others = harness.busy_seconds() - busy - (time.process_time() - own)
            disturbances.append(max(0.0, others) / (seconds * os.cpu_count()))
            rates[name].append(said[name].size / seconds)
    equal = np.mean(np.all(said["cached"] == said["whole"], axis=-1))
    return {"tokens_per_second": rates, "equal_answers": float(equal), "disturbance": float(np.median(disturbances))}


def show(preset: Preset, result: dict) -> None:
    rates = result["tokens_per_second"]
    print(f"{preset.rows} x {preset.batch} prompts of up to {preset.n_prompt} tokens, {preset.n_new} new ones each")
    for name in rates:
        low, middle, high = harness.quartiles(rates[name])
        print(f"  {name:8}{middle:12,.0f} tokens/s  [{low:,.0f}, {high:,.0f}]")
    ratios = np.divide(rates["cached"], rates["whole"])
    low, middle, high = harness.quartiles(ratios)
    print(
        f"  cached is {middle:.1f} times as fast [{low:.1f}, {high:.1f}]; {result['equal_answers']:.1%} equal answers"
    )
    if result["disturbance"] >= harness.QUIET:
        print(f"  disturbed: other programs took {result['disturbance']:.0%} of the machine; only the ratio means much")


def main(argv: list[str] | None = None) -> None:
    parser = harness.Parser(__doc__, PRESETS)
    parser.add_json()
    parser.add_argument("--rounds", type=int, default=7, help="timings of each (default: 7)")
    args = parser.parse_args(argv)
    preset = PRESETS[args.preset]
    if preset.accelerator == "cpu":
        jax.config.update("jax_platforms", "cpu")
    else:
        parser.use_jax(preset.accelerator)
    result = run(preset, args.rounds)
    show(preset, result)
    if args.json:
        args.json.write_text(json.dumps({"preset": args.preset, **result}, indent=1))


if __name__ == "__main__":
    main()
