"""The pictures of the identity-bridge study: who answers, what is shared, how it is learnt, what is said instead."""

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from lab.report import maps, style
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs

OOD = "two_hop_ood.accuracy"
ARMS = {0.0: "without identities", 1.0: "with identities"}
WORDS = {
    "linear": "Linear model",
    "table": "Without factors",
    "emb_mlp": "Emb-MLP",
    "transformer": "Transformer",
}
SHORTCUTS = {
    OOD: "right",
    "two_hop_ood.says_bridge": "the bridge",
    "two_hop_ood.right_type": "right type",
    "shortcut.without_first": "as for (e1, r2)",
    "shortcut.without_second": "as for (e1, r1)",
}
TEXT = {
    "linear": (
        "Logits are the sum of the tokens' rows of E U. By symmetry the part of E U that tells entities apart is a "
        "block [[a, c], [p, s]]: e1 says its bridge by a and its object by c, e2 itself by p and its object by s. "
        "Training asks for a, for s and, with identities, for p; a two-hop question is answered by c. The least "
        "nuclear norm has c = p, the least Frobenius norm c = 0. R = cp / (as) is 1 where all is shared."
    ),
    "table": "The same function with one free matrix W in place of E U: gradient descent then keeps c = 0.",
    "emb_mlp": "The bag of embeddings goes through an MLP; trained by AdamW.",
    "transformer": "Attention in place of the bag, without positions; trained by AdamW like the Emb-MLP.",
}


def sections(runs: Runs) -> list[Section]:
    made = []
    for name, run in runs.items():
        kind = next((kind for kind in WORDS if name == kind or name.startswith(f"{kind}_")), name)
        title = f"{WORDS.get(kind, kind)} ({name})"
        drawings = (answers, sharing, curves, shortcuts)
        made.append(draw_section(title, TEXT.get(kind, ""), run, drawings, name))
    return made


def answers(run: Run) -> Picture:
    """Accuracy over initial std and decay, with and without identities."""
    accuracy = run.final(OOD, ("seed", "sigma", "weight_decay", "identity")).median("seed")
    panels = {ARMS.get(float(i), f"identities {i:g}"): _map(accuracy.sel(identity=i)) for i in accuracy.identity.values}
    sigma, decay = (list(map(style.short, accuracy[axis].values)) for axis in ("sigma", "weight_decay"))
    title = "Who answers two-hop questions?"
    figure = maps.heatmap(panels, decay, sigma, "accuracy", title, "weight decay", "initial std")
    return Picture("answers", "Two-hop questions that training never shows; medians over seeds, last step.", figure)


def _map(accuracy: xr.DataArray) -> np.ndarray:
    return accuracy.transpose("weight_decay", "sigma").values


def sharing(run: Run) -> Picture:
    """What is shared against who answers, every row a dot."""
    names = {"block.sharing": "R = cp / (as)", "latent.centred": "cosine of (e1, r1) and e2, centred"}
    keep = ("seed", "sigma", "weight_decay", "identity")
    return Picture(
        "sharing",
        "Every row is a dot. R and the cosine are measured at facts and identities alone, not at two-hop questions.",
        scatter({label: run.final(name, keep) for name, label in names.items()}, run.final(OOD, keep)),
    )


@style.paper()
def scatter(measured: dict[str, xr.DataArray], accuracy: xr.DataArray):
    """Accuracy against each measured number, a colour for every arm."""
    arms = accuracy.identity.values
    figure, axes = style.panels(len(measured), style.panel_width(len(measured)), 3.1, "Alignment and answers")
    strokes = style.strokes([ARMS.get(float(arm), str(arm)) for arm in arms])
    for ax, (label, values) in zip(axes, measured.items(), strict=True):
        for arm, stroke in zip(arms, strokes, strict=True):
            x, y = (of.sel(identity=arm).transpose(..., *accuracy.dims[:1]).values.ravel() for of in (values, accuracy))
            ax.plot(x, y, "o", color=stroke["color"], ms=5, alpha=0.6, mec="none", gid="rows")
        ax.update_datalim([(0, 0), (1, 1)])  # what is 0 up to rounding looks like 0
        ax.set(xlabel=label, ylim=(-0.06, 1.06))
    axes[0].set_ylabel("two-hop accuracy")
    handles = [
        Line2D([], [], color=stroke["color"], marker="o", ls="", label=ARMS.get(float(arm), str(arm)))
        for arm, stroke in zip(arms, strokes, strict=True)
    ]
    style.legend_below(figure, handles)
    return figure


def curves(run: Run) -> Picture:
    """Facts and two-hop questions over training, by initial std."""
    keep = ("seed", "sigma", "identity")
    facts, asked = (run.over_time(name, keep) for name in ("train.accuracy", OOD))
    if asked.sizes["step"] < 3:
        raise MissingData("evaluations during training")
    caption = (
        "Solid: two-hop questions; dotted: what is trained. Medians over seeds, band from the lowest to the highest; "
        f"weight decay {float(asked.weight_decay):g}."
    )
    return Picture("curves", caption, over_training(facts, asked))


@style.paper()
def over_training(facts: xr.DataArray, asked: xr.DataArray):
    """A panel for every arm, a colour for every initial std."""
    arms, sigmas = asked.identity.values, asked.sigma.values
    figure, axes = style.panels(len(arms), style.panel_width(len(arms)), 3.1, "What is learnt when", sharey=True)
    steps, strokes = asked.step.values, style.strokes(sigmas)
    for ax, arm in zip(axes, arms, strict=True):
        for sigma, stroke in zip(sigmas, strokes, strict=True):
            two, one = (of.sel(identity=arm, sigma=sigma).transpose("step", "seed") for of in (asked, facts))
            ax.plot(steps, two.median("seed"), color=stroke["color"], lw=1.8, gid="two hops")
            ax.fill_between(steps, two.min("seed"), two.max("seed"), color=stroke["color"], alpha=0.15, lw=0)
            ax.plot(steps, one.median("seed"), color=stroke["color"], ls=":", lw=1.4, gid="trained")
        ax.set_title(ARMS.get(float(arm), f"identities {arm:g}"), loc="left")
        first = style.log_steps(ax, steps, 0.4)
        ax.set(xlabel="step", ylim=(-0.06, 1.06), xlim=(-0.3 * first, 1.1 * steps[-1]))
    axes[0].set_ylabel("accuracy")
    handles = [
        Line2D([], [], **stroke, label=f"std {style.short(sigma)}")
        for sigma, stroke in zip(sigmas, strokes, strict=True)
    ]
    style.legend_below(figure, handles)
    return figure


def shortcuts(run: Run) -> Picture:
    """What is said in place of the answer, by arm and initial std."""
    keep = ("seed", "sigma", "identity")
    found = {label: run.final(name, keep).median("seed") for name, label in SHORTCUTS.items()}
    arms = next(iter(found.values())).identity.values
    sigma = list(map(style.short, next(iter(found.values())).sigma.values))
    panels = {
        ARMS.get(float(arm), f"identities {arm:g}"): np.stack([of.sel(identity=arm).values for of in found.values()])
        for arm in arms
    }
    decay = float(next(iter(found.values())).weight_decay)
    caption = (
        "Shares of two-hop questions: answered right; with the bridge; with an entity of the answer's kind, right or "
        "wrong; as the question without its first relation is answered; as the one without its second. A question "
        f"may count in several. Medians over seeds, weight decay {decay:g}."
    )
    title = "Which part of the question is read?"
    figure = maps.heatmap(panels, list(found), sigma, "share", title, "answered", "initial std")
    return Picture("shortcuts", caption, figure)
