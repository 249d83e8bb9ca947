"""The report of the focus-dilution study: the exact cycle, the same on samples, laws of its stages, the companion."""

import numpy as np
import xarray as xr

from lab.analysis import attention_stages
from lab.report import cycles, maps
from lab.report.page import Picture, Section, draw_section
from lab.runs import Place, Run, Runs
from lab.studies.focus_dilution import claims
from lab.studies.focus_dilution.companion import border_steps

TITLE = "Focus and dilution: the learning cycle of attention"
LEAD = (
    "One attention layer learns a Markov chain whose tokens differ in frequency. Training from small weights goes"
    " in stages: the embeddings condense to one direction and the loss stops at the unigram entropy; attention "
    "focuses on the most frequent token; that very focus drives the embeddings of rare tokens back and dilutes "
    "itself; a new direction opens and the cycle begins again. In the limit of endless sequences the whole "
    "training is a problem of V x V numbers, computed here exactly beside the rows trained on samples."
)
LIMIT = (
    "The exact limit of rows, started from the same draw as they. Shaded: the stages that `analysis.attention_stages` "
    "detects. Theory says when they come: each plateau is a critical point, left at a rate that its Hessian "
    "tells."
)
SAMPLED = (
    "The same starts trained by gradient descent on minibatches of finite sequences. Every number but the loss on"
    " samples is of the trained weights as the limit sees them, so what differs from above is the noise of "
    "training."
)
LAWS = (
    "How long stages last. A plateau is left from initial deviations of the size of the weights, so its length "
    "grows with log(1/epsilon). Where rare tokens are exactly alike nothing tells them apart and the flow stalls;"
    " an asymmetry of size delta opens a way out that is the slower the smaller delta."
)
COMPANION = (
    "The companion paper's anchor task, embedding and head frozen. The outer weights W_V, W_1, W_2 condense "
    "first; W_Q and W_K hardly move until then and lose their rank afterwards. Thresholds and conditions as in "
    "its theory."
)
FILM_FRAMES = 40
# from the larger weights W_0 condenses to a rank of 1.3
THRESHOLDS = attention_stages.Thresholds(loss_gap=0.01, rank=1.4)
STAGES = ("condensation", "focus", "dilution", "new direction")
MATRICES = {"value": "W_V", "in": "W_1", "out": "W_2", "query": "W_Q", "key": "W_K"}
SMALL_WEIGHTS, LARGE_WEIGHTS = max, min  # as a place on the axis gamma


def sections(runs: Runs) -> list[Section]:
    made = []
    if "cycle" in runs:
        run = runs["cycle"]
        limited = claims.has_limit(run)
        if limited:
            drawings = (limit_small, limit_large, limit_paths, limit_film)
            drawings += (step_size, hessians) if "fine.focus" in run else ()
            made.append(draw_section("The cycle in the exact limit", LIMIT, run, drawings))
        drawings = (sampled_small, sampled_large, focus_of_all_seeds)
        sampled = claims.trained_on_samples(runs)
        made.append(draw_section("The cycle trained on samples", SAMPLED, sampled, drawings))
        if limited:
            made.append(draw_section("How long stages last", LAWS, runs, (stage_lengths,)))
    if "collapse" in runs:
        title = "Condensation, then rank collapse"
        made.append(draw_section(title, COMPANION, runs, (collapse_small, collapse_large, balances)))
    return made


def first_seed(run: Run, gamma: Place) -> xr.Dataset:
    """The row that pictures of a single row show."""
    return run.rows(keep=(), seed=min, gamma=gamma)


