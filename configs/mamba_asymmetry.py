"""What Mamba cannot see: sequences read backwards, and pairs of anchors reversed, over depth and initial scale.

    python -m lab reproduce mamba_asymmetry --preset=cpu        # 7 minutes on two CPU cores

Claim S1a holds at `record`: a Mamba that fits its training sequences answers reversed ones by chance. One with a path
past its convolution answers 0.998 [0.96, 1] of them (S1b, open, at least 0.99 wanted). Equal taps compose (S2b does not
hold there).

Paper: "Achilles' Heel of Mamba: Essential difficulties of the Mamba architecture demonstrated by synthetic data" (arXiv
2509.17514). What it leaves open, and what we chose: docs/mamba_asymmetry.md.
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)

INVERSE = dict(family="inverse_matching", n_fillers=6)
SYMMETRIC = dict(family="symmetric_composition")
COMPOSITION = dict(
    family="composition", setting="34_wrong", n_anchors=4, modulus=8, noise_groups=0, low=20, high=99, length=8,
    vocab_size=120, first_position=1, ood_keys="held_out",
)  # fmt: skip
MODIFIED = dict(past_conv="added", has_positions=True)
GAMMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)
FIVE, EIGHT = (1, 2, 3, 4, 5), tuple(range(1, 9))  # the trials that chose preset `cpu` were of seed 0


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = base.shrink(cpu(), steps=16, batch_size=8)
    config.train_size = 64
    pairs = dict(task=COMPOSITION, model=_small(2), train_size=0, grid=dict(gamma=(0.3, 0.5, 1.0)))
    config.variants = {
        "inverse_mamba": {}, "inverse_modified": dict(model=MODIFIED), "symmetric": dict(task=SYMMETRIC),
        **{f"mamba_{depth}": pairs | dict(model=_small(depth)) for depth in (2, 3)},
        "ones": pairs | dict(model=_small(2) | dict(conv="ones")),
        "positions": pairs | dict(model=_small(2) | dict(has_positions=True)),
        "transformer_2": pairs | dict(model=_transformer(2, 8)),
    }  # fmt: skip
    return config


def cpu() -> ConfigDict:
    """7 minutes on two CPU cores.

    Sequences read backwards, by a Mamba of half the published width and a norm before its blocks, and by one with a
    path past the convolution and positions; of 10,000 training sequences in place of 80,000, which the standard one
    fits in all seeds, the other in three of five.

    Decides S1a, S1b.
    """
    return base.config(
        task=INVERSE,
        model=base.mamba(norm="pre", final_norm=True),
        optim=dict(warmup_steps=150),
        grid=dict(gamma=(0.5,), learning_rate=(1e-3,), seed=FIVE),
        steps=1400,
        batch_size=128,
        train_size=10_000,
        eval_every=200,
        eval_size=4096,
        snapshots=3,
        checkpoint_every=200,
        variants=dict(inverse_mamba=dict(), inverse_modified=dict(model=MODIFIED, steps=800)),
    )


def record() -> ConfigDict:
    """About 80 minutes on two CPU cores, the sum of its variants.

    As `cpu` with eight seeds, twice the training sequences, 4,000 and 1,600 updates, and a control; beside it, with
    five, the fully symmetric task, and free taps against equal ones in five layers of width 32, with fewer updates than
    published.

    Decides S1a, S1b, S2a, S2b, S3, S4a, S5a, S5b, S6, S7.
    """
    config = cpu()
    config.update(train_size=20_000, steps=4000)
    config.grid.seed = EIGHT
    pairs = dict(
        task=COMPOSITION, grid=dict(seed=FIVE), train_size=252_000, batch_size=512, steps=3000, eval_every=250,
        checkpoint_every=1000, eval_size=1024,
    )  # fmt: skip
    config.variants = {
        "inverse_mamba": {},
        "inverse_modified": dict(model=MODIFIED, steps=1600),
        "inverse_positions": dict(model=dict(has_positions=True), steps=1600, grid=dict(seed=FIVE)),
        "symmetric": pairs | dict(task=SYMMETRIC, model=_published(2, 64), train_size=256_500),
        "mamba_5": pairs | dict(model=_published(5, 32), grid=dict(gamma=(1.0,), seed=FIVE)),
        "ones": pairs | dict(model=_published(5, 32) | dict(conv="ones"), grid=dict(gamma=(1.0,), seed=FIVE)),
        "mamba_2": pairs | dict(model=_published(2, 32)),
        "positions": pairs | dict(model=_published(2, 32) | dict(has_positions=True)),
    }
    return config


def gpu() -> ConfigDict:
    """Hours on one GPU (not yet timed).

    Everything at the published width, layers by initial scale with half of the published updates.

    Decides all claims.
    """
    config = paper()
    config.grid.seed = FIVE
    for name, variant in config.variants.items():
        if not name.startswith("inverse_"):
            variant.update(steps=12_300, eval_every=615, checkpoint_every=2460)
    return config


def paper() -> ConfigDict:
    """As published, but for the width of the transformer's values: days on one GPU (not yet timed).

    Decides no claim: three seeds.
    """
    composed, matched, symmetric = 252_000 // 2048, 80_000 // 1024, 256_500 // 2048  # updates an epoch
    config = base.config(
        task=INVERSE,
        model=base.mamba(d_model=128, d_inner=256),
        optim=dict(warmup_steps=10 * matched),
        grid=dict(gamma=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0), learning_rate=(2.5e-4,), seed=(0, 1, 2)),
        batch_size=1024,
        train_size=80_000,
        eval_size=4096,
        **_lasting(200, matched),
    )
    pairs = dict(
        task=COMPOSITION, batch_size=2048, train_size=252_000, optim=dict(warmup_steps=10 * composed),
        grid=dict(gamma=GAMMAS), **_lasting(200, composed),
    )  # fmt: skip
    alike = dict(
        task=SYMMETRIC, batch_size=2048, train_size=256_500, optim=dict(warmup_steps=10 * symmetric),
        grid=dict(gamma=(0.5,)), **_lasting(200, symmetric),
    )  # fmt: skip
    config.variants = {
        "inverse_mamba": {},
        "inverse_modified": dict(model=MODIFIED),
        "inverse_positions": dict(model=dict(has_positions=True)),
        "inverse_transformer": dict(model=_transformer(2, 128, vocab_size=201, max_length=29, conv="none")),
        "symmetric": alike,
        **{f"mamba_{depth}": pairs | dict(model=_published(depth, 32)) for depth in range(2, 8)},
        **{f"transformer_{depth}": pairs | dict(model=_transformer(depth, 128)) for depth in range(2, 8)},
        "ones": pairs | dict(model=_published(5, 32) | dict(conv="ones"), grid=dict(gamma=(1.0,))),
        "positions": pairs | dict(model=_published(2, 32) | dict(has_positions=True), grid=dict(gamma=(0.5,))),
    }
    return config


def _lasting(epochs: int, updates: int) -> dict:
    """So many updates an epoch."""
    return dict(
        steps=epochs * updates, eval_every=epochs * updates // 40, snapshots=5, checkpoint_every=epochs * updates // 20
    )


def _published(n_layers: int, d_model: int) -> dict:
    return dict(vocab_size=120, max_length=8, n_layers=n_layers, d_model=d_model, d_inner=2 * d_model, d_state=128)


def _small(n_layers: int) -> dict:
    return dict(vocab_size=120, max_length=8, n_layers=n_layers, d_model=8, d_inner=16, d_state=4)


def _transformer(n_layers: int, width: int, **changes) -> dict:
    options = dict(
        vocab_size=120, max_length=8, n_layers=n_layers, d_model=width, d_head=width, d_ff=width, activation="silu",
        norm="post", final_norm=False, conv="causal",
    )  # fmt: skip
    return base.transformer(**options | changes)
