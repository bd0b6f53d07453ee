"""Published tokenizers on published hard texts. Needs the folder of real data that NANOLLM_TEST_DATA names."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from nanollm_jax.tokenizer import Tokenizer, load_tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"
# name: (cases, its files and the names that a checkpoint has them under). The first four have the ids of the cases.
TOKENIZERS = {
    "byte-level json": ("gpt-2", {"gpt2/tokenizer.json": "tokenizer.json"}),
    "byte-level pair": ("gpt-2", {"gpt2/vocab.json": "vocab.json", "gpt2/merges.txt": "merges.txt"}),
    "marked json": ("llama-spm", {"llama2/tokenizer.json": "tokenizer.json"}),
    "marked model": ("llama-spm", {"llama2/tokenizer.model": "tokenizer.model"}),
    "model v1": ("llama-spm", {"mistral/tokenizer.model.v1": "tokenizer.model"}),
    "model v3": ("llama-spm", {"mistral/mistral_instruct_tokenizer_240323.model.v3": "tokenizer.model"}),
    "tiny model": ("llama-spm", {"../models/stories260K/tokenizer.model": "tokenizer.model"}),
}
SPECIAL = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|begin_of_text|>", "[INST]", "[/INST]", "[TOOL_CALLS]"]


class Case:
    """One published tokenizer: ours, the library's own, and the texts to hold them against each other with."""

    def __init__(self, data: Path, folder: Path, name: str) -> None:
        vocabulary, files = TOKENIZERS[name]
        for source, target in files.items():
            shutil.copy(data / "tokenizers" / source, folder / target)
        self.ours: Tokenizer = load_tokenizer(folder)
        cases = data / "tokenizers/cases" / f"ggml-vocab-{vocabulary}.gguf"
        # Bytes, because reading as text would turn \r into \n.
        self.texts = cases.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
        self.ids = [[int(n) for n in line.split()] for line in cases.with_suffix(".gguf.out").read_text().split("\n")]
        self.reference_decode: Callable[[list[int]], str]
        if (folder / "tokenizer.model").exists():
            self.reference_decode = sentencepiece.SentencePieceProcessor(
                model_file=str(folder / "tokenizer.model")
            ).decode
        elif (folder / "tokenizer.json").exists():
            self.reference_decode = Library.from_file(str(folder / "tokenizer.json")).decode


@pytest.fixture(scope="module", params=TOKENIZERS)
def case(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(data, tmp_path_factory.mktemp("tokenizer"), request.param)


@pytest.mark.parametrize("case", list(TOKENIZERS)[:4], indirect=True)
def test_every_published_case(case: Case) -> None:
    assert len(case.texts) == len(case.ids) == 47
    for text, ids in zip(case.texts, case.ids, strict=True):
        assert case.ours.encode(text, bos=False) == ids, text
        assert case.ours.decode(ids) == text


# The pair has no decoder of its own to compare with; its cases come back as they were, above.
@pytest.mark.parametrize("case", [name for name in TOKENIZERS if name != "byte-level pair"], indirect=True)
def test_decoding_is_the_library_s_own(case: Case) -> None:
    for text in case.texts:
        ids = case.ours.encode(text)
        assert case.ours.decode(ids) == case.reference_decode(ids) == text


@pytest.mark.parametrize("text", SPECIAL)
def test_typed_special_tokens_stay_text(case: Case, text: str) -> None:
    for typed in (text, f"a{text}b {text}"):
        ids = case.ours.encode(typed, bos=False)
        assert not case.ours.special_ids & set(ids)
        assert case.ours.decode(ids) == typed


@settings(deadline=None)
@given(choices=st.data(), start=st.booleans())
def test_pieces_of_a_stream_join_up_to_the_text(case: Case, choices: st.DataObject, start: bool) -> None:
    ours = case.ours
    any_id = st.integers(0, ours.vocab_size + 1) | st.integers(0, 300)  # the low ids hold the bytes and special tokens
    ids = choices.draw(st.lists(any_id, max_size=30))
    decoder = ours.decoder(start=start)
    streamed = "".join([decoder.push(i) for i in ids]) + decoder.finish()
    data = b"".join(ours.token_bytes(i) for i in ids)
    marked = ours.decode(ours.encode("a", bos=False), start=False) == " a"
    if start and marked and data.startswith(b" "):
        data = data[1:]
    assert streamed == ours.decode(ids, start=start) == data.decode(errors="replace")


# BOS, EOS, whether a BOS goes in front, how many ids are special, and the first id of "a".
FACTS = {
    "byte-level json": (50256, 50256, False, 1, 64),
    "byte-level pair": (50256, 50256, False, 1, 64),
    "marked json": (1, 2, True, 3, 263),
    "marked model": (1, 2, True, 2, 263),
    "model v1": (1, 2, True, 2, 264),
    "model v3": (1, 2, True, 750, 1032),
    "tiny model": (1, 2, True, 2, 261),
}


def test_facts(case: Case, request: pytest.FixtureRequest) -> None:
    ours, name = case.ours, request.node.callspec.params["case"]
    a = ours.encode("a", bos=False)[0]
    assert (ours.bos_id, ours.eos_id, ours.add_bos, len(ours.special_ids), a) == FACTS[name]
    assert ours.encode("a") == ([ours.bos_id, a] if ours.add_bos else [a])
