"""The few sizes in which programs are compiled: whatever a request asks for is rounded up to one of them.

A prompt is padded to a power of two of tokens, and read in pieces where it is long; a batch to a power of two of rows.
A cache has a power of two of slots and becomes the next one when it is full, so that attention never looks at many more
slots than are in use.
"""

from __future__ import annotations

SHORTEST = 16  # tokens of a piece of a prompt
LONGEST = 512  # tokens of a piece of a prompt, in each row
TOGETHER = 2048  # tokens of a piece, all rows: what attention's scores may take in memory
SMALLEST = 256  # positions of a cache; growing through smaller ones would compile more than it saves


def pieces(tokens: int, batch: int) -> list[int]:
    """How long the pieces are in which a batch reads its prompts, the longest of which has so many tokens.

    700 tokens of one row: 512 and 256, of which the last 68 are padding.
    """
    whole = longest_piece(batch)
    rest = tokens % whole or whole
    return [whole] * ((tokens - rest) // whole) + [max(SHORTEST, power_of_two(rest))]


def longest_piece(batch: int) -> int:
    """Tokens of the longest piece of a batch."""
    return max(SHORTEST, min(LONGEST, power_of_two(TOGETHER // batch + 1) // 2))


def text(tokens: int, limit: int) -> int:
    """How many tokens a text that is read at once is padded to, at most `limit`."""
    return min(max(SHORTEST, power_of_two(tokens)), limit)


def rows(batch: int, multiple: int = 1) -> int:
    """How many rows a batch runs with, a multiple of what a mesh splits them over; nobody sees the ones that were added."""
    return multiple * power_of_two(-(-batch // multiple))


def capacity(positions: int, limit: int) -> int:
    """How many slots a cache for so many positions has, in a model of `limit` positions."""
    return min(max(SMALLEST, power_of_two(positions)), limit)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least size."""
    return 1 << (size - 1).bit_length()


def listed(limit: int, batch: int = 1) -> tuple[list[int], list[int]]:
    """All lengths of pieces, and all capacities, for a batch in a model of `limit` positions."""
    lengths = [2**n for n in range(30) if SHORTEST <= 2**n <= longest_piece(batch)]
    capacities = [2**n for n in range(60) if SMALLEST <= 2**n < limit]
    return lengths, [*capacities, limit]
