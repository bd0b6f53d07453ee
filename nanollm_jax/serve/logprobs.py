"""The tokens of an answer one by one: how each is written, where it begins in the text, and what stood beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanollm_jax.tokenizer import Tokenizer

LEAST = -9999.0  # what stands for a probability of 0, whose logarithm JSON cannot write
Tops = Sequence[tuple[int, float]]


def written(tokenizer: Tokenizer | None, token: int) -> str:
    """How one token is written by itself: its text, a special one by its name, a part of a character by its bytes."""
    if tokenizer is None:
        return f"token_id:{token}"
    data = tokenizer.token_bytes(token)
    if not data:
        return tokenizer.piece(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(
    tokenizer: Tokenizer | None, tokens: Sequence[int], logprobs: Sequence[float], tops: Sequence[Tops]
) -> dict[str, Any]:
    """As chat completions have them: a list of tokens, each with its bytes and the best ones beside it."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = b"" if tokenizer is None else tokenizer.token_bytes(token)
        return {"token": written(tokenizer, token), "logprob": max(logprob, LEAST), "bytes": list(data)}

    return {
        "content": [
            entry(token, logprob) | {"top_logprobs": [entry(*one) for one in exactly(token, logprob, best)]}
            for token, logprob, best in zip(tokens, logprobs, tops, strict=True)
        ],
        "refusal": None,
    }


def exactly(token: int, logprob: float, top: Tops) -> list[tuple[int, float]]:
    """The best tokens, the drawn one with the very number that it has itself: clients compare the two."""
    return [(one, logprob if one == token else value) for one, value in top]


class Legacy:
    """As completions have them: four lists, with the place in the text where each token begins."""

    def __init__(self, tokenizer: Tokenizer | None, wanted: int, *, start: bool) -> None:
        """wanted: how many of the best tokens stand beside each; start: they begin a text."""
        self.tokenizer, self.wanted = tokenizer, wanted
        self.decoder = None if tokenizer is None else tokenizer.decoder(start=start)
        self.offset = 0

    def take(
        self, tokens: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Tops | None]
    ) -> dict[str, Any]:
        """The next tokens. None is of a text's first token, which has nothing before it."""
        offsets = []
        for token in tokens:
            offsets.append(self.offset)
            self.offset += 0 if self.decoder is None else len(self.decoder.push(token))
        best = [self.beside(token, logprob, top) for token, logprob, top in zip(tokens, logprobs, tops, strict=True)]
        return {
            "tokens": [written(self.tokenizer, token) for token in tokens],
            "token_logprobs": [None if logprob is None else max(logprob, LEAST) for logprob in logprobs],
            "top_logprobs": best if self.wanted else None,
            "text_offset": offsets,
        }

    def beside(self, token: int, logprob: float | None, top: Tops | None) -> dict[str, float] | None:
        """The best tokens by their texts, and the token itself; of two with one text the more probable one."""
        if logprob is None or top is None:
            return None
        found: dict[str, float] = {}
        for one, value in (*exactly(token, logprob, top[: self.wanted]), (token, logprob)):
            name = written(self.tokenizer, one)
            found[name] = max(found.get(name, LEAST), value, LEAST)
        return found
