"""Tokenizer files that are made to do harm: refused before a library is given them, or run where they can do none."""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from test_tokenizer_sentencepiece_model import train
from tokenizers_like import SPLITS, trained

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer import confined, load_tokenizer
from nanollm_jax.tokenizer.charsmap import growth
from nanollm_jax.tokenizer.patterns import may_be_empty, quick
from nanollm_jax.tokenizer.protobuf import fields

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 256}


def split(pattern: str) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [step, letters]}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def precompiled(charsmap: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}


TWICE = sequence(REPLACE, REPLACE)
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a normalizer that explodes": ({"normalizer": TWICE}, "normalizer is .*; expected steps that lengthen a text 256 times"),
    "in sequences of sequences": ({"normalizer": sequence(sequence(REPLACE), sequence(REPLACE))}, "lengthen a text"),
    "a prefix of a megabyte": ({"normalizer": {"type": "Prepend", "prepend": "a" * 2**20}}, "lengthen a text"),
    "a pattern for nothing": ({"normalizer": REPLACE | {"pattern": {"Regex": "b*"}}}, "at least one character"),
    "an empty text to replace": ({"normalizer": REPLACE | {"pattern": {"String": ""}}}, "Replace: pattern is"),
    "a step of no kind": ({"normalizer": {"type": "Explode"}}, "normalizer 'Explode' is not supported; known: .*NFC"),
    "a step without a kind": ({"normalizer": {"kind": "NFC"}}, "normalizer: type is None; expected str"),
    "a step that is a number": ({"normalizer": sequence(4)}, "normalizer is 4; expected dict"),  # type: ignore[arg-type]
    "steps without end": ({"normalizer": sequence(*[{"type": "NFC"}] * 65)}, "at most 64 steps"),
    "a table that is none": ({"normalizer": precompiled(b"abc")}, "precompiled_charsmap cannot be followed: its trie"),
    "words of no letters": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "length is 0; expected at least 1"),
    "a long way to a text": ({"post_processor": {"type": "TemplateProcessing", "single": [{}] * 65}}, "at most 64 pieces"),
    "a tokenizer of nothing": ({"model": None}, "model is None; expected dict"),
    "a decoder of no kind": ({"decoder": {}}, "decoder: type is None; expected str"),
    "added tokens that are none": ({"added_tokens": [{"id": 1}]}, "added_tokens: an entry is {'id': 1}; expected an id and"),
    "an added token without text": ({"added_tokens": [{"id": 1, "content": ""}]}, "expected an id and a text"),
    "an added token of 16 MB": ({"added_tokens": [{"id": 1, "content": "a" * 2**24 + "b"}]}, "at most 16,777,216 bytes"),
    "a far added token": ({"added_tokens": [{"id": 2**32 - 1, "content": "a"}]}, "an id is 4294967295; expected 0 to 1048575"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_library_would_not_survive_is_refused_before_it_is_loaded(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, match = HOSTILE[case]
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(trained("qwen")) | change))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=match) as error:
        load_tokenizer(tmp_path)
    assert len(str(error.value)) < 3000


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "one huge id": ({"vocab": {"a": 4294967295}}, "an id is 4294967295; expected 0 to"),
    "an id below 0": ({"vocab": {"a": -1}}, "an id is -1; expected 0 to"),
    "an id that is a text": ({"vocab": {"a": "1"}}, "an id is '1'; expected a whole number"),
    "an unknown token that is none": ({"unk_token": "nowhere"}, "unk_token is 'nowhere'; expected an entry"),
    "a prefix": ({"continuing_subword_prefix": "##" * 99}, "continuing_subword_prefix .* is not supported"),
    "a score that is none": ({"type": "Unigram", "vocab": [["a", "b"]]}, "an entry is .*; expected a text and its score"),
    "a score beyond reason": ({"type": "Unigram", "vocab": [["a", 1e300]]}, "expected a text and its score"),
    "an unknown id that is none": ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 1}, "unk_id is 1; expected the"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_is_refused(tmp_path: Path, case: str) -> None:
    change, match = MODELS[case]
    content = json.loads(trained("qwen"))
    content["model"] |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=match):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("vocab", [{"a": 4294967295}, {"a": -1}, {"a": None}])
