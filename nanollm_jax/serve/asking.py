"""Bodies to requests of the engine: templates are rendered and texts encoded in a few threads beside the loop.

A stranger's template or text may take its time; that holds up one of these threads, never the loop and never the engine's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from nanollm_jax.chat.forms import wants_text
from nanollm_jax.chat.renderer import Renderer
from nanollm_jax.engine.conversation import encode_chat
from nanollm_jax.engine.draws import TOPS
from nanollm_jax.engine.request import Request, check_grammar, check_stops, encode_prompts, requests_of, words_of
from nanollm_jax.errors import NanoLLMError
from nanollm_jax.loading import Model
from nanollm_jax.serve.bodies import Body, Chat, Completion, TokenizeChat, Writing
from nanollm_jax.serve.forming import Choice, Form, choice_of, form_of_chat, form_of_text, made
from nanollm_jax.serve.messages import read_messages, read_tools
from nanollm_jax.serve.reading import Reading, reading_of
from nanollm_jax.serve.refusals import Refusal, busy, refusal_of
from nanollm_jax.settings import Sampling, with_settings

THREADS = 4
STOPS, LONGEST_STOP = 16, 256  # texts that may end an answer, and their characters: all are looked for at each token
COMPLETION = 16  # tokens of a completion where nobody says, as OpenAI has it
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
Made = TypeVar("Made")


class World(NamedTuple):
    """Who shares the beginnings of prompts: those with one key and one salt."""

    key: int | None
    salt: str | None


def root(world: World, body: Writing) -> World:
    """The world of a body."""
    return world._replace(salt=body.cache_salt)


class Asked(NamedTuple):
    """What a body asks for: n requests to each prompt, in order; the prompts, also as text; and the seed of the draws.

    scores are requests for how likely the prompts are, of those that have more than one token. reading is how the answers of a
    chat are read, form that they have to have.
    """

    requests: list[Request]
    scores: list[Request]
    prompts: list[list[int]]
    texts: list[str]
    seed: int
    reading: Reading = Reading()
    form: Form = Form()


class Readers:
    """Threads that read bodies, each with a process of its own that renders templates; and one that tries grammars out, so that
    who asks for none never waits for one.
    """

    def __init__(self, model: Model, context: int, answers: int) -> None:
        """context: tokens of a prompt and its answer together; answers: how many one body may ask for."""
        self.model, self.context, self.answers = model, context, answers
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="reader")
        self.forming = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self.own = threading.local()
        self.reading = 0

    async def ask(self, function: Callable[[Readers, Any, World], Asked], body: Writing, world: World) -> Asked:
        """What a body asks for, its form tried out. Raises Refusal."""
        asked = await self.read(function, body, world)
        if asked.form.grammar is not None:
            await self.read(Readers.check_form, asked, pool=self.forming)
        return asked

    async def read(self, function: Callable[..., Made], *args: Any, pool: ThreadPoolExecutor | None = None) -> Made:
        """function(self, *args) in one of the threads. Raises Refusal for all that it refuses, and where too many wait."""
        if self.reading >= self.answers:
            raise busy("too many requests are being read; ask again later.", "queue_full")

        def call() -> Made:
            try:
                return function(self, *args)
            except NanoLLMError as error:
                raise refusal_of(error) from None

        self.reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool or self.pool, call)
        finally:
            self.reading -= 1

    @property
    def renderer(self) -> Model:
        """The model with this thread's own process for templates."""
        if not hasattr(self.own, "model"):
            template = self.model.chat_template
            own = None if template is None else dataclasses.replace(template, renderer=Renderer())
            self.own.model = dataclasses.replace(self.model, chat_template=own)
        return self.own.model

    def messages(self, body: Chat | TokenizeChat) -> list[int]:
        """Messages -> ids, by the checkpoint's template."""
        return self.read_chat(body)[0]

    def read_chat(self, body: Chat | TokenizeChat) -> tuple[list[int], Reading, Choice]:
        """Messages and tools -> ids, how the answers to them are read, and which tools they may call."""
        tools, parallel = read_tools(body.tools), True
        choice = Choice(tuple(tools))
        if isinstance(body, Chat):
            choice, parallel = choice_of(body.tool_choice, list(tools)), body.parallel_tool_calls
        given = list(tools.values()) if choice.names else None
        template = self.renderer.chat_template
        variables = dict(body.chat_template_kwargs or {})
        effort = body.reasoning_effort if isinstance(body, Chat) else None
        if effort is not None and variables.setdefault("reasoning_effort", effort) != effort:
            message = "reasoning_effort and that of chat_template_kwargs differ; give one of them."
            raise Refusal(400, message, "reasoning_effort")
        try:
            source = "" if template is None else template.source(given)
            messages = read_messages(body.messages, arguments_as_text=wants_text(source))
            if not messages:
                raise Refusal(400, "messages is empty; give at least one.", "messages")
            ids = encode_chat(
                self.renderer, messages, variables=variables, tools=given, add_generation_prompt=body.add_generation_prompt,
                continue_final_message=body.continue_final_message,
            )  # fmt: skip
        except NanoLLMError as error:
            raise refusal_of(error, "messages") from None
        assert template is not None  # encode_chat raises without
        continued = messages[-1]["content"] if body.continue_final_message else ""
        return ids, reading_of(template, source, ids, choice.names, continued, parallel=parallel), choice

    def chat(self, body: Chat, world: World) -> Asked:
        """One prompt and n answers."""
        if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
            raise Refusal(400, "max_tokens and max_completion_tokens differ; give one of them.", "max_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise Refusal(400, "top_logprobs without logprobs: give logprobs true, or leave both out.", "top_logprobs")
        if body.max_completion_tokens is not None and body.max_completion_tokens < 1:
            raise Refusal(400, "max_completion_tokens is below 1.", "max_completion_tokens")
        ids, reading, choice = self.read_chat(body)
        form = form_of_chat(body, reading, choice)
        new = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        new = max(self.context - len(ids), 1) if new is None else new
        asked = self.asked(body, [ids], new, body.top_logprobs or 0, world, form, chat=True)
        shown = tuple(sorted(reading.special.values()))
        return asked._replace(
            requests=[dataclasses.replace(one, shown=shown) for one in asked.requests], reading=reading
        )

    def completion(self, body: Completion, world: World) -> Asked:
        """A prompt or many, and n answers to each."""
        new = COMPLETION if body.max_tokens is None else body.max_tokens
        if body.best_of not in (None, body.n):
            raise Refusal(400, f"best_of is {body.best_of} and n {body.n}; every answer is given.", "best_of")
        if not 0 <= (body.logprobs or 0) <= TOPS:
            raise Refusal(400, f"logprobs is {body.logprobs}; expected 0 to {TOPS}.", "logprobs")
        prompts, single = self.prompts(body.prompt, "prompt")
        if not prompts:
            raise Refusal(400, "prompt is an empty list; give a text, or ids.", "prompt")
        only_read = new == 0 and body.echo
        asked = self.asked(
            body, prompts, 1 if only_read else new, body.logprobs or 0, world, form_of_text(body), chat=False
        )
        given = [body.prompt] if single else body.prompt
        texts = [self.text(one, ids) for one, ids in zip(given, prompts, strict=True)] if body.echo else []
        scores = [
            Request(
                tuple(ids),
                0,
                Sampling(temperature=0.0),
                top_logprobs=body.logprobs,
                given=1,
                root=root(world, body),
                adapter=self.model.adapter(self.adapter(body)),
            )
            for ids in prompts
            if body.echo and body.logprobs is not None and len(ids) > 1
        ]
        return asked._replace(texts=texts, scores=scores, requests=[] if only_read else asked.requests)

    def prompts(self, given: Any, field: str) -> tuple[list[list[int]], bool]:
        """Texts and ids as ids, and whether it was a single one. Raises Refusal that names the field."""
        try:
            return encode_prompts(self.model, given)
        except NanoLLMError as error:
            raise refusal_of(error, field) from None

    def text(self, given: Any, ids: list[int]) -> str:
        """A prompt as text: as it was given, or what its ids print."""
        tokenizer = self.model.tokenizer
        return given if isinstance(given, str) else "" if tokenizer is None else tokenizer.decode(ids)

    def asked(
        self, body: Writing, prompts: list[list[int]], new: int, tops: int, world: World, form: Form, *, chat: bool
    ) -> Asked:  # fmt: skip
        """Requests with the settings of a body, the checkpoint's own where it says nothing; form: that of every answer."""
        longest = max(map(len, prompts))
        if longest + max(new, 1) > self.context:
            raise Refusal(
                400,
                f"a prompt of {longest} tokens and {max(new, 1)} new ones are more than the {self.context} of this server; "
                "shorten the one, or ask for fewer of the others.",
                "messages" if chat else "prompt",
                "context_length_exceeded",
            )
        if body.n * len(prompts) > self.answers:
            param = "n" if body.n > 1 else "prompt"
            raise Refusal(400, f"{body.n * len(prompts)} answers are too many; at most {self.answers}.", param)
        if body.min_tokens is not None and body.min_tokens > new:
            raise Refusal(
                400, f"min_tokens is {body.min_tokens}, more than the {new} that may be written.", "min_tokens"
            )
        stops = [body.stop] if isinstance(body.stop, str) else body.stop
        if len(stops) > STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
            raise Refusal(400, f"stop has at most {STOPS} texts of {LONGEST_STOP} characters here.", "stop")
        options = None if body.stream else body.stream_options
        if options is not None and (options.include_usage or options.continuous_usage_stats):
            raise Refusal(400, "stream_options without stream: give stream true, or leave both out.", "stream_options")
        seed = secrets.randbits(32) if body.seed is None else body.seed
        sampling = with_settings(self.model.defaults.sampling, self.settings(body))
        requests = requests_of(
            self.model, prompts, new, sampling, seed, body.stop, body.stop_token_ids,
            adapter=self.adapter(body), top_logprobs=tops, n=body.n, chat=chat, streamed=body.stream,
        )  # fmt: skip
        changed: dict[str, Any] = {"root": root(world, body), "grammar": form.grammar}
        if body.ignore_eos:
            _, ends = check_stops(self.model, body.stop, body.stop_token_ids)
            changed["ends"] = tuple(sorted(set(ends)))
        requests = [dataclasses.replace(request, **changed) for request in requests]
        return Asked(requests, [], prompts, [], seed, form=form)

    def check_form(self, asked: Asked) -> None:
        """Compile the grammars of what a body asks for. Raises Refusal for one that cannot be followed, with its place."""
        for grammar, place in asked.form.parts:
            made(partial(words_of(self.model).compile, grammar), place)
        for request in asked.requests[:1]:
            made(partial(check_grammar, self.model, request), asked.form.place)

    def adapter(self, body: Body) -> str | None:
        """The adapter that a body names as its model."""
        return body.model if body.model in self.model.adapters else None

    def settings(self, body: Writing) -> dict[str, Any]:
        """The sampling settings that a body gives."""
        given = {name: value for name in SETTINGS if (value := getattr(body, name)) is not None}
        if given.get("top_k") == -1:  # another server's word for off
            given["top_k"] = 0
        if body.min_tokens is not None:
            given["min_new_tokens"] = body.min_tokens
        if body.logit_bias is not None:
            wrong = [name for name in body.logit_bias if not name.isdecimal() or not name.isascii()]
            if wrong:
                raise Refusal(400, f"logit_bias names {wrong[0][:40]!r}; expected a token id.", "logit_bias")
            given["logit_bias"] = {int(name[:20]): value for name, value in body.logit_bias.items()}
        return given
