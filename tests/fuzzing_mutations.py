"""How good files are damaged: values that hurt in place of others, parts lost, doubled and exchanged, bytes changed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any


def deep(levels: int) -> Any:
    """A list of lists of lists ..."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


DEEP = "written 900 deep"
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 10**18, 10**309, -(10**309), 1e39, 1e-39,
    1e308, 0.5, -0.0, 1.0, float("nan"), float("inf"), "", "a", "0", "\ud800", "\0", "\x1b[2J", "a" * 300, "../x",
    "/etc/passwd", "▁", "<s>", "</s>", "true", "x" * 20_000, "(a+)+$", "BPE", "Unigram", "Sequence", "llama", "yarn", "linear",
    [], {}, [[]], [None], [0] * 70, ["a", "b"], {"type": "Sequence"}, {"a": {}}, {"String": ""}, {"Regex": "(x*)*"}, deep(30),
    deep(70), DEEP,
)  # fmt: skip
KEYS = (
    "type",
    "id",
    "content",
    "a",
    "rope_scaling",
    "sliding_window",
    "head_dim",
    "special",
    "normalizers",
    "dtype",
    "\ud800",
)
RAW = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 3000, "{", "\ufeff", '"\\ud800"', "01", "'a'", "//", ",", "0x1")


def nasty(rng: random.Random) -> Any:
    """A value that nobody expects."""
    return copy.deepcopy(rng.choice(NASTY))


def places(rng: random.Random, value: Any) -> tuple[Any, Any]:
    """An object or list somewhere in a value, and a key or place in it: deep ones as likely as others."""
    at, key = value, None
    while isinstance(at, dict | list) and at:
        key = rng.choice(list(at)[:2000]) if isinstance(at, dict) else rng.randrange(len(at))
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.25:
            return at, key
        at = at[key]
    return at, key


def other_letter(rng: random.Random, data: bytes) -> bytes:
    """One letter or digit in place of another, or two of them exchanged: what is most likely to be read all the same."""
    for _ in range(50):
        at = rng.randrange(len(data))
        for letters in (b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0123456789"):
            if data[at] in letters:
                return data[:at] + bytes([rng.choice(letters)]) + data[at + 1 :]
    return data


def nudged(rng: random.Random, value: Any) -> Any:
    """A value of the same type, not far from it."""
    match value:
        case bool():
            return not value
        case int():
            return value + rng.choice((-1, 1, 1, 10))
        case float():
            return value * rng.choice((0.5, 2.0, -1.0))
        case str():
            return other_letter(rng, value.encode()).decode() if value.isascii() and value else "▁" + value
    return value


def damaged_json(rng: random.Random, good: Any) -> bytes:
    """A JSON value with one to four things wrong, or the text of it."""
    value, gently = copy.deepcopy(good), rng.random() < 0.4
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, key = places(rng, value)
        if key is None:
            continue
        match rng.choice((6, 6, 7)) if gently else rng.randrange(9):
            case 0 | 1 | 2:
                at[key] = nasty(rng)
            case 3:
                del at[key]
            case 4 if isinstance(at, dict):
                at[rng.choice(KEYS)] = nasty(rng)
            case 4 | 5:
                other, place = places(rng, value)
                if place is not None:
                    at[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(at[key])
            case 6:
                at[key] = nudged(rng, at[key])
            case 7:  # two of the same kind
                alike = [
                    place
                    for place in (at if isinstance(at, dict) else range(len(at)))
                    if type(at[place]) is type(at[key])
                ]
                place = rng.choice(alike[:2000])
                at[key], at[place] = at[place], at[key]
            case 8:
                at[key] = rng.choice(
                    ([at[key]], {"type": at[key]}, [at[key], at[key]], str(at[key])[:50], str(at[key])[1:50])
                )
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).replace(f'"{DEEP}"', "[" * 900 + "]" * 900)
    if gently:
        return text.encode("utf-8", errors="surrogatepass")
    if rng.random() < 0.2:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(RAW) + text[at + rng.choice((0, 1, 5)) :]
    data = text.encode(rng.choice(("utf-8",) * 50 + ("utf-16", "utf-8-sig", "utf-32")), errors="surrogatepass")
    return damage_bytes(rng, data) if rng.random() < 0.1 else data


def damage_bytes(rng: random.Random, data: bytes, within: int | None = None) -> bytes:
    """Bytes with one to four things wrong.  within: most of them in so many at the beginning"""
    gently = rng.random() < 0.4
    for _ in range(rng.choice((1, 1, 2, 4))):
        most = len(data) if within is None or rng.random() < 0.2 else min(within, len(data))
        if not most:
            return data
        at, n = rng.randrange(most), rng.choice((1, 1, 2, 4, 8, 50))
        match 7 if gently else rng.randrange(8):
            case 0 | 1:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 2:
                data = (
                    data[:at]
                    + rng.choice((b"\0", b"\xff", b"\x80", b"\n", b" ", b"0", b'"', b"{")) * n
                    + data[at + n :]
                )
            case 3:
                data = data[:at] + data[at + n :]
            case 4:
                data = data[:at] + data[rng.randrange(len(data)) :][:n] + data[at:]
            case 5:
                data = data[:at] if rng.random() < 0.5 else data + data[at:]
            case 6:
                number = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data)))
                data = data[:at] + number.to_bytes(8, "little")[: rng.choice((4, 8))] + data[at + 8 :]
            case 7:
                data = other_letter(rng, data[:most]) + data[most:]
    return data
