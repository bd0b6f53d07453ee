# 12 · Positions
import math
from dataclasses import dataclass

import jax.numpy as jnp


@dataclass(frozen=True)
class Config:
    """What cannot be seen from the weights. The names are those of nanollm_jax."""

    rope_theta: float = 10_000.0
    window: int | None = None  # how many tokens a query sees, itself included; None is all


def rotate(x, positions, theta):
    """Turn the numbers i and i + H/2 of each vector by position / theta^(2i/H).  x [T N H], positions [T] -> [T N H]"""
    H = x.shape[-1]
    frequencies = theta ** (-jnp.arange(0, H, 2) / H)  # [H/2], radians per position
    angle = (positions[:, None] * frequencies)[:, None]  # [T 1 H/2]
    left, right = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def self_attention(x, w, config):
    """What attention writes into the stream.  x [T D], w: wqkv [K Q H D] and wo [D N H] -> [T D]"""
    positions = jnp.arange(len(x))
    q, k, v = split_heads(x, w["wqkv"])
    q, k = rotate(q, positions, config.rope_theta), rotate(k, positions, config.rope_theta)
    mixed = attend(q, k, v, visible(positions, positions, config.window))
    return jnp.einsum("TNH,DNH->TD", mixed, w["wo"])
