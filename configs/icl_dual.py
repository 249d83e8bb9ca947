"""In-context learning: a softmax layer as one gradient step of a dual model, and induction as a transition over gamma.

    python -m lab reproduce icl_dual --preset=record        # 12 minutes on two CPU cores; cpu: 10

Measured at preset `record`, eight seeds: the layer's output is the dual model's after one step to 4e-6 (D1); with
negatives the error is 0.68 times the plain layer's (D3c); induction, which one layer does not learn, takes two layers
170 steps at gamma 0.5 and 631 at 1.1 (D6a, D6b, D7a).

Paper: "Towards Understanding How Transformers Learn In-context Through a Representation Learning Lens" (arXiv
2310.13220). Its sizes and formulas were not available; what we chose: docs/icl_dual.md.
"""

from ml_collections import ConfigDict

from lab.configs import base

get_config = base.get_config(__name__)

REGRESSION = dict(family="linear_regression", n_features=5, n_demos=15)
INDUCTION = dict(family="induction")
FIVE, EIGHT = (1, 2, 3, 4, 5), tuple(range(1, 9))  # trials were of seed 0
GAMMAS = (0.5, 0.7, 0.9, 1.1)


def _changes(alphas: tuple, betas: tuple, counts: tuple) -> dict[str, dict]:
    """Variant -> what differs from `plain`; in names alpha (`m`: minus) and beta stand in tenths."""
    changes = {f"regularized_{10 * a:g}".replace("-", "m"): dict(alpha=a) for a in alphas}
    changes |= {f"augmented_{how}": dict(augment=how) for how in ("serial", "parallel")}
    return changes | {f"negative_{10 * b:g}_{r}": dict(beta=b, n_negatives=r) for b in betas for r in counts}


def smoke() -> ConfigDict:
    """Seconds; every part runs, nothing is learnt.

    Decides no claim: two seeds.
    """
    config = base.shrink(cpu(), steps=16, batch_size=8)
    kept = ("plain", "regularized_m10", "augmented_serial", "negative_5_5", "induction_1", "induction_2")
    config.variants = {name: config.variants[name].to_dict() for name in kept}
    config.variants["plain"].update(grid=dict(gamma=(0.5, 0.9)))
    for name in ("induction_1", "induction_2"):
        config.variants[name].update(steps=16, eval_every=8, grid=dict(gamma=(0.5, 0.9)))
        config.variants[name].model.update(d_model=8, d_head=8, d_ff=8)
    return config


def cpu() -> ConfigDict:
    """10 minutes on two CPU cores.

    Linear regression of five features and fifteen demonstrations by one layer of width 32, plain at four init rates and
    with each of the paper's changes; induction by one layer and by two, at four init rates.

    Decides all claims.
    """
    regression = dict(grid=dict(gamma=(0.5,)))
    return base.config(
        task=REGRESSION,
        model=_layer(5, 32),
        optim=dict(warmup_steps=50),
        grid=dict(gamma=GAMMAS, weight_decay=(0.0,), learning_rate=(5e-3,), seed=FIVE),
        steps=3000,
        batch_size=64,
        eval_every=50,
        eval_size=4096,
        snapshots=4,
        checkpoint_every=1000,
        variants=dict(
            plain=dict(),
            **{
                name: regression | dict(model=change, eval_every=200)
                for name, change in _changes((-1.0, 0.5), (0.5, 1.0), (5, 15)).items()
            },
            induction_1=_induction(1, 1200),
            induction_2=_induction(2, 1200),
        ),
    )


def record() -> ConfigDict:
    """12 minutes on two CPU cores.

    As `cpu` with ten features, width 64, 4,000 steps, eight seeds and more settings of each change; the plain layer at
    three init rates and two weight decays.

    Decides all claims.
    """
    config = _larger(10, 64, steps=4000)
    config.grid.seed = EIGHT
    config.variants["plain"] = dict(grid=dict(gamma=(0.5, 0.8, 1.1), weight_decay=(0.0, 1.0)))
    return config


def gpu() -> ConfigDict:
    """Minutes on one GPU (not yet timed).

    As `record` with 20,000 steps, five seeds and one weight decay.

    Decides all claims.
    """
    config = _larger(10, 64, steps=20_000)
    config.optim.warmup_steps = 200
    config.grid.learning_rate = (1e-3,)
    return config


def paper() -> ConfigDict:
    """100,000 steps of twelve features; not yet timed.

    The published sizes are not available.

    Decides no claim: three seeds.
    """
    config = _larger(12, 64, steps=100_000)
    config.optim.warmup_steps = 1000
    config.grid.update(learning_rate=(1e-3,), seed=(0, 1, 2))
    return config


def _larger(n_features: int, width: int, steps: int) -> ConfigDict:
    config = cpu()
    config.task.n_features = n_features
    config.model.update(d_in=n_features + 1, d_model=width)
    config.update(steps=steps, eval_every=steps // 80, checkpoint_every=steps // 4)
    changes = _changes((-2.0, -1.0, -0.5, 0.5, 1.0, 2.0), (0.1, 0.5, 1.0), (1, 5, 15))
    variants = {"plain": {}}
    for name, change in changes.items():
        variants[name] = dict(model=change, grid=dict(gamma=(0.5,)), eval_every=steps // 10)
    variants |= {f"induction_{n}": _induction(n, 4000) for n in (1, 2)}
    config.variants = variants
    return config


def _layer(n_features: int, width: int) -> dict:
    return dict(
        family="vector_attention", d_in=n_features + 1, d_model=width, alpha=0.0, beta=0.0, n_negatives=1,
        augment="none", d_augment=32, activation="relu",
    )  # fmt: skip


def _induction(n_layers: int, steps: int) -> dict:
    """Without norms, which would hide the scale of small weights."""
    return dict(
        task=INDUCTION,
        model=base.transformer(
            vocab_size=32, max_length=16, n_layers=n_layers, d_model=32, d_head=32, norm="none", final_norm=False,
            readout="all", d_ff=64,
        ),
        grid=dict(weight_decay=(0.01,), learning_rate=(3e-3,)),
        steps=steps, eval_every=25, eval_size=512,
    )  # fmt: skip
