"""Talking with a model: one answer to a list of messages, or a conversation whose cache is kept between turns.

Each turn renders the whole conversation anew and reads only what the cache does not hold: the ids behind the longest
common prefix of the two. So an answer is the same as without the cache, whatever the template does to earlier turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nanollm_jax import buckets
from nanollm_jax import sampling as smp
from nanollm_jax.answer import Generation
from nanollm_jax.cache import KVCache, init_cache, rewind
from nanollm_jax.chat import check_messages
from nanollm_jax.checks import whole
from nanollm_jax.decode import State, init_state, write_tokens
from nanollm_jax.errors import RequestError
from nanollm_jax.generate import CHUNK, STREAM_CHUNK, Stream, read_behind, reread, roomy, run
from nanollm_jax.loading import Model
from nanollm_jax.profiling import Timings, timed
from nanollm_jax.request import Request, check_request, check_seeds, check_stops, known
from nanollm_jax.settings import Sampling

Message = Mapping[str, Any]
ANSWER = 512  # tokens that an answer may have where nobody says


def encode_chat(
    model: Model,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
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
        messages, add_generation_prompt=add_generation_prompt, tools=tools, template=template, variables=variables
    )
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
    chunk: int = CHUNK,
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
        model, messages, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop, stop_ids=stop_ids, chunk=chunk,
        tools=tools, template=template, variables=variables,
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
    chunk: int = STREAM_CHUNK,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Stream:
    """chat, yielding the text as it is written, piece by piece; arguments are checked before the first piece is asked for."""
    checked = check_messages(messages)
    if checked[-1]["role"] == "assistant":
        raise RequestError("the last message is an answer already; end with a message that asks for one.")
    ids = encode_chat(model, checked, tools=tools, template=template, variables=variables)
    new = min(ANSWER, room(model, ids)) if max_new_tokens is None else max_new_tokens
    request = check_request(model, [ids], new, sampling, seed, stop, chunk, stop_ids=stop_ids, chat=True)
    return Stream(request, run(model, request))


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
    """Messages, the settings of the answers, and the cache of what was read.

    messages is a list of {"role", "content"}: a system message or none, then questions and answers in turn.
    sampling, seed and max_new_tokens may be changed between turns. The n-th answer is drawn with seed + n.
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
        variables: Mapping[str, Any] | None = None,
        chunk: int = STREAM_CHUNK,
    ) -> None:
        """max_new_tokens: of one answer, at most; fewer where the model's positions end. Raises as encode_chat does."""
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.sampling = model.defaults.sampling if sampling is None else sampling
        self.seed = seed
        self.stops, self.stop_ids = stop, stop_ids
        self.variables = variables
        self.chunk = chunk
        self.messages: list[dict[str, Any]] = []
        self.cache: KVCache | None = None
        self.held: list[int] = []  # the ids whose keys and values are in the cache
        self.answering: Stream | None = None
        self.encode([{"role": "user", "content": "Hello"}])  # raises now where there is no template
        check_stops(model, stop, stop_ids)
        if system is not None:
            self.set_system(system)

    def ask(self, question: str) -> Stream:
        """Put a question and yield the answer piece by piece. Both become messages when the answer is asked for and ends.

        An answer that is not read to its end is kept as far as it came, by `stop` or by the next question. Raises
        RequestError, and changes nothing, where the template refuses or the conversation has become too long.
        """
        self.stop()
        messages = [*self.messages, {"role": "user", "content": question}]
        ids = self.encode(messages)
        answers = sum(message["role"] == "assistant" for message in self.messages)
        seed = (int(check_seeds(self.seed, 1)[0]) + answers) % 2**32
        new, left = self.max_new_tokens, room(self.model, ids)
        new = new if (count := whole(new)) is None else min(count, left)  # what is no number is refused by its name
        request = check_request(
            self.model, [ids], new, self.sampling, seed, self.stops, self.chunk, stop_ids=self.stop_ids, chat=True
        )
        self.answering = Stream(request, self.answer(request, messages))
        return self.answering

    def stop(self) -> None:
        """End the answer that is being written, if any, and keep what there is of it."""
        if self.answering is not None:
            self.answering.chunks.close()  # type: ignore[attr-defined]
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

    def answer(self, request: Request, messages: list[dict[str, Any]]) -> Iterator[None]:
        """Read what is new of the prompt, then write; yields after each chunk. At the end the messages have grown by two."""
        prompt, timings = request.prompts[0], request.timings
        state: State | None = None
        drawn: list[int] = []
        try:
            cache, known = self.take_cache(prompt)
            state = read(self.model, prompt, known, cache, timings)
            while not request.answers[0].finish_reason:
                state, tokens = write(self.model, request, state, prompt + drawn)
                drawn += tokens
                yield
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                raise  # the messages are as they were before the question, and the cache begins anew
        if state is not None:
            self.cache = state.cache
            self.held = (prompt + drawn)[: state.cache.capacity]
        self.messages = [*messages, {"role": "assistant", "content": request.answers[0].text}]

    def take_cache(self, prompt: list[int]) -> tuple[KVCache, int]:
        """A cache, and how many of the prompt's tokens it holds already."""
        cache, self.cache = self.cache, None  # it is used up by what comes
        held, self.held = self.held, []
        # the last token is read in any case: the answer begins with its logits
        known = common_prefix(held, prompt[:-1])
        length = self.model.config.switch_length
        # a text beyond longrope's original length has other keys, from its first token on
        switched = length is not None and (len(held) > length) != (len(prompt) > length)
        back = None if cache is None or switched else rewind(cache, known)
        if back is not None:
            return back, known
        config = self.model.config
        capacity = buckets.capacity(len(prompt), config.max_positions)
        return init_cache(config, 1, capacity, self.model.params["embedding"]["tokens"].dtype, self.model.mesh), 0


def read(model: Model, prompt: list[int], known: int, cache: KVCache, timings: Timings) -> State:
    """Prefill what of a prompt is behind the `known` tokens that the cache has."""
    new = prompt[known:]
    timings.cached_tokens, timings.prompt_tokens = known, len(new)
    with timed(timings, "prefill_seconds"):
        state = init_state(dataclasses.replace(cache, fresh=known == 0), model.config)
        state = read_behind(model, [new], state, known)
        # the penalties look at all of the prompt
        past = smp.heard([prompt], model.config.vocab_size, model.config.max_positions)
        state = dataclasses.replace(state, past=past)
        return jax.block_until_ready(state)


def write(model: Model, request: Request, state: State, text: list[int]) -> tuple[State, list[int]]:
    """One chunk more behind a text that was read; what was drawn is also in the cache.

    Where the text outgrows longrope's original length, the chunk ends and all of it is read again.
    """
    answer, timings, config = request.answers[0], request.timings, model.config
    left = (config.switch_length or 0) + 1 - len(text)
    steps = min(request.chunk, left) if left > 0 else request.chunk
    with timed(timings, "decode_seconds"):
        state = roomy(state, config, min(len(text) + steps, config.max_positions))
        drawn, logprobs, state = write_tokens(
            model.params, state, request.sampling, request.seeds, config=config, steps=steps
        )
        tokens, scores = np.asarray(drawn)[0].tolist(), np.asarray(logprobs)[0].tolist()
        if steps == left:
            state = reread(model, [text + tokens], state)
    timings.note_first_token()
    for token, logprob in zip(tokens, scores, strict=True):
        answer.push(token, logprob)
    timings.new_tokens = len(answer.token_ids)
    return state, tokens


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginnings."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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
