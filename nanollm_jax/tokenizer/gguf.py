"""The tokenizer in a GGUF file's metadata: SentencePiece's pieces, or byte-level BPE whose split goes by a name.

Either is put back into the form of the file that it was taken from, and read as that file is, or written down.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanollm_jax.errors import TokenizerError, shown
from nanollm_jax.tokenizer.confined import opened, says
from nanollm_jax.tokenizer.files import Settings
from nanollm_jax.tokenizer.interface import Tokenizer
from nanollm_jax.tokenizer.load import refuse_leaks
from nanollm_jax.tokenizer.pieces import byte_level_bytes
from nanollm_jax.tokenizer.protobuf import MOST_PIECES, message, piece
from nanollm_jax.tokenizer.ranks import META_SPLIT, QWEN_SPLIT, TEKKEN_SPLIT
from nanollm_jax.tokenizer.sentencepiece_model import from_sentencepiece
from nanollm_jax.tokenizer.tokenizer_json import adapt

KEY = "tokenizer.ggml."
KINDS = ("llama", "gpt2")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece's own numbers
NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "seperator": "sep_token",
         "padding": "pad_token", "cls": "cls_token", "mask": "mask_token"}  # fmt: skip

PAD = re.compile(r"\[PAD\d+\]")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = [BYTE_LEVEL | {"use_regex": True}]
DIGITS = [{"type": "Digits", "individual_digits": True}, *GPT2]


def split(pattern: str) -> list[dict[str, Any]]:
    """Cut a text by an expression, then spell its bytes as letters."""
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL]


# tokenizer.ggml.pre -> the steps before merging (llama.cpp, llama-vocab.cpp; tokenizer.json of the models named), whether a
# word that is a token is one whatever the merges say, and whether a BOS is in front where the file does not say
PRE: dict[str, tuple[list[dict[str, Any]], bool, bool]] = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "roberta-bpe", "gpt3-finnish", "exaone", "granite-docling"), (GPT2, False, False)
    ),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell"), (DIGITS, False, False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), (split(META_SPLIT), True, True)),
    **dict.fromkeys(("smaug-bpe", "dbrx"), (split(META_SPLIT), False, False)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (split(QWEN_SPLIT), False, False)),
    "tekken": (split(TEKKEN_SPLIT), True, True),
}
NFC = ("qwen2", "deepseek-r1-qwen")


def from_metadata(path: Path, metadata: Mapping[str, Any]) -> Tokenizer | None:
    """A file's metadata -> its tokenizer, None where there is none.  path: the file that errors name

    Raises TokenizerError for a kind or a split that is not known, and for lists that do not go together.
    """
    if (kind := kind_of(path, metadata)) is None:
        return None
    tokenizer: Tokenizer
    with says(path):
        entries = Entries(path, metadata)
        if kind == "llama":
            tokenizer = from_sentencepiece(path, pieces(entries), entries.settings())
        else:
            tree, add_bos = merges(entries)
            library = opened(path, json.dumps(tree).encode(), tree)
            tokenizer = adapt(path, library, entries.settings(), byte_level_bytes, add_bos=add_bos)
    refuse_leaks(path, tokenizer)
    return tokenizer


def files_of(path: Path, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that load_tokenizer reads the same tokenizer of, by name; {} where there is none. Raises as from_metadata."""
    if (tokenizer := from_metadata(path, metadata)) is None:
        return {}
    entries, bos, eos = Entries(path, metadata), tokenizer.bos_id, tokenizer.eos_id
    ends = {name: entries.tokens[n] for name, n in (("bos_token", bos), ("eos_token", eos)) if n is not None}
    said = dict(tokenizer.names) | ends | ({} if bos is None else {"add_bos_token": tokenizer.add_bos})
    if kind_of(path, metadata) == "llama":
        name, data = "tokenizer.model", pieces(entries)
        said |= {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    else:
        tree, _ = merges(entries)
        if bos is not None and tokenizer.add_bos:  # which others look for in the file itself
            tree["post_processor"] = in_front(entries.tokens[bos], bos)
        name, data = "tokenizer.json", json.dumps(tree, ensure_ascii=False).encode()
        said |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {name: data, "tokenizer_config.json": (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode()}


def in_front(token: str, token_id: int) -> dict[str, Any]:
    """The step of a tokenizer.json that puts a token before a text."""
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    again = [{"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    names = {token: {"id": token, "ids": [token_id], "tokens": [token]}}
    return {
        "type": "TemplateProcessing", "single": [first, text], "pair": [first, text, *again], "special_tokens": names,
    }  # fmt: skip


def kind_of(path: Path, metadata: Mapping[str, Any]) -> str | None:
    """What kind of tokenizer there is, None for none."""
    if (kind := metadata.get(f"{KEY}model")) in (None, "none", "no_vocab"):
        return None
    if not isinstance(kind, str) or kind not in KINDS:
        raise TokenizerError(f"{path}: {KEY}model is {shown(kind)}; known: {', '.join(KINDS)}.")
    return kind


class Entries:
    """The metadata that speaks of the tokenizer. Every method raises TokenizerError naming file and entry."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path, self.metadata = path, metadata
        self.tokens: list[str] = self.get("tokens", list)
        if not 0 < len(self.tokens) <= MOST_PIECES:
            raise self.fault("tokens", f"{len(self.tokens)} tokens", f"1 to {MOST_PIECES}")
        types = self.numbers("token_type", NORMAL)
        # rows of the embedding that no token has: a name was made up for each, and a type that changed over the years
        self.types = [UNUSED if PAD.fullmatch(text) else kind for text, kind in zip(self.tokens, types, strict=True)]
        if len(set(self.tokens)) < len(self.tokens):
            raise self.fault("tokens", "a list with a token twice", "each once")

    def fault(self, key: str, found: Any, expected: str) -> TokenizerError:
        """The error for one."""
        return TokenizerError(f"{self.path}: {KEY}{key} is {shown(found)}; expected {expected}.")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of a kind; without a default it has to be there."""
        value = self.metadata.get(KEY + key, default)
        if type(value) is not kind and not (value is None and default is None and kind is not list):
            raise self.fault(key, value, kind.__name__)
        return value

    def numbers(self, key: str, default: float) -> list[Any]:
        """One number for each token."""
        values = self.metadata.get(KEY + key)
        if values is None:
            return [default] * len(self.tokens)
        if not isinstance(values, np.ndarray) or len(values) != len(self.tokens):
            raise self.fault(key, values, f"{len(self.tokens)} numbers, one for each token")
        return values.tolist()

    def settings(self) -> Settings:
        """What tokenizer_config.json would say."""
        named = {}
        for key, name in NAMES.items():
            token = self.get(f"{key}_token_id", int)
            if token is None:
                continue
            if not 0 <= token < len(self.tokens):
                if key in ("bos", "eos"):
                    raise self.fault(f"{key}_token_id", token, f"an id below {len(self.tokens)}")
            elif self.types[token] != NORMAL or f"{KEY}token_type" not in self.metadata:
                named[name] = self.tokens[token]  # one that is a word too may end a text, and stays a word
        return Settings(
            self.path,
            bos_token=named.get("bos_token"),
            eos_token=named.get("eos_token"),
            add_bos_token=self.get("add_bos_token", bool),
            names=named,
        )


def pieces(entries: Entries) -> bytes:
    """SentencePiece's pieces, scores and types -> a model in its own form, as tokenizer.model has it."""
    scores = entries.numbers("scores", 0.0)
    if not all(isinstance(score, float) and math.isfinite(score) for score in scores):
        raise entries.fault("scores", "a list with a score that is no number", "a finite number for each token")
    if any(kind not in range(NORMAL, BYTE + 1) for kind in entries.types):
        raise entries.fault("token_type", "a list with a type that there is not", f"{NORMAL} to {BYTE}")
    typed = [n for n, kind in enumerate(entries.types) if kind == UNKNOWN]
    unknown = entries.get("unknown_token_id", int, typed[0] if typed else 0)
    if not 0 <= unknown < len(entries.tokens) or any(n != unknown for n in typed):
        raise entries.fault("unknown_token_id", unknown, f"the one token of type {UNKNOWN}, where {typed[:3]} are")
    types = [*entries.types[:unknown], UNKNOWN, *entries.types[unknown + 1 :]]
    rows = zip(entries.tokens, types, scores, strict=True)
    data = b"".join(piece(text, kind, score) for text, kind, score in rows)
    # sentencepiece_model.proto: the trainer's kind (BPE), whether bytes stand in for what is unknown, and the names of the
    # tokens; the normalizer's table is not in a GGUF file
    names = entries.settings().names
    trainer: dict[int, int | str] = {3: 2, 35: int(BYTE in types), 45: entries.tokens[unknown]}
    trainer |= {46: names["bos_token"]} if "bos_token" in names else {}
    trainer |= {47: names["eos_token"]} if "eos_token" in names else {}
    normalizer: dict[int, int | str] = {
        1: "identity",
        3: int(entries.get("add_space_prefix", bool, True)),
        4: int(entries.get("remove_extra_whitespaces", bool, False)),
        5: 1,
    }
    return data + message(2, trainer) + message(3, normalizer)


def merges(entries: Entries) -> tuple[dict[str, Any], bool]:
    """Tokens in byte-level spelling and merges -> a tokenizer.json, and whether a BOS is in front where nothing says so."""
    name = entries.get("pre", str)
    if name not in PRE:
        raise entries.fault("pre", name, f"a way to split text that is known: {', '.join(PRE)}")
    steps, ignore_merges, add_bos = PRE[name]
    ids = {token: n for n, token in enumerate(entries.tokens) if entries.types[n] != UNUSED}
    pairs = []
    for merge in entries.get("merges", list):
        pair = merge.split(" ") if isinstance(merge, str) else []
        if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
            raise entries.fault("merges", merge, "two tokens that join to a third")
        pairs.append(pair)
    added = {
        token: entries.types[n] != USER_DEFINED
        for token, n in ids.items()
        if entries.types[n] in (CONTROL, USER_DEFINED, UNKNOWN)
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tree = {
        "added_tokens": [
            plain | {"id": ids[token], "content": token, "special": special} for token, special in added.items()
        ],
        "normalizer": {"type": "NFC"} if name in NFC else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": ids,  # with the added ones, whose ids the library counts on from the last of these otherwise
            "merges": pairs,
        },
        "decoder": BYTE_LEVEL,
    }
    return tree, add_bos
