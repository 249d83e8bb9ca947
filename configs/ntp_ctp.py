"""Why next-token prediction reasons better than answer-only training: one grid of objectives, noise and initial scales.

    python -m lab reproduce ntp_ctp --preset=cpu        # minutes on two CPU cores

ntp_weight 1 scores every token (NTP), 0 the answer alone (CTP). Paper: "Reasoning Bias of Next Token Prediction
Training" (arXiv 2502.02007), which prints neither sizes nor optimizer: those of the presets `smoke`, `cpu` and `gpu`
are ours, that of `paper` is the group's recipe for GPT-2.
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)

LONGEST = 192  # positions: more than any of the sequences here

COMPOSITION = dict(
    family="composition", setting="34_unseen", n_anchors=4, modulus=9, noise_groups=0, low=20, high=99, length=9,
    vocab_size=201,
)  # fmt: skip
OTHER_KEYS = dict(COMPOSITION, low=110, high=189)  # the same anchors do the same to tokens that were never seen
ADDITION = dict(family="addition", high=99, block=(40, 60))
KINSHIP = dict(family="kinship", hops_train=(2, 3), hops_ood=(4,))
ONTOLOGY = dict(family="ontology", hops_train=(1, 2, 3), hops_ood=(4, 5), n_chains=2, n_concepts=40, form="cloze",
                chain_of_thought=False)  # fmt: skip
CONTROLS = {"sam_radius": (0.05, 0.2), "weight_noise": (0.05, 0.2), "weight_decay": (1.0,)}
GRAPH_PATH = dict(family="graph_path", hops_train=(1, 2, 3), hops_ood=(4,), width=2, n_parents=1, n_concepts=40)
RULES = dict(family="rules", hops_train=(1, 2), hops_ood=(3,), width=2)


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = base.shrink(cpu(), steps=40, batch_size=16)
    config.train_size = 64
    config.variants = dict(composition=dict(), composition_then_other_keys=_after_composition(OTHER_KEYS))
    return config


def cpu() -> ConfigDict:
    """15 minutes on two CPU cores.

    Two tasks that both objectives learn to 95 % at a size that two CPU cores train in minutes; kinship is not so.

    Decides no claim: three seeds.
    """
    return base.config(
        task=COMPOSITION,
        model=base.transformer(
            max_length=32,
            n_heads=2,
            d_model=48,
            d_head=24,
            d_ff=96,
            readout="all",  # NTP's loss reads every position
        ),
        optim=dict(schedule="constant"),
        grid=dict(ntp_weight=(0.0, 1.0), gamma=(0.5, 0.8), weight_decay=(0.01,), label_noise=(0.0, 0.2)),
        steps=3000,
        batch_size=64,
        train_size=8192,  # finite: what cannot be predicted can be learnt by heart
        eval_every=100,
        eval_size=512,
        snapshots=9,  # the first ones near the start, where the loss is expanded
        variants=dict(
            composition=dict(steps=4000, grid=dict(label_noise=(0.0,))),  # wrong answers: see addition
            addition=dict(steps=2000, task=ADDITION, model=dict(vocab_size=16), grid=dict(context_noise=(0.0, 0.1))),
            composition_then_other_keys=dict(_after_composition(OTHER_KEYS), steps=1500, eval_every=25),
            **{f"addition_{axis}": _control(0.0, **{axis: values}) for axis, values in CONTROLS.items()},
            addition_shuffled=_control(1.0, shuffle_context=True),
        ),
    )


def record() -> ConfigDict:
    """45 minutes on two CPU cores for addition, kinship and composition, hours more for the other tasks (estimated).

    `--variants=addition` takes one task. Wider than `cpu`; decays for each objective to choose from by held-out
    sequences, and rates where one of two look-ups is to be learnt; training sets that answer-only training learns by
    heart. Questions of one step to train on where two have to be found in a text: with more, neither objective leaves
    chance within this many steps.

    Decides N2-addition, N2-composition, N2-kinship, N2-ontology, N2-graph, N2-rules, N3-addition, N3-composition,
    N3-kinship, N3-ontology, N3-graph, N3-rules, N4a-addition, N4a-composition, N4a-kinship, N4a-ontology,
    N4a-graph, N4a-rules, N4b-addition, N4b-composition, N4b-kinship, N4b-ontology, N4b-graph, N4b-rules,
    N7-other_keys, N2, N2b, N2c, N2d, N3a, N3b, N3c, N3d, N3e, N4a, N4b, N9, N10, N3f, N3g, N4d, N4e, N5c, N5f, N7,
    N8, N8b.
    """
    config = cpu()
    config.model.update(d_model=64, d_head=32, d_ff=128)
    config.grid.update(
        gamma=(0.5,), weight_decay=(0.01, 1.0), learning_rate=(1e-3, 3e-3), label_noise=(0.0,), seed=tuple(range(8))
    )
    config.update(snapshots=7, snapshot_every=500)
    look_up = dict(steps=10_000, train_size=65_536, snapshot_every=2000)
    deeper = dict(vocab_size=192, n_layers=4, max_length=64)
    config.variants = dict(
        # Three decays for each objective to choose from, which are also a series of what decay does.
        addition=dict(
            steps=4000,
            task=ADDITION,
            model=dict(vocab_size=16),
            grid=dict(weight_decay=(0.01, 0.1, 1.0), learning_rate=(2e-3,)),
        ),
        kinship=dict(
            task=dict(KINSHIP, hops_train=(2,), hops_ood=(3,)),
            model=dict(vocab_size=64),
            train_size=4096,
            grid=dict(learning_rate=(2e-3,)),
        ),
        composition=dict(steps=4000, grid=dict(learning_rate=(2e-3,))),
        composition_then_other_keys=dict(
            _after_composition(OTHER_KEYS, weight_decay=(0.01,), learning_rate=(2e-3,)),
            steps=1500,
            eval_every=25,
            snapshot_every=0,
        ),
        ontology=dict(look_up, task=dict(ONTOLOGY, hops_train=(1,), hops_ood=(2,)), model=deeper),
        graph=dict(look_up, task=dict(GRAPH_PATH, hops_train=(1,), hops_ood=(2,)), model=deeper),
        rules=dict(look_up, task=dict(RULES, hops_train=(1,), hops_ood=(2,)), model=deeper),
        addition_shuffled=_control(1.0, shuffle_context=True),
    )
    config.variants.addition_shuffled.update(
        steps=4000, grid=dict(ntp_weight=(1.0,), weight_decay=(0.01,), learning_rate=(2e-3,))
    )
    return config


def gpu() -> ConfigDict:
    """All tasks, minutes on one GPU (not yet timed).

    Every noise, and contexts shuffled between sequences: the noise of NTP without its structure.

    Decides no claim: three seeds.
    """
    config = cpu()
    config.model.update(max_length=LONGEST, n_layers=4, n_heads=4, d_model=128, d_head=32, d_ff=256)
    config.grid.update(
        ntp_weight=(0.0, 0.5, 1.0), weight_decay=(0.01, 1.0), context_noise=(0.0, 0.1), learning_rate=(5e-4, 2e-3)
    )
    config.update(steps=6000, batch_size=128, train_size=16_384, eval_size=1024, snapshots=6)
    config.variants = _all_tasks()
    return config


def paper() -> ConfigDict:
    """GPT-2 small from scratch on every task: days on one GPU (not yet timed).

    The group's AdamW at a constant 5e-5, three initial scales.

    Decides no claim: three seeds.
    """
    config = cpu()
    config.model.update(
        max_length=LONGEST,
        n_layers=12,
        n_heads=12,
        d_model=768,
        d_head=64,
        d_ff=3072,
        activation="gelu_tanh",
        use_bias=True,
        tied_head=True,
    )
    config.init = "authors"
    config.optim.update(warmup_steps=0, start_factor=1.0, end_factor=1.0)
    config.grid.update(
        ntp_weight=(0.0, 1.0),
        gamma=(0.5, 0.6, 0.8),  # GPT-2's std of 0.02 is 768^-0.59
        weight_decay=(0.01, 0.1, 1.0),
        context_noise=(0.0, 0.1),
        learning_rate=(5e-5,),
    )
    config.update(
        steps=50_000, batch_size=128, train_size=100_000, eval_every=500, eval_size=2048, snapshots=8,
        checkpoint_every=2000,
    )  # fmt: skip
    config.variants = _all_tasks()
    return config


def _control(ntp_weight: float, shuffle_context: bool = False, **axes: tuple) -> dict:
    """Addition by one objective, at the usual scale: CTP with a regularizer, or NTP on contexts without structure."""
    grid = dict(ntp_weight=(ntp_weight,), gamma=(0.5,), label_noise=(0.0,)) | axes
    objective = dict(shuffle_context=shuffle_context)
    return dict(steps=2000, task=ADDITION, objective=objective, model=dict(vocab_size=16), grid=grid)


def _all_tasks() -> dict:
    """Every task with both objectives, and NTP on shuffled contexts."""
    sizes = {"composition": (COMPOSITION, 201), "addition": (ADDITION, 16), "kinship": (KINSHIP, 64),
             "ontology": (ONTOLOGY, 192), "graph": (GRAPH_PATH, 192), "rules": (RULES, 128)}  # fmt: skip
    made = {}
    for name, (task, vocab_size) in sizes.items():
        made[name] = dict(task=task, model=dict(vocab_size=vocab_size))
        shuffled = dict(objective=dict(shuffle_context=True), grid=dict(ntp_weight=(1.0,)))
        made[f"{name}_shuffled"] = made[name] | shuffled
    plain = dict(ntp_weight=(0.0, 1.0), context_noise=(0.0,), weight_decay=(0.01,))
    made["composition_then_other_keys"] = _after_composition(OTHER_KEYS, **plain)
    made["composition_then_addition"] = _after_composition(ADDITION, **plain)
    return made


def _after_composition(task: dict, **axes: tuple) -> dict:
    """A second task, learnt by either objective from what NTP made of composition; without injected noise."""
    return dict(
        task=dict(family="sequel", task=task, first=COMPOSITION),
        model=dict(vocab_size=COMPOSITION["vocab_size"]),
        start=dict(variant="composition", row=dict(ntp_weight=1.0)),
        grid=dict(label_noise=(0.0,), **axes),
    )
