"""Scaling laws under complexity control: does loss fall faster with size at a constant init rate?

Published: arXiv 2505.23013, of which abstract and digests were to be had, and its successor arXiv 2606.17945. They
print curves; thresholds are those of the statements' directions, or ours, and written before the runs.

Three arms are trained at several widths, one pass over the same windows of a text in the same order: *small* complexity
(std d_in^-1, weight decay 1), *large* (std d_in^-0.5, weight decay 0.1) and the conventional *sigma* (one std at all
widths, that of the large arm at the largest one; weight decay 0.1). Variants are named `<arm>_<width>`.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab import models
from lab.analysis import condensation, rank, scaling, statistics, weights
from lab.analysis.statistics import median_of
from lab.claims import DIRECTION, OURS, claim
from lab.experiment import Experiment
from lab.measuring.catalogue.weights import layouts
from lab.measuring.declare import Measure
from lab.report import comparison
from lab.report import scaling as pictures
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.studies import Study
from lab.tasks import Text, text
from lab.tree import stack

PAPER, SUCCESSOR = "arXiv 2505.23013", "arXiv 2606.17945"
COMPLEXITIES = ("small", "large")
ARMS = {"small": "small complexity", "large": "large complexity", "sigma": "constant sigma"}
SCALE = "reduced: published are 50 million to 0.8 billion parameters, and 0.2 to 1.4 billion tokens"
THRESHOLD = 0.7  # cosine from which two neurons count as one (arXiv 2405.05409, section 5)
QUARTERS = 4  # of the text, by the entropy of what follows a token
FLOORS = (0.0, 0.3, 0.6, 0.9)  # shares of the lowest loss: how far a lead in exponent is the floor's doing
WIDE, NARROW = 256, 64  # widths at which a coarse epsilon should cost loss, and should not

TITLE = "Do language models scale better at low complexity?"
LEAD = (
    "Decoders of several widths read a text once. Initial weights of std d_in^-gamma become smaller as a model becomes "
    "wider; those of one std at all widths do not. Small initial weights and strong weight decay are claimed to make "
    "loss fall faster with size, and with tokens."
)
OPEN_HERE = (
    "Not to be checked at this size: exponents of 50 million to 0.8 billion parameters, the scores of 0.9 and 2.4 "
    "billion parameters on benchmarks of reasoning, the training of 2.4 billion on 10^12 tokens, and the part of "
    "attention sinks and gated attention. None of their numbers was to be had."
)


def measures(experiment: Experiment) -> list[Measure]:
    """
    Raises:
      ValueError: the task is no text, or the model no decoder.
    """
    model, task = experiment.model, experiment.task
    if not isinstance(task, Text) or not isinstance(model, models.Decoder):
        given = f"{type(model).__name__} on {type(task).__name__}"
        raise ValueError(f"scaling_law measures decoders on text, not {given}")
    return [of_queries(experiment), of_tokens(experiment)]


def of_queries(experiment: Experiment) -> Measure:
    """Stable rank of every layer's query matrix, and groups of its neurons."""
    known = layouts(experiment)

    def function(row):
        found = weights.weight_matrices(row.params, known, heads=False)
        queries = [matrix for name, matrix in found.items() if "query/kernel" in name]
        groups = [condensation.condensation_numbers(matrix.T, THRESHOLD)["n_groups"] for matrix in queries]
        ranks = [rank.soft_ranks(jnp.linalg.svd(matrix, compute_uv=False))["stable"] for matrix in queries]
        return {"stable_rank": jnp.stack(ranks), "groups": jnp.stack(groups)}

    units = {"stable_rank": "rank", "groups": "groups"}
    return Measure("queries", function, units, dict.fromkeys(units, ("layer",)), snapshots="last")