def spans(row: xr.Dataset, measure: str, time: str) -> list[tuple]:
    """The stages of a row, `[(name, first step, last step), ...]`, one cycle after the other; none if it diverged."""
    step_T = row[time].values
    curves = attention_stages.Curves(
        step_T,
        row[f"{measure}.loss"].values,
        row[f"{measure}.rank_embedding"].values,
        row[f"{measure}.rank_query"].values,
        row[f"{measure}.focus"].values,
        row[f"{measure}.attention"].isel(key_token=0).transpose(time, "query_token").values[:, 1:],
        row[f"{measure}.singular_ratios"].transpose(time, "ratio").values,
    )
    if not all(np.isfinite(values).all() for values in curves):
        return []
    unigram = float((row[f"{measure}.loss"] - row[f"{measure}.gap"])[0])
    starts = [(0.0, STAGES[0])]
    for cycle in attention_stages.detect(curves, unigram, THRESHOLDS):
        starts += [(event.step, name) for event, name in zip(cycle[1:], STAGES[1:], strict=True)]
    starts = sorted((step, name) for step, name in starts if np.isfinite(step))
    ends = [step for step, _ in starts[1:]] + [float(step_T[-1])]
    return [(name, step, end) for (step, name), end in zip(starts, ends, strict=True)]


def limit_small(run: Run) -> Picture:
    return _portrait(run, SMALL_WEIGHTS, "limit", "time", "limit-small")


def limit_large(run: Run) -> Picture:
    return _portrait(run, LARGE_WEIGHTS, "limit", "time", "limit-large")


def sampled_small(run: Run) -> Picture:
    return _portrait(run, SMALL_WEIGHTS, "state", "snapshot", "state-small")


def sampled_large(run: Run) -> Picture:
    return _portrait(run, LARGE_WEIGHTS, "state", "snapshot", "state-large")


def _portrait(run: Run, gamma: Place, measure: str, time: str, name: str) -> Picture:
    run.over_time(f"{measure}.attention")  # not measured of this run
    row = first_seed(run, gamma)
    title = f"γ = {float(row.gamma):g}, first seed"

    def of(variable):
        return row[f"{measure}.{variable}"].transpose(time, ...)

    def by_token(values):
        return {f"token {token}": values[:, token].values for token in range(row.sizes["query_token"])}

    unigram, rate = (float((of("loss") - of(gap))[0]) for gap in ("gap", "excess"))
    panels = {
        "Loss (nats)": {"loss": of("loss").values},
        "Effective rank": {label: of(f"rank_{matrix}").values for matrix, label in
                           (("embedding", "W_0"), ("query", "W_Q"), ("key", "W_K"))},
        "Attention of each query to token 0": by_token(of("attention").isel(key_token=0)),
        "Attention entropy (nats)": by_token(of("entropy")),
        "Norm of token embeddings": by_token(of("token_norm")),
        "Coefficients γ_i on the main direction": by_token(of("gamma")),
        "Mass redistribution |ρ|": {"|ρ|": np.abs(of("redistribution").values)},
        "Second direction, s₂/s₁ of W_0": {"s₂/s₁": of("ratio_embedding").values},
    }  # fmt: skip
    levels = {"Loss (nats)": {"unigram entropy": unigram, "entropy rate": rate},
              "Attention entropy (nats)": {"unigram entropy": unigram}}  # fmt: skip
    figure = cycles.stages(
        row[time].values, panels, spans(row, measure, time), title, levels, ("Mass redistribution |ρ|",)
    )
    caption = "Loss with its plateaus, ranks, and what attention and embeddings do meanwhile."
    return Picture(name, caption, figure, f"All stages, {title}")


def limit_paths(run: Run) -> Picture:
    shown = {
        f"γ = {float(row.gamma):g}": row for row in (first_seed(run, SMALL_WEIGHTS), first_seed(run, LARGE_WEIGHTS))
    }
    paths = {
        label: row["limit.coordinates"].transpose("time", "query_token", "axis").values for label, row in shown.items()
    }
    starts = {
        label: np.searchsorted(row.time.values, [first for _, first, _ in spans(row, "limit", "time")])
        for label, row in shown.items()
    }
    names = [f"token {token}" for token in range(run.dataset.sizes["query_token"])]
    caption = (
        "In the plane that holds most of the final embedding; they start at the origin. One direction grows, shrinks "
        "for rare tokens, and another opens. Crosses are the beginnings of stages."
    )
    figure = cycles.trajectories(paths, names, "Embeddings on their way", starts)
    return Picture("limit-paths", caption, figure, "Paths of the token embeddings")


