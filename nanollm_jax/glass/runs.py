"""One watched generation as it is shown while it happens: plain, and beside it with edits, as pairs of a word and plain data.

begin    the prompt's tokens, the rows, what is kept
token    what an answer grew by, with what else could have been said
event    what the engine did in one step, from when to when in its own seconds, and how many bytes that had to read
cache    which position stands in which slot of each layer
summary  of a row, the head of its story and the arrays that values() gives; now and then, and at the end
end      how the answers ended
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from nanollm_jax.cache import KVCache
from nanollm_jax.engine.drafts import spare, speculation
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import encode_prompts, requests_of
from nanollm_jax.engine.rows import Spent, Ticket
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass.asking import check_plan, expanded, model_names
from nanollm_jax.glass.cache_view import cache_view
from nanollm_jax.glass.changes import Edits, Steer
from nanollm_jax.glass.costs import bytes_of, limit
from nanollm_jax.glass.edits import Shrink
from nanollm_jax.glass.names import letters
from nanollm_jax.glass.story import Story, for_report, story
from nanollm_jax.glass.texts import own_config, word_of
from nanollm_jax.glass.watch import LIMIT, Watched, watch_stream
from nanollm_jax.glass.watched_programs import Asked
from nanollm_jax.loading import Model
from nanollm_jax.settings import Sampling

TOPS = 5  # what else could have been said
WHOLE = 64 * 2**20  # bytes of whole rows of attention, up to which they are kept of every layer
SHARE = 4  # a story is told anew when so many times the seconds have passed that the last one took
Item = tuple[str, dict[str, Any]]


class Values(NamedTuple):
    """An array as little-endian bytes: a letter for each axis, how long they are, what the numbers are, of which story."""

    letters: str
    shape: tuple[int, ...]
    dtype: str
    data: bytes
    story: int


class Run:
    """A prompt and how it is to be answered, looked at before anything runs.

    bytes   that it will keep at most
    stories of each row, the last one, and how many there were before
    """

    def __init__(
        self,
        model: Model,
        prompt: Any,
        *,
        max_new_tokens: int = 48,
        sampling: Sampling | None = None,
        seed: int | None = None,
        keep: Iterable[str] = (),
        edits: Edits | None = None,
        speculate: str | None = None,
        limit: int = LIMIT,
    ) -> None:
        """keep: patterns of names besides what is kept of every run; limit: of bytes.

        edits are for a second row, of the same prompt and seed; without any there is one row.
        Raises RequestError for what cannot be honoured.
        """
        self.model, self.edits = model, edits
        ids, single = encode_prompts(model, prompt)
        if not single:
            raise RequestError(f"prompt is {shown(prompt)}; expected one text, or a list of its ids.")
        self.rows = ["plain"] if edits is None else ["plain", "edited"]
        self.ids = ids[0]
        guesses = speculation(speculate)
        asked = (max_new_tokens, sampling, seed, (), ())
        (first,) = requests_of(model, ids, *asked, top_logprobs=min(TOPS, model.config.vocab_size))
        if edits is not None:
            edits.check(model)
        self.asked: dict[str, Any] = {
            "max_new_tokens": max_new_tokens, "sampling": first.sampling, "seed": first.seed,
            "top_logprobs": first.top_logprobs, "speculate": guesses, "rows": 2, "limit": limit,
        }  # fmt: skip
        self.seed = first.seed
        wanted = expanded(model_names(model), dict.fromkeys(keep))
        self.keep = kept(model, len(self.ids) + max_new_tokens) | wanted
        self.bytes = check_plan(
            model, Asked(tuple(self.keep.items()), ()), [first] * len(self.rows), limit, spare(guesses)
        )
        self.box: Watched | None = None
        self.stories: dict[int, tuple[int, Story]] = {}

    def write(self) -> Generator[Item, None, None]:
        """Run it. Left before its end, the engine is stopped."""
        begun = time.perf_counter()
        config, plain = own_config(self.model), Edits()
        spellers = [Speller(self.model) for _ in self.rows]
        given, *_ = [[speller.push(token) for token in self.ids] for speller in spellers]
        yield "begin", {
            "ids": self.ids, "tokens": [text for text, _ in given], "names": [name for _, name in given],
            "rows": self.rows, "layers": config.num_layers, "heads": config.num_heads, "seed": self.seed,
            "edits": None if self.edits is None else dataclasses.asdict(self.edits), "bytes": self.bytes,
            "limit": limit(self.model),
        }  # fmt: skip
        both = [edits or plain for edits in (None, self.edits)[: len(self.rows)]]
        how = self.asked | {
            "change": [edits.change(self.model, len(self.ids)) for edits in both],
            "adapter": [edits.adapter for edits in both],
        }
        shown, told, cost, spent = [0] * len(self.rows), begun, 0.0, Spent()
        for box in watch_stream(self.model, [self.ids] * len(self.rows), keep=self.keep, **how):
            self.box, now = box, time.perf_counter()
            engine = box.programs.engine
            assert engine is not None
            yield "event", stepped(engine, spent)
            spent = engine.spent
            for row, ticket in enumerate(box.tickets):
                if len(ticket.answer.token_ids) > shown[row]:
                    yield "token", {"row": row, "tokens": self.grown(ticket, shown[row], spellers[row])}
                    shown[row] = len(ticket.answer.token_ids)
            yield "cache", seen(engine.state.cache)
            if all(shown) and not all(ticket.ended for ticket in box.tickets) and now - told > SHARE * cost:
                yield from self.tell(box)
                told = time.perf_counter()
                cost = told - now
        assert self.box is not None
        yield from self.tell(self.box)
        rows = [
            {"text": one.text, "finish_reason": one.finish_reason, "tokens": len(one.token_ids)}
            for one in self.box.answers
        ]
        yield "end", {"rows": rows, "seconds": time.perf_counter() - begun, "bytes": self.box.nbytes}

    def grown(self, ticket: Ticket, first: int, speller: Speller) -> list[dict[str, Any]]:
        """The tokens of an answer from this one on."""
        answer, found = ticket.answer, []
        for n in range(first, len(answer.token_ids)):
            text, name = speller.push(answer.token_ids[n])
            tops = [[word_of(self.model, token), math.exp(logprob), token] for token, logprob in answer.top_logprobs[n]]
            chance = math.exp(answer.logprobs[n])
            found.append({"id": answer.token_ids[n], "text": text, "name": name, "chance": chance, "tops": tops})
        return found

    def tell(self, box: Watched) -> Iterator[Item]:
        """What each row has to tell until now."""
        for row in range(len(self.rows)):
            told, number = story(box, row=row), 1 + self.stories[row][0] if row in self.stories else 0
            self.stories[row] = number, told
            arrays = {
                name: {"letters": axes, "shape": list(array.shape), "dtype": array.dtype.name}
                for name, (axes, array) in told.arrays.items()
            }
            yield "summary", {"row": row, "number": number, "head": told.head, "arrays": arrays}

    def values(self, row: int, name: str, first: int, last: int | None) -> Values:
        """Numbers under a name, from one token to another.

        name  of an array of the row's story, or of a value that was kept: layers.3.attention.weights [T K G S]
        Raises RequestError for a row or a name that is not there, and for a beginning behind the end.
        """
        if self.box is None or not 0 <= row < len(self.rows):
            raise RequestError(f"row is {row}; there are {len(self.rows) if self.box else 0} by now.")
        if first < 0 or (last is not None and last < first):
            raise RequestError(f"from is {first} and to is {last}; expected from 0 on, and not backwards.")
        axes, array, number = self.found(row, name)
        at = next((n for n, letter in enumerate(axes.split()) if letter in "TW"), None)
        if at is not None:
            array = array[(slice(None),) * at + (slice(first, last),)]
        data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
        return Values(axes, array.shape, array.dtype.name, data, number)

    def found(self, row: int, name: str) -> tuple[str, np.ndarray, int]:
        """The letters and the whole of an array, and the number of the story that it is of."""
        assert self.box is not None
        number, told = self.stories.get(row, (-1, None))
        if told is not None and name in told.arrays:
            return *told.arrays[name], number
        array = self.box[name][row]
        if not isinstance(array, np.ndarray):
            raise RequestError(
                f"of {name} only the strongest places are kept; heads.places and heads.weights have them."
            )
        return (
            " ".join(["T", *(letter for letter in letters(name) or () if letter not in "BT")]),
            array.astype(np.float32),
            number,
        )


class Speller:
    """Tokens one by one -> the text that each adds, and a name for one that adds none."""

    def __init__(self, model: Model) -> None:
        """Nothing was spelled yet."""
        self.model = model
        self.decoder = None if model.tokenizer is None else model.tokenizer.decoder()

    def push(self, token: int) -> tuple[str, str]:
        """The next one. Without a tokenizer tokens are numbers."""
        if self.decoder is None or self.model.tokenizer is None:
            return f"{token} ", ""
        text = self.decoder.push(token)
        return text, "" if text else self.model.tokenizer.piece(token) or f"{token}"


def kept(model: Model, positions: int) -> dict[str, Shrink | None]:
    """What to keep of a text of so many tokens: what a story is made of, and of attention whole rows where these are few."""
    config, found = own_config(model), expanded(model_names(model), for_report(model))
    if 2 * config.num_layers * config.num_heads * positions**2 * model.dtype.activations.itemsize > WHOLE:
        return found
    return {name: None if name.endswith(".attention.weights") else shrink for name, shrink in found.items()}


def stepped(engine: Engine, before: Spent) -> dict[str, Any]:
    """What an engine did since it had spent so much. Seconds are those of steps, without making programs ready (compiling)."""
    events, now = list(engine.events), engine.spent
    engine.events.clear()
    begun, ended = (spent.seconds - spent.compile_seconds for spent in (before, now))
    compiling = now.compile_seconds - before.compile_seconds
    read = bytes_of(engine, events)
    return {"from": begun, "to": ended, "compiling": compiling, "rows": engine.rows, "read": read, "events": events}


def seen(cache: KVCache) -> dict[str, Any]:
    """A cache as plain data, layers alike together: runs of slots that hold neighbouring positions, [slot, position, count]."""
    view = cache_view(cache)
    kinds: dict[tuple[str, int, bytes], list[int]] = {}
    for index, layer in enumerate(view.layers):
        kinds.setdefault((layer.kind, layer.bytes, layer.held.tobytes()), []).append(index)
    layers = []
    for (kind, size, _), indices in kinds.items():
        held = view.layers[indices[0]].held
        layers.append({
            "layers": indices, "kind": kind, "slots": held.shape[1], "bytes": size, "used": view.layers[indices[0]].used,
            "rows": [runs_of(row) for row in held],
        })  # fmt: skip
    return {
        "layers": layers,
        "length": view.length.tolist(),
        "dtype": view.dtype,
        "bytes": view.bytes,
        "used": view.used,
    }


def runs_of(held: np.ndarray) -> list[list[int]]:
    """Positions of slots [S], negative for none -> [slot, position, count] of each run.  [4 5 2 -1] -> [0 4 2] [2 2 1]"""
    found: list[list[int]] = []
    for slot in np.flatnonzero(held >= 0).tolist():
        position = int(held[slot])
        if found and found[-1][0] + found[-1][2] == slot and found[-1][1] + found[-1][2] == position:
            found[-1][2] += 1
        else:
            found.append([slot, position, 1])
    return found


def example(model: Model, limit: int = LIMIT) -> Run:
    """What a page shows before anybody has asked for anything: a prompt that any model continues; beside it the same with an
    adapter, or with a direction.
    """
    edits = Edits(adapter=model.adapters[0]) if model.adapters else None
    if model.tokenizer is None:
        new = min(32, model.config.max_positions - 1)
        return Run(model, [0], max_new_tokens=new, seed=1, edits=edits, limit=limit)
    steer = Steer("The monster was very angry", "The girl was very happy", model.config.num_layers // 3, 0.5, "answer")
    begins = "Once upon a time, there was a little girl"
    return Run(model, begins, seed=1, edits=edits or Edits(steer=steer), limit=limit)
