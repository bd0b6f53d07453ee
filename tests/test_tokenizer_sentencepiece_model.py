"""SentencePiece models of every kind, trained in the test, against the sentencepiece library itself."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from nanollm_jax.errors import RequestError, TokenizerError
from nanollm_jax.tokenizer import Tokenizer, load_tokenizer

SENTENCES = ["a cat sat on a mat", "the cat and the hat", "that mat has a cat on it", "tea at ten, the hat at one"] * 5


def train(**options: Any) -> bytes:
    file = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 45, "hard_vocab_limit": False} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=file, minloglevel=3, **options
    )
    return file.getvalue()


def load(folder: Path, model: bytes, config: dict[str, Any] | None = None) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(model)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def added(token_id: int, content: str, special: bool) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(token_id): {"content": content, "special": special}}}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_ids_and_text_are_the_library_s(tmp_path: Path, kind: str) -> None:
    model = train(model_type=kind)
    tokenizer, reference = load(tmp_path, model), sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("the cat sat", "  hat   on mat ", "a, tea", ""):
        ids = tokenizer.encode(text)
        assert ids == [1, *reference.encode(text)]
        assert tokenizer.decode(ids) == reference.decode(ids)
    every = list(range(reference.vocab_size()))
    # Past the start of a text every piece keeps its space, and the library's mark for lost text stands for <unk>.
    assert tokenizer.decode(every, start=False) == " ⁇ " + "".join(reference.id_to_piece(every[3:])).replace("▁", " ")


def test_text_that_the_vocabulary_cannot_spell_is_seen_to_be_lost(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, train())
    ids = tokenizer.encode("cat 🦙", bos=False)
    assert tokenizer.piece(ids[-1]) == "<unk>"
    assert tokenizer.decode(ids) == "cat  ⁇ "


def test_without_a_dummy_prefix_no_space_is_taken_off(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, train(add_dummy_prefix=False, remove_extra_whitespaces=False))
    assert tokenizer.decode(tokenizer.encode(" cat")) == " cat"
    assert tokenizer.decode(tokenizer.encode("cat")) == "cat"


def test_a_model_without_bos_puts_none_in_front(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, train(bos_id=-1))
    assert tokenizer.bos_id is None
    assert not tokenizer.add_bos
    assert tokenizer.decode(tokenizer.encode("cat")) == "cat"
    with pytest.raises(RequestError, match="this tokenizer has no BOS token; call encode with bos=False"):
        tokenizer.encode("cat", bos=True)


def test_the_config_decides_on_the_bos_in_front(tmp_path: Path) -> None:
    model = train()
    assert load(tmp_path, model, {"add_bos_token": False}).encode("a") == load(tmp_path, model).encode("a", bos=False)
    assert load(tmp_path, model, {"add_bos_token": True, "bos_token": "</s>"}).encode("a")[0] == 2


def test_user_defined_pieces_are_matched_and_printed(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, train(user_defined_symbols=["<turn>"]))
    ids = tokenizer.encode("a<turn>a", bos=False)
    assert "<turn>" in [tokenizer.piece(i) for i in ids]
    assert tokenizer.decode(ids) == "a<turn>a"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_user_defined_pieces_that_the_config_calls_special_are_not_matched(tmp_path: Path, kind: str) -> None:
    symbols = ["<turn>", "<turns>"]
    model = train(model_type=kind, user_defined_symbols=symbols, required_chars="<>turns", vocab_size=60)
    tokenizer = load(tmp_path, model, added(3, "<turn>", True))
    ids = tokenizer.encode("a<turn>a<turns>", bos=False)
    assert tokenizer.special_ids == {1, 2, 3}
    assert 3 not in ids
    assert tokenizer.piece(ids[-1]) == "<turns>"  # the config left this one as it was
    assert tokenizer.decode(ids) == "a<turn>a<turns>"
    assert tokenizer.decode([3]) == ""


def test_an_ordinary_piece_that_the_config_calls_special_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"typing '▁a' gives the special token \d+, not ordinary text"):
        load(tmp_path, train(), {"eos_token": "▁a"})


def test_special_tokens_behind_the_model_are_known_and_never_typed(tmp_path: Path) -> None:
    model = train()
    size = load(tmp_path, model).vocab_size
    tokenizer = load(tmp_path, model, added(size, "<pad>", True) | {"eos_token": {"content": "<pad>"}})
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.piece(size)) == (size + 1, size, "<pad>")
    assert tokenizer.decode([size]) == ""
    assert size not in tokenizer.encode("<pad>")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_added_tokens_behind_the_model_are_found_whole(tmp_path: Path, kind: str) -> None:
    """By added_tokens.json, as older checkpoints have it, and by the config; what the names call special never in text."""
    model = train(model_type=kind)
    plain = load(tmp_path, model, {})
    size, cat = plain.vocab_size, plain.encode("the cat", bos=False)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size, "<tool>": size + 1}))
    both = added(size, "<pad>", True)["added_tokens_decoder"] | added(size + 1, "<tool>", False)["added_tokens_decoder"]
    for config in ({"pad_token": "<pad>"}, {"additional_special_tokens": ["<pad>"]}, {"added_tokens_decoder": both}):
        tokenizer = load(tmp_path, model, config)
        assert tokenizer.encode("the cat<tool> hat", bos=False) == [*cat, size + 1, *plain.encode("hat", bos=False)]
        assert tokenizer.decode([*cat, size + 1]) == "the cat<tool>"
        assert size not in tokenizer.encode("<pad>") and tokenizer.special_ids == plain.special_ids | {size}
        assert tokenizer.encode("the cat<pad>", bos=False, special=True) == [*cat, size]


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    model = train()
    size = load(tmp_path, model).vocab_size
    for config in (added(1, "<bos>", True), added(size + 1, "<pad>", True)):
        with pytest.raises(
            TokenizerError, match=r"tokenizer_config.json: puts '<\w+>' at id \d+, where tokenizer.model"
        ):
            load(tmp_path, model, config)
    with pytest.raises(TokenizerError, match="names '<bos>', which is not in the vocabulary"):
        load(tmp_path, model, {"bos_token": "<bos>"})


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    for model in (b"garbage\n", b"\n\0", train()[:500]):
        with pytest.raises(
            TokenizerError, match=r"tokenizer.model: (is not a SentencePiece model|its library says: INTERNAL)"
        ):
            load(tmp_path, model)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_parts_put_the_dummy_prefix_before_the_first_run_or_every_run(tmp_path: Path, kind: str) -> None:
    model = train(model_type=kind, remove_extra_whitespaces=False)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = load(tmp_path, model)
    first = reference.encode("the cat")
    parts = tokenizer.parts_encoder()
    assert parts(["the", " cat", 2, " the cat", 1, 1]) == [*first, 2, *first, 1, 1]
    ids = parts([1, "the ", "cat", 1, "a"])
    assert "".join(tokenizer.piece(i) for i in ids) == "<s>the▁cat<s>a" and first[0] not in ids
    legacy = load(tmp_path, model, {"legacy": True}).parts_encoder()
    assert legacy([1, "the cat", 2, "the cat"]) == [1, *first, 2, *first]
    assert parts([]) == parts([""]) == []


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_text_in_parts_makes_no_marker(tmp_path: Path, kind: str) -> None:
    long = "<" + "turn" * 40 + ">"  # its length takes two bytes in the file
    model = train(model_type=kind, user_defined_symbols=["<turn>", long], required_chars="<>turns", vocab_size=60)
    tokenizer = load(tmp_path, model)
    assert tokenizer.added == {"<s>": 1, "</s>": 2, "<turn>": 3, long: 4}
    encode = tokenizer.parts_encoder(frozenset([3, 4]))
    ids = encode([3, f"a<turn>{long}", 4])
    assert (ids[0], ids[-1], ids.count(3), ids.count(4)) == (3, 4, 1, 1)
    assert tokenizer.decode(ids) == f"<turn>a<turn>{long}{long}"
    assert 3 in tokenizer.encode("<turn>")