def limit_film(run: Run) -> Picture:
    row = first_seed(run, LARGE_WEIGHTS)
    times = np.unique(np.linspace(0, row.sizes["time"] - 1, FILM_FRAMES).round().astype(int))
    attention = row["limit.attention"].transpose("time", "query_token", "key_token")
    names = [str(token) for token in range(row.sizes["query_token"])]
    gif = cycles.film(attention.values[times], names, row.time.values[times], spans(row, "limit", "time"))
    peak = int(row["limit.focus"].argmax("time"))
    shown = {f"step {int(row.time[t])}": attention.values[t] for t in (0, peak, -1)}
    still = maps.token_attention(shown, names, names, "Before training, at the highest focus, at the end")
    return Picture("limit-film", "Queries are rows, keys columns.", still, "Token attention over training", gif)


def step_size(run: Run) -> Picture:
    panels = {}
    for row in (first_seed(run, SMALL_WEIGHTS), first_seed(run, LARGE_WEIGHTS)):
        focus = {"steps of training": row["limit.focus"].values, "20 times smaller": row["fine.focus"].values}
        panels[f"Focus F, γ = {float(row.gamma):g}"] = focus
    figure = cycles.stages(run.dataset.time.values, panels, (), "Gradient descent and gradient flow, first seed")
    caption = (
        "The same start at the same times. Sharpness grows along the flow until steps of the training's size are too "
        "long for it: from there on gradient descent turns back and forth where the flow goes on."
    )
    return Picture("limit-fine", caption, figure, "What the size of a step does")


def hessians(run: Run) -> Picture:
    run.over_time("spectra.whole_least")  # not measured of this run
    row = first_seed(run, SMALL_WEIGHTS)
    blocks = {"whole": "all weights", "outer": "W_0 and W_1 alone", "inner": "W_Q and W_K alone"}
    curves = {label: row[f"spectra.{block}_least"].values for block, label in blocks.items()}
    panel = "Least eigenvalue of the loss's Hessian"
    stages = spans(row, "limit", "time")
    figure = cycles.stages(
        row.spectrum_time.values, {panel: curves}, stages, "Which block is unstable", levels={panel: {"": 0.0}}
    )
    caption = (
        "At a plateau a negative eigenvalue is a way out. At the first one theory says that it belongs to W_Q and W_K "
        "alone: the outer block is not unstable there."
    )
    return Picture("limit-spectra", caption, figure, "Hessian at the plateaus")


def focus_of_all_seeds(run: Run) -> Picture:
    panels = {}
    for gamma in (SMALL_WEIGHTS, LARGE_WEIGHTS):
        focus = run.over_time("state.focus", ("seed",), gamma=gamma)
        panels[f"Focus F, γ = {float(focus.gamma):g}"] = _by_seed(focus)
    figure = cycles.stages(run.dataset.snapshot.values, panels, (), "Focus on the most frequent token, all seeds")
    return Picture("state-focus", "F = Σ π_i A[i, 0]; 0.75 is its base rate.", figure, "Focus in all seeds")


def stage_lengths(runs: Runs) -> Picture:
    run = runs["cycle"]
    lengths = claims.moved_at(run.over_time)
    log_scale_G = lengths.gamma.values * np.log(run.config["model"]["d_model"])
    points = {seed: (log_scale_G, length_G) for seed, length_G in _by_seed(lengths).items()}
    panels = {"First plateau": {"x": "log(1/ε)", "y": "step at which attention moves", "points": points, "log": "",
                                "line": _line(points)}}  # fmt: skip
    if "escape" in runs and "delta" in runs["escape"].axes and (runs["escape"].values_of("delta") > 0).any():
        steps = claims.steps_to_escape(runs["escape"])
        points = {seed: (steps.delta.values, step_E) for seed, step_E in _by_seed(steps).items()}
        panels["Escape from symmetry"] = {"x": "δ", "y": "step of a second direction", "points": points, "log": "xy",
                                          "line": None}  # fmt: skip
    return Picture("laws", "Every dot is a row of the exact limit.", cycles.laws(panels, "Lengths of stages"))


