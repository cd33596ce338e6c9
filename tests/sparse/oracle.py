"""What the masks must be, in numpy with sorting: written from the papers, not from the code under test."""

from __future__ import annotations

import numpy as np


def top(score: np.ndarray, k: int) -> np.ndarray:
    """True at the k greatest of a flat array, ties to the lower index."""
    chosen = np.zeros(score.size, bool)
    chosen[np.argsort(-score.astype(np.float64), kind="stable")[:k]] = True
    return chosen


def exchanged(mask: np.ndarray, weights: np.ndarray, growth: np.ndarray, drop: float) -> np.ndarray:
    """One change of RigL (Evci et al. 2020, algorithm 1) on flat arrays: as many as before."""
    kept = int(mask.sum())
    survivors = top(np.where(mask, np.abs(weights), -1.0), kept - round(drop * kept))
    grown = top(np.where(survivors, -1.0, growth), kept - int(survivors.sum()))
    return survivors | grown


def zhu_gupta(step: int, final: float, begin: int, end: int, initial: float = 0.0) -> float:
    """Equation 1 of the paper."""
    x = min(max(step - begin, 0), end - begin) / (end - begin)
    return final + (initial - final) * (1 - x) ** 3


def adam(weights: np.ndarray, grads: list[np.ndarray], masks: list[np.ndarray], rate: float) -> tuple[np.ndarray, ...]:
    """Adam in float64 on flat weights whose masks are given step by step: (weights, first moment, second moment) after all of them."""
    w, m, v = np.where(masks[0], weights.astype(np.float64), 0.0), np.zeros(weights.size), np.zeros(weights.size)
    for t, (g, mask) in enumerate(zip(grads, masks, strict=True), 1):
        w = np.where(mask, w, 0.0)
        g = np.where(mask, g.astype(np.float64), 0.0)
        m, v = np.where(mask, 0.9 * m + 0.1 * g, 0.0), np.where(mask, 0.999 * v + 0.001 * g**2, 0.0)
        w = np.where(mask, w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), 0.0)
    return w, m, v
