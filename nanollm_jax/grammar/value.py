"""What an answer has to look like, as somebody says it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanollm_jax import files
from nanollm_jax.checks import listed
from nanollm_jax.errors import GrammarError, shown
from nanollm_jax.grammar.schema import check_schema

LONGEST = 2**18  # characters of a grammar; the schemas of large programs have 100,000
# between the parts of JSON: a space, or a new line and how far it is put in. Free to write any, a model may never stop
SPACE = r" |\r?\n[ \t]{0,64}"


@dataclass(frozen=True)
class Grammar:
    """The form of an answer; a value like a text. Made by json_schema, json_object, regex, choice or lark.

    kind   of grammar that text is: a schema as JSON, a regular expression, or a Lark grammar
    parts  grammars that a Lark grammar has in it, by the names @part0, @part1, ..
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    parts: tuple[Grammar, ...] = ()

    def __repr__(self) -> str:
        return f"Grammar({self.kind}, {shown(self.text)})"

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str | bool) -> Grammar:
        """JSON that a schema accepts: a mapping, or its text. Keys come in the schema's order.

        Raises GrammarError for what is no schema, and for a keyword that could not be honoured.
        """
        if isinstance(schema, str):
            try:
                schema = files.parse(checked("a JSON schema", schema).encode())
            except ValueError as error:
                raise GrammarError(f"grammar is a JSON schema that is not valid JSON ({error}); mend it.") from None
        check_schema(schema)
        try:
            text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise GrammarError(f"grammar is a JSON schema with a value that JSON has not: {error}.") from None
        return cls("json_schema", checked("a JSON schema", text))

    @classmethod
    def json_object(cls) -> Grammar:
        """Any object of JSON."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text all of which matches a regular expression, in the syntax of Rust's regex crate: without look-around."""
        return cls("regex", checked("a regular expression", pattern))

    @classmethod
    def lark(cls, text: str, parts: Sequence[Grammar] = ()) -> Grammar:
        """A text of the rule `start` of a Lark grammar, as llguidance reads them."""
        return cls("lark", checked("a Lark grammar", text), tuple(parts))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of several texts."""
        if listed(texts) is None or not texts or not all(isinstance(text, str) and text for text in texts):
            raise GrammarError(f"grammar is a choice of {shown(texts)}; expected texts of at least one character.")
        return cls.lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))

    @property
    def whole(self) -> str:
        """All that it says: as llguidance takes it.

        no_forcing: where only one text can follow, all tokens that it may begin with are allowed, not one chosen for it.
        """
        top = '%llguidance {"no_forcing": true}\nstart: @answer'
        named = [{"name": "top", "lark_grammar": top}, self.part("answer")]
        named += [part.part(f"part{n}") for n, part in enumerate(self.parts)]
        return json.dumps({"grammars": named})

    def part(self, name: str) -> dict[str, Any]:
        """The grammar by a name among others."""
        if self.kind == "json_schema":
            schema = json.loads(self.text)
            if isinstance(schema, dict):
                schema["x-guidance"] = {"whitespace_pattern": SPACE}
            return {"name": name, "json_schema": schema}
        text = self.text
        if self.kind == "regex":
            from nanollm_jax.grammar.words import library

            text = f"start: /{library().regex_to_lark(text)}/"
        return {"name": name, "lark_grammar": text}


def checked(what: str, text: Any) -> str:
    """A text of a bounded length. Raises GrammarError for all else."""
    if not isinstance(text, str):
        raise GrammarError(f"grammar is {shown(text)}; expected {what} as a text.")
    if len(text) > LONGEST:
        raise GrammarError(f"grammar is {what} of {len(text):,} characters; at most {LONGEST:,} are read.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError(f"grammar is {what} with half a character in it; pass valid Unicode.") from None
    return text
