"""What several tests compare with, as textbooks have it."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax


def calibration_error(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Guo et al., 2017: the gap between confidence and accuracy in 15 bins, weighted by the rows in each."""
    p = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    sure, right = p.max(1), p.argmax(1) == np.asarray(targets)
    bins = np.minimum((sure * 15).astype(int), 14)
    return float(
        sum(abs(right[bins == one].mean() - sure[bins == one].mean()) * (bins == one).mean() for one in {*bins})
    )