def _line(points):
    """Least squares through all points."""
    x, y = (np.concatenate([pair[i] for pair in points.values()]) for i in (0, 1))
    fine = np.isfinite(x) & np.isfinite(y)
    if np.unique(x[fine]).size < 2:
        return None
    ends = np.array([x[fine].min(), x[fine].max()])
    return ends, np.polyval(np.polyfit(x[fine], y[fine], 1), ends)


def collapse_small(runs: Runs) -> Picture:
    return _collapse(runs["collapse"], SMALL_WEIGHTS, "collapse-small")


def collapse_large(runs: Runs) -> Picture:
    return _collapse(runs["collapse"], LARGE_WEIGHTS, "collapse-large")


def balances(runs: Runs) -> Picture:
    """What gradient flow conserves and what it grows, by how rows were trained."""
    trained = {"collapse": "as trained", "descent": "plain descent"}
    panels, times = {}, {}
    for variable, label in (("balance_drift", "Drift of the balances"), ("energy", "Energy")):
        for variant, how in trained.items():
            if variant in runs:
                signal = runs[variant].over_time(f"signals.{variable}", ("seed",), gamma=SMALL_WEIGHTS)
                panels[f"{label}, {how}"], times[f"{label}, {how}"] = _by_seed(signal), signal.snapshot.values
    caption = (
        "W_VᵀW_V − W_1W_1ᵀ and W_1ᵀW_1 − W_2W_2ᵀ do not change in gradient flow while tanh is linear; drift is their "
        "change over the norms of the four. AdamW scales every weight's step on its own and does not keep them. Energy "
        "is u W_V W_1 W_2 w."
    )
    return Picture("balances", caption, cycles.stages(times, panels, (), "Conservation laws"), "What is conserved")


def _collapse(run: Run, gamma: Place, name: str) -> Picture:
    condensed, starts, collapsed = border_steps(run, gamma=gamma).isel(seed=0).values
    row = first_seed(run, gamma)
    title = f"γ = {float(row.gamma):g}, first seed"

    def by_matrix(variable):
        return {label: row[variable].sel(matrix=matrix).values for matrix, label in MATRICES.items()}

    panels = {
        "Loss on fresh sequences (nats)": {"loss": row["test.loss"].interp(step=row.snapshot.values).values},
        "Mean |cos| between neurons": by_matrix("signals.cosine"),
        "Effective rank": by_matrix("signals.effective_rank"),
        "Relative change": {"W_V, W_1, W_2": row["signals.change_outer"].values,
                            "W_Q, W_K": row["signals.change_inner"].values},
        "Condensation condition rates": {rate: row[f"signals.{rate.lower()}"].values for rate in
                                         ("A1_hidden", "A1_value", "A2_hidden", "A2_value")},
        "|cos| with the predicted direction": {label: row[f"signals.aligned_{matrix}"].values
                                               for matrix, label in MATRICES.items()},
    }  # fmt: skip
    last = float(row.snapshot[-1])
    end = collapsed if np.isfinite(collapsed) else last
    shaded = [("condensation", 0.0, condensed), ("rank collapse", starts, end), ("further training", end, last)]
    figure = cycles.stages(row.snapshot.values, panels, shaded, title, logarithmic=("Relative change",))
    caption = "Stage borders by `borders`; where a border is not reached nothing is shaded."
    return Picture(name, caption, figure, f"Condensation and collapse, {title}")


def _by_seed(values: xr.DataArray) -> dict[str, np.ndarray]:
    return {f"seed {i}": one.values for i, one in enumerate(values.transpose("seed", ...))}
