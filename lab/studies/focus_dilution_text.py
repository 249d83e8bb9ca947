"""Focus and dilution on real text (arXiv 2605.01199): probe tokens of every frequency, followed through training.

Thresholds: the paper shows curves and prints none. A probe is focused when its attention to the most frequent token has
risen by `MOVED`, and diluted again when it has lost half of that; entropy moves when it moves by `TURNED`.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab import models, rng
from lab.analysis import focus, stages
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.report import cycles, maps
from lab.report.page import Picture, Section
from lab.studies import Study
from lab.studies.claims import Claim, Lacking, Measured, variant
from lab.studies.focus_dilution import probes
from lab.studies.focus_dilution.claims import rows
from lab.tasks import Text, text

PAPER = "arXiv 2605.01199"
PER_DECILE, LEAST_COUNT, WINDOWS = 2, 30, 48
MIDDLE = range(3, 7)  # deciles of token mass
KEYS = 8  # most frequent tokens whose attention is kept
MOVED, TURNED = 0.1, 0.1  # attention mass, nats
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
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *layers)
        return stacked | {"norm": jnp.linalg.norm(embedding_VxD[chosen], axis=1)}

    units = dict.fromkeys(("attention", "to_top", "to_top_error", "to_self", "focus"), "attention mass")
    dims = {"attention": ("layer", "probe", "key"), "focus": ("layer",), "norm": ("probe",)}
    dims |= dict.fromkeys(("to_top", "to_top_error", "to_self", "entropy"), ("layer", "probe"))
    coords = {"probe": labels, "key": tuple(_word(names[token]) for token in key_J)}
    return Measure("probes", function, units | {"entropy": "nats", "norm": "weight"}, dims, coords)


def probe_turns(row: xr.Dataset) -> dict[str, tuple[stages.Event, float]]:
    """Probe -> the peak of its attention to the top token, and what of the rise it loses later as a share."""
    turns = {}
    for label in row.probe.values:
        to_top_T = row["probes.to_top"].sel(probe=label).isel(layer=0).values
        peak = int(to_top_T.argmax())
        rise = to_top_T[peak] - to_top_T[0]
        lost = (to_top_T[peak] - to_top_T[peak:].min()) / rise if rise > MOVED else 0.0
        events = stages.swings(row.snapshot.values, to_top_T, MOVED)
        turns[str(label)] = (events[0] if events else stages.NEVER, float(lost))
    return turns


def probes_go_and_return(datasets: Mapping[str, xr.Dataset]) -> Measured:
    counts, notes = [], []
    for row in _seeds(variant(datasets, "one_layer")):
        middle = {name: found for name, found in probe_turns(row).items() if _decile(name) in MIDDLE}
        if not middle:
            raise Lacking(f"probes of middle frequency: no token there occurs {LEAST_COUNT} times")
        back = {name: event for name, (event, lost) in middle.items() if lost >= 0.5}
        counts.append(float(len(back)))
        first = min((event.step for event in back.values()), default=math.nan)
        notes.append(f"{len(back)} of {len(middle)}, first peak at step {first:.0f}")
    return Measured(tuple(counts), 1.0, f"Probes of the deciles 4 to 7, by seed: {'; '.join(notes)}.")


def entropy_turns(datasets: Mapping[str, xr.Dataset]) -> Measured:
    counts, notes = [], []
    for row in _seeds(variant(datasets, "one_layer")):
        entropy_T = row["probes.entropy"].isel(layer=0).mean("probe").values
        events = stages.swings(row.snapshot.values, -entropy_T, TURNED)
        counts.append(float(len(events)))
        notes.append(", ".join(f"{event.step:.0f} [{event.earliest:.0f}, {event.latest:.0f}]" for event in events[:2]))
    note = "Steps of the first minimum and the maximum after it, and between which snapshots they lie: "
    return Measured(tuple(counts), 2.0, f"{note}{'; '.join(notes)}.")


def two_layers_too(datasets: Mapping[str, xr.Dataset]) -> Measured:
    counts = []
    for row in _seeds(variant(datasets, "two_layer")):
        found = probe_turns(row)
        counts.append(float(sum(lost >= 0.5 for name, (_, lost) in found.items() if _decile(name) in MIDDLE)))
    return Measured(tuple(counts), 1.0, "Probes of the deciles 4 to 7 that focus and dilute again in the first layer.")


CLAIMS = (
    Claim(
        "T1", "A probe token of middle frequency goes diluted, focused, diluted", f"{PAPER}, WikiText",
        '"continue" does', "at least one probe rises by 0.1 and loses half of it", probes_go_and_return,
    ),
    Claim(
        "T2", "Attention entropy goes down, up, down", f"{PAPER}, figures", "down, up, down",
        "at least 2 turns of 0.1 nats", entropy_turns,
    ),
    Claim(
        "T3", "A two-layer transformer with residuals does so, too", f"{PAPER} with the model of arXiv 2510.06954",
        "the same phases in both layers", "at least one probe rises by 0.1 and loses half of it", two_layers_too,
    ),
)  # fmt: skip


def sections(datasets: Mapping[str, xr.Dataset]) -> list[Section]:
    return [
        Section(f"{name.replace('_', ' ').capitalize()}s", TEXT, _pictures(name, ds)) for name, ds in datasets.items()
    ]


def _pictures(name: str, dataset: xr.Dataset) -> list[Picture]:
    row = _seeds(dataset)[0]
    step_T = row.snapshot.values
    shown = [label for i, label in enumerate(row.probe.values) if i % 2 == 0]  # one of a decile is enough to see
    pictures = []
    for layer in row.layer.values:
        one = row.sel(layer=layer)
        panels = {
            "Attention to the most frequent token": {p: one["probes.to_top"].sel(probe=p).values for p in shown},
            "Attention to the probe itself": {p: one["probes.to_self"].sel(probe=p).values for p in shown},
            "Attention entropy (nats)": {p: one["probes.entropy"].sel(probe=p).values for p in shown},
            "Norm of the embedding": {p: one["probes.norm"].sel(probe=p).values for p in shown},
        }
        title = f"Probe tokens over training, layer {int(layer)}, first seed"
        pictures.append(Picture(f"{name}-probes-{int(layer)}", title, TEXT, cycles.stages(step_T, panels, (), title)))
    pictures.append(_all_seeds(name, dataset))
    pictures.append(_film(name, row.isel(layer=0), shown))
    return pictures


def _all_seeds(name: str, dataset: xr.Dataset) -> Picture:
    seeds = {f"seed {i}": row for i, row in enumerate(_seeds(dataset))}
    panels = {
        "Focus F, over probes": {seed: row["probes.focus"].isel(layer=0).values for seed, row in seeds.items()},
        "Entropy, mean over probes": {
            seed: row["probes.entropy"].isel(layer=0).mean("probe").values for seed, row in seeds.items()
        },
    }
    times = dict.fromkeys(panels, dataset.snapshot.values)
    times["Loss minus that of unigram frequencies"] = dataset.step.values
    panels["Loss minus that of unigram frequencies"] = {
        seed: row["valid.over_unigram"].values for seed, row in seeds.items()
    }
    figure = cycles.stages(times, panels, (), "All seeds, first layer")
    return Picture(f"{name}-seeds", "All seeds", "F weights probes by their frequency.", figure)


def _film(name: str, row: xr.Dataset, shown: list[str]) -> Picture:
    times = np.unique(np.geomspace(1, row.sizes["snapshot"], FILM_FRAMES).round().astype(int)) - 1
    some = row.sel(probe=shown).isel(snapshot=times)
    attention_TxIxJ = some["probes.attention"].transpose("snapshot", "probe", "key").values
    keys = [str(key) for key in row.key.values]
    gif = cycles.film(attention_TxIxJ, keys, some.snapshot.values, (), queries=shown)
    peak = int(row["probes.focus"].argmax("snapshot"))
    stills = {f"step {int(row.snapshot[t])}": row["probes.attention"].sel(probe=shown).isel(snapshot=t).values
              for t in (0, peak, -1)}  # fmt: skip
    still = maps.token_attention(stills, shown, keys, "Before training, at the highest focus, at the end")
    caption = "Probe tokens are rows; columns are the most frequent tokens, which need not add up to all attention."
    return Picture(f"{name}-film", "Token attention over training", caption, still, gif)


def _probes(task: Text, count_V) -> tuple[np.ndarray, tuple[str, ...]]:
    """Tokens, each once, and their names with the decile in brackets."""
    tokenizer = text.prepared(task).tokenizer
    by_decile = probes.decile_probes(count_V, PER_DECILE, LEAST_COUNT)
    words = [word for named in probes.NAMED.values() for word in named]
    named = probes.named_probes(count_V, tokenizer.id_of, words, LEAST_COUNT)
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
    return name.replace(probes.LEADING_SPACE, "_").replace("\n", "\\n") or "(unused)"


def _seeds(dataset: xr.Dataset) -> list[xr.Dataset]:
    """A row for every seed, the middle of every other axis."""
    return rows(dataset, dataset.sizes["gamma"] // 2)


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER,),
    measures=measures,
    claims=CLAIMS,
    target="valid.over_unigram",
    sections=sections,
)
