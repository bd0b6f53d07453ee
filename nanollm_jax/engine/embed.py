"""What a model makes of texts: each as one vector, or how well each answers a query. Nothing is written behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nanollm_jax.checks import listed, whole
from nanollm_jax.engine.conversation import encode_chat
from nanollm_jax.engine.request import Request, encode_prompts
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.score import ROWS
from nanollm_jax.engine.shared import failed, submit
from nanollm_jax.errors import NumericsError, RequestError, shown
from nanollm_jax.loading import Model
from nanollm_jax.settings import Sampling, token_id

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
    rows: int | None = None,
    adapter: str | None = None,
) -> np.ndarray:
    """Texts to vectors: states behind the last layer and its norm, of any model.  One text -> [D], a list -> [n D] float32

    texts      as generate takes prompts: a text, a list of texts, a list of ids (one text), or lists of ids
    pooling    "mean" of the states at all tokens, BOS included; or "last", the state at the last token, the only one that a
               causal model makes of the whole text
    normalize  to length 1, so that a product of two is their cosine
    rows       of the engine that reads them, as in generate: a vector depends on nothing else, and on no other text
    adapter    by its name, one of those that the model was loaded with; None is the model as it is
    A model that was trained to write makes rough embeddings; one that was trained to embed says which pooling it wants.
    Raises RequestError for what cannot be read, NumericsError where the model computes no numbers.
    """
    if pooling not in POOLING:
        raise RequestError(f"pooling is {shown(pooling)}; expected {' or '.join(POOLING)}.")
    prompts, single = encode_prompts(model, texts)
    own = model.adapter(adapter)
    asked = [vector(ids, pooling, own) for ids in prompts]
    found = [
        vector_of(ticket, normalize) for ticket in read_all(model, asked, rows, "text {}: the states of its tokens")
    ]
    vectors: np.ndarray = np.reshape(np.array(found, np.float32), (len(found), model.config.hidden_size))
    return vectors[0] if single else vectors


def rerank(
    model: Model,
    query: str,
    documents: Sequence[str],
    *,
    instruction: str = INSTRUCTION,
    labels: Sequence[str | int] = LABELS,
    rows: int | None = None,
    adapter: str | None = None,
) -> np.ndarray:
    """How well each document answers a query, 0 to 1: how much likelier the model says yes than no.  n documents -> [n] float32

    instruction  what is looked for, in words
    labels       what says that it does and that it does not: texts of one token each, or ids
    rows, adapter  as in embed
    The model is asked through its chat template, thinking switched off where it has that switch, as rerankers that are
    decoders were trained to be asked (Qwen3-Reranker). Raises RequestError for what cannot be read, and for a model without a
    template; NumericsError where it computes no numbers.
    """
    given = listed(documents)
    if given is None:
        raise RequestError(f"documents is {type(documents).__name__}; expected a list of texts.")
    texts = [pair_ids(model, query, document, instruction) for document in given]
    pair, own = label_ids(model, labels), model.adapter(adapter)
    asked = [judgement(ids, pair, own) for ids in texts]
    found = map(chance_of, read_all(model, asked, rows, "document {}: the logits of its labels"))
    return np.array(list(found), np.float32)


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


def vector(ids: Sequence[int], pooling: str, adapter: int, **rest: Any) -> Request:
    """A request for a text as a vector."""
    return Request(tuple(ids), 0, Sampling(temperature=0.0), pooling=pooling, adapter=adapter, **rest)


def judgement(ids: Sequence[int], labels: tuple[int, int], adapter: int, **rest: Any) -> Request:
    """A request for how much likelier one token follows a text than another."""
    return vector(ids, "labels", adapter, labels=labels, **rest)


def vector_of(ticket: Ticket, normalize: bool) -> np.ndarray:
    """What came of vector.  -> [D] float32"""
    assert ticket.vector is not None
    found = ticket.vector / len(ticket.request.ids) if ticket.request.pooling == "mean" else ticket.vector
    size = np.linalg.norm(found) if normalize else 0
    return np.asarray(found / size if size > 0 else found, np.float32)


def chance_of(ticket: Ticket) -> float:
    """What came of judgement, from 0 to 1: the softmax of the two logits."""
    assert ticket.vector is not None
    yes, no = ticket.vector
    return float(np.exp(-np.logaddexp(np.float32(0), no - yes)))


def read_all(model: Model, requests: Sequence[Request], rows: int | None, where: str) -> list[Ticket]:
    """Have texts read to their ends, long ones first, so that the cache grows once. -> their tickets, in the order of these

    Raises RequestError for one that is longer than the model's positions, NumericsError, with `where` of its number, for one of
    which the model makes no numbers.
    """
    limit = model.config.max_positions
    for n, request in enumerate(requests):
        if len(request.ids) > limit:
            raise RequestError(f"text {n} has {len(request.ids)} tokens, the model {limit} positions; shorten it.")
    if not requests:
        return []
    order = sorted(range(len(requests)), key=lambda n: len(requests[n].ids), reverse=True)
    shared, tickets = submit(model, [requests[n] for n in order], rows, most=ROWS * model.dp)
    for _ in shared.follow(tickets):
        if (error := failed(tickets)) is not None:
            raise error
    found = dict(zip(order, tickets, strict=True))
    for n in range(len(requests)):
        made = found[n].vector
        if made is None or not np.isfinite(made).all():
            raise NumericsError(where.format(n))
    return [found[n] for n in range(len(requests))]