def of_tokens(experiment: Experiment) -> Measure:
    """Held-out loss by quarters of the text: by how open the next token is to a bigram model, given the last one."""
    task = experiment.task
    quarter_V, entropy_Q = text.by_openness(task, QUARTERS)

    def function(row):
        logits_BxLxV, _ = models.forward(row.model, row.params, row.batch.tokens_BxL)
        log_probs_BxLxV = jax.nn.log_softmax(logits_BxLxV)
        nll_BxL = -jnp.take_along_axis(log_probs_BxLxV, row.batch.targets_BxL[..., None], axis=-1)[..., 0]
        of_BxL = jnp.asarray(quarter_V)[row.batch.tokens_BxL]
        counted = [(nll_BxL, of_BxL == quarter) for quarter in range(QUARTERS)]
        entropy = [jnp.asarray(entropy, nll_BxL.dtype) for entropy in entropy_Q]
        return stack(
            [
                {"loss": jnp.mean(nll, where=there), "share": jnp.mean(there.astype(nll.dtype)), "entropy": bits}
                for (nll, there), bits in zip(counted, entropy, strict=True)
            ]
        )

    units = {"loss": "nats", "share": "share of tokens", "entropy": "nats"}
    dims, coords = dict.fromkeys(units, ("quarter",)), {"quarter": tuple(range(1, QUARTERS + 1))}
    return Measure("tokens", function, units, dims, coords, "last", split="valid", n=experiment.eval_size)


@claim(
    "SL1", "At a constant init rate loss falls faster with size than at a constant sigma, of either complexity",
    headline=True, quantity="smaller lead in exponent", source=f"{PAPER}, model scaling",
    published="steeper slope, no number to be had", above=0, threshold_from=DIRECTION, scale=SCALE,
)  # fmt: skip
def rates_scale_better(runs: Runs):
    losses = _losses(runs)
    draws = scaling.resampled(losses)
    said = ", ".join(f"{ARMS[arm]} {pictures.exponent(draws.sel(arm=arm))}" for arm in ARMS)
    sizes, lowest = losses["size"].values, float(losses.min())
    note = f"Exponents of the means, 90 % of resampled seeds: {said}; floor {float(draws['floor'][0, 0]):.2f} nats; "
    note += f"{len(sizes)} sizes from {min(sizes):,.0f} to {max(sizes):,.0f} parameters. With a floor held at"
    leads = {share: lead_in_exponent(scaling.exponents_at(losses, share * lowest)) for share in FLOORS}
    held = (f" {share * lowest:.2f}: {median_of(lead):+.3f}" for share, lead in leads.items())
    return lead_in_exponent(scaling.by_seed(losses)["exponent"]), f"{note}{','.join(held)} (medians)."


@claim(
    "SL2a", "At the largest size small complexity has the lower loss", headline=True,
    quantity="lead over large complexity, nats", source=f"{PAPER}, model scaling", published="leads, no number",
    above=0, threshold_from=DIRECTION, scale=SCALE,
)  # fmt: skip
def small_leads_at_the_end(runs: Runs):
    widest = {arm: _widest(runs, arm) for arm in COMPLEXITIES}
    errors = [median_of(run.final("valid.loss_error", ("seed",))) for run in widest.values()]
    lead = _loss(widest["large"]) - _loss(widest["small"])
    return lead, f"Held-out losses have a standard error of {max(errors):.3f}, on the same windows for all."


@claim(
    "SL2b", "and its lead grows with size", quantity="lead over large complexity, nats for a factor e of size",
    source=f"{PAPER}, model scaling", published="leads most at the large end", above=0, threshold_from=DIRECTION,
    scale=SCALE,
)  # fmt: skip
def the_lead_grows(runs: Runs):
    losses = _losses(runs, COMPLEXITIES)
    lead = losses.sel(arm="large", drop=True) - losses.sel(arm="small", drop=True)
    slope = statistics.slope(lead, np.log(lead["size"]), "size")
    said = ", ".join(f"{size:,.0f}: {median_of(lead.sel(size=size)):+.3f}" for size in lead["size"].values)
    return slope, f"Leads by parameters, medians, negative where it is behind: {said}."


