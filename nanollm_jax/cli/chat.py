"""`nanollm chat`: a conversation in the terminal, or over a pipe, line by line."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanollm_jax.cli.devices import Devices, Tp, mesh_for
from nanollm_jax.cli.options import (
    Adapter,
    Cache,
    Dtype,
    Frequency,
    KeepCompiled,
    MaxNewTokens,
    Merge,
    MinP,
    Presence,
    Repetition,
    Revision,
    Seed,
    Source,
    Stop,
    StopId,
    Temperature,
    TopK,
    TopP,
    adapters_of,
    checkpoint,
    decoded,
    expanded,
    given_settings,
    keep_compiled,
    the_adapter,
)  # fmt: skip
from nanollm_jax.cli.reading import Keyboard, Lines, Reader
from nanollm_jax.cli.session import Session
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from nanollm_jax.loading import Model

SYSTEM = "The system message: what the model is told before the first question."
TEMPLATE = "A file with the chat template to use, in place of the checkpoint's own."
STORIES = (
    "This is the bundled model, which knows children's stories and nothing else: type how one begins, and it goes on.\n"
    "It has no memory of the stories before. --model takes a model that was taught to talk."
)
HISTORY = "Where questions are remembered for the next time, in a file that only you can read."


def chat(
    model: Source = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    adapter: Adapter = None,
    merge: Merge = None,
    cache: Cache = "auto",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help=SYSTEM)] = None,
    template: Annotated[Path | None, typer.Option(metavar="FILE", help=TEMPLATE)] = None,
    max_new_tokens: MaxNewTokens = 512,
    stop: Stop = None,
    stop_id: StopId = None,
    seed: Seed = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    presence_penalty: Presence = None,
    frequency_penalty: Frequency = None,
    history: Annotated[Path, typer.Option(metavar="FILE", help=HISTORY)] = Path("~/.local/state/nanollm/history"),
    no_history: Annotated[bool, typer.Option("--no-history", help="Remember nothing.")] = False,
    tp: Tp = 1,
    devices: Devices = None,
    compile_cache: KeepCompiled = True,
) -> None:
    """Talk with a chat-tuned model. Type a question; /help lists the commands. Without --model, the bundled one tells stories.

    Each answer is printed as it is written, then one line of figures on standard error. The model's cache is kept, so only what
    is new is read each turn. Ctrl-C stops an answer and keeps what there is of it; Ctrl-D leaves.
    """
    settings = given_settings(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    adapters = adapters_of(adapter)
    own = the_adapter(adapters, merge)
    written = None if template is None else decoded(expanded(template).read_bytes(), str(template))
    folder = checkpoint(model, revision)
    import nanollm_jax as nano
    from nanollm_jax.settings import with_settings

    keep_compiled(compile_cache)
    mesh = mesh_for(1, tp, devices)
    loaded = nano.load(folder, dtype=dtype, mesh=mesh, adapters=adapters, merge=merge, cache=cache)
    if template is not None and written is not None:
        loaded = with_template(loaded, template, written)
    conversation = nano.Conversation(
        loaded,
        system=system,
        max_new_tokens=max_new_tokens,
        sampling=with_settings(loaded.defaults.sampling, settings),
        seed=secrets.randbelow(2**32) if seed is None else seed,
        stop=stop or (),
        stop_ids=stop_id or (),
        adapter=own,
    )
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    reader: Reader = Keyboard(None if no_history else history) if interactive else Lines()
    if interactive:
        if model is None and template is None:
            print(STORIES)
        print("Type a question; /help lists the commands, Ctrl-D leaves.")
    Session(conversation, reader).run()


def with_template(model: Model, path: Path, source: str) -> Model:
    """The model with another template."""
    import dataclasses

    from nanollm_jax.chat import ChatTemplate

    if model.tokenizer is None:
        raise RequestError("this checkpoint has no tokenizer files, so a chat template has nothing to write for.")
    return dataclasses.replace(model, chat_template=ChatTemplate(path, {"default": source}, model.tokenizer))
