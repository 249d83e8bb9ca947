"""What the released notebooks of arXiv 2501.08537 report: what our pictures and claims are set beside.

Ten layers and ten heads of width 64; accuracies are the best over all evaluations, means over three seeds. Where a
notebook shows a picture and no number it was read by eye: accuracies to 0.01, stable ranks to 10, convergence to 1.
"""

import numpy as np
import xarray as xr

from lab.analysis import phase

PAPER = "arXiv 2501.08537"
GAMMAS = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80)
DECAYS = (0.0, 0.01, 0.1, 1.0)
PHASES = (
    ("1", "1", "1", "2 w"),
    ("2 w/o", "2 w/o", "2 w/o", "3"),
    ("2 w/o", "2 w/o", "2 w/o", "3"),
    ("2 w", "2 w", "2 w", "3"),
    *(("3",) * 4,) * 5,
)  # by gamma, by decay
# At weight decay 0.01. The notebook prints its ticks 0.90, 0.95, 1.00 as 0.8, 0.9, 1; these are the plotted values.
SLICE_GAMMAS = GAMMAS[:6]
SLICE = {
    "test_seen.accuracy": (0.89, 0.996, 0.99, 0.995, 1.0, 1.0),
    "ood_43.reasoning": (0.08, 0.05, 0.04, 0.09, 0.97, 0.96),
}
# Of W_Q of the first block, most likely: the notebook names no matrix. 10 and 5 stand for "below 10" and "below 5".
RANK_DECAYS = (0.01, 0.1, 1.0)
STABLE_RANK = ((160, 160, 18), (145, 125, 18), (105, 90, 10), (30, 24, 10), (14, 12, 5), *((10, 10, 5),) * 4)
# Cosines of last-token vectors: lowest and highest among pairs of sequences
EQUIVALENCE = {"within_40": (0.91, 0.93), "within_79": (0.95, 0.98), "across": (0.23, 0.49)}
# Epochs to a training loss below 0.1, mean and standard deviation over 8 seeds: depth -> corrupted pairs -> both
NOISE_EPOCHS = {
    2: {0: (20, 3), 1: (31, 9), 5: (43, 12)},
    3: {0: (20, 1), 1: (22, 2), 5: (24, 2)},
    4: {0: (17, 1), 1: (20.5, 2), 5: (23, 2)},
}


def phases() -> xr.DataArray:
    """The phase grid (gamma, weight_decay), indices into `lab.analysis.phase.PHASES`."""
    index_GxW = np.array([[phase.PHASES.index(name) for name in row] for row in PHASES], np.int8)
    return xr.DataArray(index_GxW, {"gamma": list(GAMMAS), "weight_decay": list(DECAYS)}, name="phase")


def stable_rank() -> xr.DataArray:
    """The stable-rank grid (gamma, weight_decay)."""
    coords = {"gamma": list(GAMMAS), "weight_decay": list(RANK_DECAYS)}
    return xr.DataArray(np.array(STABLE_RANK, float), coords, name="rank.stable")
