"""Next-token prediction against answer-only training on published questions: who answers those that were held out?

    python -m lab reproduce ntp_ctp_files --config.task.path=FILE --workdir=runs/questions

FILE is a JSON list of PrOntoQA or ProsQA questions, plain, .xz or .gz; its last fifth is held out. To hold out another
file instead: `--config.task.test_path=OTHER --config.task.test_share=0.0`. Extra `text`; minutes on two cores, a third
of them with `--config.task.length=120`, which is enough for PrOntoQA.

Expect nothing of held-out questions; some hundred are too few to learn deduction from. Of the 500 of PrOntoQA, CTP
learns 400 by heart (0.99 right) and answers 0.48 [0.42, 0.49] of the other 100, NTP 0.65 and 0.55 [0.48, 0.56], where a
coin is within 0.1 of 1/2. On ProsQA (its 500 test questions to train on, the 300 for validation held out, 400 steps)
CTP learns 0.94 by heart, and neither objective answers more than 0.03: it names any concept, not one of the two asked
about. The published training sets have 9,000 questions (PrOntoQA) and 17,886 (ProsQA).

Paper: "Reasoning Bias of Next Token Prediction Training" (arXiv 2502.02007), which prints neither sizes nor optimizer.
"""

from ml_collections import ConfigDict

from lab.configs import base, ntp_ctp

get_config = base.get_config(__name__)


def smoke() -> ConfigDict:
    """Seconds on any file; every part runs, nothing is learnt.

    Decides no claim: three seeds.
    """
    config = base.shrink(cpu(), steps=4, batch_size=4, checkpoints=1)
    config.eval_size = 16
    config.grid.seed = (0, 1, 2)
    return config


def cpu() -> ConfigDict:
    """Minutes on two CPU cores; needs --config.task.path=FILE.

    The model of `ntp_ctp`, on sequences that hold the longest published question.

    Decides no claim: three seeds.
    """
    length, vocab_size = 336, 128
    return base.config(
        task=dict(
            family="question_files",
            path="",
            test_path="",
            test_share=0.2,
            length=length,
            vocab_size=vocab_size,
        ),
        model=ntp_ctp.cpu().model.to_dict() | dict(vocab_size=vocab_size, max_length=length),
        optim=dict(schedule="constant"),
        grid=dict(ntp_weight=(0.0, 1.0)),
        steps=600,
        batch_size=16,
        train_size=0,  # all of the file's, in new random order at every step
        eval_every=100,
        eval_size=400,
        snapshots=2,
        checkpoint_every=300,
    )


def record() -> ConfigDict:
    """Three times as long as `cpu` (estimated); needs --config.task.path=FILE.

    Seeds that can bear a verdict.

    Decides all claims.
    """
    config = cpu()
    config.grid.seed = tuple(range(8))
    return config


def gpu() -> ConfigDict:
    """For the published training sets, minutes on one GPU (not yet timed).

    A deeper model, two initial scales.

    Decides no claim: three seeds.
    """
    config = cpu()
    config.model.update(n_layers=4, n_heads=4, d_model=128, d_head=32, d_ff=256)
    config.grid.update(gamma=(0.5, 0.8), learning_rate=(1e-3,))
    config.update(steps=20_000, batch_size=128, eval_every=500, eval_size=1024, checkpoint_every=2000)
    return config
