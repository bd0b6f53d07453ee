"""tokenizer.json in the configurations that published families ship: ids, text, streams, and parts of a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers_like import HARD, KINDS, SPLITS, trained

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer import Tokenizer, load_tokenizer
from nanollm_jax.tokenizer.pieces import byte_level_bytes

SEPARATOR = "\n__ggml_vocab_test__\n"
Pair = tuple[Tokenizer, Library]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Ours and the library's own, of one kind."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tokenizer.json").write_text(trained(request.param))
    return load_tokenizer(folder), Library.from_file(str(folder / "tokenizer.json"))


def test_ids_and_text_are_the_library_s(pair: Pair) -> None:
    ours, library = pair
    special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    for text in HARD:
        assert not any(name in text for name in special - {"<unk>"})
        if "<unk>" not in text:
            assert ours.encode(text) == library.encode(text).ids, text
        ids = ours.encode(text)
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=True), text


def test_published_hard_texts_too(pair: Pair, data: Path) -> None:
    ours, library = pair
    texts = (data / "tokenizers/cases/ggml-vocab-gpt-2.gguf.inp").read_bytes().decode().split(SEPARATOR)
    assert len(texts) > 40
    for text in texts:
        assert ours.encode(text) == library.encode(text).ids, text


@pytest.mark.parametrize("kind", SPLITS)
def test_byte_level_ids_are_those_of_tiktoken(kind: str, tmp_path: Path) -> None:
    """An implementation that shares nothing with the library: the vocabulary's order as ranks, and the same pattern."""
    content = json.loads(trained(kind))
    (tmp_path / "tokenizer.json").write_text(trained(kind))
    alphabet = {byte_level_bytes(piece): n for n, piece in enumerate(content["model"]["vocab"]) if len(piece) == 1}
    ranks = alphabet | {byte_level_bytes("".join(merge)): 256 + n for n, merge in enumerate(content["model"]["merges"])}
    names = {byte_level_bytes(piece): token_id for piece, token_id in content["model"]["vocab"].items()}
    reference = tiktoken.Encoding(kind, pat_str=SPLITS[kind], mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(tmp_path)
    for text in HARD:
        if "\u0301" in text:
            continue  # what NFC would change, tiktoken does not
        expected = [names[reference.decode_single_token_bytes(n)] for n in reference.encode(text)]
        assert ours.encode(text, bos=False) == expected, text


@settings(deadline=None, max_examples=60)
@given(choices=st.data(), start=st.booleans())
def test_pieces_of_a_stream_join_up_to_the_text(pair: Pair, choices: st.DataObject, start: bool) -> None:
    ours, _ = pair
    ids = choices.draw(st.lists(st.integers(0, ours.vocab_size + 1), max_size=40))
    decoder = ours.decoder(start=start)
    streamed = "".join([decoder.push(i) for i in ids]) + decoder.finish()
    assert streamed == ours.decode(ids, start=start)


def test_typed_special_tokens_stay_text(pair: Pair) -> None:
    ours, _ = pair
    for token_id in ours.special_ids:
        name = ours.piece(token_id)
        ids = ours.encode(f"a{name}b", bos=False)
        if name != "<unk>":
            assert token_id not in ids
            assert ours.decode(ids) == f"a{name}b" or ours.piece(2) == "<unk>"  # unigram: letters it does not have


# parts


def test_parts_are_encoded_as_one_text_would_be(pair: Pair) -> None:
    """The library, which takes special tokens in text for what they are, is given the parts joined up."""
    ours, library = pair
    encode = ours.parts_encoder()
    markers = sorted(ours.special_ids)
    texts = [text for text in HARD if not any(ours.piece(marker) in text for marker in markers)]
    for n, text in enumerate(texts):
        parts = [markers[n % len(markers)], text, markers[-1], texts[n - 1], markers[0], markers[0]]
        for chosen in (parts, parts[1:], parts[2:], [text], []):
            whole = "".join(part if isinstance(part, str) else ours.piece(part) for part in chosen)
            assert encode(chosen) == library.encode(whole, add_special_tokens=False).ids, chosen


def test_text_in_parts_makes_no_marker(pair: Pair) -> None:
    ours, _ = pair
    markers = frozenset(token_id for name, token_id in ours.added.items() if not name.isspace())
    encode = ours.parts_encoder(markers)
    unknown = {token_id for name, token_id in ours.added.items() if name == "<unk>"}
    for marker in markers - unknown:
        ids = encode([marker, f"a{ours.piece(marker)} {ours.piece(marker)}", marker])
        assert ids.count(marker) == 2 and {ids[0], ids[-1]} == {marker}
    assert ours.added.keys() >= {ours.piece(token_id) for token_id in ours.special_ids}


def test_a_marker_that_merges_make_is_refused(tmp_path: Path) -> None:
    content = json.loads(trained("qwen"))
    left, right = content["model"]["merges"][-1]
    content["added_tokens"].append(
        content["added_tokens"][0] | {"id": content["model"]["vocab"][left + right], "content": left + right}
    )
    content["added_tokens"][-1]["special"] = False
    content["added_tokens"].sort(key=lambda token: token["id"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"merges of text make \['.+'\], which a chat template needs for itself"):
        tokenizer.parts_encoder(frozenset([tokenizer.added[left + right]]))
