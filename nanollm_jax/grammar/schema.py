"""Every keyword of a JSON schema is honoured, or says nothing about the answer, or is refused by its name.

llguidance reports the keywords of the standard that it cannot honour. What it does not know at all it passes over, as the
standard has it; but a keyword that is misspelled, or another dialect's, would then bind nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanollm_jax.checks import real
from nanollm_jax.errors import GrammarError, shown

DEEPEST = 64  # schemas, objects and lists inside each other
ONE = "additionalItems additionalProperties contains contentSchema else if not propertyNames then unevaluatedItems "
SCHEMA = frozenset((ONE + "unevaluatedProperties").split())  # keywords whose value is a schema, or anything else
LISTS = frozenset("allOf anyOf oneOf prefixItems items".split())  # a list of schemas, or one
TABLES = frozenset("$defs definitions properties patternProperties dependentSchemas dependencies".split())
VALUES = frozenset(
    "type enum const required minProperties maxProperties minItems maxItems uniqueItems minContains maxContains minLength "
    "maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf dependentRequired $ref "
    "$dynamicRef $recursiveRef $vocabulary".split()
)
# for readers of the schema; nothing depends on them
NOTES = frozenset(
    "$schema $id id $anchor $dynamicAnchor $recursiveAnchor $comment title description default examples example deprecated "
    "readOnly writeOnly contentEncoding contentMediaType discriminator".split()
)
KNOWN = SCHEMA | LISTS | TABLES | VALUES | NOTES


def check_schema(schema: Any) -> None:
    """Raise GrammarError for what is no schema, is nested too deeply, or has a keyword that nobody would honour."""
    waiting: list[tuple[str, Any, int, bool]] = [("the schema", schema, 0, True)]
    while waiting:
        where, value, depth, is_schema = waiting.pop()
        if depth > DEEPEST:
            raise GrammarError(f"grammar has objects and lists {DEEPEST} deep inside each other; make it flatter.")
        if is_schema and not isinstance(value, Mapping | bool):
            raise GrammarError(f"grammar: {where} is {shown(value)}; expected a JSON schema, an object.")
        if isinstance(value, Mapping):
            if is_schema:
                check_bounds(where, value)
            for key, inside in value.items():
                if not isinstance(key, str):
                    raise GrammarError(f"grammar: {where} has the key {shown(key)}; expected texts.")
                place = f"{shown(key)} of {where}"[:200]
                if is_schema:
                    check_keyword(where, key)
                    waiting += schemas_of(place, key, inside, depth + 1)
                else:
                    waiting.append((place, inside, depth + 1, False))
        elif isinstance(value, list | tuple):
            waiting += [(where, inside, depth + 1, False) for inside in value]


def check_keyword(where: str, key: str) -> None:
    """Raise GrammarError for a keyword that nobody would honour. Those that begin with x- are notes of other programs."""
    if key not in KNOWN and (not key.startswith("x-") or key == "x-guidance"):
        more = ', or give type: ["..", "null"]' if key == "nullable" else ""
        raise GrammarError(
            f"grammar: {where} has the keyword {shown(key)}, which would bind nobody; leave it out{more}."
        )


def check_bounds(where: str, schema: Mapping[str, Any]) -> None:
    """Raise GrammarError for the one kind of bounds that llguidance 1.9 does not keep: it lets an excluded whole number through
    where the other bound is less than 1 away: 3 where numbers are above 3 and at most 3.75.
    """
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    low, least = (schema.get("minimum"),) * 2 if low is True else (low, schema.get("minimum", low))  # as draft 4 has it
    high, most = (schema.get("maximum"),) * 2 if high is True else (high, schema.get("maximum", high))
    up, down = whole_and(low, most), whole_and(high, least)
    if (up is not None and 0 < up < 1) or (down is not None and -1 < down < 0 and real(high) < 0):  # type: ignore[operator]
        raise GrammarError(
            f"grammar: {where} has an exclusive bound that is whole, and another less than 1 away, which is not kept; give "
            "minimum and maximum."
        )


def whole_and(bound: Any, other: Any) -> float | None:
    """How far another bound is from one that is whole; None where these are no two such numbers."""
    one, two = real(bound), real(other)
    return None if one is None or two is None or not one.is_integer() else two - one


def schemas_of(where: str, key: str, value: Any, depth: int) -> list[tuple[str, Any, int, bool]]:
    """The schemas that a keyword's value has in it."""
    if key in SCHEMA or (key in LISTS and isinstance(value, Mapping | bool)):
        return [(where, value, depth, True)]
    if key in LISTS and isinstance(value, list | tuple):
        return [(where, one, depth + 1, True) for one in value]
    if key in TABLES and isinstance(value, Mapping):
        needs = key == "dependencies"  # a list of names, or a schema
        return [(where, one, depth + 1, not needs or isinstance(one, Mapping | bool)) for one in value.values()]
    return [(where, value, depth, False)]
