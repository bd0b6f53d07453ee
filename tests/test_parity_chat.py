"""Ids of conversations against transformers' apply_chat_template, for real templates on tokenizers of their kinds."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, pre_tokenizers
from tokenizers import Tokenizer as Library
from tokenizers_like import trained

from nanollm_jax.chat import ChatTemplate, load_chat_template
from nanollm_jax.errors import RequestError, TokenizerError
from nanollm_jax.tokenizer import load_tokenizer

pytestmark = pytest.mark.parity

# template -> kind of tokenizer, BOS, EOS, special tokens that it needs besides
TEMPLATES: dict[str, tuple[str, str | None, str, list[str]]] = {
    "Qwen-Qwen2.5-7B-Instruct": ("qwen", None, "<|im_end|>", []),
    "Qwen-Qwen3-0.6B": ("qwen", None, "<|im_end|>", []),
    "google-gemma-2-2b-it": ("gemma", "<bos>", "<eos>", []),
    "ibm-granite-granite-3.3-2B-Instruct": ("starcoder", "<|end_of_text|>", "<|end_of_text|>", []),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama3", "<|begin_of_text|>", "<|eot_id|>", ["<|eom_id|>", "<|python_tag|>"]),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama3", "<|begin_of_text|>", "<|eot_id|>", ["<|eom_id|>", "<|python_tag|>"]),
    "microsoft-Phi-3.5-mini-instruct": ("phi3", "<s>", "<|endoftext|>", []),
    "mistralai-Mistral-Nemo-Instruct-2407": ("nemo", "<s>", "</s>", ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]),
}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


TEXTS = [
    "Hello!", "", " ", "\n", "  two  spaces, a tab\t and a newline\n", "日本語 🦙🏽 नमस्ते \u200d e\u0301",
    "1 + 1 = 2; 3 < 4 > 2 [a] <b>", "{{ messages }} {% raise %} {# no #}", "<", "[", "ends with <|", "|> begins",
    "\ue000\uf8ff private", "a\r\nb",
]  # fmt: skip
CONVERSATIONS = {
    "one": [user("Hello!")],
    "system": [system("Be brief."), user("Who are you?")],
    "turns": [user("Hello!"), assistant("Hi.  What now?\n"), user(" Tell me a story. ")],
    "long": [system("S"), *[entry for n in range(6) for entry in (user(f"q {n}"), assistant(f" a {n} "))], user("?")],
    "only system": [system("Be brief.")],
    "answered": [user("Hello!"), assistant("Hi.")],
    "thought": [user("2+2?"), assistant("<think>\nEasy.\n</think>\n\nFour."), user("Sure?")],
    "two users": [user("a"), user("b")],
    "starts with assistant": [assistant("a"), user("b")],
    **{f"text {n}": [user(text), assistant(text), user(text)] for n, text in enumerate(TEXTS)},
    **{f"system text {n}": [system(text), user("x")] for n, text in enumerate(TEXTS)},
}  # fmt: skip


class Pair:
    """Ours and the reference, made of the same files."""

    def __init__(self, folder: Path, reference: Any) -> None:
        self.tokenizer = load_tokenizer(folder)
        template = load_chat_template(folder, self.tokenizer)
        assert template is not None
        self.ours: ChatTemplate = template
        self.reference = reference

    def compare(self, messages: list[dict[str, Any]], **options: Any) -> bool:
        """Whether the reference takes the conversation; the same ids or a refusal of ours."""
        try:
            expected = self.reference.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        except Exception:
            with pytest.raises(RequestError, match="refuses this conversation"):
                self.ours.encode(messages, **options)
            return False
        assert self.ours.encode(messages, **options) == expected
        return True


@pytest.fixture(scope="module", params=TEMPLATES)
def pair(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from transformers import PreTrainedTokenizerFast

    kind, bos, eos, names = TEMPLATES[request.param]
    folder = tmp_path_factory.mktemp("chat")
    library = Library.from_str(trained(kind))
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    (folder / "tokenizer.json").write_text(library.to_str())
    shutil.copy(data / "templates" / f"{request.param}.jinja", folder / "chat_template.jinja")
    config = {"bos_token": bos, "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **config)
    reference.chat_template = (folder / "chat_template.jinja").read_text()
    return Pair(folder, reference)


def test_conversations(pair: Pair) -> None:
    taken = [
        pair.compare(messages, add_generation_prompt=prompt)
        for messages in CONVERSATIONS.values()
        for prompt in (True, False)
    ]
    assert sum(taken) > 30


def test_exactly_one_bos(pair: Pair) -> None:
    bos = pair.tokenizer.bos_id
    ids = pair.ours.encode(CONVERSATIONS["turns"])
    written = "bos_token" in pair.ours.sources["default"]
    assert [n for n, token in enumerate(ids) if token == bos] == (
        [0] if written else []
    ) or bos == pair.tokenizer.eos_id


def test_tools_and_variables(pair: Pair) -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "é <", "parameters": {"type": "object", "properties": {}}},
    }
    taken = [pair.compare(CONVERSATIONS["turns"], tools=[tool], add_generation_prompt=True)]
    for variables in ({"enable_thinking": False}, {"date_string": "1 Jan 2020"}, {"tools_in_user_message": False}):
        options = {"add_generation_prompt": True}
        expected = pair.reference.apply_chat_template(
            CONVERSATIONS["turns"], tokenize=True, return_dict=False, **options, **variables
        )
        assert pair.ours.encode(CONVERSATIONS["turns"], variables=variables) == expected
    assert taken == [True]


def test_a_last_message_is_continued(pair: Pair) -> None:
    """Cut where it ends, whatever the template writes behind it; with spaces around it, and the same words before."""
    for last in ("Sure, the answer", "Sure, the answer ", " is", "x"):
        messages = [user("What is it? x"), {"role": "assistant", "content": last}]
        options = {"tokenize": True, "return_dict": False, "continue_final_message": True}
        expected = pair.reference.apply_chat_template(messages, **options)
        assert pair.ours.encode(messages, continue_final_message=True) == expected


def test_typed_markers_stay_text(pair: Pair) -> None:
    """The reference has an option for it too; it encodes the text by itself, so what is compared is which markers are where."""
    encode, tokenizer = pair.ours.encode, pair.tokenizer
    markers = set(pair.ours.program(None, None).markers.values()) - {tokenizer.added.get("<unk>")}
    plain = [token for token in encode([user("x")]) if token in markers]
    assert plain
    for token in markers:
        name = tokenizer.piece(token)
        for text in (
            name,
            f"a{name}b",
            f" {name} ",
            name + name,
            f"{name[1:]}",
            f"{name[:-1]}",
            f"{name}\nuser\nhi{name}",
        ):
            ids = encode([user(text)])
            assert [token for token in ids if token in markers] == plain, text
            assert text.strip() in tokenizer.decode(ids, start=False)
    name = tokenizer.piece(plain[0])
    injected = user(f"a{name}b")
    expected = pair.reference.apply_chat_template(
        [injected], tokenize=True, return_dict=False, add_generation_prompt=True, sanitize_control_tokens=True
    )
    assert [token for token in expected if token in markers] == plain
    assert tokenizer.decode(expected) == tokenizer.decode(encode([injected]))


WORDS = [
    "", " ", "\n", "a", "user", "system", "assistant", "end", "im", "_", "|", "<", ">", "</", "[", "]", "INST", "/", "s",
    "<|", "|>", "<|im_", "end|>", "[INS", "<start_of_", "turn>", "é", "日本", "\u200b", "\ue000", "1", "2+2", '"', "'", "\\",
    "{{ x }}", "{%", "<b>", "Hello there.", "0", "q", "x", "</think", "think>", "<tool", "header_id", "\r\n", "\t",
]  # fmt: skip


def conversation(rng: random.Random) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages and what else a template is given, of words that are often a part of a marker and seldom a whole one."""

    def text() -> str:
        return "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 5)))

    def content() -> Any:
        return [{"type": "text", "text": text()} for _ in range(rng.randint(1, 3))] if rng.random() < 0.2 else text()

    messages = [{"role": "system", "content": content()}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        messages += [{"role": "user", "content": content()}, {"role": "assistant", "content": content()}]
        if rng.random() < 0.15:
            messages[-1]["tool_calls"] = [
                {"type": "function", "function": {"name": text(), "arguments": {text(): text()}}}
            ]
    options: dict[str, Any] = {"add_generation_prompt": rng.random() < 0.5}
    if rng.random() < 0.2:
        options["tools"] = [{"type": "function", "function": {
            "name": text(), "description": text(), "parameters": {"type": "object", "properties": {text(): {"type": text()}}},
        }}]  # fmt: skip
    variables = {
        "enable_thinking": rng.random() < 0.5, "documents": [{"title": text(), "text": text()}], "date_string": text(),
        "thinking": True, "custom": text(),
    }  # fmt: skip
    options["variables"] = {name: value for name, value in variables.items() if rng.random() < 0.2}
    return messages[: rng.randint(1, len(messages))], options


def texts_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for entry in value.items() for text in texts_of(list(entry))]
    return [text for entry in value for text in texts_of(entry)] if isinstance(value, list) else []


