"""The report of the focus-dilution study: the exact cycle, the same on samples, laws of its stages, the companion."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.analysis import stages
from lab.report import cycles
from lab.report.page import Picture, Section
from lab.studies.claims import Lacking
from lab.studies.focus_dilution import claims, companion
from lab.studies.focus_dilution.claims import rows

TITLE = "Focus and dilution: the learning cycle of attention"
LEAD = (
    "One attention layer learns a Markov chain whose tokens differ in frequency. Training from small weights goes"
    " in stages: the embeddings condense to one direction and the loss stops at the unigram entropy; attention "
    "focuses on the most frequent token; that very focus drives the embeddings of rare tokens back and dilutes "
    "itself; a new direction opens and the cycle begins again. In the limit of endless sequences the whole "
    "training is a problem of V x V numbers, computed here exactly beside the rows trained on samples."
)
LIMIT = (
    "The exact limit of rows, started from the same draw as they. Shaded: the stages that `analysis.stages` "
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
THRESHOLDS = stages.Thresholds(loss_gap=0.01, rank=1.4)  # from the larger weights W_0 condenses to a rank of 1.3
STAGES = ("condensation", "focus", "dilution", "new direction")


def sections(datasets: Mapping[str, xr.Dataset]) -> list[Section]:
    made = []
    if "cycle" in datasets:
        cycle = datasets["cycle"]
        if claims.has_limit(cycle):
            made.append(Section("The cycle in the exact limit", LIMIT, _limit(cycle)))
        made.append(Section("The cycle trained on samples", SAMPLED, _sampled(cycle)))
        if claims.has_limit(cycle):
            made.append(Section("How long stages last", LAWS, _laws(datasets)))
    if "collapse" in datasets:
        made.append(Section("Condensation, then rank collapse", COMPANION, _companion(datasets)))
    return made


def spans(row: xr.Dataset, measure: str, time: str) -> list[tuple]:
    """The stages of a row, `[(name, first step, last step), ...]`, one cycle after the other; none if it diverged."""
    step_T = row[time].values
    curves = stages.Curves(
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
    starts = []
    for cycle in stages.detect(curves, unigram, THRESHOLDS):
        begun = cycle.condensation_end.step
        starts += [(0.0, "condensation")] if not starts else []
        starts += [(step, name) for step, name in zip((begun, *cycle[1:]), ("", *STAGES[1:]), strict=True) if name]
    starts = sorted((event.step if isinstance(event, stages.Event) else event, name) for event, name in starts)
    starts = [(step, name) for step, name in starts if np.isfinite(step)]
    ends = [step for step, _ in starts[1:]] + [float(step_T[-1])]
    return [(name, step, end) for (step, name), end in zip(starts, ends, strict=True)]


def _limit(dataset: xr.Dataset) -> list[Picture]:
    pictures = []
    for index, size in ((-1, "small"), (0, "large")):
        row = rows(dataset, index)[0]
        pictures.append(_portrait(row, "limit", "time", f"limit-{size}", f"γ = {float(row.gamma):g}, first seed"))
    row = rows(dataset, 0)[0]
    shown = {f"γ = {float(one.gamma):g}": one for one in (rows(dataset, -1)[0], row)}
    paths = {
        label: one["limit.coordinates"].transpose("time", "query_token", "axis").values for label, one in shown.items()
    }
    starts = {
        label: np.searchsorted(one.time.values, [first for _, first, _ in spans(one, "limit", "time")])
        for label, one in shown.items()
    }
    names = [f"token {token}" for token in range(row.sizes["query_token"])]
    pictures.append(
        Picture(
            "limit-paths",
            "Paths of the token embeddings",
            "In the plane that holds most of the final embedding; they start at the origin. One direction grows, "
            "shrinks for rare tokens, and another opens. Crosses are the beginnings of stages.",
            cycles.trajectories(paths, names, "Embeddings on their way", starts),
        )
    )
    pictures.append(_film(row))
    if "fine.focus" in dataset:
        pictures.append(_fine(dataset))
        pictures.append(_spectra(rows(dataset, -1)[0]))
    return pictures


def _portrait(row: xr.Dataset, measure: str, time: str, name: str, title: str) -> Picture:
    def of(variable):
        return row[f"{measure}.{variable}"].transpose(time, ...)

    tokens = [f"token {token}" for token in range(row.sizes["query_token"])]

    def by_token(values):
        return {token: values[:, v].values for v, token in enumerate(tokens)}

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
    return Picture(name, f"All stages, {title}", caption, figure)


def _film(row: xr.Dataset) -> Picture:
    times = np.unique(np.linspace(0, row.sizes["time"] - 1, FILM_FRAMES).round().astype(int))
    some = row.isel(time=times)
    attention_TxIxJ = some["limit.attention"].transpose("time", "query_token", "key_token").values
    names = [str(token) for token in range(row.sizes["query_token"])]
    gif = cycles.film(attention_TxIxJ, names, some.time.values, spans(row, "limit", "time"))
    peak = int(row["limit.focus"].argmax("time"))
    shown = {f"step {int(some_step)}": row["limit.attention"].sel(time=some_step).transpose("query_token", ...).values
             for some_step in row.time.values[[0, peak, -1]]}  # fmt: skip
    still = cycles.maps.token_attention(shown, names, names, "Before training, at the highest focus, at the end")
    return Picture("limit-film", "Token attention over training", "Queries are rows, keys columns.", still, gif)


def _fine(dataset: xr.Dataset) -> Picture:
    panels = {}
    for index in (-1, 0):
        row = rows(dataset, index)[0]
        focus = {"steps of training": row["limit.focus"].values, "20 times smaller": row["fine.focus"].values}
        panels[f"Focus F, γ = {float(row.gamma):g}"] = focus
    figure = cycles.stages(dataset.time.values, panels, (), "Gradient descent and gradient flow, first seed")
    caption = (
        "The same start at the same times. Sharpness grows along the flow until steps of the training's size are too "
        "long for it: from there on gradient descent turns back and forth where the flow goes on."
    )
    return Picture("limit-fine", "What the size of a step does", caption, figure)


def _spectra(row: xr.Dataset) -> Picture:
    blocks = {"whole": "all weights", "outer": "W_0 and W_1 alone", "inner": "W_Q and W_K alone"}
    curves = {label: row[f"spectra.{block}_least"].values for block, label in blocks.items()}
    panels = {"Least eigenvalue of the loss's Hessian": curves}
    figure = cycles.stages(
        row.spectrum_time.values, panels, spans(row, "limit", "time"), "Which block is unstable", levels={
            next(iter(panels)): {"": 0.0}}
    )  # fmt: skip
    caption = (
        "At a plateau a negative eigenvalue is a way out. At the first one theory says that it belongs to W_Q and W_K "
        "alone: the outer block is not unstable there."
    )
    return Picture("limit-spectra", "Hessian at the plateaus", caption, figure)


def _sampled(dataset: xr.Dataset) -> list[Picture]:
    pictures = []
    for index, size in ((-1, "small"), (0, "large")):
        row = rows(dataset, index)[0]
        pictures.append(_portrait(row, "state", "snapshot", f"state-{size}", f"γ = {float(row.gamma):g}, first seed"))
    panels = {}
    for index in (-1, 0):
        for seed, row in enumerate(rows(dataset, index)):
            panels.setdefault(f"Focus F, γ = {float(row.gamma):g}", {})[f"seed {seed}"] = row["state.focus"].values
    figure = cycles.stages(dataset.snapshot.values, panels, (), "Focus on the most frequent token, all seeds")
    pictures.append(Picture("state-focus", "Focus in all seeds", "F = Σ π_i A[i, 0]; 0.75 is its base rate.", figure))
    return pictures


def _laws(datasets: Mapping[str, xr.Dataset]) -> list[Picture]:
    panels, cycle = {}, datasets["cycle"]
    points = {}
    for index in range(cycle.sizes["gamma"]):
        for seed, row in enumerate(rows(cycle, index)):
            log_scale = float(row.gamma) * np.log(row.attrs["config"]["model"]["d_model"])
            moved_T = abs(row["limit.focus"] - row["limit.focus"][0]) > claims.HYSTERESIS
            length = claims.first(row.time, moved_T)
            x, y = points.setdefault(f"seed {seed}", ([], []))
            x.append(log_scale)
            y.append(length)
    panels["First plateau"] = {"x": "log(1/ε)", "y": "step at which attention moves", "points": points, "log": "",
                               "line": _line(points)}  # fmt: skip
    if "escape" in datasets and "delta" in datasets["escape"].dims and (datasets["escape"].delta > 0).any():
        escape = datasets["escape"]
        points = {}
        for delta in escape.delta.values[escape.delta.values > 0]:
            for seed, row in enumerate(rows(escape.sel(delta=[delta]), -1)):
                x, y = points.setdefault(f"seed {seed}", ([], []))
                x.append(float(delta))
                y.append(claims.escaped_at(row))
        panels["Escape from symmetry"] = {"x": "δ", "y": "step of a second direction", "points": points, "log": "xy",
                                          "line": None}  # fmt: skip
    return [
        Picture(
            "laws",
            "Lengths of stages",
            "Every dot is a row of the exact limit.",
            cycles.laws(panels, "Lengths of stages"),
        )
    ]


def _line(points):
    """Least squares through all points."""
    x, y = (np.concatenate([np.asarray(pair[i], float) for pair in points.values()]) for i in (0, 1))
    fine = np.isfinite(x) & np.isfinite(y)
    if np.unique(x[fine]).size < 2:
        return None
    ends = np.array([x[fine].min(), x[fine].max()])
    return ends, np.polyval(np.polyfit(x[fine], y[fine], 1), ends)


def _companion(datasets: Mapping[str, xr.Dataset]) -> list[Picture]:
    pictures = []
    for index, size in ((-1, "small"), (0, "large")):
        row = rows(datasets["collapse"], index)[0]
        pictures.append(_collapse(row, f"collapse-{size}", f"γ = {float(row.gamma):g}, first seed"))
    return [*pictures, _balances(datasets)]


def _balances(datasets: Mapping[str, xr.Dataset]) -> Picture:
    """What gradient flow conserves and what it grows, by how rows were trained."""
    trained = {how: rows(datasets[name], -1) for name, how in (("collapse", "as trained"), ("descent", "plain descent"))
               if name in datasets}  # fmt: skip
    panels, times = {}, {}
    for variable, label in (("balance_drift", "Drift of the balances"), ("energy", "Energy")):
        for how, seeds in trained.items():
            panels[f"{label}, {how}"] = {f"seed {i}": row[f"signals.{variable}"].values for i, row in enumerate(seeds)}
            times[f"{label}, {how}"] = seeds[0].snapshot.values
    caption = (
        "W_VᵀW_V − W_1W_1ᵀ and W_1ᵀW_1 − W_2W_2ᵀ do not change in gradient flow while tanh is linear; drift is their "
        "change over the norms of the four. AdamW scales every weight's step on its own and does not keep them. Energy "
        "is u W_V W_1 W_2 w."
    )
    return Picture("balances", "What is conserved", caption, cycles.stages(times, panels, (), "Conservation laws"))


def _collapse(row: xr.Dataset, name: str, title: str) -> Picture:
    labels = {"value": "W_V", "in": "W_1", "out": "W_2", "query": "W_Q", "key": "W_K"}

    def by_matrix(variable):
        return {label: row[variable].sel(matrix=matrix).values for matrix, label in labels.items()}

    change = {"W_V, W_1, W_2": row["signals.change_outer"].values, "W_Q, W_K": row["signals.change_inner"].values}
    condition = {
        rate: row[f"signals.{rate.lower()}"].values for rate in ("A1_hidden", "A1_value", "A2_hidden", "A2_value")
    }
    loss = row["test.loss"].interp(step=row.snapshot.values).values
    panels = {
        "Loss on fresh sequences (nats)": {"loss": loss},
        "Mean |cos| between neurons": by_matrix("signals.cosine"),
        "Effective rank": by_matrix("signals.effective_rank"),
        "Relative change": change,
        "Condensation condition rates": condition,
        "|cos| with the predicted direction": {
            labels[matrix]: row[f"signals.aligned_{matrix}"].values for matrix in labels
        },
    }
    try:
        found = companion.borders_of(row)
        border = [found.condensation_end.step, found.collapse_start.step, found.collapse_end.step]
    except (Lacking, ValueError):
        border = [np.nan] * 3
    last = float(row.snapshot[-1])
    ends = [border[0], border[2] if np.isfinite(border[2]) else last]
    shaded = [
        ("condensation", 0.0, ends[0]),
        ("rank collapse", border[1], ends[1]),
        ("further training", ends[1], last),
    ]
    figure = cycles.stages(row.snapshot.values, panels, shaded, title, logarithmic=("Relative change",))
    caption = "Stage borders by `collapse.borders`; where a border is not reached nothing is shaded."
    return Picture(name, f"Condensation and collapse, {title}", caption, figure)
