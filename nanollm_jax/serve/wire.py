"""Turns as lines of JSON between the processes of one server: whole and exact, and nothing in them is ever executed.

JSON has no tuples, no numbers as keys and no records. A tuple, a mapping and a record are objects of one or two names here,
and all that is read back are the records of KINDS. Floats are written so that the same bits are read, infinite ones too.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from nanollm_jax.engine.request import Request
from nanollm_jax.grammar import Grammar
from nanollm_jax.serve.asking import World
from nanollm_jax.serve.turns import Turn
from nanollm_jax.settings import Sampling

KINDS = {kind.__name__: kind for kind in (Turn, Request, Sampling, Grammar, World)}


def encode(turn: Turn) -> bytes:
    """One line."""
    return json.dumps(packed(turn), separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Turn:
    """The turn that a line says."""
    found = unpacked(json.loads(line))
    assert isinstance(found, Turn)
    return found


def packed(value: Any) -> Any:
    """A value in what JSON has. Raises TypeError for what KINDS does not name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = type(value).__name__
    if KINDS.get(name) is type(value):
        return {"record": name, "fields": {field: packed(getattr(value, field)) for field in fields(value)}}
    if isinstance(value, dict):
        return {"mapping": [[packed(key), packed(entry)] for key, entry in value.items()]}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        entries = [packed(entry) for entry in value]
        return entries if isinstance(value, list) else {"tuple": entries}
    raise TypeError(f"a {name} cannot be sent to the other processes; wire.KINDS does not name it.")


def unpacked(value: Any) -> Any:
    """What was packed."""
    if isinstance(value, list):
        return [unpacked(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if "record" in value:
        return KINDS[value["record"]](**{name: unpacked(entry) for name, entry in value["fields"].items()})
    if "mapping" in value:
        return {unpacked(key): unpacked(entry) for key, entry in value["mapping"]}
    return tuple(unpacked(entry) for entry in value["tuple"])


def fields(record: Any) -> tuple[str, ...]:
    """The names of a record's fields."""
    if dataclasses.is_dataclass(record):
        return tuple(field.name for field in dataclasses.fields(record))
    return record._fields
