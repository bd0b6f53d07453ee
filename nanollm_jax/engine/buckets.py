"""The few sizes in which programs are compiled: whatever a request asks for is rounded up to one of them."""

from __future__ import annotations

ROWS = (1, 8, 16, 32)  # of engines; a mesh has as many in each part that it splits the rows into
# Tokens of a prompt that are read at once, and of a block of a prefix that is kept. Longer ones save less than they are padded:
# CPU time with 256 and 512 in place of 128, of prompts of 300, 400, 532 and 1,000 tokens, 110M in float32: 1.01, 1.25,
# 1.00, 1.03, and 1.59, 1.13, 0.94, 0.95. And a model of 512 positions would keep one block of a prefix, or none.
PIECE = 128
SHORTEST = 16  # tokens that a shorter piece is padded to
# tokens of several rows' short pieces that are read at once: where reading the weights is what costs, as many as of one long
# piece; on a CPU, where each token costs, one row's alone: two rows' 16 took 1.55, 1.57, 1.64 and 1.89 times as long, in
# float32, bfloat16, int8 and int4 (110M, behind 128 tokens), also for who asked alone
TOGETHER = {"cpu": SHORTEST}
# Blocks of a prefix that are put back between two chunks, beside a piece at most. CPU time of one over that of a piece, 768
# wide, 8 rows: 0.04.
RECALLED = 8
SMALLEST = 256  # positions of a cache; growing through smaller ones would compile more than it saves
# steps of a chunk: where nobody waits for anything but its end, where somebody does, between pieces of those who are not yet
# among the rows that write, and where a row follows a grammar
CHUNK, STREAMED, BETWEEN, FOLLOWED = 16, 4, 2, 1


def rows(count: int, dp: int = 1) -> int:
    """How many rows the engine for so many prompts has; there may be more prompts than rows."""
    return dp * next((rows for rows in ROWS if rows * dp >= count), ROWS[-1])


def piece(tokens: int, longest: int = PIECE) -> int:
    """How many tokens a piece of a prompt is padded to, of an engine whose longest is so long."""
    return min(max(SHORTEST, power_of_two(tokens)), longest)


def together(tokens: int, backend: str, rows: int, longest: int = PIECE) -> int:
    """How many rows' pieces that are padded to so many tokens are read at once, of so many rows."""
    return max(1, min(rows, TOGETHER.get(backend, longest) // tokens))


def text(tokens: int, limit: int) -> int:
    """How many tokens a text that is embedded is padded to, at most `limit`."""
    return min(max(SHORTEST, power_of_two(tokens)), limit)


def capacity(positions: int, limit: int) -> int:
    """How many positions a cache for so many has, in a model of `limit` positions."""
    return min(max(SMALLEST, power_of_two(positions)), limit)


def capacities(limit: int) -> list[int]:
    """All capacities of caches, in a model of `limit` positions."""
    return sorted({capacity(2**n, limit) for n in range((limit - 1).bit_length() + 1)})


def pieces(longest: int = PIECE) -> list[int]:
    """All lengths that pieces are padded to."""
    return sorted({piece(2**n, longest) for n in range(longest.bit_length())})


def programs(limit: int, longest: int = PIECE, spare: int = 0) -> dict[str, tuple[list[int], list[int]]]:
    """{program: (lengths that it is compiled for, capacities)} of an engine, each at its number of rows.

    A length is that of a piece that is read or scored, of a block that is kept, of a step of which `spare` tokens are guessed.
    Without capacities it is one for all of them.
    """
    sizes, read = capacities(limit), pieces(longest)
    return {
        "make room": ([], sizes[1:]), "begin": ([], []), "read": (read, sizes), "read behind others": (read, sizes),
        "first token": ([], []), "score": (read, []), "sum": (read, []), "judge": ([], []),
        "write": ([1 + spare] * (spare > 0), sizes),
        "keep a prefix": ([longest], sizes), "restore a prefix": ([longest], sizes),
    }  # fmt: skip


def prefix_bytes(context: int) -> int:
    """What an engine may keep of prompts that were read, of a model whose longest text takes `context` bytes of cache."""
    return min(2 * context, 2**30)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least size."""
    return 1 << (size - 1).bit_length()
