"""vocab.json with merges.txt, and lists of ranks, made here from one small vocabulary; tiktoken is the reference."""

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from nanollm_jax.tokenizer.pieces import byte_level_bytes

# As published with the format: meta-llama/llama-models, models/llama3/api/tokenizer.py
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = [
    "Once there was a cat. It's 12345 years old!!",
    "  aaaaaaa the then there\n\n\nWE'LL naïve 🦙🦙 東京東京",
] * 9
HARD = [
    "",
    " ",
    "\n \n",
    "aaaaaaaaaaaa",
    "I'LL it's",
    "x  \t y",
    "12345678",
    "🦙é\u200d東",
    "?!?!\n\n\n =",
    "Once there was",
]
UNICODE = st.text(st.one_of(st.sampled_from("aehtr '\n1🦙東!L"), st.characters(exclude_categories=["Cs"])), max_size=30)


def small_library() -> Library:
    """Byte-level BPE of 256 bytes and 90 merges, made by the library itself."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=346, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(SENTENCES, trainer)
    return library


LIBRARY = small_library()
VOCAB: dict[str, int] = LIBRARY.get_vocab()
MERGES: list[list[str]] = json.loads(LIBRARY.to_str())["model"]["merges"]
END = "<|endoftext|>"


def write_pair(folder: Path, *, vocab: dict[str, int], merges: str, **config: object) -> Tokenizer:
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text(merges)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def pair(folder: Path, **config: object) -> Tokenizer:
    merges = "\n".join(["#version: 0.2", *map(" ".join, MERGES), ""])
    return write_pair(folder, vocab=VOCAB | {END: len(VOCAB)}, merges=merges, **config)


def ranks_of(vocab: dict[str, int]) -> dict[bytes, int]:
    return {byte_level_bytes(piece): rank for piece, rank in sorted(vocab.items(), key=lambda item: item[1])}


def write_ranks(folder: Path, ranks: dict[bytes, int], **config: object) -> Tokenizer:
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (folder / "tokenizer.model").write_text("".join(lines))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def reference(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding("reference", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})


REFERENCE = reference(ranks_of(VOCAB))


@pytest.fixture(scope="module")
def from_pair(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def from_ranks(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return write_ranks(tmp_path_factory.mktemp("ranks"), ranks_of(VOCAB))


@settings(deadline=None)
@given(text=UNICODE)
def test_pair_encodes_as_the_library_does(from_pair: Tokenizer, text: str) -> None:
    assert from_pair.encode(text) == LIBRARY.encode(text).ids
    assert from_pair.decode(from_pair.encode(text)) == text


def test_pair_has_one_special_token_and_does_not_put_it_in_front(from_pair: Tokenizer, tmp_path: Path) -> None:
    end = len(VOCAB)
    assert (from_pair.bos_id, from_pair.eos_id, from_pair.vocab_size) == (end, end, end + 1)
    assert not from_pair.add_bos
    assert from_pair.encode("the") == [VOCAB["the"]]
    assert from_pair.encode("the", bos=True) == [end, VOCAB["the"]]
    assert end not in from_pair.encode(f"the{END}")
    assert from_pair.decode(from_pair.encode(f"the{END}")) == f"the{END}"
    assert from_pair.decode([end, VOCAB["Ġthe"], end]) == " the"
    assert pair(tmp_path, add_bos_token=True).encode("the") == [end, VOCAB["the"]]


def test_pair_with_a_prefix_space_takes_it_off_again(tmp_path: Path) -> None:
    tokenizer = pair(tmp_path, add_prefix_space=True)
    assert tokenizer.encode("the") == [VOCAB["Ġthe"]]
    assert tokenizer.decode([VOCAB["Ġthe"], VOCAB["Ġthe"]]) == "the the"


def test_pair_with_added_tokens(tmp_path: Path) -> None:
    extra = {str(len(VOCAB) + 1): {"content": "<é>"}, str(len(VOCAB) + 2): {"content": "<pad>", "special": True}}
    tokenizer = pair(tmp_path, added_tokens_decoder=extra)
    ids = tokenizer.encode("the<é><pad>the")
    assert ids[:2] == [VOCAB["the"], len(VOCAB) + 1]
    assert len(VOCAB) + 2 not in ids
    assert tokenizer.decode(ids) == "the<é><pad>the"
    assert tokenizer.special_ids == {len(VOCAB), len(VOCAB) + 2}


MERGES_FAULTS = {
    "a b c": "line 2 is 'a b c'; expected two entries of vocab.json that join to a third",
    "a": "line 2 is 'a'; expected two",
    "z q": "line 2 is 'z q'; expected two",  # no entry "zq"
    "zz a": "line 2 is 'zz a'; expected two",
}


@pytest.mark.parametrize("line", MERGES_FAULTS)
def test_merges_that_do_not_fit_the_vocabulary_are_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(TokenizerError, match=f"merges.txt: {MERGES_FAULTS[line]}"):
        write_pair(tmp_path, vocab=VOCAB, merges=f"#version: 0.2\n{line}\n")


def test_half_a_pair_and_a_broken_vocabulary_are_refused(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(TokenizerError, match=r"vocab.json: cannot be read \(No such file or directory\)"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(TokenizerError, match=r"merges.txt: cannot be read \(No such file or directory\)"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    for vocab, message in (
        ('{"a": "0"}', "vocab: an id is '0'; expected a whole number"),
        ('{"b": 0}', "'a' encodes to nothing; expected a vocabulary"),
        ("[]", "found a JSON list, expected an object"),
    ):
        (tmp_path / "vocab.json").write_text(vocab)
        with pytest.raises(TokenizerError, match=rf"vocab.json: {message}"):
            load_tokenizer(tmp_path)


def test_a_class_with_a_split_pattern_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="tokenizer_class Qwen2Tokenizer has its own way to split text"):
        pair(tmp_path, tokenizer_class="Qwen2Tokenizer")
    assert pair(tmp_path, tokenizer_class="GPT2Tokenizer").encode("the") == [VOCAB["the"]]


@pytest.mark.parametrize("text", HARD)
def test_ranks_encode_the_hard_texts_as_tiktoken_does(from_ranks: Tokenizer, text: str) -> None:
    assert from_ranks.encode(text, bos=False) == REFERENCE.encode_ordinary(text)


@settings(deadline=None)
@given(text=UNICODE)
def test_ranks_encode_any_text_as_tiktoken_does(from_ranks: Tokenizer, text: str) -> None:
    ids = from_ranks.encode(text, bos=False)
    assert ids == REFERENCE.encode_ordinary(text)
    assert from_ranks.decode(ids) == text


def test_a_rank_that_no_merge_leads_to_is_still_found_whole(tmp_path: Path) -> None:
    ranks = ranks_of(VOCAB) | {b" qzjx": len(VOCAB)}
    tokenizer = write_ranks(tmp_path, ranks)
    for text in ("a qzjx", "a qzjxq"):
        assert tokenizer.encode(text, bos=False) == reference(ranks).encode_ordinary(text)
    assert tokenizer.encode(" qzjx", bos=False) == [len(VOCAB)]


def test_the_real_vocabulary_as_ranks(data: Path, tmp_path: Path) -> None:
    vocab: dict[str, int] = json.loads((data / "tokenizers/gpt2/vocab.json").read_text())
    ranks = ranks_of({piece: rank for piece, rank in vocab.items() if piece != END})
    tokenizer, encoding = write_ranks(tmp_path, ranks), reference(ranks)
    story = (data / "corpora/tinystories_val.txt").read_text()[:30_000]
    cases = (data / "tokenizers/cases/ggml-vocab-gpt-2.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    for text in [*cases, *HARD, story]:
        assert tokenizer.encode(text, bos=False) == encoding.encode_ordinary(text)


def test_ranks_are_followed_by_the_published_special_tokens(from_ranks: Tokenizer, tmp_path: Path) -> None:
    n = len(VOCAB)  # 128000 in the published file
    assert from_ranks.vocab_size == n + 256
    assert from_ranks.special_ids == set(range(n, n + 256))
    assert [from_ranks.piece(n + i) for i in range(12)] == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_3|>",
    ]
    assert from_ranks.piece(n + 255) == "<|reserved_special_token_247|>"
    assert (from_ranks.bos_id, from_ranks.eos_id) == (n, n + 1)
    assert from_ranks.encode("the") == [n, VOCAB["the"]]
    assert from_ranks.decode([n, VOCAB["Ġthe"], n + 9]) == " the"
    for typed in ("<|begin_of_text|>", "<|eot_id|>"):
        assert not from_ranks.special_ids & set(from_ranks.encode(typed, bos=False))
    names = {str(n + 8): {"content": "<|reserved_special_token_4|>", "special": True}}
    older = write_ranks(tmp_path, ranks_of(VOCAB), added_tokens_decoder=names, eos_token="<|eot_id|>")
    assert older.piece(n + 8) == "<|reserved_special_token_4|>"
    assert len({older.piece(i) for i in older.special_ids}) == 256
    assert older.eos_id == n + 9


RANKS_FAULTS = {
    "not-base64! 1": "line 2 is b'not-base64! 1'; expected a token in base64 and its rank",
    "YQ== one": "line 2 is b'YQ== one'; expected",
    "YQ==": "line 2 is b'YQ=='; expected",
    "YQ== 7": "line 2 has rank 7; expected a token not seen before, with rank 1",
    "IQ== 1": "the token of rank 0 is there again later",
    "YQ== 1": "254 of the 256 single bytes have no rank",
}


@pytest.mark.parametrize("line", RANKS_FAULTS)
def test_damaged_ranks_are_refused_by_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "tokenizer.model").write_text(f"IQ== 0\n{line}\n")
    with pytest.raises(TokenizerError, match=f"tokenizer.model: {RANKS_FAULTS[line]}"):
        load_tokenizer(tmp_path)


# lists of ranks under other names

NAMED_SPLIT = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # as a tekken.json has one of its own


def tekken(ranks: dict[bytes, int], special: list[str] | None, count: int = 6, **config: object) -> dict[str, Any]:
    """A tekken.json, with two ranks more than default_vocab_size leaves room for."""
    ordered = [*sorted(ranks, key=ranks.__getitem__), b"never 1", b"never 2"]
    content: dict[str, Any] = {
        "config": {
            "pattern": NAMED_SPLIT, "num_vocab_tokens": len(ordered), "default_vocab_size": len(ranks) + count,
            "default_num_special_tokens": count, "version": "v3",
        } | config,
        "vocab": [
            {"rank": n, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode(errors="ignore") or None}
            for n, token in enumerate(ordered)
        ],
    }  # fmt: skip
    if special is not None:
        content["special_tokens"] = [
            {"rank": n, "token_str": name, "is_control": True} for n, name in enumerate(special)
        ]
    return content


def test_tekken_is_read_as_tiktoken_reads_its_ranks(tmp_path: Path) -> None:
    """The special tokens have the first ids; the pattern is the file's own; ranks beyond the size are not there."""
    ranks = ranks_of(VOCAB)
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(ranks, ["<unk>", "<s>", "</s>", "[INST]"])))
    assert has_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    oracle = tiktoken.Encoding("tekken", pat_str=NAMED_SPLIT, mergeable_ranks=ranks, special_tokens={})
    for text in HARD:
        expected = [token + 6 for token in oracle.encode_ordinary(text)]
        assert tokenizer.encode(text) == [1, *expected] and tokenizer.decode(expected) == text
    assert tokenizer.vocab_size == len(ranks) + 6 and (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert [tokenizer.piece(n) for n in range(6)] == ["<unk>", "<s>", "</s>", "[INST]", "<SPECIAL_4>", "<SPECIAL_5>"]
    assert tokenizer.special_ids == set(range(6))
    assert tokenizer.encode("[INST]a", bos=False, special=True) == [3, oracle.encode_ordinary("a")[0] + 6]
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(ranks, None)))
    assert load_tokenizer(tmp_path).piece(4) == "[/INST]"  # older files do not list them


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "config is None"), ({"vocab": 3}, "vocab is 3"), ({"vocab": [{"rank": 1}]}, "expected rank 0"),
        ({"vocab": [{"rank": 0, "token_bytes": "?"}]}, "vocab: an entry is"),
        ({"special_tokens": [{"rank": 6}]}, "a rank below 6"),
        ({"special_tokens": [{"rank": 0, "token_str": "a"}]}, "'a' is a special token and another one too"),
        ({"config": {"pattern": "(", "default_vocab_size": 352, "default_num_special_tokens": 6}}, "tekken.json: "),
        ({"config": {"pattern": "a", "default_vocab_size": 352, "default_num_special_tokens": 10**12}}, "special_tokens is 10"),
    ],
)  # fmt: skip
def test_a_damaged_tekken_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = tekken(ranks_of(VOCAB), ["<unk>", "<s>"]) | change
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_ranks_under_other_names(tmp_path: Path) -> None:
    """qwen.tiktoken splits numbers digit by digit and has Qwen's special tokens; others are read as the reference does."""
    ranks = ranks_of(VOCAB)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (tmp_path / "qwen.tiktoken").write_text("".join(lines))
    assert has_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    oracle = tiktoken.Encoding(
        "qwen", pat_str=SPLIT.replace("{1,3}", ""), mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)}
    )
    for text in HARD:
        assert tokenizer.encode(text) == oracle.encode_ordinary(unicodedata.normalize("NFC", text))
    n = len(ranks)
    assert [tokenizer.piece(n + place) for place in (0, 1, 2, 3, 207)] == [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>",
    ]  # fmt: skip
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.add_bos) == (n + 208, n, False)
    (tmp_path / "qwen.tiktoken").rename(tmp_path / "other.tiktoken")
    names = {str(n): {"content": "<|end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": names, "eos_token": "<|end|>"}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.special_ids) == (n + 1, n, {n})
    for text in HARD:
        assert tokenizer.encode(text) == reference(ranks).encode_ordinary(text)
    (tmp_path / "third.tiktoken").write_text("".join(lines))
    with pytest.raises(TokenizerError, match=r"2 lists of ranks, other\.tiktoken, third\.tiktoken"):
        load_tokenizer(tmp_path)


def test_added_tokens_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Older checkpoints have them in added_tokens.json; special are those that the other files name."""
    n = len(VOCAB) + 1  # behind <|endoftext|>
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": n, "<pad>": n + 1, "<extra>": n + 2}))
    tokenizer = pair(tmp_path, pad_token="<pad>", additional_special_tokens=[{"content": "<extra>"}])
    assert tokenizer.vocab_size == n + 3 and tokenizer.special_ids == {n - 1, n + 1, n + 2}
    assert tokenizer.encode("the<tool>the") == [VOCAB["the"], n, VOCAB["the"]]
    assert not {n + 1, n + 2} & set(tokenizer.encode("<pad><extra>"))
    assert tokenizer.encode("<pad><extra>", special=True) == [n + 1, n + 2]
    for wrong in ({"<tool>": -1}, {"<tool>": "1"}, {"": n}, {"<tool>": n + 1}, {"<tool>": True}):
        (tmp_path / "added_tokens.json").write_text(json.dumps(wrong))
        with pytest.raises(TokenizerError, match=r"<tool>|''"):
            load_tokenizer(tmp_path)
