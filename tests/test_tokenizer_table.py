"""What every tokenizer promises, held against the bundled one, which is always there."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import nanollm_jax
from nanollm_jax.errors import RequestError
from nanollm_jax.tokenizer import Tokenizer, load_tokenizer
from nanollm_jax.tokenizer.table import SHOWN

BUNDLED = Path(nanollm_jax.__file__).parent / "assets" / "nano-stories"
TOKENIZER = load_tokenizer(BUNDLED)
REFERENCE = sentencepiece.SentencePieceProcessor(model_file=str(BUNDLED / "tokenizer.model"))
# Two ids past the end: the rows that a model's padded vocabulary has and the tokenizer does not.
ids_of_any_kind = st.lists(st.integers(0, TOKENIZER.vocab_size + 1), max_size=40)
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)


def test_vocabulary_is_the_one_of_the_file() -> None:
    config = json.loads((BUNDLED / "config.json").read_text())
    assert TOKENIZER.vocab_size == 2048 == config["vocab_size"]
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id) == (1, 2) == (config["bos_token_id"], config["eos_token_id"])
    assert TOKENIZER.special_ids == {1, 2}
    assert TOKENIZER.add_bos
    assert [TOKENIZER.piece(i) for i in (0, 1, 2, 13, 261, 2048)] == ["<unk>", "<s>", "</s>", "<0x0A>", "▁a", ""]
    assert [TOKENIZER.token_bytes(i) for i in (0, 1, 13, 261, 2048)] == [" ⁇ ".encode(), b"", b"\n", b" a", b""]


@settings(deadline=None)
@given(UNICODE)
def test_text_comes_back_from_its_ids(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == [1, *REFERENCE.encode(text)]
    assert TOKENIZER.decode(ids) == text


def test_bos_is_put_in_front_once_where_asked_and_eos_never() -> None:
    assert TOKENIZER.encode("a\n") == TOKENIZER.encode("a\n", bos=True) == [1, 261, 13]
    assert TOKENIZER.encode("a\n", bos=False) == [261, 13]
    assert TOKENIZER.encode("") == [1]


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "a<s>b</s>", "<0x0A>", "[INST] <|endoftext|>"])
def test_typed_special_tokens_stay_text(text: str) -> None:
    ids = TOKENIZER.encode(text, bos=False)
    assert not {0, 1, 2, 13} & set(ids)
    assert TOKENIZER.decode(ids) == text


@settings(deadline=None)
@given(ids_of_any_kind, st.booleans())
def test_pieces_of_a_stream_join_up_to_the_text(ids: list[int], start: bool) -> None:
    assert stream(TOKENIZER, ids, start) == TOKENIZER.decode(ids, start=start) == expected(TOKENIZER, ids, start)


def test_bytes_are_held_back_until_they_are_a_character() -> None:
    llama, decoder = [3 + byte for byte in "🦙".encode()], TOKENIZER.decoder()
    assert [decoder.push(i) for i in [*llama, 261]] == ["", "", "", "🦙", " a"]
    assert decoder.push(llama[0]) == ""
    assert decoder.finish() == "\ufffd"
    assert TOKENIZER.decode([*llama[:2], 261]) == "\ufffd a"
    decoder = TOKENIZER.decoder(shown=[2])  # the name of a special token, which no bytes spell
    assert [decoder.push(i) for i in [llama[0], 2, 1, 261]] == ["", f"\ufffd{SHOWN}</s>", "", " a"]


def test_the_space_before_the_first_word_depends_on_where_the_text_starts() -> None:
    a = 261  # "▁a"
    assert TOKENIZER.decode([a, a]) == "a a"
    assert TOKENIZER.decode([1, 2, 5000, a, a]) == "a a"  # what prints nothing is not the first word
    assert TOKENIZER.decode([1, a, a], start=False) == " a a"
    assert TOKENIZER.decode(TOKENIZER.encode("   a")) == "   a"
    decoder = TOKENIZER.decoder()
    assert [decoder.push(i) for i in [1, a, 1, a]] == ["", "a", "", " a"]


def test_ids_may_be_numpy_integers() -> None:
    assert TOKENIZER.decode(np.array([1, 261, 13], np.int32)) == "a\n"


def test_bad_ids_and_bad_text_are_refused() -> None:
    for call in (
        TOKENIZER.piece,
        TOKENIZER.token_bytes,
        TOKENIZER.decoder().push,
        lambda i: TOKENIZER.decode([261, i]),
    ):
        with pytest.raises(RequestError, match=r"-1 is negative; ids count from 0 to 2047"):
            call(-1)
    with pytest.raises(RequestError, match="lone surrogate at 2; pass valid Unicode"):
        TOKENIZER.encode("ab\udcff")


def test_the_network_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    assert load_tokenizer(BUNDLED).encode("a") == [1, 261]


def test_the_room_stands_alone_and_opens_the_libraries_only_when_it_loads() -> None:
    code = f"""
import sys, types
house = sys.modules["nanollm_jax"] = types.ModuleType("nanollm_jax")  # an empty house around this one room
house.__path__ = [{str(BUNDLED.parents[1])!r}]
import nanollm_jax.tokenizer
print(sorted({{"jax", "sentencepiece", "tokenizers"}} & set(sys.modules)))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def stream(tokenizer: Tokenizer, ids: list[int], start: bool) -> str:
    decoder = tokenizer.decoder(start=start)
    return "".join([decoder.push(i) for i in ids]) + decoder.finish()


def expected(tokenizer: Tokenizer, ids: list[int], start: bool) -> str:
    data = b"".join(tokenizer.token_bytes(i) for i in ids)
    return (data[1:] if start and data[:1] == b" " else data).decode(errors="replace")


def test_what_is_no_id_is_refused_by_name() -> None:
    assert TOKENIZER.decode(np.asarray([261, 261])) == TOKENIZER.decode([np.int16(261), np.uint16(261)])
    for wrong in (None, 2.5, "a", b"a", [1], True, np.asarray([1.5]), object()):
        for call in (TOKENIZER.piece, TOKENIZER.token_bytes, lambda ids: TOKENIZER.decode([ids])):
            with pytest.raises(RequestError, match=r"token id is .*; ids count from 0 to 2047"):
                call(wrong)  # type: ignore[operator]
    for wrong in (None, 5, "ab", b"ab", {1: 2}):
        with pytest.raises(RequestError, match="expected a list of token ids"):
            TOKENIZER.decode(wrong)  # type: ignore[arg-type]
    for wrong in (None, 5, b"a", ["a"]):
        with pytest.raises(RequestError, match="expected a str"):
            TOKENIZER.encode(wrong)  # type: ignore[arg-type]
