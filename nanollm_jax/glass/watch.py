"""Watching the real model write: generate, with values inside kept and changed in its compiled loop, cache and batch.

The law of edits: an edit is a function of the value, the row, the position and what came before, so an edited answer that the
cached loop writes is what one edited pass over the whole text gives. A watched engine keeps no prefixes: what was not computed
cannot be looked at, and what one edit made is no other's.
"""

from __future__ import annotations

import html
import inspect
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nanollm_jax.checks import check_counts
from nanollm_jax.engine import buckets, memory
from nanollm_jax.engine.answer import Generation
from nanollm_jax.engine.drafts import DraftModel, Lookup, spare, speculation
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.generate import generate
from nanollm_jax.engine.request import Request, encode_prompts, longest, requests_of
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.shared import Shared, check_usable, failed
from nanollm_jax.errors import NumericsError, RequestError
from nanollm_jax.glass.asking import changes_of, check_plan, expanded, model_names
from nanollm_jax.glass.edits import Change, Shrink, kept_by
from nanollm_jax.glass.names import letters
from nanollm_jax.glass.watched_programs import Asked, Watching
from nanollm_jax.loading import Model

LIMIT = 2**30  # bytes
Keep = str | Iterable[str] | Mapping[str, Shrink | None]
Changes = Mapping[str, Change] | None


def watch(
    model: Model,
    prompts: Any,
    *,
    keep: Keep = (),
    change: Changes | Sequence[Changes] = None,
    since: Any = "prompt",
    limit: int = LIMIT,
    **asked: Any,
) -> Watched:
    """generate, and what was asked for of the values inside.  The same tokens; logprobs may differ in their last bits.

    keep     patterns of names, or {pattern: shrink}: shrink(value, seen) -> a tree of [B T ..] is kept in place of the value
    change   {pattern: (edit, arrays)}: edit(value, seen, arrays), in the same shape and dtype, is used instead from there on.
             The value has the rows first, and so have the arrays: what is given here is one row's. Its tokens are those of a
             piece of the prompt, or the one of a step: seen["positions"] [B T] says which, and value[:, 3] is no place of a
             text. A list has a dict, or None, for each prompt, all with the same edits; rows without any are plain, in the same
             batch and the same program
    since    where changes begin: "prompt" (everywhere), "answer" (the tokens that were drawn), or a position; or a list of them
    limit    bytes that may be kept; more are refused before anything runs
    All else is as in generate. Edits and shrinks are compiled in, by what function they are; arrays and beginnings are not.

        box = watch(model, "Once upon a time", keep=["layers.3.attention.weights"], max_new_tokens=32)
        box["layers.3.attention.weights"][0]                     # of row 0: [tokens K G tokens]
    Raises RequestError as generate and harvest do, and for names that have no value for each token.
    """
    *_, box = watching(model, prompts, keep, change, since, limit, asked, streamed=False)
    return box


def watch_stream(
    model: Model,
    prompts: Any,
    *,
    keep: Keep = (),
    change: Changes | Sequence[Changes] = None,
    since: Any = "prompt",
    limit: int = LIMIT,
    **asked: Any,
) -> Iterator[Watched]:
    """watch while it writes: the same box after each chunk, with what there is until then. Arguments are checked at once."""
    return watching(model, prompts, keep, change, since, limit, asked, streamed=True)


