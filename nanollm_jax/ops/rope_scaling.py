"""Rope for texts longer than those it was trained on: some pairs of a head turn more slowly, others as before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def llama3(plain: np.ndarray, scaling: Any) -> np.ndarray:
    """Pairs that turn more than high_freq_factor times in the original context stay; those that turn less than
    low_freq_factor times are slowed by `factor`; between the two, a straight mix.  [H/2] -> [H/2]
    """
    turns = scaling.original_max_positions * plain / np.float32(2 * math.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0, 1).astype(np.float32)
    return (1 - smooth) * plain / np.float32(scaling.factor) + smooth * plain


def part(plain: np.ndarray, scaling: Any) -> np.ndarray:
    """A part of the pairs, the first ones, turn as fast as if all did, over `factor`; others do not turn.  [H/2] -> [H/2]"""
    turning = np.arange(plain.size) < int(scaling.part * 2 * plain.size // 2)
    return plain * turning.astype(np.float32) / np.float32(scaling.factor)


def yarn(plain: np.ndarray, theta: float, scaling: Any) -> np.ndarray:
    """Pairs that turn more than beta_fast times in the original context stay; those that turn less than beta_slow
    times are slowed by `factor`; between the two, a ramp over the index of the pair.  [H/2] -> [H/2]

    Peng et al. 2023, arXiv:2309.00071, section 3.2.
    """
    H = 2 * plain.size

    def pair_that_turns(times: float) -> float:
        return H * math.log(scaling.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, H - 1)
    if low == high:
        high += 0.001  # a ramp of no width is a step
    ramp = np.clip((np.arange(H // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)
    return (1 - ramp) * plain + ramp * plain / np.float32(scaling.factor)