@claim(
    "SL3", "Small complexity needs fewer tokens for equal loss", headline=True, quantity="share of tokens saved",
    source=f"{PAPER}, data scaling", published="curve shifted left, no number", at_least=0.1, threshold_from=OURS,
    scale=SCALE,
)  # fmt: skip
def small_saves_tokens(runs: Runs):
    saved = {width: tokens_saved(*(runs[f"{arm}_{width}"] for arm in COMPLEXITIES)) for width in _common(runs)}
    n_tokens = over_tokens(_widest(runs, "small"))["tokens"].values[-1]
    said = ", ".join(f"{width}: {median_of(share):+.2f}" for width, share in saved.items())
    note = f"Of {n_tokens:,} tokens, along one training each, at the largest width. By width, medians: {said}."
    return saved[max(saved)], note


@claim(
    "SL4a", "In wide models at gamma 1 an epsilon of 1e-5 in norms costs loss", quantity="loss, nats",
    source=SUCCESSOR, published="1e-5 hides the gain, 1e-12 restores it", above=0, threshold_from=DIRECTION,
)  # fmt: skip
def epsilon_costs_loss(runs: Runs):
    coarse = {width: run for width, run in runs.numbered("eps").items() if width >= WIDE}
    if not coarse:
        raise MissingData(f"a variant eps_<width> of width {WIDE} or more")
    width = max(coarse)
    return _loss(coarse[width]) - _loss(runs[f"small_{width}"]), f"At width {width}."


@claim(
    "SL4b", "and in narrow ones it costs none", quantity="difference in loss, nats", source=SUCCESSOR,
    published="by the size of the stream: 1e-5 shrinks it by 2 % at width 64, by 22 % at 256", at_most=0.01,
    threshold_from=OURS,
)  # fmt: skip
def epsilon_is_harmless_where_narrow(runs: Runs):
    return abs(_loss(runs[f"eps_{NARROW}"]) - _loss(runs[f"small_{NARROW}"]))


@claim(
    "SL5a", "Small complexity makes query matrices of lower rank",
    quantity="stable rank at large over small complexity",
    source=f"{PAPER}, analyses", published="low-rank attention matrices, no number", at_least=2, threshold_from=OURS,
)  # fmt: skip
def queries_are_of_low_rank(runs: Runs):
    return _ratio(runs, "queries.stable_rank")


@claim(
    "SL5b", "and their neurons condense", quantity="groups of neurons at large over small complexity",
    source=f"{PAPER}, analyses; {SUCCESSOR}", published="condensation, no number", at_least=2, threshold_from=OURS,
)  # fmt: skip
def queries_condense(runs: Runs):
    return _ratio(runs, "queries.groups")


@claim(
    "SL6", "What small complexity gains it gains on tokens that the context determines",
    quantity="gain on the half of tokens with the lower entropy less that on the other, nats", source=SUCCESSOR,
    published="gains concentrate on context-constrained tokens", above=0, threshold_from=DIRECTION,
)  # fmt: skip
def gains_are_on_determined_tokens(runs: Runs):
    share = _final(_widest(runs, "small"), "tokens.share")
    gains = token_gains(runs).where(share > 0, 0)  # letters may leave a quarter empty
    halves = [
        (gains * share).sel(quarter=half).sum("quarter", skipna=False) / share.sel(quarter=half).sum("quarter")
        for half in ([1, 2], [3, 4])
    ]
    said = ", ".join(f"{median_of(gain):+.3f}" for gain in gains.transpose("quarter", ...))
    return halves[0] - halves[1], f"By quarters of the text, from the most determined on, medians: {said} nats."


def token_gains(runs: Runs) -> xr.DataArray:
    """By seed and quarter: how much lower the loss is at small complexity than at large, at the largest width."""
    small, large = (_final(_widest(runs, arm), "tokens.loss") for arm in COMPLEXITIES)
    return large - small


def size(model: Mapping) -> float:
    """Parameters of a decoder's blocks, norms left out, from the options of its config."""
    queries = model["n_heads"] * model["d_head"]
    keys = (model["n_kv_heads"] or model["n_heads"]) * model["d_head"]
    n_matrices = 3 if model["gated"] else 2
    layer = model["d_model"] * (2 * queries + 2 * keys + n_matrices * model["d_ff"])
    return float(model["n_layers"] * layer)


