"""tokenizer.json files of a few entries, written out here: what is read from them and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer import Tokenizer, load_tokenizer
from nanollm_jax.tokenizer.files import AddedToken, Settings
from nanollm_jax.tokenizer.tokenizer_json import _add_tokens

WORDS = ["▁", "a", "b", "▁a", "▁ab", "ab", "<", ">", "s", "/", "[", "]"]
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
MARKED: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {"id": i, "content": content, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for content, i in SPECIAL.items()
    ],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
    "model": {
        "type": "BPE",
        "unk_token": "<unk>",
        "byte_fallback": True,
        "vocab": SPECIAL
        | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
        | {word: 259 + n for n, word in enumerate(WORDS)},
        "merges": ["▁ a", "a b", "▁ ab"],
    },
}


def load(folder: Path, content: dict[str, Any], **config: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def changed(**parts: Any) -> dict[str, Any]:
    return copy.deepcopy(MARKED) | parts


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.piece(i) for i in tokenizer.encode(text)]


def test_marked_vocabulary(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, MARKED)
    assert pieces(tokenizer, "ab  a\n") == ["<s>", "▁a", "b", "▁", "▁a", "<0x0A>"]
    assert tokenizer.decode(tokenizer.encode(" ab 🦙")) == " ab 🦙"
    assert tokenizer.decode(tokenizer.encode("ab"), start=False) == " ab"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.special_ids == {0, 1, 2}
    assert pieces(tokenizer, "<s></s>") == ["<s>", "▁", "<", "s", ">", "<", "/", "s", ">"]


def test_text_is_the_library_s(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, MARKED)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("ab a", "  b", "é🦙 ", "", "\n\n"):
        ids = library.encode(text).ids
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True) == text


def test_the_bos_follows_the_post_processor_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    without = changed(post_processor=None)
    assert not load(tmp_path, without).add_bos
    assert load(tmp_path, without).bos_id == 1
    assert pieces(load(tmp_path, without, add_bos_token=True), "a") == ["<s>", "▁a"]
    assert pieces(load(tmp_path, MARKED, add_bos_token=False), "a") == ["▁a"]
    assert pieces(load(tmp_path, MARKED), "") == ["<s>"]
    behind = changed()
    behind["post_processor"]["single"].reverse()  # a token behind the text, as encoders have, is none in front
    assert pieces(load(tmp_path, behind), "a") == ["▁a"]


def test_the_bos_of_the_post_processor_goes_before_the_usual_name(tmp_path: Path) -> None:
    front = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    content = changed()
    content["post_processor"]["special_tokens"] = {"</s>": front}
    content["post_processor"]["single"][0]["SpecialToken"]["id"] = "</s>"
    assert pieces(load(tmp_path, content), "a") == ["</s>", "▁a"]
    assert not load(tmp_path, content, bos_token="<s>").add_bos  # what is put in front is not the BOS


def test_two_tokens_in_front_are_refused(tmp_path: Path) -> None:
    content = changed()
    content["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
    with pytest.raises(TokenizerError, match=r"puts 2 tokens in front of a text, \[1, 1\]; one is supported"):
        load(tmp_path, content)


def test_metaspace_vocabulary(tmp_path: Path) -> None:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    tokenizer = load(tmp_path, changed(normalizer=None, pre_tokenizer=metaspace, decoder=metaspace))
    assert pieces(tokenizer, "ab a") == ["<s>", "▁a", "b", "▁a"]
    assert tokenizer.decode(tokenizer.encode("ab a")) == "ab a"
    assert tokenizer.decode([3 + 0x0A]) == "<0x0A>"  # this decoder has no byte fallback
    never = metaspace | {"prepend_scheme": "never"}
    tokenizer = load(tmp_path, changed(normalizer=None, pre_tokenizer=never, decoder=never))
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_added_tokens_that_are_not_special_are_matched_and_printed(tmp_path: Path) -> None:
    content = changed()
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 271, "content": "<tool>", "special": False})
    tokenizer = load(tmp_path, content, added_tokens_decoder={"272": {"content": "[é]"}})
    assert pieces(tokenizer, "a<tool>[é]") == ["<s>", "▁a", "<tool>", "[é]"]
    assert tokenizer.decode(tokenizer.encode("a<tool>[é]")) == "a<tool>[é]"
    assert tokenizer.vocab_size == 273


def test_what_only_the_config_calls_special_is_special(tmp_path: Path) -> None:
    content = changed()
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 271, "content": "<end>", "special": False})
    pad = {"272": {"content": "<pad>", "special": True}}
    tokenizer = load(tmp_path, content, eos_token={"content": "<end>"}, added_tokens_decoder=pad)
    assert tokenizer.eos_id == 271
    assert tokenizer.special_ids == {0, 1, 2, 271, 272}
    assert not {271, 272} & set(tokenizer.encode("<end><pad>"))
    assert tokenizer.decode([260, 271, 272]) == "a"


def test_a_config_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"config.json: puts '<bos>' at id 1, where the tokenizer has '<s>'"):
        load(tmp_path, MARKED, added_tokens_decoder={"1": {"content": "<bos>", "special": True}})
    with pytest.raises(TokenizerError, match=r"config.json: puts '<pad>' at id 300, where the tokenizer has None"):
        load(tmp_path, MARKED, added_tokens_decoder={"300": {"content": "<pad>", "special": True}})
    with pytest.raises(TokenizerError, match="names '<bos>', which is not in the vocabulary; correct the name"):
        load(tmp_path, MARKED, bos_token="<bos>")


def test_truncation_and_padding_in_the_file_are_not_followed(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    tokenizer = load(tmp_path, changed(truncation=truncation, padding=padding))
    assert pieces(tokenizer, "a a a a") == ["<s>", "▁a", "▁a", "▁a", "▁a"]
    assert pieces(tokenizer, "a") == ["<s>", "▁a"]


def test_a_vocabulary_that_merges_text_into_a_special_token_is_refused(tmp_path: Path) -> None:
    content = changed(normalizer=None)
    content["model"]["vocab"]["<s"] = 271
    content["model"]["merges"] += ["< s", "<s >"]
    with pytest.raises(TokenizerError, match="typing '<s>' gives the special token 1, not ordinary text"):
        load(tmp_path, content)


def test_text_that_the_vocabulary_cannot_spell_becomes_the_unknown_token(tmp_path: Path) -> None:
    content = changed()
    content["model"]["byte_fallback"] = False
    tokenizer = load(tmp_path, content)  # though typing "<unk>" gives <unk>, for want of the letters u, n and k
    assert pieces(tokenizer, "a🦙") == ["<s>", "▁a", "<unk>"]
    assert tokenizer.decode(tokenizer.encode("a🦙")) == "a"


def test_holes_in_the_vocabulary_print_nothing(tmp_path: Path) -> None:
    content = changed()
    content["model"]["vocab"]["far"] = 280
    tokenizer = load(tmp_path, content)
    assert tokenizer.vocab_size == 281
    assert (tokenizer.piece(275), tokenizer.token_bytes(275), tokenizer.decode([275, 280])) == ("", b"", "far")


DECODERS = {
    "WordPiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "none": None,
    "BPEDecoder": {"type": "BPEDecoder", "suffix": "</w>"},
    "'start': 2": {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 2, "stop": 0}]},
    "'content': '-'": {
        "type": "Sequence",
        "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": "-"}],
    },
    "'replacement': '_'": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": False},
}


@pytest.mark.parametrize("name", DECODERS)
def test_unknown_decoders_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokenizerError, match=rf"decoder step .*{name}.* is not supported; known: ByteLevel, or a Seq"):
        load(tmp_path, changed(decoder=DECODERS[name]))


def test_unknown_models_are_refused_by_name(tmp_path: Path) -> None:
    words = {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1}}
    with pytest.raises(TokenizerError, match="model type 'WordLevel' is not supported; known: BPE, Unigram"):
        load(tmp_path, changed(model=words, added_tokens=[]))
    for key in ("end_of_word_suffix", "continuing_subword_prefix"):
        content = changed()
        content["model"] |= {key: "</w>", "merges": []}
        with pytest.raises(TokenizerError, match=f"{key} '</w>' is not supported; expected none"):
            load(tmp_path, content)


def test_random_merges_are_refused(tmp_path: Path) -> None:
    content = changed()
    content["model"]["dropout"] = 0.1
    with pytest.raises(TokenizerError, match=r"dropout 0.1 is not supported; expected none"):
        load(tmp_path, content)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    no_entry = changed()
    no_entry["model"]["merges"] = ["a s"]
    with pytest.raises(TokenizerError, match=r"tokenizer.json: its library says: .+; copy it again"):
        load(tmp_path, no_entry)


class Counting:
    """A tokenizer of the library that counts how often it is asked for all of its added tokens."""

    def __init__(self, library: Library) -> None:
        self.library, self.asked = library, 0

    def __getattr__(self, name: str) -> Any:
        self.asked += name == "get_added_tokens_decoder"
        return getattr(self.library, name)


def test_many_added_tokens_are_asked_for_once(tmp_path: Path) -> None:
    """Gemma 3's config lists 6,415, and the library makes all of them anew each time: 51 of 58 seconds."""
    library = Counting(Library.from_str(json.dumps(MARKED)))
    entries = {n: AddedToken(f"<unused{n}>", special=n % 2 == 0) for n in range(1000, 1300)}
    first = library.get_vocab_size()
    entries = {first + n: token for n, token in enumerate(entries.values())}
    _add_tokens(library, Settings(tmp_path, added=entries))  # type: ignore[arg-type]
    assert library.asked < 4
    found = library.library.get_added_tokens_decoder()
    assert all((found[n].content, found[n].special) == token for n, token in entries.items())
