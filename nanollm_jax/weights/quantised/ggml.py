"""GGUF's blocks as groups: the numbers of each, its scales, and what it subtracts.  github.com/ggml-org/ggml, ggml-common.h

A block has 32 numbers, or 256 in parts of 16 or 32 with scales in few bits of their own.
"""

from __future__ import annotations

import numpy as np

from nanollm_jax.weights.quantised.groups import Groups

Array = np.ndarray
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def q8_0(blocks: Array, rows: int) -> Groups:
    """d f16, 32 numbers with signs."""
    return Groups(numbers(blocks[:, 2:].view(np.int8), rows), half(blocks, 0, rows), 32)


def q4_0(blocks: Array, rows: int) -> Groups:
    """d f16, 16 bytes; numbers less 8."""
    values = numbers(nibbles(blocks[:, 2:]), rows).astype(np.int8) - np.int8(8)
    return Groups(values, half(blocks, 0, rows), 32, bits=4)


def q4_1(blocks: Array, rows: int) -> Groups:
    """d and m f16, 16 bytes."""
    lowest = half(blocks, 2, rows).astype(np.float32)
    return Groups(numbers(nibbles(blocks[:, 4:]), rows), half(blocks, 0, rows), 32, lowest, bits=4)


def q5_0(blocks: Array, rows: int) -> Groups:
    """d f16, 4 bytes of highest bits, 16 bytes; numbers less 16."""
    values = numbers(nibbles(blocks[:, 6:]) | single(blocks[:, 2:6]) << 4, rows).astype(np.int8) - np.int8(16)
    return Groups(values, half(blocks, 0, rows), 32, bits=5)


def q5_1(blocks: Array, rows: int) -> Groups:
    """d and m f16, 4 bytes of highest bits, 16 bytes."""
    values = numbers(nibbles(blocks[:, 8:]) | single(blocks[:, 4:8]) << 4, rows)
    return Groups(values, half(blocks, 0, rows), 32, half(blocks, 2, rows).astype(np.float32), bits=5)


def q4_k(blocks: Array, rows: int) -> Groups:
    """d and dmin f16, 12 bytes of scales, 128 bytes: of each 32 of them the lower halves, then the upper."""
    return with_lowest(blocks, nibbles(blocks[:, 16:].reshape(-1, 4, 32)), rows, 4)


def q5_k(blocks: Array, rows: int) -> Groups:
    """As q4_k, with 32 bytes of highest bits before the others: of each byte one bit for each of the 8 groups."""
    high = blocks[:, 16:48, None] >> np.arange(8, dtype=np.uint8) & 1  # [n 32 8]
    low = nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return with_lowest(blocks, low | high.swapaxes(1, 2) << 4, rows, 5)


def q6_k(blocks: Array, rows: int) -> Groups:
    """128 bytes of lower halves, 64 of the two bits above, 16 scales with signs, d f16; numbers less 32."""
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.stack([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    values = numbers((low | high << 4).astype(np.int8) - np.int8(32), rows)
    scale = blocks[:, 192:208].view(np.int8).astype(np.float32) * half(blocks, 208).astype(np.float32)
    return Groups(values, scale.reshape(rows, -1), 16, bits=6)


def iq4_nl(blocks: Array, rows: int) -> Groups:
    """d f16, 16 bytes of places in a table."""
    return Groups(numbers(nibbles(blocks[:, 2:]), rows), half(blocks, 0, rows), 32, table=IQ4_NL, bits=4)


KINDS = {
    "Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
}  # fmt: skip


def numbers(values: Array, rows: int) -> Array:
    """Those of all blocks, row by row."""
    return values.reshape(rows, values.size // rows)


def half(blocks: Array, at: int, rows: int | None = None) -> Array:
    """The f16 at a byte of each block.  -> [n 1], or row by row"""
    found = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)
    return found if rows is None else found.reshape(rows, -1)


def nibbles(data: Array) -> Array:
    """The lower halves of some bytes, then their upper ones.  [.. n] -> [.. 2n]"""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def single(data: Array) -> Array:
    """Bit by bit, the lowest of the first byte first.  [.. n] -> [.. 8n]"""
    return np.unpackbits(data, axis=-1, bitorder="little")


def with_lowest(blocks: Array, values: Array, rows: int, bits: int) -> Groups:
    """d and dmin f16, 12 bytes: a scale and a lowest number of 6 bits for each of 8 groups.

    Bytes 0 to 3 have the scales of groups 0 to 3 in their six lower bits, 4 to 7 the lowest numbers; 8 to 11 the four lower
    bits of both of groups 4 to 7, whose upper ones are the two that were left.
    """
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    lowest = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    d, m = (half(blocks, at).astype(np.float32) for at in (0, 2))
    offset = -(m * lowest).reshape(rows, -1)
    return Groups(numbers(values, rows), (d * scale).reshape(rows, -1), 32, offset, bits=bits)
