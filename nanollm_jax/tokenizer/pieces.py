"""How a vocabulary entry spells bytes, in the two alphabets that vocabularies are stored in."""

import re

SPACE_MARK = "▁"  # U+2581, not an underscore: SentencePiece's letter for a space (Kudo & Richardson 2018)
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def byte_letters() -> dict[str, int]:
    """The byte-level alphabet: 256 visible characters -> the bytes they stand for.

    A byte that is a visible Latin-1 character stands for itself; the other 68 take U+0100 onwards in order, so a space
    (byte 32, the 33rd of them) is "Ġ" U+0120. Radford et al. 2019, `bytes_to_unicode` in the released encoder.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


LETTERS = byte_letters()


def byte_level_bytes(piece: str) -> bytes:
    """The bytes of a byte-level entry: "Ġthe" -> b" the". An entry with other characters is taken as plain text."""
    if LETTERS.keys() >= set(piece):
        return bytes(map(LETTERS.__getitem__, piece))
    return piece.encode("utf-8")


def marked_bytes(piece: str, *, byte_fallback: bool = True) -> bytes:
    """The bytes of a SentencePiece entry: "▁the" -> b" the", and with byte fallback "<0x0A>" -> b"\\n"."""
    byte = BYTE_PIECE.fullmatch(piece) if byte_fallback else None
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE_MARK, " ").encode("utf-8")
