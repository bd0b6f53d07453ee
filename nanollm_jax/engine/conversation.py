"""Talking with a model: one answer to a list of messages, or a conversation that remembers what it read and wrote.

Each turn renders the whole conversation anew, and its row reads only what it does not hold: the ids behind the longest
common prefix of the two. So an answer is the same as without the cache, whatever the template does to earlier turns; and an
undo, a reset or another system message are nothing but another prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nanollm_jax.chat import check_messages
from nanollm_jax.checks import whole
from nanollm_jax.engine.answer import Generation
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.generate import Stream
from nanollm_jax.engine.request import Request, check_seeds, check_stops, known, requests_of
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.shared import Shared, check_usable, submit
from nanollm_jax.errors import RequestError
from nanollm_jax.grammar import Grammar
from nanollm_jax.letters import nbytes
from nanollm_jax.loading import Model
from nanollm_jax.settings import Sampling

Message = Mapping[str, Any]
ANSWER = 512  # tokens that an answer may have where nobody says


def encode_chat(
    model: Model,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Messages -> the ids [T] that the checkpoint's chat template makes of them; see ChatTemplate.encode.

    Raises RequestError where the checkpoint has no template or the template refuses, TokenizerError for a broken one.
    """
    if model.chat_template is None:
        missing = "tokenizer files" if model.tokenizer is None else "chat template"
        raise RequestError(
            f"this checkpoint has no {missing}, so messages cannot be read; load its instruction-tuned version, add a "
            "chat_template.jinja to its folder, or give a plain prompt to generate."
        )
    ids = model.chat_template.encode(
        messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message, tools=tools,
        template=template, variables=variables,
    )  # fmt: skip
    return known(model, ids)


