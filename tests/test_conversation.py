"""Conversations: the same answers with the kept cache as without, only new tokens read, nothing lost on the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from agreement import agree
from models import FURTHER, random_model

import nanollm_jax as nano
from nanollm_jax.engine import buckets, slots
from nanollm_jax.engine.conversation import check_order
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.rows import common_prefix
from nanollm_jax.engine.timings import CompileWatch

pytestmark = pytest.mark.usefixtures("bundled_is_short")

TEMPLATE = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% set messages = messages[1:] %}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}
{%- if m.role == 'user' %}{{ 'Q: ' + m.content + '\nA:' }}{% else %}{{ m.content + '\n' }}{% endif %}
{%- endfor %}"""
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role.') }}{% endif %}{{ messages[-1].content }}"
)
WARM = nano.Sampling(temperature=0.9, top_k=20, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def model() -> nano.Model:
    """The bundled model with a template of a chat, in place of its own, which tells stories."""
    bare = nano.load(dtype="float32")
    assert bare.tokenizer is not None
    return with_template(bare, TEMPLATE)


def with_template(model: nano.Model, source: str) -> nano.Model:
    assert model.tokenizer is not None
    return dataclasses.replace(
        model, chat_template=nano.ChatTemplate(Path("chat_template.jinja"), {"default": source}, model.tokenizer)
    )


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each turn of a conversation has to read."""
    counts: list[int] = []
    true = Engine.begin

    def counting(engine: Engine, slot: Any, text: list[int]) -> None:
        true(engine, slot, text)
        if engine.remember:
            counts.append(len(text) - slot.at)

    monkeypatch.setattr(Engine, "begin", counting)
    return counts


def say(conversation: nano.Conversation, text: str) -> nano.Stream:
    answer = conversation.ask(text)
    pieces = "".join(answer)
    assert pieces == answer.generation.text
    return answer


# one answer


def test_chat_is_generate_on_the_rendered_ids(model: nano.Model) -> None:
    messages = [{"role": "system", "content": "Tell."}, {"role": "user", "content": "Who was Tim?"}]
    ids = nano.encode_chat(model, messages)
    assert model.tokenizer is not None and model.tokenizer.decode(ids) == "Tell.\nQ: Who was Tim?\nA:"
    answer = nano.chat(model, messages, max_new_tokens=12, sampling=WARM, seed=3)
    assert answer == nano.generate(model, ids, max_new_tokens=12, sampling=WARM, seed=3)
    stream = nano.stream_chat(model, messages, max_new_tokens=12, sampling=WARM, seed=3, stop="zzz")
    assert "".join(stream) == answer.text and stream.generation == answer


def test_the_tokenizers_eos_ends_an_answer(model: nano.Model) -> None:
    assert model.tokenizer is not None
    messages = [{"role": "user", "content": "Hello"}]
    bias = nano.Sampling(temperature=0.0, logit_bias={model.tokenizer.eos_id: 1e4})
    silent = dataclasses.replace(model, defaults=dataclasses.replace(model.defaults, eos_ids=()))
    answer = nano.chat(silent, messages, max_new_tokens=3, sampling=bias)
    assert (answer.token_ids, answer.finish_reason) == ([2], "stop")
    assert nano.generate(silent, [1], max_new_tokens=3, sampling=bias).finish_reason == "length"


def test_without_a_template_chat_says_so_and_completion_works(model: nano.Model) -> None:
    bare = dataclasses.replace(model, chat_template=None)
    for call in (nano.chat, nano.stream_chat, nano.encode_chat):
        with pytest.raises(
            nano.RequestError, match=r"has no chat template, so messages cannot be read; load its instr"
        ):
            call(bare, [{"role": "user", "content": "Hello"}])
    with pytest.raises(nano.RequestError, match="has no chat template"):
        nano.Conversation(bare)
    with pytest.raises(nano.RequestError, match="has no tokenizer files"):
        nano.chat(dataclasses.replace(bare, tokenizer=None), [{"role": "user", "content": "Hello"}])
    assert nano.generate(bare, "Once", max_new_tokens=2).text


def test_arguments_of_chat_are_honoured_or_refused(model: nano.Model) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    for rest, match in (
        ({"max_new_tokens": 0}, "max_new_tokens"), ({"max_new_tokens": 600}, "more than the model's 512 positions"),
        ({"seed": -1}, "seed is -1"), ({"stop": ""}, "stop is"), ({"sampling": 3}, "sampling is int"),
        ({"template": "rag"}, "no chat template 'rag'"),
    ):  # fmt: skip
        with pytest.raises(nano.RequestError, match=match):
            nano.chat(model, messages, **rest)  # type: ignore[arg-type]
    with pytest.raises(nano.RequestError, match="the last message is an answer already"):
        nano.chat(model, [*messages, {"role": "assistant", "content": "Hi"}])
    with pytest.raises(nano.RequestError, match=r"refuses this conversation: Roles must alternate"):
        nano.chat(model, messages * 2)
    with pytest.raises(nano.RequestError, match="messages is"):
        nano.chat(model, [])


# a conversation


@pytest.mark.parametrize("sampling", [nano.Sampling(temperature=0.0), WARM])
def test_answers_are_the_same_as_without_the_kept_cache(
    model: nano.Model, read: list[int], sampling: nano.Sampling
) -> None:
    conversation = nano.Conversation(model, system="Tell.", sampling=sampling, max_new_tokens=20, seed=7)
    for turn, question in enumerate(["Who was Tim?", "And\nthen?", "é🙂", "What did the dog do?", "Why?"]):
        before = [dict(message) for message in conversation.messages]
        held = list(conversation.held)
        answer = say(conversation, question)
        messages = [*before, {"role": "user", "content": question}]
        alone = nano.chat(model, messages, sampling=sampling, max_new_tokens=20, seed=7 + turn)
        assert answer.generation.token_ids == alone.token_ids and answer.generation.text == alone.text
        agree(answer.generation.logprobs, alone.logprobs, 1e-4)
        assert conversation.messages == [*messages, {"role": "assistant", "content": alone.text}]

        prompt = nano.encode_chat(model, messages)
        known = common_prefix(held, prompt[:-1])
        assert read[-1] == len(prompt) - known == answer.timings.prompt_tokens
        assert answer.timings.cached_tokens == known and answer.generation.prompt_tokens == len(prompt)
        if turn:  # at least the whole prompt of the turn before was in the cache
            assert known >= len(nano.encode_chat(model, before[:-1]))
    assert len(read) == 5


def test_the_second_turn_reads_only_the_new_question(model: nano.Model, read: list[int]) -> None:
    """An answer of given tokens, which the tokenizer would choose too: then nothing but the new text is read."""
    assert model.tokenizer is not None
    conversation = nano.Conversation(model, max_new_tokens=3, sampling=nano.Sampling(temperature=0.0))
    bias = {model.tokenizer.encode(" the", bos=False)[-1]: 1e4}
    conversation.sampling = nano.Sampling(temperature=0.0, logit_bias=bias)
    say(conversation, "Who was Tim?")
    assert conversation.messages[-1]["content"] == " the the the"
    say(conversation, "And then?")
    first = nano.encode_chat(model, conversation.messages[:1])
    second = nano.encode_chat(model, conversation.messages[:3])
    # the last token of an answer was drawn and not run
    assert read == [len(first), len(second) - len(first) - 2]
    assert model.tokenizer.decode(second[-read[1] :], start=False) == " the\nQ: And then?\nA:"


def test_a_warm_turn_compiles_nothing(model: nano.Model) -> None:
    conversation = nano.Conversation(model, max_new_tokens=8, sampling=WARM)
    say(conversation, "Who was Tim?")
    say(conversation, "Who?")
    conversation.undo()
    with CompileWatch() as watch:
        say(conversation, "Why?")
    assert watch.programs == 0


def test_the_first_turns_after_warmup_compile_nothing(short: Path) -> None:
    model = nano.load(short, dtype="float32")
    other = dataclasses.replace(model.config, norm_eps=2e-5)  # programs that no other test has compiled
    model = dataclasses.replace(model, config=other)
    pieces = nano.stream(model, "Who", max_new_tokens=20)
    next(pieces)
    with pytest.raises(nano.RequestError, match="rows of this model are in use"):
        nano.warmup(model, rows=1)
    pieces.close()
    assert nano.warmup(model, prompt_tokens=60, max_new_tokens=20) > 0
    conversation = nano.Conversation(model, max_new_tokens=8, sampling=WARM)
    with CompileWatch() as watch:
        for question in ("Who was Tim?", "Who?", "What did the little dog do?"):
            say(conversation, question)
    assert watch.programs == 0


def test_the_cache_grows_with_the_conversation(
    model: nano.Model, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "SMALLEST", 64)
    conversation = nano.Conversation(model, max_new_tokens=10, sampling=nano.Sampling(temperature=0.0))
    capacities = []
    for _ in range(6):
        say(conversation, "What did the little dog do then?")
        assert conversation.rows is not None
        capacities.append(conversation.rows.engine.state.cache.capacity)
    assert capacities == sorted(capacities) and capacities[0] < capacities[-1] <= 512
    assert max(read[1:]) < 64  # growing keeps what was read


def test_a_cache_that_cannot_go_back_is_begun_anew(
    model: nano.Model, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = nano.Conversation(model, max_new_tokens=4, sampling=nano.Sampling(temperature=0.0))
    say(conversation, "Who was Tim?")
    monkeypatch.setattr(Engine, "kept", lambda *_: 0)
    answer = say(conversation, "And then?")
    assert read[1] == answer.generation.prompt_tokens and answer.timings.cached_tokens == 0
    assert answer.generation.token_ids == nano.chat(model, conversation.messages[:-1], max_new_tokens=4).token_ids


def test_an_answer_cut_short_is_kept_and_the_next_goes_on(model: nano.Model) -> None:
    conversation = nano.Conversation(model, max_new_tokens=60, sampling=nano.Sampling(temperature=0.0))
    answer = conversation.ask("Who was Tim?")
    first = next(answer)
    conversation.stop()
    conversation.stop()
    cut = conversation.messages[-1]["content"]
    assert cut.startswith(first) and answer.generation.finish_reason == ""
    assert cut == answer.generation.text and 0 < len(answer.generation.token_ids) < 60
    assert list(answer) == []  # nothing comes after the stop
    second = say(conversation, "And then?")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert second.generation.token_ids == nano.chat(model, conversation.messages[:3], max_new_tokens=60).token_ids


def test_a_question_nobody_reads_the_answer_to_is_not_put(model: nano.Model) -> None:
    conversation = nano.Conversation(model, max_new_tokens=4)
    conversation.ask("Who?")
    conversation.stop()
    assert conversation.messages == []
    conversation.ask("Who?")
    say(conversation, "Why?")
    assert [message["content"] for message in conversation.messages[:1]] == ["Why?"]


def test_an_answer_that_fails_leaves_the_conversation_as_it_was(
    model: nano.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = nano.Conversation(model, max_new_tokens=12, sampling=nano.Sampling(temperature=0.0))
    say(conversation, "Who was Tim?")
    before = list(conversation.messages)
    true, calls = slots.write_tokens, []

    def failing(*arguments: Any, **rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return true(*arguments, **rest)

    monkeypatch.setattr(slots, "write_tokens", failing)
    with pytest.raises(ZeroDivisionError):
        list(conversation.ask("And then?"))
    assert conversation.messages == before
    answer = say(conversation, "And then?")
    assert answer.generation.token_ids == nano.chat(model, conversation.messages[:3], max_new_tokens=12).token_ids


def test_undo_reset_system_and_replace(model: nano.Model, read: list[int]) -> None:
    conversation = nano.Conversation(model, max_new_tokens=4, sampling=nano.Sampling(temperature=0.0))
    with pytest.raises(nano.RequestError, match="there is no question to take back"):
        conversation.undo()
    say(conversation, "Who was Tim?")
    say(conversation, "And then?")
    assert conversation.undo() == "And then?"
    assert len(conversation.messages) == 2
    answer = say(conversation, "And now?")
    assert answer.timings.cached_tokens > 10  # what is still the same is still in the cache
    conversation.set_system("Tell.")
    assert conversation.system == "Tell." and len(conversation.messages) == 5
    assert conversation.tokens() == len(nano.encode_chat(model, conversation.messages, add_generation_prompt=False))
    answer = say(conversation, "Who?")
    assert answer.generation.token_ids == nano.chat(model, conversation.messages[:-1], max_new_tokens=4).token_ids
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Tell."}]
    with pytest.raises(nano.RequestError, match="no question"):
        conversation.undo()
    conversation.set_system(None)
    assert (conversation.messages, conversation.system, conversation.tokens()) == ([], None, 0)


def test_what_is_refused_changes_nothing(model: nano.Model) -> None:
    conversation = nano.Conversation(model, system="Tell.", max_new_tokens=4)
    say(conversation, "Who was Tim?")
    before = [dict(message) for message in conversation.messages]
    user, answer, system = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
    for messages, match in (
        ([user], "the last question has no answer"),
        ([answer, user], "message 0 is the assistant's; expected a text of the user's"),
        ([user, user], "message 1 is the user's; expected a text of the assistant's"),
        ([user, answer, system], "message 2 is the system's; expected a text of the user's"),
        ([user, {"role": "assistant", "content": None, "x": 1}], "message 1 is the assistant's"),
        ([system, system], "message 1 is the system's"),
        ("hi", "messages is"),
        ([{"role": "user"}], "message 0 has the content None"),
    ):
        with pytest.raises(nano.RequestError, match=match):
            conversation.replace(messages)  # type: ignore[arg-type]
        assert conversation.messages == before
    for question, match in (("a\udcff", "lone surrogate"), ("word " * 600, r"model 512 positions: there is no room")):
        with pytest.raises(nano.RequestError, match=match):
            conversation.ask(question)
        assert conversation.messages == before
    conversation.max_new_tokens = 0
    with pytest.raises(nano.RequestError, match="max_new_tokens"):
        conversation.ask("x")
    assert conversation.messages == before


def test_a_template_that_refuses_a_system_message_keeps_the_old_one(model: nano.Model) -> None:
    conversation = nano.Conversation(with_template(model, NO_SYSTEM))
    with pytest.raises(nano.RequestError, match="No system role"):
        conversation.set_system("Tell.")
    assert conversation.system is None and conversation.messages == []
    with pytest.raises(nano.RequestError, match="No system role"):
        nano.Conversation(with_template(model, NO_SYSTEM), system="Tell.")


def test_an_answer_ends_where_the_positions_end(model: nano.Model) -> None:
    conversation = nano.Conversation(
        model, max_new_tokens=512, sampling=nano.Sampling(temperature=0.0, logit_bias={2: -1e4})
    )
    question = "word " * 240
    prompt = len(nano.encode_chat(model, [{"role": "user", "content": question}]))
    answer = say(conversation, question)
    assert len(answer.generation.token_ids) == 512 - prompt > 0
    assert answer.generation.finish_reason == "length"
    with pytest.raises(nano.RequestError, match="no room for an answer; take back what was said last"):
        conversation.ask("more?")
    conversation.undo()
    assert say(conversation, "more?").generation.text


def test_a_conversation_grows_beyond_longropes_original_length_and_back(model: nano.Model) -> None:
    """32 tokens: an answer ends at the first behind them, the next begins there; undo leads back, a question across."""
    config, _ = nano.read_config(FURTHER["phi3"] | {"vocab_size": model.config.vocab_size, "num_hidden_layers": 1})
    assert config.switch_length == 32
    params = nano.init_params(config, jax.random.key(5), jnp.float32)
    phi = nano.Model(config, params, model.tokenizer, chat_template=model.chat_template)
    conversation = nano.Conversation(phi, sampling=nano.Sampling(temperature=0.0, repetition_penalty=1.3))

    def ask(question: str, new: int) -> tuple[int, int]:
        """Lengths of the text before and after an answer that is the same without the kept cache."""
        conversation.max_new_tokens = new
        messages = [*conversation.messages, {"role": "user", "content": question}]
        alone = nano.chat(phi, messages, max_new_tokens=new, sampling=conversation.sampling)
        answer = say(conversation, question).generation
        assert answer.token_ids == alone.token_ids
        agree(answer.logprobs, alone.logprobs, 1e-4)
        return answer.prompt_tokens, answer.prompt_tokens + len(answer.token_ids)

    prompt, _ = ask("Who was Tim?", 4)
    conversation.undo()
    assert ask("Who was Tim?", 33 - prompt) == (prompt, 33)
    assert min(ask("And then?", 4)) > 33
    assert min(ask("Why?", 4)) > 33
    assert conversation.answering is not None and conversation.answering.timings.cached_tokens > 10
    for _ in range(3):
        conversation.undo()
    assert max(ask("Who was Tim?", 4)) < 32
    assert min(ask("What did the little dog do then? " * 3, 4)) > 32


@pytest.mark.parity  # one more model's programs
def test_layers_that_look_at_anothers_keys_go_back_with_it(model: nano.Model) -> None:
    """Of rings and full layers, the second half of which looks at the first: turns, undo and turns again are as without."""
    sizes = dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), model.config.vocab_size)
    config, _ = nano.read_config(FURTHER["gemma4_text"] | sizes)
    params = nano.init_params(config, jax.random.key(5), jnp.float32)
    shared = nano.Model(config, params, model.tokenizer, chat_template=model.chat_template)
    conversation = nano.Conversation(
        shared, max_new_tokens=5, sampling=nano.Sampling(temperature=0.0, repetition_penalty=1.3)
    )

    def ask(question: str) -> int:
        """How many tokens were in the cache before an answer that is the same without it."""
        messages = [*conversation.messages, {"role": "user", "content": question}]
        alone = nano.chat(shared, messages, max_new_tokens=5, sampling=conversation.sampling)
        answer = say(conversation, question)
        assert answer.generation.token_ids == alone.token_ids
        agree(answer.generation.logprobs, alone.logprobs, 1e-4)
        return answer.timings.cached_tokens

    ask("Who was Tim?")
    assert ask("And then?") > 10
    assert conversation.undo() == "And then?"
    ask("And what did he say to the little dog?")
    conversation.undo()
    conversation.undo()
    ask("Who?")


def test_a_ring_that_has_overwritten_cannot_go_back() -> None:
    """Windows of 7: seven positions can be taken back to three, eleven only to ten, whose window is still there."""
    layer = nano.init_cache(random_model("mistral").config, 1, 32).layers[0]
    for length, target, possible in (
        (6, 3, True),
        (7, 0, True),
        (11, 11, True),
        (11, 10, True),
        (11, 9, False),
        (11, 3, False),
    ):
        assert layer.forgets(length, length, target, 7) != possible


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [([], [], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 3, 2], 1), ([1], [1, 2], 1), ([3], [1], 0)],
)
def test_common_prefix(one: list[int], other: list[int], count: int) -> None:
    assert common_prefix(one, other) == common_prefix(other, one) == count


def test_order_of_an_empty_conversation() -> None:
    check_order([])
    check_order([{"role": "system", "content": "a"}])
