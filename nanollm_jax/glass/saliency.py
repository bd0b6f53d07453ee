"""Which tokens of a text a prediction hangs on, by gradients at their embeddings.

Gradient times input: Shrikumar et al. 2016, arXiv:1605.01713; integrated gradients: Sundararajan et al. 2017, arXiv:1703.01365.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax.checks import check_counts
from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass import passes
from nanollm_jax.glass.passes import Target
from nanollm_jax.glass.texts import Source, Text, of_each, same_length, text_of
from nanollm_jax.params import Params

METHODS = ("gradient", "integrated")


@dataclass(frozen=True, repr=False)
class Saliency:
    """What each token of a text does to what is measured.

    scores      [T]; pieces the texts of the tokens
    plain       what is measured of the text, baseline of what it was compared with (NaN of the gradient alone)
    """

    scores: np.ndarray
    pieces: list[str]
    plain: float
    baseline: float
    said: str

    @property
    def missing(self) -> float:
        """What the scores lack of plain - baseline, to which integrated gradients add up."""
        return self.plain - self.baseline - float(self.scores.sum())

    def __repr__(self) -> str:
        most = np.argsort(-np.abs(self.scores))[:4]
        found = ", ".join(f"{self.pieces[n]!r} {self.scores[n]:+.2f}" for n in most)
        return f"Saliency({self.said}: {self.plain:.2f}; {found} ..)"


@of_each("text", "baseline")
def saliency(
    source: Source,
    text: Any = None,
    *,
    token: Any = None,
    against: Any = None,
    at: int = -1,
    method: str = "gradient",
    baseline: Any = None,
    steps: int = 32,
    row: int = 0,
) -> Saliency:
    """How much a prediction hangs on each token of a text.  -> scores [T]

    source   a model, and a text or its ids; or a box that watch gave, with a row of it
    token, against, at   what is measured: the log-probability of a token behind position `at`; or, with against, how far its
             logit is above that one's. token None is the one that follows, behind the last one the most probable
    method   "gradient": gradient times input; "integrated": the mean gradient on the way from a baseline to the text, times the
             way. Its scores add up to how much the two differ; `missing` says what they lack: the error of the integral and,
             of a model with experts, the jumps where a router changes its choice on the way, which no gradient sees
    baseline what integrated gradients begin from: another text of as many tokens, or None for the mean of this text's vectors
             at every position. (From zero vectors on, norms make a jump of nearly the whole way.)
    steps    points of the integral, by the rule of Gauss and Legendre
    Of several texts, or a list of rows, a list; token, against, at and baseline may have an entry for each then.
    Raises RequestError naming what cannot be honoured.
    """
    if method not in METHODS:
        raise RequestError(f"method is {shown(method)}; expected {' or '.join(METHODS)}.")
    if baseline is not None and method != "integrated":
        raise RequestError("baseline is for integrated gradients; add method='integrated', or leave it out.")
    (steps,) = check_counts(steps=steps)
    asked = text_of(source, text, row)
    if asked.model.config.layer_inputs:
        raise RequestError(
            "the layers of this model are told of a token besides its embedding (layer_inputs), which gradients at the "
            "embedding leave out; take patching or ablation, which change what is inside."
        )
    target, plain = passes.aim(asked, token, against, at)
    vectors = vectors_of(asked)
    other = asked if baseline is None else text_of(asked.model, baseline)
    same_length(asked, other, "baseline")
    start, alphas, weights = np.zeros_like(vectors), np.ones(1), np.ones(1)
    if method == "integrated":
        size = len(asked.ids)
        start = vectors_of(other) if baseline is not None else vectors * 0 + vectors[:, :size].mean(1, keepdims=True)
        nodes, shares = np.polynomial.legendre.leggauss(steps)
        alphas, weights = np.append((nodes + 1) / 2, 0), np.append(shares / 2, 0)  # and where nothing is of the text
    tokens, count = asked.padded
    values, slopes = passes.in_rows(
        lambda alpha: passes.run_pass(slope, asked.model, tokens, count, target, start, vectors, alpha),
        (alphas.astype(np.float32),),
        tokens.shape[1],
        asked.model.dp,
    )
    scores = np.einsum("S,ST->T", weights, slopes.astype(np.float64))[: len(asked.ids)]
    base = float(values[-1]) if method == "integrated" else np.nan
    return Saliency(scores.astype(np.float32), asked.pieces, plain, base, passes.said(asked, target))


def vectors_of(text: Text) -> np.ndarray:
    """The vectors with which a pass over a text begins.  -> [1 T D] float32"""
    values = passes.run_pass(passes.keep_values, text.model, *text.padded, keep=(("embedding", None),))
    return passes.fetched(values["embedding"]).astype(np.float32)


def slope(
    params: Params, tokens: jax.Array, count: jax.Array, target: Target, start: jax.Array, end: jax.Array, alpha: jax.Array,
    *, config: ModelConfig, mesh: Mesh | None, kept: str,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """What is measured on the way from start to end [1 T D], at alpha [B], and how steep it is there along the way of each
    token.  -> [B] float32, [B T] float32
    """
    way, B = end - start, alpha.shape[0]

    def measured(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        vectors = start + alpha[:, None, None] * way + added
        change = {"embedding": (lambda value, seen, x: x.astype(value.dtype), vectors)}
        values = passes.read_rows(params, tokens, count, target, B, change, config, mesh, kept)
        return jnp.sum(values), values

    gradient, values = jax.grad(measured, has_aux=True)(jnp.zeros((B, *way.shape[1:])))
    return values, jnp.sum(gradient * way, axis=-1)
