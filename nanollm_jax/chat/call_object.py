"""One call as an object of JSON that is still being written: when its name is known, and where its arguments stand."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from nanollm_jax.chat.json_pieces import Fields

ARGUMENTS = ("arguments", "parameters")
NAME = r"[\w.:/-]{1,128}"


class CallObject:
    """{"name": "f", "arguments": {..}}, the fields in any order and others between; or arguments alone, whose name is known.

    name    empty until it is known and the arguments have begun, or the object is whole without any
    start   where the arguments begin in the text, and `end` how far they are there
    whole   whether they are
    said    what they are where the text does not say it as an object: it has none, or null, or a text of its own
    """

    def __init__(self, at: int, head: str = "", names: Collection[str] | None = None) -> None:
        """at: where it begins; head: a name that stands in front; names: those that it may have, None for any."""
        self.fields, self.head, self.names = Fields(at), head, names
        self.name, self.start, self.end = "", 0, 0
        self.field = ""
        self.said: str | None = None

    @property
    def at(self) -> int:
        """Up to where the text was looked at."""
        return self.fields.at

    @property
    def done(self) -> bool:
        """Is the object whole?"""
        return self.fields.json.done

    @property
    def whole(self) -> bool:
        """Are the arguments?"""
        if not self.name:
            return False
        return self.said is not None or (self.done if self.head else self.field in self.fields.whole)

    def take(self, text: str) -> bool:
        """Look at what there is of the text. False where it is no call, or goes on as none."""
        fields, sound = self.fields, True
        while sound and fields.at < len(text) and not fields.json.done:
            fields.skip(text)
            if fields.at < len(text):
                sound = fields.take(text) and (bool(self.name) or self.look(text))
        if self.name and self.said is None:
            self.end = fields.at if self.head or not self.whole else fields.whole[self.field][1]
        return sound

    def look(self, text: str) -> bool:
        """Is the name known, and have the arguments begun? False where it can be no call."""
        fields = self.fields
        if self.head:
            return self.found(self.head, fields.at - 1)
        name = fields.text(text, "name")
        if fields.repeated or ("name" in fields.whole and not self.may_be(name)):
            return False
        begun = {**fields.whole, **({fields.open[0]: (fields.open[1], 0)} if fields.open else {})}
        arguments = [one for one in ARGUMENTS if one in begun]
        if len(arguments) > 1:
            return False
        if name is None or not arguments:
            if not self.done:
                return True
            return name is not None and self.names is None and self.found(name, fields.at - 1, "{}")
        self.field = arguments[0]
        start, end = begun[self.field]
        if text[start] == "{":
            return self.found(name, start)
        if not end:
            return text[start] in '"n'
        said = "{}" if text[start:end] == "null" else fields.text(text, self.field)
        return is_object(said) and self.found(name, start, said, end)

    def may_be(self, name: str | None) -> bool:
        """May a call have this name?"""
        return name is not None and bool(re.fullmatch(NAME, name)) and (self.names is None or name in self.names)

    def found(self, name: str, start: int, said: str | None = None, end: int = 0) -> bool:
        """It is a call."""
        self.name, self.start, self.end, self.said = name, start, max(start, end), said
        return True


def is_object(text: str | None) -> bool:
    """Is a text an object of JSON, in valid Unicode?"""
    try:
        return text is not None and bool(text.encode()) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
