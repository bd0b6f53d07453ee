"""What may stand in a tokenizer.json, looked at before the library that runs it is given it.

The library builds whatever a file says: it panics on some values, and ends the process where memory runs out. So every
part is of a kind that is known, every id has a place in a table of bounded length, and no text grows beyond bounds.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanollm_jax.errors import TokenizerError, shown
from nanollm_jax.tokenizer.charsmap import MOST_GROWTH, growth
from nanollm_jax.tokenizer.patterns import may_be_empty, quick

FREE_IDS = 1 << 20  # ids up to here need no reason; beyond, a vocabulary may have three holes for each entry
MOST_ADDED = 1 << 24  # bytes of all added tokens together, normalised; the library's automaton takes 60 times as much
MOST_STEPS = 64  # of a normalizer or a pre-tokenizer

# By how much each normalizer may lengthen a text, in bytes of UTF-8 (unicode.org/faq/normalization.html).
NORMALIZERS = {
    "NFC": 3, "NFD": 4, "NFKC": 11, "NFKD": 11, "Lowercase": 2, "StripAccents": 1, "Strip": 1, "Nmt": 1, "ByteLevel": 2,
    "BertNormalizer": 8,
}  # fmt: skip
PRE_TOKENIZERS = {
    "ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit", "UnicodeScripts",
    "BertPreTokenizer", "CharDelimiterSplit", "FixedLength",
}  # fmt: skip
POST_PROCESSORS = {"TemplateProcessing", "ByteLevel", "RobertaProcessing", "BertProcessing"}


class Checks:
    """The checks of one file. Every method raises TokenizerError naming the file and the part."""

    def __init__(self, path: Path) -> None:
        """path: the file that errors name."""
        self.path = path

    def fault(self, where: str, found: Any, expected: str) -> TokenizerError:
        """The error for a part with a wrong value."""
        return TokenizerError(f"{self.path}: {where} is {shown(found)}; expected {expected}.")

    def need(self, value: Any, kind: type | tuple[type, ...], where: str) -> Any:
        """The value, if it is of that kind; true and false are no numbers."""
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = [kind.__name__] if isinstance(kind, type) else [one.__name__ for one in kind]
            raise self.fault(where, value, " or ".join(names))
        return value

    def tokenizer(self, content: dict[str, Any]) -> bool:
        """All of a tokenizer.json. Returns whether its patterns are quick on any text (patterns.py)."""
        entries = self.model(self.need(content.get("model"), dict, "model"))
        added = self.added(content.get("added_tokens"))
        self.ids([token_id for _, token_id in (*entries, *added)])
        times = 1
        patterns: list[str] = []
        for step in self.steps(
            content, "normalizer", "normalizers", {*NORMALIZERS, "Replace", "Prepend", "Precompiled"}
        ):
            times *= self.lengthens(step, patterns)
            if times > MOST_GROWTH:
                raise self.fault(
                    "normalizer", content["normalizer"], f"steps that lengthen a text {MOST_GROWTH} times at most"
                )
        if times * sum(len(token.encode()) for token, _ in added) > MOST_ADDED:
            raise self.fault("added_tokens", content["added_tokens"], f"at most {MOST_ADDED:,} bytes, normalised")
        for step in self.steps(content, "pre_tokenizer", "pretokenizers", PRE_TOKENIZERS):
            if step["type"] == "Split":
                patterns += self.pattern(step)
            if step["type"] == "FixedLength" and self.need(step.get("length"), int, "FixedLength: length") < 1:
                raise self.fault("FixedLength: length", step["length"], "at least 1")
        for step in self.steps(content, "post_processor", "processors", POST_PROCESSORS):
            for key in ("single", "pair"):
                if len(self.need(step.get(key, []), list, key)) > MOST_STEPS:
                    raise self.fault(f"post_processor: {key}", step[key], f"at most {MOST_STEPS} pieces")
        self.steps(content, "decoder", "decoders", None)  # tokenizer_json.py knows which it can follow
        return all(map(quick, patterns))

    def vocabulary(self, vocab: dict[str, Any], where: str = "vocab") -> Iterable[tuple[str, int]]:
        """Entries and their ids."""
        for token_id in vocab.values():
            if type(token_id) is not int:
                raise self.fault(f"{where}: an id", token_id, "a whole number")
        return vocab.items()

    def ids(self, ids: list[int]) -> None:
        """Every id has a place in a table that is not much longer than what is in it."""
        most = max(FREE_IDS, 4 * len(ids))
        for token_id in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= token_id < most:
                raise self.fault("an id", token_id, f"0 to {most - 1} for {len(ids)} entries")

    def model(self, model: dict[str, Any]) -> Iterable[tuple[str, int]]:
        """The model's entries and their ids."""
        kind = model.get("type", "BPE" if "merges" in model else "without a name")
        if kind not in ("BPE", "Unigram"):
            raise TokenizerError(f"{self.path}: model type {shown(kind)} is not supported; known: BPE, Unigram.")
        for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(key):
                raise TokenizerError(f"{self.path}: {key} {shown(model[key])} is not supported; expected none.")
        if kind == "BPE":
            vocab = self.need(model.get("vocab"), dict, "vocab")
            self.need(model.get("merges"), list, "merges")
            if (unknown := model.get("unk_token")) is not None and (type(unknown) is not str or unknown not in vocab):
                raise self.fault("unk_token", unknown, "an entry of the vocabulary")
            return self.vocabulary(vocab)
        pieces = self.need(model.get("vocab"), list, "vocab")
        for piece in pieces:
            match piece:
                case [str(), int() | float() as score] if math.isfinite(score) and abs(score) < 1e9:
                    continue
            raise self.fault("vocab: an entry", piece, "a text and its score")
        unknown = model.get("unk_id")
        if unknown is not None and not (type(unknown) is int and 0 <= unknown < len(pieces)):
            raise self.fault("unk_id", unknown, "the place of an entry of the vocabulary")
        return [(piece[0], n) for n, piece in enumerate(pieces)]

    def added(self, tokens: Any) -> list[tuple[str, int]]:
        """The added tokens and their ids."""
        found = []
        for token in self.need([] if tokens is None else tokens, list, "added_tokens"):
            match token:
                case {"id": int() as token_id, "content": str(content)} if content and token_id is not True:
                    found.append((content, token_id))
                case _:
                    raise self.fault("added_tokens: an entry", token, "an id and a text")
        return found

    def steps(self, content: dict[str, Any], part: str, inner: str, known: set[str] | None) -> list[dict[str, Any]]:
        """The steps of a part of the file, those of sequences one by one.  inner: where a sequence has its steps

        known: the kinds that may be there; None for any.
        """
        found: list[dict[str, Any]] = []
        left = [content.get(part)]
        while left:
            step = left.pop(0)
            if step is None:
                continue
            kind = self.need(self.need(step, dict, part).get("type"), str, f"{part}: type")
            if kind == "Sequence":
                left = [*self.need(step.get(inner), list, f"{part}: {inner}"), *left]
            elif known is not None and kind not in known:
                raise TokenizerError(
                    f"{self.path}: {part} {shown(kind)} is not supported; known: {', '.join(sorted(known))}."
                )
            else:
                found.append(step)
            if len(found) + len(left) > MOST_STEPS:
                raise self.fault(part, content[part], f"at most {MOST_STEPS} steps")
        return found

    def lengthens(self, step: dict[str, Any], patterns: list[str]) -> int:
        """How many times longer a text may become by a step of a normalizer, whose patterns are added to the list."""
        kind = step["type"]
        if kind == "Prepend":
            return 1 + len(self.need(step.get("prepend"), str, "Prepend: prepend").encode())
        if kind == "Replace":
            content = len(self.need(step.get("content"), str, "Replace: content").encode())
            found = self.pattern(step)
            if any(map(may_be_empty, found)):
                raise self.fault("Replace: pattern", found[0], "one that matches at least one character")
            patterns += found
            replaced = 1 if found else len(step["pattern"]["String"].encode())
            return max(1, math.ceil(content / replaced))
        if kind == "Precompiled":
            try:
                charsmap = base64.b64decode(self.need(step.get("precompiled_charsmap"), str, "precompiled_charsmap"))
                return growth(charsmap)
            except (binascii.Error, ValueError) as error:
                raise TokenizerError(
                    f"{self.path}: precompiled_charsmap cannot be followed: {error}; copy it again."
                ) from None
        return NORMALIZERS[kind]

    def pattern(self, step: dict[str, Any]) -> list[str]:
        """The regular expression of a step, if it has one and no plain text."""
        match step.get("pattern"):
            case {"String": str(text)} if text:
                return []
            case {"Regex": str(text)}:
                return [text]
        raise self.fault(f"{step['type']}: pattern", step.get("pattern"), '{"String": ...} or {"Regex": ...}')