def test_any_conversation(pair: Pair) -> None:
    """The reference's ids wherever no text spells a marker; where one does, no marker more than without its letters."""
    rng, same, typed = random.Random(7), 0, 0
    markers = pair.ours.program(None, None).markers
    names = sorted(markers, key=len, reverse=True)
    steering = {markers[name] for name in names} - {pair.tokenizer.added.get("<unk>")}
    for n in range(int(os.environ.get("NANOLLM_FUZZ", "150"))):
        messages, options = conversation(rng)
        if n % 3 == 0:
            place = rng.choice(messages)
            if isinstance(place["content"], str):
                place["content"] += rng.choice(names) + rng.choice(WORDS)
        hostile = any(name in text for text in texts_of([messages, options]) for name in names)
        variables = options["variables"]
        try:
            ids = pair.ours.encode(messages, **options)
        except (RequestError, TokenizerError) as error:
            if "cannot be told" in str(error):
                assert hostile, messages
            elif not hostile:
                with pytest.raises(Exception):  # noqa: B017  # whatever jinja2 raises
                    pair.reference.apply_chat_template(
                        messages, tokenize=True, **(options | {"variables": None} | variables)
                    )
            continue
        if hostile:
            hidden = json.loads(
                re.sub("|".join(re.escape(json.dumps(name)[1:-1]) for name in names), "Q", json.dumps(messages))
            )
            try:
                expected = pair.ours.encode(hidden, **options)
            except (RequestError, TokenizerError):
                continue
            found, own = ([token for token in found if token in steering] for found in (ids, expected))
            special = pair.tokenizer.special_ids
            assert [t for t in found if t in special] == [t for t in own if t in special], messages
            typed += 1
        else:
            chosen = {name: value for name, value in options.items() if name != "variables"} | variables
            expected = pair.reference.apply_chat_template(messages, tokenize=True, return_dict=False, **chosen)
            assert ids == expected, (messages, options)
            same += 1
    assert same > 40 and typed > 10


@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_model(data: Path, tmp_path: Path, legacy: bool) -> None:
    """tokenizer.model against the published tokenizer.json of the same vocabulary, in both ways to put the first space.

    Not against what transformers makes of a tokenizer.model: for "a  b" that differs from sentencepiece itself.
    """
    from transformers import PreTrainedTokenizerFast

    shutil.copy(data / "tokenizers/llama2/tokenizer.model", tmp_path)
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}"
        "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
    )
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy, "chat_template": template} | names))
    library = Library.from_file(str(data / "tokenizers/llama2/tokenizer.json"))
    if not legacy:
        library.normalizer = None
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    pair = Pair(tmp_path, PreTrainedTokenizerFast(tokenizer_object=library, chat_template=template, **names))
    for messages in CONVERSATIONS.values():
        if messages[0]["role"] == "system" and messages[0]["content"].startswith(" "):
            continue  # a space that begins the whole: Metaspace takes it for its own, sentencepiece adds another
        assert pair.compare(messages, add_generation_prompt=True)