def watching(
    model: Model,
    prompts: Any,
    keep: Keep,
    change: Any,
    since: Any,
    limit: int,
    asked: dict[str, Any],
    *,
    streamed: bool,
) -> Iterator[Watched]:
    """What watch and watch_stream share: everything is looked at, then a generator is made that runs."""
    rows, guesses = asked.pop("rows", None), speculation(asked.pop("speculate", None))
    asked = {"max_new_tokens": 128, "sampling": None, "seed": 0, "stop": (), "stop_ids": ()} | asked
    if isinstance(guesses, DraftModel):
        raise RequestError(
            "a model that guesses has values of the same names as this one; watch with speculate='lookup', or without."
        )
    if unknown := sorted(asked.keys() - set(inspect.signature(generate).parameters)):
        raise RequestError(
            f"watch has no argument {unknown[0]}; it takes those of generate, keep, change, since and limit."
        )
    texts, _ = encode_prompts(model, prompts)
    n = 1 if asked.get("n") is None else asked["n"]
    requests = requests_of(model, texts, **asked | {"n": n}, streamed=streamed)
    if not requests:
        raise RequestError("prompts is empty; give one at least.")
    check_usable(model)
    names = model_names(model)
    shrinks = kept_by(keep)
    edits, changes = changes_of(names, change, since, texts, n)
    wanted = Asked(tuple(expanded(names, shrinks).items()), tuple(edits.items()))
    planned = check_plan(model, wanted, requests, limit, spare(guesses))
    if rows is None:
        rows = memory.fitting(model, buckets.rows(len(requests), model.dp), longest(requests), guesses)
    else:
        rows = -(-check_counts(rows=rows)[0] // model.dp) * model.dp
    return run(model, requests, Watching(wanted, changes), rows, guesses, planned, streamed=streamed)


def run(
    model: Model,
    requests: list[Request],
    programs: Watching,
    rows: int,
    guesses: Lookup | None,
    planned: int,
    *,
    streamed: bool,
) -> Iterator[Watched]:
    """Answer requests in an engine of their own, and give the box at the end; streamed, after each chunk too.

    planned: bytes that are kept at most.
    """
    shared = Shared(Engine(model, rows, prefix_bytes=0, speculate=guesses, programs=programs))
    programs.engine = shared.engine
    tickets = shared.submit(requests)
    box = Watched(model, tickets, programs, planned)
    for _ in shared.follow(tickets):
        if (error := failed(tickets)) is not None:
            if isinstance(error, NumericsError) and programs.asked.change:
                raise RequestError(
                    f"a row was changed until it has no numbers any more: {error.where} are infinite or NaN; make the change "
                    "of a value smaller, or leave it out to see whether the model itself is damaged."
                ) from error
            raise error
        if streamed or all(ticket.ended for ticket in tickets):  # a chunk is on its way, for which this waits
            box.take(shared)
            yield box
    programs.engine = None  # its rows are nobody's, and the device's memory is free again


def aligned(values: np.ndarray, slots: np.ndarray, size: int, nothing: float = 0) -> np.ndarray:
    """What m queries made of each slot, by the token that it held: [m K G S], positions of the slots [m S] -> [m K G size]"""
    new = np.full((*values.shape[:-1], size), nothing, values.dtype)
    for token, view in enumerate(slots):
        held = (view >= 0) & (view < size)
        new[token][..., view[held]] = values[token][..., held]
    return new


class Watched:
    """Answers, and what was kept of the values inside.

    model     who wrote them
    answers   a Generation a row: a prompt, or one of its n answers
    tokens    the ids of each row, prompt and answer; pieces the same as texts
    names     what was kept
    planned   bytes that it was planned to take at most, before anything ran: where answers have all their tokens
    box[name] of each row one array [tokens ..], or a tree of them: of every token but the last, which was drawn and never run.
              Axes behind the first are those of the name; keys of weights and scores are tokens, too. "logits" are those that
              the answer's tokens were drawn from, [answer V].
    """

    def __init__(self, model: Model, tickets: list[Ticket], programs: Watching, planned: int) -> None:
        """Nothing seen yet."""
        self.model, self.tickets, self.programs, self.planned = model, tickets, programs, planned
        self.answers: list[Generation] = []
        self.names = [name for name, _ in programs.asked.keep]

    def take(self, shared: Shared) -> None:
        """What there is by now. Waiting for it is part of what it cost, which steps of the engine alone would not show."""
        begun = time.perf_counter()
        self.programs.fetch()
        spent = shared.engine.spent
        shared.engine.spent = spent._replace(seconds=spent.seconds + time.perf_counter() - begun)
        self.answers = [ticket.result(shared.engine.spent) for ticket in self.tickets]

    @property
    def tokens(self) -> list[list[int]]:
        """The ids of each row, prompt and answer."""
        return [[*ticket.request.ids, *ticket.answer.token_ids] for ticket in self.tickets]

    @property
    def pieces(self) -> list[list[str]]:
        """The text of each token."""
        tokenizer = self.model.tokenizer
        name = str if tokenizer is None else tokenizer.piece
        return [[name(token) for token in row] for row in self.tokens]

    def __getitem__(self, name: str) -> list[Any]:
        """What was kept under a name, of each row. Raises RequestError for another name."""
        if name not in self.names:
            raise RequestError(f"{name} was not kept; what was is {', '.join(self.names) or 'nothing'}.")
        return [self.row(name, ticket) for ticket in self.tickets]

    def row(self, name: str, ticket: Ticket) -> Any:
        """One row's values under a name, a token behind the other."""
        begin = len(ticket.request.ids) - 1 if name == "logits" else 0
        size = len(ticket.request.ids) + len(ticket.answer.token_ids) - 1 - begin
        found = [piece for piece in self.programs.pieces.get(ticket.number, []) if name in piece.values]
        if not found:
            return None
        where = np.concatenate([piece.positions for piece in found]) - begin
        there = (where >= 0) & (where < size)
        shrunk = dict(self.programs.asked.keep)[name] is not None
        keyed = not shrunk and "S" in (letters(name) or ())
        lowest = float(np.finfo(np.float32).min) if name.endswith("scores") else 0

        def by_token(piece: Any) -> np.ndarray:
            return aligned(piece.values[name], piece.slots[name.rpartition(".")[0]], size, lowest)

        def joined(*parts: np.ndarray) -> np.ndarray:
            values = np.concatenate(parts)
            made = np.zeros((size, *values.shape[1:]), values.dtype)
            made[where[there]] = values[there]  # of a position that was computed twice, the later one
            return made

        return jax.tree.map(joined, *(by_token(piece) if keyed else piece.values[name] for piece in found))

    @property
    def nbytes(self) -> int:
        """Bytes of all that was kept."""
        pieces = [piece for row in self.programs.pieces.values() for piece in row]
        return sum(leaf.nbytes for piece in pieces for leaf in jax.tree.leaves(piece.values))

    def __repr__(self) -> str:
        size = f"{self.nbytes:,} bytes of {self.planned:,} planned"
        return f"Watched({len(self.answers)} answers, {', '.join(self.names) or 'nothing kept'}, {size})"

    def _repr_html_(self) -> str:
        """Texts with the answer's tokens in the colour of their surprise, and what was kept."""
        rows = []
        for ticket, pieces in zip(self.tickets, self.pieces, strict=True):
            given = len(ticket.request.ids)
            prompt = f"<span style='opacity:.6'>{html.escape(''.join(pieces[:given]))}</span>"
            chips = [
                f"<span title='{math.exp(logprob):.1%}' style='background:rgba(220,90,30,{min(-logprob / 8, 1):.2f})'>"
                f"{html.escape(piece)}</span>"
                for piece, logprob in zip(pieces[given:], ticket.answer.logprobs, strict=True)
            ]
            rows.append(f"<p>{prompt}{''.join(chips)}</p>")
        kept = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{' '.join((letters(name) or ())[1:])}</td></tr>"
            for name in self.names
        )
        size = f"<small>{self.nbytes:,} bytes kept of {self.planned:,} planned</small>"
        return f"<div>{''.join(rows)}<table>{kept}</table>{size}</div>"
