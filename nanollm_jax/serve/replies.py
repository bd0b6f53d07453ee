"""Answers in the JSON that clients expect: chat completions and completions, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanollm_jax.serve.calls import Piece
from nanollm_jax.serve.logprobs import Legacy, chat_logprobs
from nanollm_jax.serve.reading import Reading
from nanollm_jax.tokenizer import Tokenizer


@dataclass
class Usage:
    """What a call cost in tokens. Prompts count once, however many answers they have."""

    prompt: int
    completion: int = 0
    cached: int = 0

    def add(self, piece: Piece) -> None:
        """Count a piece."""
        self.completion += len(piece.tokens)
        self.cached = max(self.cached, piece.cached)

    def body(self) -> dict[str, Any]:
        """As clients read it."""
        return {
            "prompt_tokens": self.prompt, "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }  # fmt: skip


@dataclass
class Head:
    """What every chunk of an answer, and the whole one, begins with."""

    kind: str
    model: str
    fingerprint: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.kind.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}"

    def body(self, chunk: bool = False) -> dict[str, Any]:
        """As clients read it."""
        kind = "chat.completion.chunk" if chunk and self.kind == "chat.completion" else self.kind
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint,
        }  # fmt: skip


class ChatChoice:
    """One answer of a chat completion: its text, its reasoning and its calls."""

    def __init__(self, index: int, tokenizer: Tokenizer | None, logprobs: bool, reading: Reading) -> None:
        self.index, self.tokenizer, self.logprobs = index, tokenizer, logprobs
        self.reading, self.reader = reading, reading.reader()
        self.begun = False

    def said(self, piece: Piece) -> list[dict[str, Any]]:
        """The parts of chunks that say what a piece brought; the first one says whose words these are.

        There are none where all of it is held back; an answer that says nothing has one chunk all the same.
        """
        deltas = self.deltas(piece)
        if not deltas and (self.logprobs or (piece.finish_reason and not self.begun)):
            deltas = [{"content": ""}]
        if deltas and not self.begun:
            deltas[0] = {"role": "assistant", "content": None} | deltas[0]
            self.begun = True
        abouts = [self.about(piece), *[None] * len(deltas)]
        return [
            {"index": self.index, "delta": delta, "logprobs": about, "finish_reason": None}
            for delta, about in zip(deltas, abouts, strict=False)
        ]

    def deltas(self, piece: Piece) -> list[dict[str, Any]]:
        """What a piece adds to the message."""
        events = self.reader.feed(piece.text) + (self.reader.finish() if piece.finish_reason else [])
        return [delta for event in events if (delta := self.reading.delta(event)) is not None]

    def reason(self, reason: str) -> str:
        """Why it ended: for its calls, unless it was cut."""
        return "tool_calls" if reason == "stop" and self.reader.ended else reason

    def done(self, reason: str) -> dict[str, Any]:
        """The part of a chunk that says why it ended."""
        return {"index": self.index, "delta": {}, "logprobs": None, "finish_reason": self.reason(reason)}

    def whole(self, piece: Piece) -> dict[str, Any]:
        """All of it."""
        deltas = self.deltas(piece)
        parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
        calls = [{name: part[name] for name in ("id", "type")} for part in parts if "id" in part]
        for at, call in enumerate(calls):
            functions = [part["function"] for part in parts if part["index"] == at]
            call["function"] = {
                "name": functions[0]["name"], "arguments": "".join(one["arguments"] for one in functions)
            }  # fmt: skip
        content, reasoning = ("".join(one.get(name, "") for one in deltas) for name in ("content", "reasoning_content"))
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        message |= {"reasoning_content": reasoning} if reasoning else {}
        message |= {"tool_calls": calls} if calls else {}
        return {
            "index": self.index, "message": message, "logprobs": self.about(piece),
            "finish_reason": self.reason(piece.finish_reason),
        }  # fmt: skip

    def about(self, piece: Piece) -> dict[str, Any] | None:
        """The tokens one by one, where they are wanted."""
        return chat_logprobs(self.tokenizer, piece.tokens, piece.logprobs, piece.tops) if self.logprobs else None


class TextChoice:
    """One answer of a completion, behind its prompt where that is wanted too."""

    def __init__(
        self, index: int, tokenizer: Tokenizer | None, logprobs: int | None, prompt: list[int], echo: Piece | None
    ) -> None:
        """echo is the prompt as a piece of its own, whose first token has no logprob; None where it is not wanted."""
        self.index, self.echo = index, echo
        start = echo is not None or not any(tokenizer and tokenizer.token_bytes(token) for token in prompt)
        self.logprobs = None if logprobs is None else Legacy(tokenizer, logprobs, start=start)

    def said(self, piece: Piece) -> list[dict[str, Any]]:
        """The part of a chunk that says what a piece brought, if it brought anything."""
        speaks = piece.text or self.logprobs or self.echo
        return [self.choice(self.behind_prompt(piece), None)] if speaks else []

    def done(self, reason: str) -> dict[str, Any]:
        """The part of a chunk that says why it ended."""
        return {"index": self.index, "text": "", "logprobs": None, "finish_reason": reason}

    def whole(self, piece: Piece) -> dict[str, Any]:
        """All of it."""
        return self.choice(self.behind_prompt(piece), piece.finish_reason)

    def behind_prompt(self, piece: Piece) -> Piece:
        """A piece with the prompt in front, the first time."""
        if self.echo is None:
            return piece
        prompt, self.echo = self.echo, None
        return joined([prompt, piece])

    def choice(self, piece: Piece, reason: str | None) -> dict[str, Any]:
        """As clients read it."""
        about = self.logprobs and self.logprobs.take(piece.tokens, piece.logprobs, piece.tops)
        return {"index": self.index, "text": piece.text, "logprobs": about, "finish_reason": reason}


Choice = ChatChoice | TextChoice


def joined(pieces: Sequence[Piece]) -> Piece:
    """One piece of several of one answer."""
    return Piece(
        pieces[-1].at,
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.tokens],
        [logprob for piece in pieces for logprob in piece.logprobs],
        [top for piece in pieces for top in piece.tops],
        pieces[-1].finish_reason,
        pieces[-1].cached,
    )
