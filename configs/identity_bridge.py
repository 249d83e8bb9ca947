"""What makes a network join two facts? Single facts with and without identities, over initial std x weight decay.

    python -m lab reproduce identity_bridge --preset=cpu         # minutes on two CPU cores

Paper: "Identity Bridge" (arXiv 2509.24653; later "Unveiling the Mechanisms of Multi-Hop Reasoning in Transformers via
Identity Bridge"). Its settings are not available to us: all sizes are ours, see docs/identity_bridge.md.
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)

SIGMAS, DECAYS = (0.01, 0.03, 0.1, 0.3, 0.4), (0.0, 3e-4, 1e-3)  # of the linear model
ADAMW = dict(family="adamw", schedule="constant", warmup_steps=0, clip_norm=float("inf"))
BAGS_GRID = dict(sigma=(0.03, 0.1, 0.2, 0.4), weight_decay=(0.0, 0.3), learning_rate=(1e-3,))


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = _config(n_entities=4, width=8, steps=60)
    config.block_width = 1
    config.grid.update(sigma=(0.03, 0.4), weight_decay=(0.0, 1e-3), seed=(0, 1))
    for name in ("emb_mlp", "transformer"):
        config.variants[name].grid.update(sigma=(0.03, 0.4), weight_decay=(0.0, 1e-3))
    return config


def cpu() -> ConfigDict:
    """Minutes on two CPU cores.

    Decides all claims.
    """
    return _config(n_entities=30, width=128, steps=3000)


def _config(n_entities: int, width: int, steps: int) -> ConfigDict:
    """The linear model under full-batch gradient descent, its control without factors, and two models under AdamW."""
    made = base.config(
        model=_bag("emb_linear", n_entities, d_model=width),
        optim=dict(family="sgd", schedule="constant", warmup_steps=0, clip_norm=float("inf")),
        grid=dict(
            gamma=(), sigma=SIGMAS, weight_decay=DECAYS, learning_rate=(2.0,), identity=(0.0, 1.0), seed=(0, 1, 2, 3, 4)
        ),
        steps=steps,
        eval_every=steps // 30,
        snapshots=2,
        checkpoint_every=steps,
        **_sizes(n_entities),
    )
    made.variants = dict(
        linear=dict(model=_bag("emb_linear", n_entities, d_model=width)),
        table=dict(model=_bag("emb_table", n_entities), grid=dict(sigma=(1e-4,), weight_decay=(0.0,))),
        emb_mlp=dict(
            model=_bag("emb_mlp", n_entities, d_model=width, d_ff=2 * width, activation="tanh"),
            optim=ADAMW,
            grid=BAGS_GRID,
        ),
        transformer=dict(
            model=base.transformer(
                vocab_size=_vocabulary(n_entities), max_length=0, n_layers=1, d_model=width // 2, d_head=width // 2,
                d_ff=2 * width, norm="none", final_norm=False, readout="all",
            ),
            optim=ADAMW,
            grid=BAGS_GRID,
        ),
    )  # fmt: skip
    return made


def _bag(family: str, n_entities: int, **options) -> dict:
    return dict(family=family, vocab_size=_vocabulary(n_entities), readout="all", **options)


def _sizes(n_entities: int, complexity: int = 1) -> dict:
    """The world, and batches that have room for all of it: the full batch."""
    n_items = n_entities * (2 * complexity + complexity**2)
    task = dict(
        family="two_hop", world="layers", n_entities=n_entities, n_relations=complexity, out_degree=complexity,
        ood_share=1.0,
    )  # fmt: skip
    return dict(task=task, batch_size=n_items, eval_size=n_items)


def _vocabulary(n_entities: int, complexity: int = 1) -> int:
    """Padding, the end token, relations, subjects, bridges and objects."""
    return 2 + 2 * complexity + n_entities * (1 + complexity + complexity**2)
