"""The logit lens: what the model would say if it ended at some place inside.  nostalgebraist 2020, "interpreting GPT"."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax import model as transformer
from nanollm_jax.checks import check_counts
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.programs import parallelize
from nanollm_jax.errors import RequestError
from nanollm_jax.glass import passes
from nanollm_jax.glass.names import letters
from nanollm_jax.glass.texts import Source, check_box, model_of, of_each, pieces_of, text_of
from nanollm_jax.glass.watch import Watched
from nanollm_jax.params import Params

ROWS = 256  # vectors that are scored at once


@dataclass(frozen=True, repr=False)
class Lens:
    """What T tokens would be followed by at each of P places.

    places    names of the places, from the first layer to the last
    pieces    texts of the T tokens; words [P T k] those of the best ones there
    ids       the k best tokens [P T k], and their natural log-probabilities, logprobs [P T k]
    following log-probability of the token that really follows [P T], NaN behind the last of a text
    ranks     how many tokens are more probable than that one [P T], -1 behind the last
    """

    places: list[str]
    pieces: list[str]
    words: list[list[list[str]]]
    ids: np.ndarray
    logprobs: np.ndarray
    following: np.ndarray
    ranks: np.ndarray

    def __repr__(self) -> str:
        P, T, k = self.ids.shape
        return f"Lens({P} places, {T} tokens, the {k} best of each)"

    def _repr_html_(self) -> str:
        """A row a place, the last one on top: the best token, in the colour of its probability."""
        rows = []
        for name, words, logprobs in reversed(list(zip(self.places, self.words, self.logprobs, strict=True))):
            found = [
                f"<td title='{math.exp(chance[0]):.1%}' style='background:rgba(40,110,220,{math.exp(chance[0]):.2f})'>"
                f"{html.escape(word[0])}</td>"
                for word, chance in zip(words, logprobs, strict=True)
            ]
            rows.append(f"<tr><th>{html.escape(name)}</th>{''.join(found)}</tr>")
        text = "".join(f"<th>{html.escape(piece)}</th>" for piece in self.pieces)
        return f"<table>{''.join(rows)}<tr><th></th>{text}</tr></table>"


@of_each("text")
def lens(
    source: Source, text: Any = None, *, k: int = 5, places: str | Iterable[str] = "layers.*.out", row: int = 0
) -> Lens:
    """What the model would say at places inside: their vectors through the last norm and the table of logits.

    source  a model, and a text or its ids; or a box that watch gave, of which a row is looked at: what was kept of its real
            generation, edits included, so the places have to be among that
    k       tokens that are named for each
    places  patterns of names with axes [B T D]: the stream behind layers ("layers.*.out", "embedding"), what is added to it
            ("layers.*.mlp.out"); "final_norm" is scored as it is, with which the lens gives the model's own answer
    Of several texts, or a list of rows, a list of lenses. Raises RequestError for places that are no such vectors.
    """
    (k,) = check_counts(k=k)
    if isinstance(source, Watched):
        check_box(source, text, row)
        model, ids = model_of(source, row), source.tokens[row]
        names = list(passes.places_of(model, places))
        check_vectors(names)
        found = [source[name][row] for name in names]
        ids, following = ids[:-1], ids[1:]
    else:
        asked = text_of(source, text)
        model, ids = asked.model, asked.ids
        names = list(passes.places_of(model, places))
        check_vectors(names)
        keep = tuple((name, None) for name in names)
        values = passes.fetched(passes.run_pass(passes.keep_values, model, *asked.padded, keep=keep))
        found = [values[name][0, : len(ids)] for name in names]
        following = [*ids[1:], -1]
    if k > model.config.vocab_size:
        raise RequestError(f"k is {k}; expected at most the {model.config.vocab_size} tokens of the vocabulary.")
    P, T = len(names), len(ids)
    vectors = np.concatenate(found)  # [P*T D]
    after = np.tile(np.array(following, np.int32), P)
    normed = np.repeat([name == "final_norm" for name in names], T)
    best, logprobs, own, ranks = passes.in_rows(
        lambda *arrays: passes.run(score, model, *arrays, k=k),
        (vectors, after, normed),
        passes.TOKENS // ROWS,
        model.dp,
    )
    words = [[pieces_of(model, map(int, token)) for token in place] for place in best.reshape(P, T, k)]
    return Lens(
        names,
        pieces_of(model, ids),
        words,
        best.reshape(P, T, k),
        logprobs.reshape(P, T, k),
        np.where(after < 0, np.nan, own).reshape(P, T),
        np.where(after < 0, -1, ranks).reshape(P, T),
    )


def check_vectors(names: list[str]) -> None:
    """Raise RequestError for what is no vector of the model's width."""
    for name in names:
        if letters(name) != ["B", "T", "D"]:
            raise RequestError(
                f"{name} has axes {' '.join(letters(name) or ())}; a lens reads vectors of the model's width, B T D, such as "
                "layers.*.out."
            )


def score(
    params: Params,
    x: jax.Array,
    following: jax.Array,
    normed: jax.Array,
    *,
    config: ModelConfig,
    mesh: Mesh | None,
    k: int,
) -> tuple[jax.Array, ...]:
    """scored, on all members of a mesh, which divides R."""
    config = passes.held(config, mesh)
    return parallelize(partial(scored, config=config, k=k), mesh, config)(params, x, following, normed)


def scored(
    params: Params, x: jax.Array, following: jax.Array, normed: jax.Array, *, config: ModelConfig, k: int
) -> tuple[jax.Array, ...]:
    """x [R D], following [R], normed [R] bool -> the best ids and logprobs [R k], logprob and rank of following [R]"""
    h = jnp.where(normed[:, None], x, transformer.normalize(params, "final_norm", x[None], config)[0])
    logprobs = jax.nn.log_softmax(transformer.logits(params, h[None], config)[0])
    best, ids = jax.lax.top_k(logprobs, k)
    own = jnp.take_along_axis(logprobs, jnp.maximum(following, 0)[:, None], axis=1)
    return ids, best, own[:, 0], jnp.sum(logprobs > own, axis=1)
