"""An answer taken apart while it is written: its text, its reasoning, and the calls of tools in it.

Pieces of text go in, events come out, the same ones wherever the pieces' borders are. A call is told as soon as its name is
known and its arguments begin, which are then passed on as they come. What only looks like a call is text, and nothing is lost:
the texts of all events, joined, are the answer.

Where tags are special tokens of the vocabulary, only these are tags. The same letters are text, so that nobody can have a model
call something by having it repeat them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Literal, NamedTuple

from nanollm_jax.chat.call_object import NAME, CallObject
from nanollm_jax.chat.forms import THINK, THOUGHT, Form
from nanollm_jax.tokenizer.table import SHOWN

Kind = Literal["content", "reasoning", "call", "arguments", "end", "mark"]
SPACE = " \t\r\n"
# a name in front of its arguments, the id that may stand between, and how many characters all of that has at most
NAMED = re.compile(rf"\s{{0,20}}({NAME})(?:{SHOWN}?\[CALL_ID\][\w-]{{1,64}})?(?:{SHOWN}?\[ARGS\])?\s{{0,20}}(?=\{{)")
LONGEST_HEAD = 256


class Event(NamedTuple):
    """A part of an answer.

    kind    "content" or "reasoning": what is said
            "call", "arguments" (any number of times), "end": of one call; a call that is cut, or goes on as no JSON, has no end
            "mark": tags, and the space around them
    text    what of the answer it is
    said    what it says: the content, the name of a call, a piece of its arguments as JSON
    at      which call
    """

    kind: Kind
    text: str
    said: str = ""
    at: int = 0


class Reader:
    """Takes one answer apart. Each state is a function that takes what it can from `held`, and says whether it took any."""

    def __init__(
        self,
        form: Form | None = None,
        names: Collection[str] = (),
        *,
        thinks: bool = False,
        thinking: bool = False,
        parallel: bool = True,
        special: Collection[str] = (),
    ) -> None:
        """form: how calls are written, None where there are none; names: the tools that there are
        thinks: reasoning may stand in front; thinking: the prompt has begun it
        parallel: False leaves out all calls but the first
        special: tags that are special tokens, which stand behind SHOWN in the answer
        """
        tags = ("", "") if form is None else (form.opener, form.closer)
        seen = [SHOWN + tag if tag in special else tag for tag in (*tags, THINK, THOUGHT)]
        self.opener, self.closer, self.opens_thought, self.closes_thought = seen
        self.form, self.names, self.parallel = form, names, parallel
        self.held, self.over = "", False
        self.sent = 0  # how much of what is held has been told; of a call only, all else is let go of at once
        self.events: list[Event] = []
        self.begun = self.ended = 0  # calls
        self.thinking = thinking
        self.state: Callable[[], bool] = self.start if thinks or thinking else self.answer
        self.listed = False  # is the call one of a list?
        self.call, self.told = CallObject(0), False  # the one that is being written, and whether it was told of

    def feed(self, text: str) -> list[Event]:
        """The next piece of the answer -> what is certain with it."""
        self.held += text
        while self.state():
            pass
        events, self.events = self.events, []
        return events

    def finish(self) -> list[Event]:
        """The answer has ended -> what was still held back."""
        self.over = True
        return self.feed("")

    # what the states share

    def emit(self, kind: Kind, end: int, said: str | None = None) -> None:
        """What is held, up to this place and as far as it was not told yet, is an event."""
        text, self.sent = self.held[self.sent : end], end
        if kind not in ("call", "arguments"):
            self.held, self.sent = self.held[end:], 0
        of_call = kind in ("call", "arguments", "end")
        if of_call and self.begun > 1 and not self.parallel:
            kind, said = "mark", ""
        if text or (of_call and kind != "mark"):
            said = ("" if kind in ("mark", "end") else text.replace(SHOWN, "")) if said is None else said
            self.events.append(Event(kind, text, said, max(self.begun - 1, 0)))

    def goes(self, state: Callable[[], bool]) -> bool:
        """Go on with another state."""
        self.state = state
        return True

    def behind_space(self, at: int = 0) -> int | None:
        """Where the space ends that begins at a place; None where more may come."""
        at = len(self.held) - len(self.held[at:].lstrip(SPACE))
        return None if at == len(self.held) and not self.over else at

    def begins(self, text: str, at: int) -> bool | None:
        """Does what is held have this text at a place? None where that is not certain yet."""
        found = self.held[at : at + len(text)]
        return True if found == text else None if text.startswith(found) and not self.over else False

    def certain(self, text: str) -> int:
        """Up to where there is neither a beginning of this text, nor space in front of one."""
        if self.over:
            return len(self.held)
        sizes = range(min(len(text) - 1, len(self.held)), 0, -1)
        size = next((size for size in sizes if self.held.endswith(text[:size])), 0)
        return len(self.held[: len(self.held) - size].rstrip(SPACE))

    # reasoning

    def start(self) -> bool:
        """Does reasoning begin?"""
        at = self.behind_space()
        opened = None if at is None else self.begins(self.opens_thought, at)
        if at is None or opened is None:
            return False
        if opened:
            self.emit("mark", at + len(self.opens_thought))
        return self.goes(self.think if opened or self.thinking else self.answer)

    def think(self) -> bool:
        """The ends of lines in front of reasoning are none of it."""
        return self.without_lines(self.reason)

    def without_lines(self, state: Callable[[], bool]) -> bool:
        """Go on with another state behind ends of lines, and the space in front of them."""
        at = self.behind_space()
        if at is None:
            return False
        self.emit("mark", max(self.held.rfind("\n", 0, at), self.held.rfind("\r", 0, at)) + 1)
        return self.goes(state)

    def reason(self) -> bool:
        """Reasoning, until it is closed."""
        at = self.held.find(self.closes_thought)
        if at < 0:
            self.emit("reasoning", self.certain(self.closes_thought))
            return False
        self.emit("reasoning", len(self.held[:at].rstrip(SPACE)))
        self.emit("mark", self.held.find(self.closes_thought) + len(self.closes_thought))
        return self.goes(self.thought)

    def thought(self) -> bool:
        """Nor are those behind it part of the answer."""
        return self.without_lines(self.answer)

    # text

    def answer(self) -> bool:
        """The first letter of an answer may be a call's."""
        at = self.behind_space() if self.form is not None and self.form.bare else 0
        if at is None:
            return False
        bare = self.form is not None and self.form.bare and self.held[at : at + 1] == "{"
        return self.entry(at, marked=False) if bare else self.goes(self.content)

    def content(self) -> bool:
        """Text, until a call is opened."""
        if self.form is None:
            self.emit("content", len(self.held))
            return False
        at = self.held.find(self.opener)
        if at < 0:
            rest = self.over and self.begun  # behind a call, space at the end is none of the text
            self.emit("content", len(self.held.rstrip(SPACE)) if rest else self.certain(self.opener))
            if rest:
                self.emit("mark", len(self.held))
            return False
        self.emit("content", len(self.held[:at].rstrip(SPACE)))
        return self.goes(self.opened)

    # calls

    def opened(self) -> bool:
        """Behind an opener, which has only space in front: a list of calls, a call, or the name of one."""
        assert self.form is not None
        behind = self.held.find(self.opener) + len(self.opener)
        at = self.behind_space(behind)
        if at is None:
            return False
        self.listed = self.held[at : at + 1] == "["
        if self.listed:
            return self.entry(at + 1)
        if self.form.named and self.held[at : at + 1] != "{":
            return self.goes(self.named)
        return self.entry(at)

    def named(self) -> bool:
        """A name in front of its arguments."""
        assert self.form is not None
        behind = self.held.find(self.opener) + len(self.opener)
        head = self.held[behind : behind + LONGEST_HEAD]
        if "{" not in head and len(head) < LONGEST_HEAD and not self.over:
            return False
        found = NAMED.match(self.held, behind)
        return self.is_text(behind) if found is None else self.entry(found.end(), head=found[1])

    def entry(self, at: int, *, head: str = "", marked: bool = True) -> bool:
        """An object is expected at a place, perhaps behind space; what stands in front of it is its call's, if it is one."""
        self.expected = at
        self.make = partial(CallObject, head=head, names=None if marked else self.names)
        return self.goes(self.before_object)

    def before_object(self) -> bool:
        """The space in front of an object."""
        at = self.behind_space(self.expected)
        if at is None:
            return False
        if self.held[at : at + 1] != "{":
            return self.is_text(at)
        self.call, self.told = self.make(at), False
        return self.goes(self.object)

    def is_text(self, end: int) -> bool:
        """It is no call after all: what is held up to a place is text."""
        self.emit("content", end)
        return self.goes(self.content)

    def object(self) -> bool:
        """The object of a call; or, behind a name, that of its arguments."""
        call = self.call
        sound = call.take(self.held)
        if call.name and not self.told:
            self.told = True
            self.begun += 1
            self.emit("call", call.start, call.name)
            if call.said is not None:
                self.emit("arguments", call.end, call.said)
        if self.told and call.end > self.sent:
            self.emit("arguments", call.end)
        if sound and not call.done and not self.over:
            return False
        return self.ends() if call.whole else self.is_text(call.at)

    def ends(self) -> bool:
        """A call is whole."""
        self.emit("end", self.call.at)
        self.ended += 1
        return self.goes(self.behind)

    def behind(self) -> bool:
        """Behind a call: the next one of a list, the end of the list, a closer, or something else."""
        assert self.form is not None
        at = self.behind_space()
        if at is None:
            return False
        letter = self.held[at : at + 1]
        if self.listed and letter == ",":
            return self.entry(at + 1)
        if self.listed and letter == "]":
            self.emit("mark", at + 1)
            self.listed = False
            return True
        if self.form.bare:
            next_at = self.behind_space(at + (letter == ";"))
            if next_at is None:
                return False
            return (
                self.entry(next_at, marked=False)
                if self.held[next_at : next_at + 1] == "{"
                else self.goes(self.content)
            )
        closed = bool(self.closer) and self.begins(self.closer, at)
        if closed is None:
            return False
        cut = self.over and self.closer.startswith(self.held[at:])  # the answer ends before the closer does
        if closed or cut:
            self.emit("mark", len(self.held) if cut else at + len(self.closer))
        return self.goes(self.content)