def test_ids_of_vocab_json_are_bounded_too(tmp_path: Path, vocab: dict[str, Any]) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(TokenizerError, match=r"vocab.json: .*an id is"):
        load_tokenizer(tmp_path)


def test_a_rank_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(base64.b64encode(b"a" * 2**20) + b" 0\n")
    with pytest.raises(TokenizerError, match=r"line 1 is b'YWFh.*; expected a token in base64"):
        load_tokenizer(tmp_path)


# patterns

PUBLISHED = [
    *SPLITS.values(), " {2,}", "\n", r"\p{N}{1,3}", "[0-9][0-9][0-9]", "[一-龥぀-ゟ゠-ヿ]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", " ?[^(\\s|[.,!?…。，、।۔،])]+",
    r"(?<=\n)(?!\n)", "ba+c?",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+""",
]  # fmt: skip
SLOW = [
    "(a+)+$", "(a|a)*b", "(a*)*", "a*a*b", "(?:a|b|ab)+c", "(x+x+)+y", r"(\w+\s?)*$", ".*.*=.*", "(a{1,100}){1,100}",
    "((a{3})*)+", r"(?<n>a\g<n>?)b", r"(a)\1+", "a**", "(a?){30}a{30}", "(?:a?){8}", "a?" * 30 + "a" * 30, "(?>a+)+b",
    "a{1,3}+b", ".*[^a]", "(?:a+)b", r"\d{1,3}(?=(?:\d{3})*\b)", "(", "[", "a)", "(?i)abc", "(" * 5000,
]  # fmt: skip


def test_what_is_quick_is_told_from_what_may_not_be() -> None:
    assert [pattern for pattern in PUBLISHED if not quick(pattern)] == []
    assert [pattern for pattern in SLOW if quick(pattern)] == []
    assert [p for p in ("x*", "", "|a", "a?", "^", r"\b", "(?=a)", "(a|)", "(", r"\K") if not may_be_empty(p)] == []
    assert [p for p in (" {2,}", "a|b", "(?:ab)+", "^a", r"\p{L}") if may_be_empty(p)] == []


def test_a_pattern_that_is_not_known_to_be_quick_gives_the_same_ids_from_its_own_process(tmp_path: Path) -> None:
    plain = load_tokenizer(write(tmp_path / "plain", trained("llama3")))
    content = json.loads(trained("llama3"))
    step = content["pre_tokenizer"]["pretokenizers"][0]
    step["pattern"] = {"Regex": f"(?:{SPLITS['llama3']}){{1,1}}|(?:b|a+b+)+c"}
    apart = load_tokenizer(write(tmp_path / "apart", json.dumps(content)))
    assert apart.special_ids == plain.special_ids and apart.bos_id == plain.bos_id
    for text in ("Hello, y'all! 1234 <|eot_id|>", "", "  \n\n a", "\x00é"):
        assert apart.encode(text) == plain.encode(text) and apart.decode(apart.encode(text)) == text
    markers = frozenset(plain.special_ids)
    parts = ["a", min(markers), " b", max(markers)]
    assert apart.parts_encoder(markers)(parts) == plain.parts_encoder(markers)(parts)


def write(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("pattern", "text", "match"),
    [
        ("(a+)+$", "a" * 40 + "!", "its patterns cannot be matched with this text .*retry-limit-in-match over"),
        (
            "(?:a|aa)+$",
            ("a" * 25 + "b") * 5000,
            r"its patterns cannot be matched with this text \(not done after 0.5 s\)",
        ),
    ],
)
def test_a_pattern_that_takes_for_ever_is_stopped_and_the_next_text_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, text: str, match: str
) -> None:
    content = json.loads(trained("qwen")) | {"pre_tokenizer": split(pattern)}
    tokenizer = load_tokenizer(write(tmp_path / "t", json.dumps(content)))
    monkeypatch.setattr(confined, "SECONDS", 0.5 if "0.5" in match else 300.0)
    with pytest.raises(TokenizerError, match=match):
        tokenizer.encode(text)
    monkeypatch.setattr(confined, "SECONDS", 300.0)
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"


# tables of characters


@pytest.fixture(scope="module")
def normalizing() -> bytes:
    """A SentencePiece model with the usual table of characters to replace."""
    return train(model_type="unigram", normalization_rule_name="nmt_nfkc")


def charsmap(model: bytes) -> tuple[int, int]:
    """Where in a model its table lies."""
    begin, end = next((first, last) for number, first, last in fields(model) if number == 3)
    return next((first, last) for number, first, last in fields(model, begin, end) if number == 2)


def test_the_table_that_sentencepiece_writes_is_taken(normalizing: bytes) -> None:
    begin, end = charsmap(normalizing)
    assert growth(normalizing[begin:end]) == 33  # the bytes that U+FDFA becomes, 18 letters


DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "a trie longer than the table": lambda table: struct.pack_into("<I", table, 0, 2**31),
    "half a block": lambda table: struct.pack_into("<I", table, 0, 512),
    "an offset out of the trie": lambda table: struct.pack_into("<I", table, 4, 0x7FFFFF00),
    "no end": lambda table: table.__setitem__(-1, 65),
    "no text": lambda table: table.__setitem__(-2, 255),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_table_that_leads_out_of_itself_is_refused_in_both_formats(
    tmp_path: Path, normalizing: bytes, case: str
) -> None:
    begin, end = charsmap(normalizing)
    table = bytearray(normalizing[begin:end])
    DAMAGE[case](table)
    (tmp_path / "tokenizer.model").write_bytes(normalizing[:begin] + table + normalizing[end:])
    with pytest.raises(TokenizerError, match=r"tokenizer.model: is not a SentencePiece model, or is cut short \(its"):
        load_tokenizer(tmp_path)
    content = json.loads(trained("qwen")) | {"normalizer": precompiled(bytes(table))}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"tokenizer.json: precompiled_charsmap cannot be followed: its"):
        load_tokenizer(tmp_path)


# models of sentencepiece


def test_one_wrong_byte_in_a_piece_is_refused(tmp_path: Path) -> None:
    model = bytearray(train())
    at = model.index("▁the".encode())
    model[at + 1] = 0x28
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(TokenizerError, match=r"tokenizer.model: its library says: 'utf-8' codec can't decode"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("tail", "match"),
    [
        (b"\x0a" + b"\x80" * 100_000, "has no end"),
        (b"\x0a\xff\xff\xff\xff\x0f", "ends after its message"),
        (b"\x0b", "is of no kind that there is"),
        (b"\x0a\x09\x0a\x02zz\x15" + struct.pack("<f", float("nan")), "a score is not finite"),
    ],
)
def test_a_damaged_field_is_named(tmp_path: Path, tail: bytes, match: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train() + tail)
    with pytest.raises(
        TokenizerError, match=rf"tokenizer.model: is not a SentencePiece model, or is cut short .*{match}"
    ):
        load_tokenizer(tmp_path)


def test_a_piece_without_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train() + b"\x0a\x02\x18\x04")
    with pytest.raises(TokenizerError, match=r"tokenizer.model: its library says: .*piece must not be empty"):
        load_tokenizer(tmp_path)


def test_what_is_read_of_a_model_is_what_its_library_reads(normalizing: bytes) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=normalizing)
    pieces = [(first, last) for number, first, last in fields(normalizing) if number == 1]
    texts = [normalizing[a:b].decode() for piece in pieces for n, a, b in fields(normalizing, *piece) if n == 1]
    assert texts == [reference.id_to_piece(i) for i in range(reference.vocab_size())]
