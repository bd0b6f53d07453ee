"""Which file is chosen, what the small JSON files beside it decide, and what is said of missing and broken files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers_like import trained

import nanollm_jax
from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer import has_tokenizer, load_tokenizer

BUNDLED = Path(nanollm_jax.__file__).parent / "assets" / "nano-stories"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the bundled tokenizer.model and nothing beside it."""
    shutil.copy(BUNDLED / "tokenizer.model", tmp_path)
    return tmp_path


def write(folder: Path, **config: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_an_empty_folder_has_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path, bos_token="<s>")
    assert not has_tokenizer(tmp_path)
    looked_for = "looked for tokenizer.json, tokenizer.model, tekken.json, .*, or vocab.json with merges.txt. Copy one"
    with pytest.raises(TokenizerError, match=f"{tmp_path}: no tokenizer here; {looked_for}"):
        load_tokenizer(tmp_path)
    assert not has_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"])
def test_any_known_file_counts_and_an_empty_one_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n")
    assert has_tokenizer(tmp_path)
    missing = "vocab.json: cannot be read" if name == "merges.txt" else f"{name}: the file is empty; copy it again"
    with pytest.raises(TokenizerError, match=missing):
        load_tokenizer(tmp_path)


def test_tokenizer_json_goes_first_and_the_pair_last(folder: Path) -> None:
    (folder / "vocab.json").write_text("broken")
    assert load_tokenizer(folder).vocab_size == 2048
    (folder / "tokenizer.json").write_text("broken")
    with pytest.raises(TokenizerError, match=r"tokenizer.json: is not valid JSON \(Expecting value: line 1 column 1"):
        load_tokenizer(folder)


def test_files_that_are_not_the_file_are_refused(folder: Path) -> None:
    (folder / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(
        TokenizerError, match=r"tokenizer.model: is a git-lfs pointer, not the file; run `git lfs pull`"
    ):
        load_tokenizer(folder)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.model").mkdir()
    with pytest.raises(TokenizerError, match=r"tokenizer.model: cannot be read \(Is a directory\)"):
        load_tokenizer(folder)


def test_names_may_be_strings_or_objects_and_the_config_goes_before_the_map(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "</s>", "eos_token": {"content": "<s>"}}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 1)
    write(folder, bos_token={"content": "<s>", "lstrip": False}, eos_token=None)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, None)  # null: there is none, whatever the map says
    write(folder, bos_token="", eos_token="</s>")  # "" names nothing, as in some early conversions
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'; expected bool"),
        ({"bos_token": 1}, "bos_token is 1; expected str"),
        ({"eos_token": {"content": 2}}, "content is 2; expected str"),
        ({"eos_token": "<end>"}, "names '<end>', which is not in the vocabulary"),
        ({"added_tokens_decoder": []}, r"added_tokens_decoder is \[\]; expected dict"),
        ({"added_tokens_decoder": {"one": {"content": "<s>"}}}, "added_tokens_decoder has 'one': .* expected an id"),
        ({"added_tokens_decoder": {"1": "<s>"}}, "added_tokens_decoder has '1': '<s>'; expected an id"),
        ({"added_tokens_decoder": {"1": {"content": "<s>", "special": 1}}}, "special is 1; expected bool"),
    ],
)
def test_a_broken_config_is_refused(folder: Path, config: dict[str, Any], message: str) -> None:
    write(folder, **config)
    with pytest.raises(TokenizerError, match=f"tokenizer_config.json: {message}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "", "\udcff"])
def test_broken_json_beside_the_tokenizer_is_refused(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TokenizerError, match=rf"{name}: (is not valid JSON|found a JSON list|the file is empty)"):
        load_tokenizer(folder)


def test_a_bos_that_is_wanted_but_not_named_is_refused(folder: Path) -> None:
    # A model without control pieces for it, made by hand: 1 unknown piece "u" and 1 ordinary piece "a".
    (folder / "tokenizer.model").write_bytes(b"\x0a\x05\x0a\x01u\x18\x02\x0a\x03\x0a\x01a")
    assert load_tokenizer(folder).bos_id is None
    write(folder, add_bos_token=True)
    with pytest.raises(TokenizerError, match="add_bos_token is true, but there is no BOS; name it as bos_token"):
        load_tokenizer(folder)


def test_null_is_none_and_no_gap_to_fill(tmp_path: Path) -> None:
    """Qwen 2 has "bos_token": null and an <|endoftext|>, which begins no text of its."""
    (tmp_path / "tokenizer.json").write_text(trained("qwen"))
    assert load_tokenizer(tmp_path).piece(load_tokenizer(tmp_path).bos_id or 0) == "<|endoftext|>"
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    write(tmp_path, bos_token=None, eos_token="<|im_end|>")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id is None and "bos_token" not in tokenizer.names
    (tmp_path / "tokenizer.json").write_text(trained("llama3"))  # which puts one in front, by its post-processor
    (tmp_path / "special_tokens_map.json").unlink()
    write(tmp_path, bos_token=None, eos_token="<|eot_id|>")
    assert load_tokenizer(tmp_path).encode("a")[0] == load_tokenizer(tmp_path).added["<|begin_of_text|>"]


@pytest.mark.parametrize(
    ("name", "wanted", "kind", "ids"),
    [
        ("gpt2", True, "GPT2Tokenizer", [18435, 995]),
        ("gpt2", False, "GPT2Tokenizer", [15496, 995]),
        ("gpt2", True, "PreTrainedTokenizerFast", [15496, 995]),  # a class that leaves it to tokenizer.json
        ("llama2", False, "LlamaTokenizer", [1, 10994, 3186]),
        ("llama2", True, "LlamaTokenizer", [1, 15043, 3186]),
    ],
)
def test_a_space_in_front_as_the_config_says(
    data: Path, tmp_path: Path, name: str, wanted: bool, kind: str, ids: list[int]
) -> None:
    """The ids are those of transformers' AutoTokenizer for the published files."""
    shutil.copy(data / "tokenizers" / name / "tokenizer.json", tmp_path)
    write(tmp_path, add_prefix_space=wanted, tokenizer_class=kind)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Hello world") == ids
    assert tokenizer.decode(ids) == "Hello world"


def test_a_space_that_no_step_can_put_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained("gemma"))
    write(tmp_path, add_prefix_space=True)
    with pytest.raises(TokenizerError, match="has no step for a space in front of a text"):
        load_tokenizer(tmp_path)
    write(tmp_path, add_prefix_space=False)
    assert load_tokenizer(tmp_path).decode(load_tokenizer(tmp_path).encode(" a")) == " a"
