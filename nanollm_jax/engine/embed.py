"""What a model makes of texts at once: each as one vector, or how well each answers a query. Nothing of it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nanollm_jax.checks import check_counts, listed, whole
from nanollm_jax.collectives import whole as gathered
from nanollm_jax.decode import read_states
from nanollm_jax.engine import buckets
from nanollm_jax.engine.conversation import encode_chat
from nanollm_jax.engine.request import encode_prompts
from nanollm_jax.errors import NumericsError, RequestError, shown
from nanollm_jax.loading import Model
from nanollm_jax.settings import token_id

POOLING = ("mean", "last")
# As models that were trained to judge documents were asked (Qwen3-Reranker's model card)
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can "
    'only be "yes" or "no".'
)
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
LABELS = ("yes", "no")
ASKED = "<Instruct>: {}\n<Query>: {}\n<Document>: {}"


def embed(
    model: Model,
    texts: str | Sequence[Any],
    *,
    pooling: str = "mean",
    normalize: bool = True,
    batch: int = 8,
    adapter: str | None = None,
) -> np.ndarray:
    """Texts to vectors: states behind the last layer and its norm, of any model.  One text -> [D], a list -> [n D] float32

    texts      as generate takes prompts: a text, a list of texts, a list of ids (one text), or lists of ids
    pooling    "mean" of the states at all tokens, BOS included; or "last", the state at the last token, the only one that a
               causal model makes of the whole text
    normalize  to length 1, so that a product of two is their cosine
    batch      texts per call of the compiled program
    adapter    by its name, one of those that the model was loaded with; None is the model as it is
    A model that was trained to write makes rough embeddings; one that was trained to embed says which pooling it wants.
    Raises RequestError for what cannot be read, NumericsError where the model computes no numbers.
    """
    if pooling not in POOLING:
        raise RequestError(f"pooling is {shown(pooling)}; expected {' or '.join(POOLING)}.")
    rows, single = encode_prompts(model, texts)
    vectors: np.ndarray = np.zeros((len(rows), model.config.hidden_size), np.float32)
    for part, states, _ in made_of(model, rows, batch, adapter):
        vectors[part] = states[:, POOLING.index(pooling)]
    if not np.isfinite(vectors).all():
        raise NumericsError(f"text {int(np.argmin(np.isfinite(vectors).all(axis=1)))}: the states of its tokens")
    if normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths > 0, lengths, 1)
    return vectors[0] if single else vectors


def rerank(
    model: Model,
    query: str,
    documents: Sequence[str],
    *,
    instruction: str = INSTRUCTION,
    labels: Sequence[str | int] = LABELS,
    batch: int = 8,
    adapter: str | None = None,
) -> np.ndarray:
    """How well each document answers a query, 0 to 1: how much likelier the model says yes than no.  n documents -> [n] float32

    instruction  what is looked for, in words
    labels       what says that it does and that it does not: texts of one token each, or ids
    batch, adapter  as in embed
    The model is asked through its chat template, thinking switched off where it has that switch, as rerankers that are
    decoders were trained to be asked (Qwen3-Reranker). Raises RequestError for what cannot be read, and for a model without a
    template; NumericsError where it computes no numbers.
    """
    given = listed(documents)
    if given is None:
        raise RequestError(f"documents is {type(documents).__name__}; expected a list of texts.")
    rows = [pair_ids(model, query, document, instruction) for document in given]
    return chances(model, rows, label_ids(model, labels), batch=batch, adapter=adapter)


def pair_ids(model: Model, query: Any, document: Any, instruction: Any) -> list[int]:
    """What is asked of a query and a document, as ids. Raises RequestError for what is no text."""
    for name, text in (("query", query), ("a document", document), ("instruction", instruction)):
        if not isinstance(text, str):
            raise RequestError(f"{name} is {shown(text)}; expected a text.")
    asked = ASKED.format(instruction, query, document)
    messages = [{"role": "system", "content": JUDGE}, {"role": "user", "content": asked}]
    return encode_chat(model, messages, variables={"enable_thinking": False})


def label_ids(model: Model, labels: Any) -> tuple[int, int]:
    """The two tokens between which a document is judged. Raises RequestError for what is not one token each."""
    given, found = listed(labels) or (), []
    for label in given:
        ids = [label] if whole(label) is not None else []
        if isinstance(label, str) and model.tokenizer is not None:
            ids = model.tokenizer.encode(label, bos=False)
        if len(ids) != 1:
            raise RequestError(
                f"the label {shown(label)} is {len(ids)} tokens of this model; expected a text of one, or an id."
            )
        found.append(token_id("labels", ids[0], model.config.vocab_size))
    if len(found) != 2 or found[0] == found[1]:
        raise RequestError(f"labels is {shown(labels)}; expected two, what says yes and what says no.")
    return found[0], found[1]


def chances(
    model: Model, rows: Sequence[Sequence[int]], labels: tuple[int, int], *, batch: int = 8, adapter: str | None = None
) -> np.ndarray:
    """How much likelier the first label follows each text than the second: the softmax of their two logits.  -> [n] float32"""
    logits: np.ndarray = np.zeros((len(rows), 2), np.float32)
    for part, _, scores in made_of(model, rows, batch, adapter, labels):
        logits[part] = scores
    if not np.isfinite(logits).all():
        raise NumericsError(f"document {int(np.argmin(np.isfinite(logits).all(axis=1)))}: the logits of its labels")
    found: np.ndarray = np.exp(-np.logaddexp(0, logits[:, 1] - logits[:, 0]))
    return found


def made_of(
    model: Model, rows: Sequence[Sequence[int]], batch: int, adapter: str | None, choices: tuple[int, int] = (0, 0)
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """What read_states makes of texts, long ones first, `batch` at a time: which these are, and both of its arrays."""
    (batch,) = check_counts(batch=batch)
    own, limit = model.adapter(adapter), model.config.max_positions
    for n, ids in enumerate(rows):
        if len(ids) > limit:
            raise RequestError(f"text {n} has {len(ids)} tokens, the model {limit} positions; shorten it.")
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    for first in range(0, len(order), batch):
        part = order[first : first + batch]
        T = buckets.text(len(rows[part[0]]), limit)
        size = batch if len(order) > batch else len(part)
        tokens = np.zeros((model.dp * -(-size // model.dp), T), np.int32)
        count = np.ones(len(tokens), np.int32)
        for at, row in enumerate(part):
            count[at] = len(rows[row])
            tokens[at, : count[at]] = rows[row]
        pair = np.tile(np.array(choices, np.int32), (len(tokens), 1))
        rows_of = tokens, count, np.full_like(count, own), pair
        found = read_states(model.params, *rows_of, config=model.config, kept=model.cache)
        states, scores = (gathered(array)[: len(part)] for array in found)
        yield part, states, scores
