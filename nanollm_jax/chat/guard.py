"""Which special tokens a chat template wrote itself, and which a message only spells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nanollm_jax.errors import RequestError

Span = tuple[int, int]  # where something stands in a text
# One of them hides the letters of a message: JSON, Python and templates write each as it is. Few tokens have them all.
LETTERS = "0123456789qxzjvwkybcdfghlmnprstaeiou~^@\ue000"


class Guard:
    """Finds markers in what a template wrote, and tells its own from those that a message spells.

    A message spells one whole, or a part that meets the rest of it in what the template writes around it. Where that can be,
    the conversation is rendered a second time with other letters in those places: what is a marker all the same was written
    by the template.
    """

    def __init__(self, markers: Iterable[str], letter: str | None = None) -> None:
        """markers: texts that must not be found.  letter: what hides their letters; None: one that none of them has"""
        names = sorted(markers, key=len, reverse=True)
        self.whole = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self.all, self.longest = "\0".join(names), max(map(len, names), default=0)
        self.beginnings = {name[:n] for name in names for n in range(1, len(name))}
        self.ends = {name[n:] for name in names for n in range(1, len(name))}
        self.letter = letter or next(letter for letter in LETTERS if letter not in self.all.lower())
        # whether a text that was seen has a whole marker, ends where one may go on, begins where one may end
        self.spelled = self.opens = self.closes = False

    def spans(self, text: str) -> list[Span]:
        """Where markers stand in a text."""
        return [found.span() for found in self.whole.finditer(text)]

    @property
    def doubtful(self) -> bool:
        """Whether the texts that were seen can make a marker, alone or side by side."""
        return self.spelled or (self.opens and self.closes)

    def written(self, text: str, disguised: str) -> list[Span]:
        """Where a template wrote markers of its own.  disguised: what it writes for the conversation in disguise

        Raises RequestError where the template looks at the letters of a text, so that the two do not lie side by side.
        """
        letters = {self.letter, self.letter.upper()}
        if len(text) == len(disguised) and all(a == b or b in letters for a, b in zip(text, disguised, strict=True)):
            return self.spans(disguised)
        own, other = ([text[a:b] for a, b in self.spans(text)], [disguised[a:b] for a, b in self.spans(disguised)])
        if not self.spelled and own == other:
            return self.spans(text)
        raise RequestError(
            "a message, tool or variable spells a special token, or a part of one, and the chat template makes something else "
            "of it, so that the template's own tokens cannot be told from it; put a space into it."
        )

    def apply(self, value: Any) -> Any:
        """The same JSON value with every text in it disguised; role, type and keys keep any name that is no whole marker."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            names = ("role", "type")
            return {
                self.name(key): self.name(entry) if key in names and isinstance(entry, str) else self.apply(entry)
                for key, entry in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.apply(entry) for entry in value]
        return value

    def name(self, name: Any) -> Any:
        """A text that templates compare with others: disguised only where it has a whole marker in it."""
        return self.text(name) if isinstance(name, str) and self.whole.search(name) else name

    def text(self, text: str) -> str:
        """Other letters for every marker in it, for its end where a marker may begin, its beginning where one may end.

        For the marker "<end>":  "a<end>b" -> "a00000b",  "a <e" -> "a 00",  "d> a" -> "00 a",  "n" -> "0".
        """
        body, covered = text.strip(), self.spans(text)
        start, sizes = text.find(body), range(1, min(len(body) + 1, self.longest))
        end = start + len(body)
        opening = [(end - n, end) for n in sizes if body[-n:] in self.beginnings]
        closing = [(start, start + n) for n in sizes if body[:n] in self.ends]
        inside = [(start, end)] if body in self.all else []
        self.spelled |= bool(covered)
        self.opens |= bool(opening)
        self.closes |= bool(closing)
        hidden = {at for first, last in covered + opening + closing + inside for at in range(first, last)}
        return "".join(self.letter if at in hidden else letter for at, letter in enumerate(text)) if hidden else text
