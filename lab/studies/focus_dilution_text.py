"""Focus and dilution on real text (arXiv 2605.01199): probe tokens of every frequency, followed through training.

Thresholds: the paper shows curves and prints none. A probe is focused when its attention to the most frequent token has
risen by `MOVED`, and diluted again when it has lost half of that; entropy moves when it moves by `TURNED`.

Probes are some tokens of each decile, and those that the paper names. Deciles are of token mass, not of rank: each
holds a tenth of what the model reads, and so of what its loss is a mean over. By Zipf's law nine tenths of the ranks
are tokens seen a few times, whose attention no sample can tell.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab import models, rng
from lab.analysis import attention_stages, focus
from lab.claims import DIRECTION, OURS, claim
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.report import cycles, maps
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.studies import Study
from lab.tasks import Text, text
from lab.tree import stack

PAPER = "arXiv 2605.01199"
N_DECILES = 10
PER_DECILE, LEAST_COUNT, WINDOWS = 2, 30, 48
MIDDLE = range(3, 7)  # deciles of token mass
NAMED = ("continue", "the", ",", "a", "full", "been")  # what the paper follows: in WikiText, and in TinyStories
LEADING_SPACE = "Ġ"  # as byte-level BPE writes it
KEYS = 8  # most frequent tokens whose attention is kept
MOVED, TURNED = 0.1, 0.1  # attention mass, nats
RETURNS = f"probes that rise by {MOVED:g} and lose half of it"
FILM_FRAMES = 40

TITLE = "Focus and dilution on real text"
LEAD = (
    "The one-layer attention model, and a two-layer transformer, trained from small weights on words of a text. For "
    "probe tokens of every frequency: where does attention go when the probe is the last token read? A decile holds "
    "a tenth of the text, the first the most frequent words."
)
TEXT = (
    "Attention to the most frequent token rises from its base rate, falls again, and may rise elsewhere. Lines are "
    "probe tokens, means over windows that end in them; in brackets the decile."
)


def measures(experiment: Experiment) -> list[Measure]:
    """
    Raises:
      ValueError: the task is no text.
    """
    if not isinstance(experiment.task, Text):
        raise ValueError(f"focus_dilution_text measures training on text, not on {type(experiment.task).__name__}")
    return [attention_of_probes(experiment)]


def attention_of_probes(experiment: Experiment) -> Measure:
    """Whom probe tokens attend to when they are the last token, by layer, heads averaged; norms of their embeddings."""
    task, n_layers = experiment.task, experiment.model.n_layers
    count_V = text.frequencies(task)
    chosen, labels = _probes(task, count_V)
    if not chosen.size:
        raise ValueError(f"no token of this text occurs {LEAST_COUNT} times: too short to follow single tokens")
    key_J = np.argsort(-count_V, kind="stable")[:KEYS]
    names = text.prepared(task).tokenizer.names
    windows_IxNxL = text.windows_ending_in(
        task, rng.key(experiment.data_seed, "analysis/probes"), chosen, WINDOWS, "train"
    )
    n_probes, length = chosen.size, task.length

    def of_layer(pattern_BxL, tokens_BxL, frequency_I):
        mass_IxV = jnp.zeros((n_probes, task.vocab_size), pattern_BxL.dtype)
        mass_IxV = mass_IxV.at[jnp.repeat(jnp.arange(n_probes), WINDOWS * length), tokens_BxL.ravel()].add(
            pattern_BxL.ravel()
        )
        mass_IxV = mass_IxV / WINDOWS
        to_top_IxN = jnp.where(tokens_BxL == key_J[0], pattern_BxL, 0).sum(axis=1).reshape(n_probes, WINDOWS)
        return {
            "attention": mass_IxV[:, key_J],
            "to_top": mass_IxV[:, key_J[0]],
            "to_top_error": jnp.std(to_top_IxN, axis=1, ddof=1) / math.sqrt(WINDOWS),
            "to_self": mass_IxV[jnp.arange(n_probes), chosen],
            "entropy": focus.entropy(mass_IxV),
            "focus": focus.focus(mass_IxV[:, key_J[0]], frequency_I),
        }

    def function(row):
        tokens_BxL = jnp.asarray(windows_IxNxL.reshape(-1, length))
        _, acts = models.forward(row.model, row.params, tokens_BxL)
        embedding_VxD = row.params["embed"]["token"]["embedding"]
        frequency_I = jnp.asarray(count_V[chosen] / count_V.sum(), embedding_VxD.dtype)
        layers = [
            of_layer(acts[f"block_{i}/attn/pattern"][:, :, -1].mean(axis=1), tokens_BxL, frequency_I)
            for i in range(n_layers)
        ]
        return stack(layers) | {"norm": jnp.linalg.norm(embedding_VxD[chosen], axis=1)}

    units = dict.fromkeys(("attention", "to_top", "to_top_error", "to_self", "focus"), "attention mass")
    dims = {"attention": ("layer", "probe", "key"), "focus": ("layer",), "norm": ("probe",)}
    dims |= dict.fromkeys(("to_top", "to_top_error", "to_self", "entropy"), ("layer", "probe"))
    coords = {"probe": labels, "key": tuple(_word(names[token]) for token in key_J)}
    return Measure("probes", function, units | {"entropy": "nats", "norm": "weight"}, dims, coords)


@claim(
    "T1", "A probe token of middle frequency goes diluted, focused, diluted", headline=True,
    quantity=RETURNS, source=f"{PAPER}, WikiText", published='"continue" does',
    at_least=1, threshold_from=OURS,
)  # fmt: skip
def probes_go_and_return(runs: Runs):
    to_top = _middle_probes(runs["one_layer"])
    back = went_and_returned(to_top)
    notes = []
    for of_seed, returned in zip(to_top, back, strict=True):
        kept = of_seed.sel(probe=returned.fillna(0) > 0)
        peaks = [attention_stages.swings(kept.snapshot, one, MOVED) for one in kept]
        first = min((events[0].step for events in peaks if events), default=math.nan)
        notes.append(f"{kept.sizes['probe']} of {to_top.sizes['probe']}, first peak at step {first:.0f}")
    note = f"Probes of the deciles 4 to 7, by seed: {'; '.join(notes)}."
    return back.sum("probe", skipna=False), note


@claim(
    "T2", "Attention entropy goes down, up, down", headline=True, quantity=f"turns of {TURNED:g} nats",
    source=f"{PAPER}, figures", published="down, up, down", at_least=2, threshold_from=DIRECTION,
)  # fmt: skip
def entropy_turns(runs: Runs):
    entropy = runs["one_layer"].over_time("probes.entropy", ("seed",)).isel(layer=0).mean("probe")
    notes = []
    for of_seed in entropy.dropna("seed"):
        events = attention_stages.swings(of_seed.snapshot, -of_seed, TURNED)
        notes.append(", ".join(f"{event.step:.0f} [{event.earliest:.0f}, {event.latest:.0f}]" for event in events[:2]))
    note = "Steps of the first minimum and the maximum after it, and between which snapshots they lie: "
    return attention_stages.count_turns(-entropy, TURNED), f"{note}{'; '.join(notes)}."


@claim(
    "T3", "The first layer of a two-layer transformer with residuals does so, too", quantity=RETURNS,
    source=f"{PAPER} with the model of arXiv 2510.06954", published="the same phases in both layers", at_least=1,
    threshold_from=OURS,
)  # fmt: skip
def two_layers_too(runs: Runs):
    back = went_and_returned(_middle_probes(runs["two_layer"]))
    note = "Probes of the deciles 4 to 7 that focus and dilute again in the first layer."
    return back.sum("probe", skipna=False), note


def went_and_returned(to_top: xr.DataArray) -> xr.DataArray:
    """1 where attention to the top token rises by `MOVED` and loses half of that again, else 0; NaN if it diverged."""
    peak = to_top.max("snapshot")
    rise = peak - to_top.isel(snapshot=0, drop=True)
    after = to_top.where((to_top == peak).cumsum("snapshot") > 0).min("snapshot")
    returned = (rise > MOVED) & (peak - after >= 0.5 * rise)
    return returned.where(to_top.notnull().all("snapshot"))


def _middle_probes(run: Run) -> xr.DataArray:
    """Attention of the first layer to the top token, dims (seed, probe, snapshot), of probes of middle frequency.

    Raises:
      MissingData: there are none.
    """
    to_top = run.over_time("probes.to_top", ("seed",)).isel(layer=0)
    middle = [label for label in to_top.probe.values if _decile(str(label)) in MIDDLE]
    if not middle:
        raise MissingData(f"probes of middle frequency: no token there occurs {LEAST_COUNT} times")
    return to_top.sel(probe=middle).transpose("seed", "probe", "snapshot")


def sections(runs: Runs) -> list[Section]:
    made = []
    for name, run in runs.items():
        layers = run.dataset.sizes.get("layer", 1)
        drawings = (*map(_probes_of_layer, range(layers)), all_seeds, film)
        made.append(draw_section(f"{name.replace('_', ' ').capitalize()}s", TEXT, run, drawings, name))
    return made


def _probes_of_layer(layer: int) -> Callable[[Run], Picture]:
    def probes(run: Run) -> Picture:
        curves = {name: run.over_time(f"probes.{name}", (), seed=min) for name in ("to_top", "to_self", "entropy")}
        curves = {name: values.isel(layer=layer) for name, values in curves.items()}
        curves["norm"] = run.over_time("probes.norm", (), seed=min)
        titles = {
            "to_top": "Attention to the most frequent token", "to_self": "Attention to the probe itself",
            "entropy": "Attention entropy (nats)", "norm": "Norm of the embedding",
        }  # fmt: skip
        panels = {
            title: {label: curves[name].sel(probe=label).values for label in _shown(run)}
            for name, title in titles.items()
        }
        title = f"Probe tokens over training, layer {layer}, first seed"
        return Picture(f"probes-{layer}", TEXT, cycles.stages(run.dataset.snapshot.values, panels, (), title))

    return probes


def all_seeds(run: Run) -> Picture:
    curves = {
        "Focus F, over probes": run.over_time("probes.focus", ("seed",)).isel(layer=0),
        "Entropy, mean over probes": run.over_time("probes.entropy", ("seed",)).isel(layer=0).mean("probe"),
        "Loss minus that of unigram frequencies": run.over_time("valid.over_unigram", ("seed",)),
    }
    panels = {name: {f"seed {i}": one.values for i, one in enumerate(values)} for name, values in curves.items()}
    times = {name: values[values.dims[-1]].values for name, values in curves.items()}
    figure = cycles.stages(times, panels, (), "All seeds, first layer")
    return Picture("seeds", "F weights probes by their frequency.", figure, "All seeds")


def film(run: Run) -> Picture:
    queries = _shown(run)
    attention = run.over_time("probes.attention", (), seed=min).isel(layer=0).sel(probe=queries)
    attention = attention.transpose("snapshot", "probe", "key")
    times = np.unique(np.geomspace(1, attention.sizes["snapshot"], FILM_FRAMES).round().astype(int)) - 1
    keys = [str(key) for key in attention.key.values]
    step_T = attention.snapshot.values
    gif = cycles.film(attention.values[times], keys, step_T[times], (), queries=queries)
    peak = int(run.over_time("probes.focus", (), seed=min).isel(layer=0).fillna(-np.inf).argmax("snapshot"))
    stills = {f"step {int(step_T[t])}": attention.values[t] for t in (0, peak, -1)}
    still = maps.token_attention(stills, queries, keys, "Before training, at the highest focus, at the end")
    caption = "Probe tokens are rows; columns are the most frequent tokens, which need not add up to all attention."
    return Picture("film", caption, still, "Token attention over training", gif)


def _shown(run: Run) -> list[str]:
    """Every second probe: one of a decile is enough to see."""
    return [str(label) for label in run.dataset.probe.values[::2]]


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


def _probes(task: Text, count_V) -> tuple[np.ndarray, tuple[str, ...]]:
    """Tokens, each once, and their names with the decile in brackets."""
    tokenizer = text.prepared(task).tokenizer
    by_decile = decile_probes(count_V, PER_DECILE, LEAST_COUNT)
    named = named_probes(count_V, tokenizer.id_of, NAMED, LEAST_COUNT)
    deciles = dict(zip(by_decile.token_I.tolist(), by_decile.decile_I.tolist(), strict=True))
    deciles |= dict(zip(named.token_I.tolist(), named.decile_I.tolist(), strict=True))
    ordered = sorted(deciles, key=lambda token: (deciles[token], -count_V[token]))
    labels = tuple(f"{_word(tokenizer.names[token])} ({deciles[token] + 1})" for token in ordered)
    return np.array(ordered, np.int32), labels


def _decile(label: str) -> int:
    """0 the most frequent, of a label made by `_probes`."""
    return int(label.rpartition("(")[2].rstrip(")")) - 1


def _word(name: str) -> str:
    """A token as a picture shows it."""
    return name.replace(LEADING_SPACE, "_").replace("\n", "\\n") or "(unused)"


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER,),
    measures=measures,
    claims=(probes_go_and_return, entropy_turns, two_layers_too),
    target="valid.over_unigram",
    sections=sections,
)
