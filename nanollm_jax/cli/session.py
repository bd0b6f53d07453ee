"""What is typed in a conversation: questions, and commands that begin with a slash. An error ends nothing and loses nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollm_jax.cli.generate import figures
from nanollm_jax.cli.interrupts import noted
from nanollm_jax.cli.options import expanded
from nanollm_jax.cli.printing import harmless, plural, show, warn
from nanollm_jax.cli.progress import compiling_shown
from nanollm_jax.cli.reading import Reader, read
from nanollm_jax.errors import NanoLLMError, RequestError

if TYPE_CHECKING:
    from nanollm_jax.engine.conversation import Conversation

FORMAT, VERSION = "nanollm conversation", 1  # what a saved file says it is
SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
WHOLE = ("top_k", "seed", "max_new_tokens")  # settings that are whole numbers


class Session:
    """A conversation and who types in it."""

    def __init__(self, conversation: Conversation, reader: Reader) -> None:
        """Nothing is read before run."""
        self.conversation = conversation
        self.reader = reader
        self.leaving = False
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "reset": ("", "forget every question and answer; the system message stays", self.reset),
            "system": ("[TEXT]", "show the system message, or put TEXT in its place; - takes it away", self.system),
            "undo": ("", "take the last question and its answer back", self.undo),
            "save": ("FILE", "write the conversation and the settings to FILE", self.save),
            "load": ("FILE", "go on with a saved conversation, in place of this one", self.load),
            "set": (
                "[NAME VALUE]",
                f"show the settings, or change one: {', '.join((*SAMPLING, *WHOLE[1:]))}",
                self.set,
            ),
            "tokens": ("", "count the tokens of the conversation and of the cache", self.tokens),
            "help": ("", "this list", self.help),
            "exit": ("", "leave, as Ctrl-D does", self.leave),
        }

    def run(self) -> None:
        """Answer until the lines end."""
        while not self.leaving:
            try:
                text = read(self.reader)
            except EOFError:
                return
            except KeyboardInterrupt:
                print("(Ctrl-D or /exit leaves)", file=sys.stderr)
                continue
            except NanoLLMError as error:  # a line that is no text
                warn(str(error))
                continue
            try:
                self.take(text)
            except BrokenPipeError:
                raise
            except NanoLLMError as error:
                warn(str(error))
            except OSError as error:
                warn(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
            except Exception as error:  # a mistake of ours, or of a library: what was said until now is not its price
                warn(f"{type(error).__name__}: {error}")

    def take(self, text: str) -> None:
        """One thing that was typed: a command, a question, or nothing. Two slashes begin a question that begins with one."""
        if not text.strip():
            return
        if text.startswith("//"):
            return self.ask(text[1:])
        if not text.startswith("/"):
            return self.ask(text)
        name, _, argument = text[1:].partition(" ")
        if name not in self.commands:
            raise RequestError(f"there is no command /{name}; /help lists them, and //{name} asks the model.")
        usage, _, command = self.commands[name]
        argument = argument.strip()
        if argument and not usage:
            raise RequestError(f"/{name} takes nothing behind it, found {argument!r:.80}; leave it out.")
        command(argument)

    def ask(self, question: str) -> None:
        """Put a question and print the answer as it is written; Ctrl-C stops it."""
        with noted(insist=False) as interrupts, compiling_shown():
            answer = self.conversation.ask(question)
            for piece in answer:
                show(piece)
                if interrupts:
                    break
            self.conversation.stop()
        show("\n")
        drawn = None if self.conversation.sampling.temperature == 0 else self.conversation.seed
        print(figures(answer.timings, drawn) + (" · stopped" if interrupts else ""), file=sys.stderr)

    def reset(self, _: str) -> None:
        """/reset"""
        self.conversation.reset()

    def undo(self, _: str) -> None:
        """/undo"""
        print("took back:", harmless(self.conversation.undo()))

    def system(self, text: str) -> None:
        """/system"""
        if not text:
            found = self.conversation.system
            print("there is no system message" if found is None else harmless(found))
        else:
            self.conversation.set_system(None if text == "-" else text)

    def tokens(self, _: str) -> None:
        """/tokens"""
        talk, limit = self.conversation, self.conversation.model.config.max_positions
        print(f"{plural(talk.tokens(), 'token')} of {limit:,} in the conversation, {len(talk.held):,} in the cache")

    def help(self, _: str) -> None:
        """/help"""
        for name, (usage, meaning, _call) in self.commands.items():
            print(f"{f'/{name} {usage}':<20} {meaning}")
        print(
            f'{"":<20} """ begins a text of several lines and ends it; Alt-Enter is a new line; Ctrl-C stops an answer'
        )

    def leave(self, _: str) -> None:
        """/exit"""
        self.leaving = True

    def settings(self) -> dict[str, Any]:
        """The settings that /set knows, as they are."""
        talk = self.conversation
        sampling = {name: getattr(talk.sampling, name) for name in SAMPLING}
        return sampling | {"seed": talk.seed, "max_new_tokens": talk.max_new_tokens}

    def set(self, argument: str) -> None:
        """/set"""
        from nanollm_jax.settings import cuts_of

        words = argument.split()
        if not words:
            for name, value in self.settings().items():
                print(f"{name:<20} {value}")
            return
        if len(words) != 2 or words[0] not in self.settings():
            known = ", ".join(self.settings())
            raise RequestError(f"/set {argument:.80}: expected a name and a number, one of {known}.")
        name, value = words[0], number(*words)
        if self.conversation.sampling.temperature == 0 and cuts_of({name: value}):
            raise RequestError(f"temperature 0 takes the best token, so {name} can do nothing; /set temperature first.")
        self.change({name: value})

    def change(self, changes: dict[str, Any]) -> None:
        """Change settings, all or none. Raises RequestError for one that cannot be."""
        talk, after = self.conversation, self.settings() | changes
        for name, low, high in (("seed", 0, 2**32 - 1), ("max_new_tokens", 1, 2**31 - 1)):
            value = after[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise RequestError(f"{name} is {value!r:.80}; expected a whole number from {low} to {high}.")
        for name, value in after.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RequestError(f"{name} is {value!r:.80}; expected a number.")
        before: Any = talk.sampling
        sampling = before.replace(**{name: after[name] for name in SAMPLING})
        sampling.rows(1, talk.model.config.vocab_size)
        talk.sampling, talk.seed, talk.max_new_tokens = sampling, after["seed"], after["max_new_tokens"]

    def save(self, name: str) -> None:
        """/save: all of it or nothing, in a file that only its owner can read; only a saved conversation is overwritten."""
        if not name:
            raise RequestError("/save needs the name of a file.")
        path = expanded(Path(name))
        if path.exists():
            try:
                saved(path)
            except RequestError:
                raise RequestError(f"{path}: is there and is no saved conversation; give another name.") from None
        content = {
            "format": FORMAT,
            "version": VERSION,
            "messages": self.conversation.messages,
            "settings": self.settings(),
        }
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
            beside.replace(path)
        except OSError as error:
            error.filename = str(path)  # a full disk does not say whose it is
            raise
        finally:
            beside.unlink(missing_ok=True)
        print(f"saved {plural(len(self.conversation.messages), 'message')} to {harmless(str(path))}")

    def load(self, name: str) -> None:
        """/load: everything in the file is checked before anything changes."""
        if not name:
            raise RequestError("/load needs the name of a file.")
        path = expanded(Path(name))
        content = saved(path)
        before = self.settings()
        try:
            self.change(content["settings"])
            self.conversation.replace(content["messages"])
        except RequestError as error:
            self.change(before)
            raise RequestError(f"{path}: {error}") from None
        print(f"loaded {plural(len(self.conversation.messages), 'message')} from {harmless(str(path))}")


def number(name: str, word: str) -> int | float:
    """What is typed for a setting -> a number."""
    try:
        return int(word) if name in WHOLE else float(word)
    except ValueError:
        expected = "a whole number" if name in WHOLE else "a number"
        raise RequestError(f"{name} is {word!r:.80}; expected {expected}.") from None


def saved(path: Path) -> dict[str, Any]:
    """What a saved conversation has in it. Raises RequestError for a file that is none, OSError where it cannot be read."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise RequestError(f"{path}: is no saved conversation: it is no file that ends.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: is no saved conversation: {error}.") from None
    known = isinstance(content, dict) and content.get("format") == FORMAT and content.get("version") == VERSION
    if not known or not isinstance(content.get("messages"), list) or not isinstance(content.get("settings"), dict):
        raise RequestError(f"{path}: is no saved conversation; expected a file that /save wrote, version {VERSION}.")
    if extra := content["settings"].keys() - {*SAMPLING, "seed", "max_new_tokens"}:
        raise RequestError(f"{path}: has the settings {sorted(extra)}, which are not known; take them out.")
    return content
