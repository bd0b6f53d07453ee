"""SentencePiece's model file as far as it is read here: where its fields lie, and whether a library may be given them.

A message is a list of fields: a tag, 8 * number + wire type, then for wire type 0 a number of up to 10 bytes of 7 bits, for 1
and 5 eight and four bytes, for 2 a length and so many bytes (protobuf.dev/programming-guides/encoding). In a model, field 1
is a piece: 1 its text, 2 its score, 3 its type; 3 and 5 are normalizers: 2 their table (sentencepiece_model.proto).
"""

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer.charsmap import MOST_GROWTH, growth

FIXED = {1: 8, 5: 4}
PIECE, NORMALIZERS = 1, (3, 5)
CONTROL, USER_DEFINED = 3, 4  # types of a piece: never in text; in text as a whole
TABLE = 2
MOST_PIECES = 1 << 20


def fields(data: bytes, at: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of every field of a message, without tag and length. Raises ValueError where it is damaged."""
    end = len(data) if end is None else end

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte, at = data[at], at + 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError(f"the number before byte {at} has no end")

    while at < end:
        number, wire = divmod(varint(), 8)
        if wire == 0:
            begin, _ = at, varint()
        elif wire == 2:
            length = varint()
            begin, at = at, at + length
        elif wire in FIXED:
            begin, at = at, at + FIXED[wire]
        else:
            raise ValueError(f"the field before byte {at} is of no kind that there is")
        if at > end:
            raise ValueError(f"the field at byte {begin} ends after its message")
        yield number, begin, at


def piece(text: str, kind: int, score: float = 0.0) -> bytes:
    """The field of one more piece."""
    name = text.encode()
    inner = b"\x0a" + varint(len(name)) + name + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
    return b"\x0a" + varint(len(inner)) + inner


def message(field: int, values: Mapping[int, int | str]) -> bytes:
    """The field of a message of numbers and texts.  values: by their own fields"""
    inner = b""
    for number, value in values.items():
        if isinstance(value, int):
            inner += varint(8 * number) + varint(value)
        else:
            inner += varint(8 * number + 2) + varint(len(value.encode())) + value.encode()
    return varint(8 * field + 2) + varint(len(inner)) + inner


def varint(number: int) -> bytes:
    """A number, seven bits to a byte, the lowest first."""
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def check_model(path: Path, data: bytes) -> None:
    """Raise TokenizerError, naming the file, for a model that its library would not survive."""
    scores: list[bytes] = []
    pieces = 0
    try:
        for number, begin, end in fields(data):
            if number == PIECE:
                pieces += 1
                if pieces > MOST_PIECES:
                    raise ValueError(f"more than {MOST_PIECES:,} pieces")
                scores += [data[first:last] for inner, first, last in fields(data, begin, end) if inner == 2]
            if number in NORMALIZERS:
                for inner, first, last in fields(data, begin, end):
                    if inner == TABLE and last > first and (times := growth(data[first:last])) > MOST_GROWTH:
                        raise ValueError(
                            f"its normalizer lengthens a text {times} times, expected {MOST_GROWTH} at most"
                        )
        if not all(map(math.isfinite, struct.unpack(f"<{len(scores)}f", b"".join(scores)))):
            raise ValueError("a score is not finite")
    except (ValueError, struct.error) as error:
        raise TokenizerError(
            f"{path}: is not a SentencePiece model, or is cut short ({error}); copy it again."
        ) from None
