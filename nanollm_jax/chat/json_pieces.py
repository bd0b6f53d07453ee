"""JSON that arrives piece by piece: whether it can still become a value, and where the parts of an object begin and end."""

from __future__ import annotations

import json
import re

SPACE = " \t\r\n"
WORD = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
LONGEST_WORD = 64  # characters of a number
PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # what may stand in a string as it is


class Json:
    """One value of JSON, taken a character at a time.

    stack   the brackets that are open, "{" and "["
    expect  what has to come: "value", "item" (a value, or the end of a list), "first" (a key, or the end of an object), "key",
            "colon", "next" (a comma, or an end), or the rest of a "word" or "string"
    """

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.expect = "value"
        self.word = ""  # what there is of a number, true, false or null
        self.key = False  # is the string a key?
        self.escape = ""  # what there is of \n or \u0041

    @property
    def done(self) -> bool:
        """Is it whole? A number at the top never is, because another digit may come."""
        return self.expect == "next" and not self.stack

    def take(self, letter: str) -> bool:
        """Take one more character. False, after which nothing may be taken, where no JSON has it here."""
        if self.expect == "string":
            return self.in_string(letter)
        if self.expect == "word":
            if letter.isascii() and (letter.isalnum() or letter in "+-."):
                self.word += letter
                return len(self.word) <= LONGEST_WORD
            if not WORD.fullmatch(self.word):
                return False
            self.expect = "next"
        if letter in SPACE:
            return True
        if self.expect in ("value", "item"):
            return self.begins(letter)
        if self.expect in ("first", "key") and letter == '"':
            self.expect, self.key = "string", True
        elif self.expect == "colon" and letter == ":":
            self.expect = "value"
        elif letter in "}]" and self.stack and self.stack[-1] == ("{" if letter == "}" else "["):
            closes = self.expect in ("first", "next")
            self.ends()
            return closes
        elif self.expect == "next" and letter == "," and self.stack:
            self.expect = "key" if self.stack[-1] == "{" else "value"
        else:
            return False
        return True

    def begins(self, letter: str) -> bool:
        """The first character of a value."""
        if letter in "{[":
            self.stack.append(letter)
            self.expect = "first" if letter == "{" else "item"
        elif letter == '"':
            self.expect, self.key = "string", False
        elif letter == "]" and self.expect == "item":
            self.ends()
        elif letter in "-0123456789tfn":
            self.expect, self.word = "word", letter
        else:
            return False
        return True

    def ends(self) -> None:
        """A bracket is closed."""
        self.stack.pop()
        self.expect = "next"

    def in_string(self, letter: str) -> bool:
        """A character of a string."""
        if self.escape:
            self.escape += letter
            if len(self.escape) == 2 and letter != "u":
                self.escape = ""
                return letter in '"\\/bfnrt'
            if len(self.escape) > 2 and letter not in "0123456789abcdefABCDEF":
                return False
            if len(self.escape) == 6:
                self.escape = ""
        elif letter == "\\":
            self.escape = letter
        elif letter == '"':
            self.expect = "colon" if self.key else "next"
        else:
            return letter >= " "
        return True


class Fields:
    """An object of JSON as it grows: the fields that are whole, and the one that has begun.

    whole     name -> where its value stands in the text
    open      the name whose value has begun, and where; None between two
    repeated  whether a name came twice
    at        where the next character stands
    """

    def __init__(self, at: int = 0) -> None:
        """at: where the object begins."""
        self.json, self.at, self.repeated = Json(), at, False
        self.whole: dict[str, tuple[int, int]] = {}
        self.open: tuple[str, int] | None = None
        self.name, self.begun = "", 0

    def take(self, text: str) -> bool:
        """Look at the next character of the text. False where no object has it."""
        letter, json_, at = text[self.at], self.json, self.at
        before, depth = json_.expect, len(json_.stack)
        if (depth == 0 and letter != "{") or not json_.take(letter):
            return False
        self.at += 1
        if depth == 1 and before in ("first", "key") and json_.expect == "string":
            self.begun = at
        elif depth == 1 and before == "string" and json_.expect == "colon":
            self.name = json.loads(text[self.begun : self.at])
            self.repeated |= self.name in self.whole
        elif depth == 1 and before == "value" and json_.expect != "value":
            self.open = self.name, at
        if self.open and len(json_.stack) <= 1 and json_.expect in ("next", "key"):
            self.closes(at if before == "word" and depth == 1 else self.at)
        return True

    def skip(self, text: str) -> None:
        """Take at once what a string has before its next quote or escape: most of a text is this."""
        if self.json.expect == "string" and not self.json.escape:
            self.at = PLAIN.match(text, self.at).end()  # type: ignore[union-attr]  # it matches nothing at all, too

    def closes(self, end: int) -> None:
        """The value of a field is whole."""
        assert self.open is not None
        name, start = self.open
        self.whole[name], self.open = (start, end), None

    def text(self, text: str, name: str) -> str | None:
        """The field that is whole, as it says where it is a text; None where it is not."""
        start, end = self.whole.get(name, (0, 0))
        return json.loads(text[start:end]) if text[start:end].startswith('"') else None
