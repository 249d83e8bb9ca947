"""What makes a network join two facts? Single facts with and without identities, over initial std x weight decay.

    python -m lab reproduce identity_bridge --preset=cpu         # minutes on two CPU cores

Paper: "Identity Bridge" (arXiv 2509.24653; later "Unveiling the Mechanisms of Multi-Hop Reasoning in Transformers via
Identity Bridge"). Its settings are not available to us: all sizes are ours, see docs/identity_bridge.md.
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)

DECAY = 1e-3
LINEAR_GRID = dict(sigma=(0.01, 0.03, 0.1, 0.3, 0.4), weight_decay=(0.0, 3e-4, DECAY), learning_rate=(2.0,))
ADAMW = dict(family="adamw", schedule="constant", warmup_steps=0, clip_norm=float("inf"))
ADAMW_GRID = dict(sigma=(0.03, 0.1, 0.4), weight_decay=(0.0, 1.0), learning_rate=(1e-3,))
SGD = dict(family="sgd", schedule="constant", warmup_steps=0, clip_norm=float("inf"))
SEEDS = (0, 1, 2, 3, 4)
HEADLINE_SEEDS = (*SEEDS, 5, 6, 7)


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = _config(n_entities=4, width=8, steps=60)
    config.update(block_width=1, eval_every=20)
    config.grid.update(sigma=(0.03, 0.4), weight_decay=(0.0, 1e-3), seed=(0, 1))
    for name in ("emb_mlp", "transformer"):
        config.variants[name].grid.update(sigma=(0.03, 0.4), weight_decay=(0.0, 1e-3))
    return config


def cpu() -> ConfigDict:
    """Minutes on two CPU cores.

    Four models at complexity 1: linear with and without factors, a bag of embeddings with an MLP, a transformer. The
    linear one at complexity 2, too, where the first relation tells something.

    Decides all claims.
    """
    config = _config(n_entities=20, width=64, steps=3000)
    config.variants["linear_2"] = _linear(10, 2, 128, 4500, weight_decay=(0.0,))
    return config


def record() -> ConfigDict:
    """Hours on two CPU cores (not yet timed as a whole).

    As `cpu`, and more complexity, and one thing at a time of what decides whether the transformer joins facts: how
    identities are asked, the norm, the optimizer, how attention learns, the number of entities, the length of training.

    Decides all claims.
    """
    config = _config(n_entities=30, width=128, steps=3000)
    config.grid.seed = HEADLINE_SEEDS
    for complexity, n_entities in ((2, 20), (4, 10)):
        config.variants[f"linear_{complexity}"] = _linear(n_entities, complexity, 256, 9000, weight_decay=(0.0, DECAY))
    whole = config.variants.transformer.to_dict()
    grid = whole["grid"] | dict(sigma=(0.03, 0.1), weight_decay=(0.0, 1.0), identity=(1.0,), seed=SEEDS)
    plain_vocab_size = whole["model"]["vocab_size"] - 1  # without the token `?`
    one = dict(whole, grid=grid)
    sgd_grid = grid | dict(weight_decay=(0.0, DECAY), learning_rate=(0.2,))
    longer = dict(steps=12_000, eval_every=400, checkpoint_every=12_000)
    config.variants.update(
        transformer_plain=one | dict(task=dict(asked="plain"), model=one["model"] | dict(vocab_size=plain_vocab_size)),
        transformer_relation=one | dict(task=dict(asked="relation")),
        transformer_no_norm=one | dict(model=one["model"] | dict(norm="none", final_norm=False)),
        transformer_post=one | dict(model=one["model"] | dict(norm="post", final_norm=False)),
        transformer_uniform=one | dict(optim=ADAMW | dict(frozen=("qk",)), grid=grid | dict(sigma_qk=(0.0,))),
        transformer_sgd=one | dict(optim=SGD, grid=sgd_grid),
        transformer_sgd_no_norm=one
        | dict(optim=SGD, grid=sgd_grid, model=one["model"] | dict(norm="none", final_norm=False)),
        transformer_two_layers=one | dict(model=one["model"] | dict(n_layers=2)),
        transformer_longer=one | longer,
    )
    return config


def gpu() -> ConfigDict:
    """Minutes on one GPU (not yet timed).

    As `record`, over more initial stds: four models at complexity 1, the linear one at 2 and 4 as well.

    Decides all claims.
    """
    config = record()
    dense = dict(sigma=(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4), identity=(0.0, 1.0))
    config.grid.update(dense)
    for name in ("emb_mlp", "transformer"):
        config.variants[name].grid.update(dense)
    return config


def paper() -> ConfigDict:
    """Of about the published kind, whose sizes are not available to us: hours on one GPU (not yet timed).

    A hundred entities a set, complexity 4, a transformer of four layers and width 256.

    Decides I3, I5, I7: the other claims are of the linear model.
    """
    world = _world(n_entities=100, complexity=4)
    vocab_size = world.pop("vocab_size") + 1
    config = base.config(
        model=_bag("emb_mlp", vocab_size, d_model=256, d_ff=1024, activation="tanh"),
        optim=ADAMW,
        grid=dict(
            gamma=(), sigma=(0.01, 0.02, 0.05, 0.1), weight_decay=(0.0, 0.1, 1.0), learning_rate=(1e-3,),
            identity=(0.0, 1.0), seed=SEEDS,
        ),
        steps=20_000, eval_every=500, snapshots=5, checkpoint_every=4000,
        **{name: value for name, value in world.items()},
    )  # fmt: skip
    config.task.asked = "question"
    config.variants = dict(
        emb_mlp={},
        transformer=dict(
            model=base.transformer(
                vocab_size=vocab_size, max_length=0, n_layers=4, n_heads=4, d_model=256, d_head=64, d_ff=1024,
                activation="gelu_tanh", readout="all",
            ),
            grid=dict(learning_rate=(1e-4,)),
        ),
    )  # fmt: skip
    return config


def _config(n_entities: int, width: int, steps: int) -> ConfigDict:
    """The linear model under full-batch gradient descent, its control without factors, and two models under AdamW."""
    world = _world(n_entities)
    vocab_size = world.pop("vocab_size")
    config = base.config(
        model=_bag("emb_linear", vocab_size, d_model=width),
        optim=SGD,
        grid=dict(gamma=(), **LINEAR_GRID, identity=(0.0, 1.0), seed=SEEDS),
        steps=steps,
        eval_every=steps // 30,
        snapshots=2,
        checkpoint_every=steps,
        **world,
    )
    marked = dict(task=dict(asked="question"), optim=ADAMW, grid=ADAMW_GRID)
    config.variants = dict(
        linear={},
        table=dict(model=_bag("emb_table", vocab_size), grid=dict(sigma=(1e-4,), weight_decay=(0.0,))),
        emb_mlp=marked
        | dict(model=_bag("emb_mlp", vocab_size + 1, d_model=width, d_ff=2 * width, activation="tanh")),
        transformer=marked
        | dict(
            model=base.transformer(vocab_size=vocab_size + 1, max_length=0, n_layers=1, readout="all")
        ),
    )  # fmt: skip
    return config


def _linear(n_entities: int, complexity: int, width: int, steps: int, weight_decay: tuple) -> dict:
    """The linear model in another world, from the smallest and the largest initial std."""
    world = _world(n_entities, complexity)
    model = _bag("emb_linear", world.pop("vocab_size"), d_model=width)
    grid = dict(sigma=(0.01, 0.4), weight_decay=weight_decay)
    return world | dict(model=model, grid=grid, steps=steps, eval_every=steps // 30, checkpoint_every=steps)


def _bag(family: str, vocab_size: int, **options) -> dict:
    return dict(family=family, vocab_size=vocab_size, readout="all", **options)


def _world(n_entities: int, complexity: int = 1) -> dict:
    """The world, the size of its vocabulary, and batches that have room for all of it: the full batch."""
    n_items = n_entities * (2 * complexity + complexity**2)
    task = dict(
        family="two_hop", world="layers", n_entities=n_entities, n_relations=complexity, out_degree=complexity,
        ood_share=1.0, asked="plain",
    )  # fmt: skip
    vocab_size = 2 + 2 * complexity + n_entities * (1 + complexity + complexity**2)
    return dict(task=task, vocab_size=vocab_size, batch_size=n_items, eval_size=n_items)