def over_tokens(run: Run) -> xr.DataArray:
    """Held-out loss (seed, tokens), from the first evaluation after the start on."""
    losses = run.over_time("valid.loss", ("seed",)).reset_coords(drop=True)
    per_step = run.config["batch_size"] * run.config["task"]["length"]
    losses = losses.isel(step=losses["step"].values > 0)
    return losses.assign_coords(step=losses["step"].values * per_step).rename(step="tokens").transpose("seed", "tokens")


def lead_in_exponent(exponent: xr.DataArray) -> xr.DataArray:
    """By seed: the smaller exponent of the arms of constant rate less that of constant sigma."""
    return exponent.sel(arm=list(COMPLEXITIES)).min("arm", skipna=False) - exponent.sel(arm="sigma", drop=True)


def tokens_saved(small: Run, large: Run) -> xr.DataArray:
    """By seed: the share of tokens that small complexity saves."""
    curves = [over_tokens(run) for run in (small, large)]
    saved = functools.partial(scaling.tokens_saved, curves[0]["tokens"].values)
    return xr.apply_ufunc(saved, *curves, input_core_dims=[["tokens"]] * 2, vectorize=True)


def _loss(run: Run) -> xr.DataArray:
    return _final(run, "valid.loss")


def _final(run: Run, name: str) -> xr.DataArray:
    """By seed, at the last step; without the arm's own rate, decay and learning rate, so that arms may be compared."""
    return run.final(name, ("seed",)).reset_coords(drop=True)


def _common(runs: Runs, arms=COMPLEXITIES) -> list[int]:
    """The widths that all arms have, ascending.

    Raises:
      MissingData: there is none.
    """
    widths = set.intersection(*({*runs.numbered(arm)} for arm in arms))
    if not widths:
        raise MissingData(f"variants {' and '.join(f'{arm}_<width>' for arm in arms)}")
    return sorted(widths)


def _widest(runs: Runs, arm: str) -> Run:
    """The run of an arm at the largest width that both complexities have.

    Raises:
      MissingData: there is none.
    """
    return runs[f"{arm}_{max(_common(runs))}"]


def _losses(runs: Runs, arms=tuple(ARMS)) -> xr.DataArray:
    """Last held-out losses, dims arm, seed and size, of the widths that all arms have.

    Raises:
      MissingData: there are fewer than three.
    """
    widths = _common(runs, arms)
    if len(widths) < scaling.LEAST_SIZES:
        raise MissingData(f"variants {', '.join(f'{arm}_<width>' for arm in arms)} of three widths")
    sizes = [size(runs[f"{arms[0]}_{width}"].config["model"]) for width in widths]
    by_arm = [xr.concat([_loss(runs[f"{arm}_{width}"]) for width in widths], "size") for arm in arms]
    return xr.concat(by_arm, "arm").assign_coords(arm=list(arms), size=sizes)


def _ratio(runs: Runs, name: str) -> tuple[xr.DataArray, str]:
    """By seed: of the means over layers, large over small complexity, at the largest width; and a note."""
    small, large = (_final(_widest(runs, arm), name).mean("layer", skipna=False) for arm in COMPLEXITIES)
    said = f"{median_of(small):.1f} at small and {median_of(large):.1f} at large complexity, of "
    width = _widest(runs, "small").config["model"]["d_model"]
    return large / small, f"{said}{width} at most."


def sections(runs: Runs) -> list[Section]:
    parts = [
        draw_section("Size", LEAD, runs, (laws, lead)),
        draw_section("Tokens", "Along one training each, at the largest width.", runs, (curves, gains)),
        draw_section("Query matrices", "At the last step, means over layers.", runs, (queries,)),
        draw_section("Learning rates", "Tuned once an arm, at the smallest width, by one seed.", runs, (tuning,)),
    ]
    return [*parts, Section("What cannot be checked here", OPEN_HERE)]


def laws(runs: Runs) -> Picture:
    losses = _losses(runs, _drawn(runs))
    words = [ARMS[arm] for arm in losses["arm"].values]
    named, draws = (found.assign_coords(arm=words) for found in (losses, scaling.resampled(losses)))
    figure = pictures.laws(named, draws, "Loss by size", "parameters of the blocks")
    return Picture("laws", "Loss = A N^-alpha + floor, with one floor for all arms.", figure)


