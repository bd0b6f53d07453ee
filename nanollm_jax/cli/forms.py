"""The form that answers must have, as the command line and lines of a file say it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.options import decoded, expanded
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from nanollm_jax.grammar import Grammar

FORMS = ("schema", "regex", "lark")  # keys of a line, of which it may have one
SCHEMA = "Answer in JSON that the JSON schema in FILE accepts."
REGEX = "Answer with a text all of which matches a regular expression."
LARK = "Answer with a text of the Lark grammar in FILE."

Schema = Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help=SCHEMA)]
Regex = Annotated[str | None, typer.Option(metavar="PATTERN", show_default=False, help=REGEX)]
Lark = Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help=LARK)]


def form_given(schema: Path | None, regex: str | None, lark: Path | None) -> Grammar | None:
    """The form that options say. Raises RequestError for a file that cannot be read, GrammarError for what is in it."""
    given = {"--schema": schema, "--regex": regex, "--lark": lark}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise RequestError(f"{names[0]} and {names[1]} exclude each other; leave one out.")
    texts = {"schema": None if schema is None else content(schema), "lark": None if lark is None else content(lark)}
    return form_of(texts | {"regex": regex})


def form_of(said: Mapping[str, Any]) -> Grammar | None:
    """The form that the keys of a line say; None where there is none of them. Raises GrammarError."""
    given = [name for name in FORMS if said.get(name) is not None]
    if len(given) > 1:
        raise RequestError(f"has {' and '.join(given)}; expected one of them.")
    if not given:
        return None
    from nanollm_jax.grammar import Grammar

    make = {"schema": Grammar.json_schema, "regex": Grammar.regex, "lark": Grammar.lark}[given[0]]
    return make(said[given[0]])


def content(file: Path) -> str:
    """The text of a file. Raises RequestError where it cannot be read."""
    try:
        return decoded(expanded(file).read_bytes(), str(file))
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}; give another file.") from None
