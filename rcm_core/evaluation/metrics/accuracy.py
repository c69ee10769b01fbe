"""Prompt accuracy: the share of samples in which the judge sees what the prompt asked for; at best 1.

Source: the classification accuracy score of Ravuri and Vinyals, arXiv 1905.10887, turned round: a classifier
of real images is applied to generated ones.
"""

from __future__ import annotations

import numpy as np


def accuracy(correct: np.ndarray) -> float:
    """Mean of the flags ``correct`` [N]."""
    return float(np.mean(correct, dtype=np.float64))


def accuracy_replicates(correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Accuracy of ``R`` weighted copies: sample n occurs ``counts[r, n]`` times; float64 ``[R]``."""
    replicates: np.ndarray = counts @ correct.astype(np.float64) / counts.sum(1)
    return replicates