def lead(runs: Runs) -> Picture:
    losses = _losses(runs, _drawn(runs))
    # small complexity itself too: the line at 0, and each arm in the colour that it has elsewhere
    above = (losses - losses.sel(arm="small", drop=True)).transpose("arm", "seed", "size")
    lines = {ARMS[arm]: above.sel(arm=arm) for arm in above["arm"].values}
    panel = {"held-out loss less that of small complexity, nats": lines}
    figure = comparison.curves(panel, "How much lower small complexity is", "parameters of the blocks", xscale="log")
    return Picture("lead", "The same seeds, which see the same windows.", figure)


def curves(runs: Runs) -> Picture:
    lines = {ARMS[arm]: over_tokens(trained[max(trained)]) for arm, trained in _arms(runs).items()}
    figure = comparison.curves({"held-out loss, nats": lines}, "Loss by tokens", "tokens", xscale="log")
    return Picture("tokens", "How far one curve lies left of another says how many tokens are saved.", figure)


def gains(runs: Runs) -> Picture:
    entropy = _final(_widest(runs, "small"), "tokens.entropy").mean("seed").values
    by_entropy = token_gains(runs).assign_coords(quarter=entropy).transpose("seed", "quarter")
    figure = comparison.curves(
        {"large less small complexity, nats": {"gain in held-out loss": by_entropy}},
        "Where small complexity gains", "entropy of a bigram model's next token, nats",
    )  # fmt: skip
    return Picture("gains", "Quarters of the text, from those tokens on that a bigram model knows best.", figure)


def queries(runs: Runs) -> Picture:
    words = {"queries.stable_rank": "stable rank of W_Q", "queries.groups": f"groups of cosine above {THRESHOLD}"}
    panels = {
        label: {ARMS[arm]: _by_axis(trained, name) for arm, trained in _arms(runs).items()}
        for name, label in words.items()
    }
    figure = comparison.curves(panels, "Queries by width", "width")
    return Picture("queries", "Fewer groups: neurons are condensed.", figure)


def tuning(runs: Runs) -> Picture:
    tuned = {arm: runs[f"tune_{arm}"] for arm in ARMS if f"tune_{arm}" in runs}
    lines = {ARMS[arm]: run.final("valid.loss", ("seed", "learning_rate")) for arm, run in tuned.items()}
    if not lines:
        raise MissingData("variants tune_<arm>")
    figure = comparison.curves(
        {"held-out loss, nats": lines}, "Learning rates at the smallest width", "peak learning rate", xscale="log"
    )
    return Picture("tuning", "One seed. The rates that arms have were chosen before these trainings.", figure)


def _arms(runs: Runs) -> Mapping[str, Mapping[int, Run]]:
    """Arm -> width -> run, of the arms that were trained."""
    found = {arm: runs.numbered(arm) for arm in ARMS}
    if not any(found.values()):
        raise MissingData("variants <arm>_<width>")
    return {arm: trained for arm, trained in found.items() if trained}


def _drawn(runs: Runs) -> tuple[str, ...]:
    """Both complexities, and constant sigma where it was trained."""
    return tuple(arm for arm in ARMS if arm in COMPLEXITIES or runs.numbered(arm))


def _by_axis(trained: Mapping[int, Run], name: str) -> xr.DataArray:
    """(seed, width), the mean over layers."""
    values = [_final(run, name).mean("layer", skipna=False) for run in trained.values()]
    together = xr.concat(values, "width").assign_coords(width=[*trained])
    return together.transpose("seed", "width")


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER, SUCCESSOR),
    measures=measures,
    claims=(
        rates_scale_better, small_leads_at_the_end, the_lead_grows, small_saves_tokens, epsilon_costs_loss,
        epsilon_is_harmless_where_narrow, queries_are_of_low_rank, queries_condense, gains_are_on_determined_tokens,
    ),
    target="valid.accuracy",
    published_sizes=False,
    sections=sections,
)  # fmt: skip
