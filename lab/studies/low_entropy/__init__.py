"""Do transformers say less than they are shown? arXiv 2504.18929: lower entropy than the target, and sparse neurons.

The paper prints no setting and no number, only its abstract was at hand: thresholds are ours, written before the runs.
Variants `fixed_<width>x<layers>` are trained on one finite sample; others are named after what they change. All numbers
are nats of a whole string, of the last step, unless a claim says otherwise.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.analysis import statistics
from lab.analysis.statistics import median_of
from lab.claims import OURS, claim
from lab.runs import MissingData, Run, Runs
from lab.studies import Study
from lab.studies.low_entropy.instability import WITHIN, coincidence
from lab.studies.low_entropy.measures import measures
from lab.studies.low_entropy.page import sections
from lab.studies.low_entropy.sizes import by_size, n_parameters, two_depths

PAPER = "arXiv 2504.18929"
IN_WORDS = dict(source=f"{PAPER}, abstract", threshold_from=OURS)
GAP = "distribution.gap"

TITLE = "Less than they are shown: low entropy and sparse neurons"
LEAD = (
    "Strings are drawn from a law that is known exactly, so that the law a transformer says can be compared with it: "
    "H(Q) - H(P), both divergences, by enumeration. A model that learns its finite sample by heart says less than the "
    "target because the sample does; the entropy of the sample itself stands beside every number."
)


@claim(
    "E1", "Trained on a finite sample, transformers say strings of lower entropy than the target", headline=True,
    quantity="share of sizes with H(Q) below H(P)", published="lower", at_least=0.8, **IN_WORDS,
)  # fmt: skip
def lower_than_the_target(runs: Runs):
    sizes = _three(by_size(runs))
    gap = xr.concat([run.final(GAP, ("seed",)) for run in sizes.values()], "size")
    below = (gap < 0).where(gap.notnull()).mean("size", skipna=False)
    return below, f"{_null(sizes)} {_two_routes(sizes)}"


@claim(
    "E2", "The larger the model, the lower", headline=True,
    quantity="rank correlation of H(Q) - H(P) with the number of parameters", published="more so with size",
    at_most=-0.8, **IN_WORDS,
)  # fmt: skip
def lower_with_size(runs: Runs):
    sizes = _three(by_size(runs))
    gap, divergence = (_along_parameters(sizes, name) for name in (GAP, "distribution.forward"))
    note = "Correlation of KL(P||Q) with H(Q) - H(P) over sizes, near 1 where size means fit: "
    both = np.mean([statistics.spearman(a, b) for a, b in zip(gap.values, divergence.values, strict=True)])
    return statistics.rank_trend(gap, "parameters"), f"{note}{both:.2f}."


@claim(
    "E3", "The MLP drives it: attention alone, with as many parameters, shows at most half", headline=True,
    quantity="H(P) - H(Q) of attention alone, as a share of the full model's", published="the FFN drives it",
    at_most=0.5, **IN_WORDS,
)  # fmt: skip
def attention_alone_shows_half(runs: Runs):
    alone = runs["attention"]
    full = _twin(by_size(runs), alone)
    gaps = [-run.final(GAP, ("seed",)) for run in (alone, full)]
    fits = [median_of(run.final("distribution.forward", ("seed",))) for run in (alone, full)]
    note = (
        f"H(Q) - H(P): attention alone {-median_of(gaps[0]):.3f}, full {-median_of(gaps[1]):.3f}; KL(P||Q) "
        f"{fits[0]:.3f} and {fits[1]:.3f}. A seed counts where the full model is below its target."
    )
    return (gaps[0] / gaps[1]).where(gaps[1] > 0), note


@claim(
    "E4", "On fresh samples a converged model is calibrated: the entropy of its answers is its loss",
    quantity="their distance, a symbol", source="calibration identity", published="equal at any optimum",
    at_most=0.005, threshold_from=OURS,
)  # fmt: skip
def entropy_is_the_loss(runs: Runs):
    run = runs["fresh"]
    forced, loss, temperature, gap = (
        run.final(f"distribution.{name}", ("seed",))
        for name in ("teacher_forced", "cross_entropy", "temperature", "gap")
    )
    note = f"Best temperature {median_of(temperature):.3f}; H(Q) - H(P) {median_of(gap):.3f}."
    return abs(forced - loss) / run.config["task"]["length"], note


@claim(
    "E5a", "The wider, the smaller what attention adds beside the stream", headline=True,
    quantity="highest rank correlation over depths of |Attn(x)| / |x| with width",
    published="larger models bypass attention", at_most=-0.8, **IN_WORDS,
)  # fmt: skip
def wide_models_bypass_attention(runs: Runs):
    return _width_trend(runs, "ratio")


@claim(
    "E5b", "The wider, the smaller the share of active neurons", headline=True,
    quantity="highest rank correlation over depths of the active share with width",
    published="larger models have a smaller share", at_most=-0.99, **IN_WORDS,
)  # fmt: skip
def wide_models_are_sparser(runs: Runs):
    return _width_trend(runs, "active")


@claim(
    "E5c", "The deeper, the smaller what attention adds beside the stream",
    quantity="highest difference over widths of |Attn(x)| / |x|, deepest less shallowest",
    published="larger models bypass attention", below=0, **IN_WORDS,
)  # fmt: skip
def deep_models_bypass_attention(runs: Runs):
    return _depth_change(runs, "ratio")


@claim(
    "E5d", "The deeper, the smaller the share of active neurons",
    quantity="highest difference over widths of the active share, deepest less shallowest",
    published="larger models have a smaller share", below=0, **IN_WORDS,
)  # fmt: skip
def deep_models_are_sparser(runs: Runs):
    return _depth_change(runs, "active")


@claim(
    "E6", "Spikes of the loss coincide with sudden rises of dead neurons", headline=True,
    quantity="p of circular shifts", published="instability coincides with sudden rises", below=0.05, **IN_WORDS,
)  # fmt: skip
def spikes_meet_deaths(runs: Runs):
    run = runs["unstable"]
    found = [coincidence(run, seed) for seed in run.values_of("seed")]
    n_spikes, share, p = (np.array(values) for values in zip(*found, strict=True))
    note = (
        f"Spikes a seed: {', '.join(f'{n:d}' for n in n_spikes)}; within {WITHIN} steps of a jump: "
        f"{', '.join(f'{one:.2f}' for one in share)}. A seed without spikes has no number."
    )
    return xr.DataArray(p, {"seed": run.values_of("seed")}, "seed"), note


@claim(
    "E7", "Small initial weights keep the entropy up: what is low is what is learnt by heart",
    quantity="rank correlation of H(Q) - H(P) with gamma", source="this study", published="-", at_least=0.5,
    threshold_from=OURS,
)  # fmt: skip
def small_weights_keep_entropy(runs: Runs):
    run = runs["diagram"]
    if len(run.values_of("gamma")) < 3:
        raise MissingData("a third gamma")
    corners = [
        f"gamma {gamma:g}, decay {decay:g}: {median_of(run.final(GAP, gamma=gamma, weight_decay=decay)):.3f}"
        for decay in run.values_of("weight_decay")
        for gamma in run.values_of("gamma")[[0, -1]]
    ]
    return statistics.rank_trend(run.final(GAP)), f"H(Q) - H(P): {'; '.join(corners)}."


def _three(sizes: Mapping) -> Mapping:
    """
    Raises:
      MissingData: there are fewer.
    """
    if len(sizes) < 3:
        raise MissingData("variants fixed_<width>x<layers> of three sizes")
    return sizes


def _along_parameters(sizes: Mapping, name: str) -> xr.DataArray:
    """Dims seed, parameters."""
    values = [run.final(name, ("seed",)).assign_coords(parameters=n_parameters(run)) for run in sizes.values()]
    return xr.concat(values, "parameters").transpose("seed", "parameters")


def _null(sizes: Mapping) -> str:
    """Whether the finite sample explains the gap of the largest model."""
    run = max(sizes.values(), key=n_parameters)
    names = ("gap", "target", "sample", "sample_median", "sample_low", "sample_high")
    gap, target, sample, *band = (median_of(run.final(f"distribution.{name}", ("seed",))) for name in names)
    median, low, high = (value - target for value in band)
    if gap >= 0:
        words = "it is not below its target"
    else:
        words = "the sample explains it" if gap >= min(sample - target, low) else "lower than the sample explains"
    return (
        f"Largest model {gap:.3f}; the training sample itself {sample - target:.3f}, samples of its size {median:.3f} "
        f"[{low:.3f}, {high:.3f}]: {words}."
    )


def _two_routes(sizes: Mapping) -> str:
    """The largest distance of a sampled entropy from the enumerated one, over sizes and seeds, in standard errors."""
    off = []
    for run in sizes.values():
        said, enumerated, error = (
            run.final(f"distribution.{name}", ("seed",)) for name in ("said", "entropy", "said_error")
        )
        off.append(float((abs(said - enumerated) / error).max()))
    return f"Strings said by the models give the same entropies within {max(off):.1f} standard errors."


def _twin(sizes: Mapping, alone: Run) -> Run:
    """The full model with the width and depth of one of attention alone.

    Raises:
      MissingData: there is none.
    """
    model = alone.config["model"]
    size = (model["d_model"], model["n_layers"])
    if size not in sizes:
        raise MissingData(f"variant fixed_{size[0]}x{size[1]}")
    return sizes[size]


def _width_trend(runs: Runs, name: str):
    sizes = by_size(runs)
    if len({width for width, _ in sizes}) < 3:
        raise MissingData("variants fixed_<width>x<layers> of three widths")
    trends = []
    for depth in sorted({depth for _, depth in sizes}):
        values = [_of_layers(run, name).assign_coords(width=width) for (width, of), run in sizes.items() if of == depth]
        trends.append(statistics.rank_trend(xr.concat(values, "width"), "width"))
    return xr.concat(trends, "depth").max("depth", skipna=False), _listed(sizes, name)


def _depth_change(runs: Runs, name: str):
    sizes = two_depths(runs)
    changes = []
    for width in sorted({width for width, _ in sizes}):
        depths = [depth for of, depth in sizes if of == width]
        deepest, shallowest = (_of_layers(sizes[width, end(depths)], name) for end in (max, min))
        changes.append(deepest - shallowest)
    return xr.concat(changes, "width").max("width", skipna=False), _listed(sizes, name)


def _of_layers(run: Run, name: str) -> xr.DataArray:
    return run.final(f"sparsity.{name}", ("seed",)).mean("layer", skipna=False)


def _listed(sizes: Mapping, name: str) -> str:
    said = (f"{width}x{depth} {median_of(_of_layers(run, name)):.3f}" for (width, depth), run in sizes.items())
    return f"Mean over layers, by width x layers: {', '.join(said)}."


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER,),
    measures=measures,
    claims=(
        lower_than_the_target, lower_with_size, attention_alone_shows_half, entropy_is_the_loss,
        wide_models_bypass_attention, wide_models_are_sparser, deep_models_bypass_attention, deep_models_are_sparser,
        spikes_meet_deaths, small_weights_keep_entropy,
    ),
    target="test.excess",
    usual={"weight_decay": min},
    sections=sections,
    published_sizes=False,
)  # fmt: skip