def chat(
    model: Model,
    messages: Sequence[Message],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    stop_ids: int | Sequence[int] = (),
    grammar: Grammar | None = None,
    adapter: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Generation:
    """The answer to a list of messages, [{"role": "user", "content": "..."}, ...], the last of which is not an answer.

    max_new_tokens: None is ANSWER tokens, or fewer where the model's positions end before.
    tools, template, variables: as in ChatTemplate.encode; the others as in generate. The answer ends at the model's
    end-of-sequence ids and at the tokenizer's EOS, which in chat-tuned checkpoints ends a turn.
    Raises RequestError for messages or arguments that cannot be honoured, TokenizerError for a broken template.
    """
    answer = stream_chat(
        model, messages, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop, stop_ids=stop_ids,
        grammar=grammar, adapter=adapter, tools=tools, template=template, variables=variables,
    )  # fmt: skip
    for _ in answer:
        pass
    return answer.generation


def stream_chat(
    model: Model,
    messages: Sequence[Message],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    stop_ids: int | Sequence[int] = (),
    grammar: Grammar | None = None,
    adapter: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Stream[str]:
    """chat, yielding the text as it is written, piece by piece; arguments are checked before the first piece is asked for."""
    ids = read_chat(model, messages, tools=tools, template=template, variables=variables)
    new = min(ANSWER, room(model, ids)) if max_new_tokens is None else max_new_tokens
    requests = requests_of(
        model, [ids], new, sampling, seed, stop, stop_ids, grammar=grammar, adapter=adapter, chat=True, streamed=True
    )
    return Stream(lambda: submit(model, requests), requests, single=True)


def read_chat(model: Model, messages: Sequence[Message], **rest: Any) -> list[int]:
    """encode_chat of messages that are to be answered. Raises RequestError where the last one is an answer."""
    checked = check_messages(messages)
    if checked[-1]["role"] == "assistant":
        raise RequestError("the last message is an answer already; end with a message that asks for one.")
    return encode_chat(model, checked, **rest)


def room(model: Model, ids: list[int]) -> int:
    """How many tokens an answer can have behind these ids; RequestError where that is none."""
    left = model.config.max_positions - len(ids)
    if left < 1:
        raise RequestError(
            f"the conversation has {len(ids)} tokens, the model {model.config.max_positions} positions: there is no room "
            "for an answer; take back what was said last, or begin anew."
        )
    return left


class Conversation:
    """Messages, the settings of the answers, and a row of its own that remembers what was read and written.

    messages is a list of {"role", "content"}: a system message or none, then questions and answers in turn.
    sampling, seed, grammar, adapter and max_new_tokens may be changed between turns. The n-th answer is drawn with seed + n.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        max_new_tokens: int = ANSWER,
        sampling: Sampling | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stop_ids: int | Sequence[int] = (),
        grammar: Grammar | None = None,
        adapter: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """max_new_tokens: of one answer, at most; fewer where the model's positions end. Raises as encode_chat does."""
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.sampling = model.defaults.sampling if sampling is None else sampling
        self.seed = seed
        self.stops, self.stop_ids, self.grammar, self.adapter = stop, stop_ids, grammar, adapter
        self.variables = variables
        self.messages: list[dict[str, Any]] = []
        self.rows: Shared | None = None
        self.answering: Stream[str] | None = None
        self.encode([{"role": "user", "content": "Hello"}])  # raises now where there is no template
        check_stops(model, stop, stop_ids)
        model.adapter(adapter)
        if system is not None:
            self.set_system(system)

    def __repr__(self) -> str:
        held = "nothing held yet" if self.rows is None else f"{nbytes(self.rows.engine.state)} of state"
        return f"Conversation({len(self.messages)} messages, {held})"

    def ask(self, question: str) -> Stream[str]:
        """Put a question and yield the answer piece by piece. Both become messages when the answer is asked for and ends.

        An answer that is not read to its end is kept as far as it came, by `stop` or by the next question. Raises
        RequestError, and changes nothing, where the template refuses or the conversation has become too long.
        """
        self.stop()
        messages = [*self.messages, {"role": "user", "content": question}]
        ids = self.encode(messages)
        answers = sum(message["role"] == "assistant" for message in self.messages)
        seed = (check_seeds(self.seed, 1)[0] + answers) % 2**32
        new, left = self.max_new_tokens, room(self.model, ids)
        new = new if (count := whole(new)) is None else min(count, left)  # what is no number is refused by its name
        requests = requests_of(
            self.model, [ids], new, self.sampling, seed, self.stops, self.stop_ids,
            grammar=self.grammar, adapter=self.adapter, chat=True, streamed=True,
        )  # fmt: skip
        self.answering = Stream(
            partial(self.submit, requests), requests, single=True, done=partial(self.remember, messages)
        )
        return self.answering

    def stop(self) -> None:
        """End the answer that is being written, if any, and keep what there is of it."""
        if self.answering is not None:
            self.answering.close()
            self.answering = None

    def undo(self) -> str:
        """Take the last question and its answer back. Returns the question; raises RequestError where there is none."""
        self.stop()
        if not self.messages or self.messages[-1]["role"] == "system":
            raise RequestError("there is no question to take back; the conversation has not begun.")
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        return question

    def reset(self) -> None:
        """Forget every question and answer; the system message stays."""
        self.stop()
        self.messages = self.messages[:1] if self.system is not None else []

    @property
    def system(self) -> str | None:
        """The system message, None without one."""
        first = self.messages[0] if self.messages else {"role": ""}
        return first["content"] if first["role"] == "system" else None

    def set_system(self, text: str | None) -> None:
        """Put, change or (None) take away the system message. Raises RequestError, and changes nothing, where it is refused."""
        self.stop()
        rest = self.messages[1:] if self.system is not None else self.messages
        self.replace(([] if text is None else [{"role": "system", "content": text}]) + rest)

    def replace(self, messages: Sequence[Message]) -> None:
        """Take other messages instead. Raises RequestError, and changes nothing, for roles out of order or a refusal."""
        checked = check_messages(messages) if messages else []
        check_order(checked)
        if checked:
            self.encode([*checked, {"role": "user", "content": "Hello"}])
        self.stop()
        self.messages = checked

    def tokens(self) -> int:
        """How many tokens the conversation has so far, as the template writes it."""
        return len(self.encode(self.messages, add_generation_prompt=False)) if self.messages else 0

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """The ids of messages, with this conversation's variables."""
        return encode_chat(self.model, messages, add_generation_prompt=add_generation_prompt, variables=self.variables)

    def remember(self, messages: list[dict[str, Any]], answer: Stream[str]) -> None:
        """An answer has ended, or nobody wants more of it: it becomes a message, and so does what it answers."""
        self.messages = [*messages, {"role": "assistant", "content": answer.generation.text}]

    def submit(self, requests: Sequence[Request]) -> tuple[Shared, list[Ticket]]:
        """Hand a question to the rows of this conversation, of which it uses one; made when it first asks."""
        check_usable(self.model)
        if self.rows is None or self.rows.lost:
            self.rows = Shared(Engine(self.model, self.model.dp, remember=True))
        return self.rows, self.rows.submit(requests)

    @property
    def held(self) -> list[int]:
        """The ids whose keys and values are in the cache."""
        return [] if self.rows is None else self.rows.engine.slots[0].held


def check_order(messages: Sequence[Message]) -> None:
    """Raise RequestError unless these are a system message or none, then questions and answers in turn, with texts."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    for n, message in enumerate(messages):
        expected = "system" if n < first else ("user", "assistant")[(n - first) % 2]
        if message["role"] != expected or not isinstance(message.get("content"), str):
            raise RequestError(
                f"message {n} is the {message['role']}'s; expected a text of the {expected}'s: questions and answers in turn."
            )
    if (len(messages) - first) % 2:
        raise RequestError("the last question has no answer; leave it out, or add the answer.")
