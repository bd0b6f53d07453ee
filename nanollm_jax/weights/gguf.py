"""What is in a GGUF file: its metadata and where its tensors lie, every length checked against the file before it is used.

The format (github.com/ggml-org/ggml, docs/gguf.md), all numbers little-endian: "GGUF", the version (u32), how many tensors and
how many metadata entries there are (u64 each); the entries, each a name (u64 length, UTF-8), a type (u32) and a value; the
tensors, each a name, its number of axes (u32), their lengths, the fastest first (u64), a type (u32) and its first byte (u64),
counted from the end of all this, rounded up to a multiple of general.alignment.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanollm_jax import files
from nanollm_jax.errors import CheckpointError, shown
from nanollm_jax.weights.checkpoint import AGAIN, TensorInfo, listed

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 had lengths of 32 bits
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
BOOL, STRING, ARRAY = 7, 8, 9
# type -> name, numbers in a block, bytes of a block (github.com/ggml-org/ggml, ggml-common.h)
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
}  # fmt: skip
BLOCKS = {name: (kind, count, nbytes) for kind, (name, count, nbytes) in TYPES.items() if count > 1}
MOST_AXES = 4
MOST_NAME = 65_535  # bytes of a key; a tensor's has 64
MOST_ALIGNMENT = 1 << 20
MOST_PARTS = 1000
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
METADATA_BYTES = 1 << 28  # of one file; a vocabulary of 262,144 tokens with merges takes 16 million


@dataclass(frozen=True)
class GGUF:
    """A file's metadata, the first one's where there are several, and its tensors by the names that they have in it."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


def is_gguf(path: Path) -> bool:
    """Whether a path is meant to be a GGUF file, by its name."""
    return path.suffix.lower() == ".gguf"


def open_gguf(path: Path) -> GGUF:
    """Read and check the header of a file, and of all others where it is the first part of several. Touches no tensor.

    Raises CheckpointError where a file is missing or damaged, or its tensors do not lie in it, each in a place of its own.
    """
    first = read_file(path)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= MOST_PARTS:
        raise CheckpointError(f"{path}: split.count is {shown(count)}, expected 1 to {MOST_PARTS}; {AGAIN}.")
    if count <= 1:
        return first
    tensors: dict[str, TensorInfo] = {}
    for part in parts(path, count):
        other = first if part == path else read_file(part)
        if other.metadata.get("split.count") != count:
            raise CheckpointError(f"{part}: is not one of the {count} parts that {path.name} is of; {AGAIN}.")
        if twice := sorted(tensors.keys() & other.tensors.keys()):
            raise CheckpointError(f"{part}: holds {listed(twice)}, as another part does; {AGAIN}.")
        tensors |= other.tensors
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CheckpointError(f"{path}: its parts have {len(tensors)} tensors, expected {shown(expected)}; {AGAIN}.")
    return GGUF(path, first.metadata, tensors)


def parts(path: Path, count: int) -> list[Path]:
    """All parts of a model, by the name of its first. Raises CheckpointError where one is missing, or it is not the first."""
    match = PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise CheckpointError(f"{path}: is part of {count}, expected a name like model-00001-of-{count:05}.gguf.")
    found = [path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if int(match[2]) != 1:
        raise CheckpointError(f"{path}: is part {int(match[2])} of {count}; give the first, {found[0].name}.")
    if missing := [part.name for part in found if not files.present(part)]:
        raise CheckpointError(f"{path}: {listed(missing, 3)}: missing, of {count} parts; download the rest.")
    return found


def read_file(path: Path) -> GGUF:
    """One file's header."""
    files.check_regular(path, CheckpointError)
    try:
        with path.open("rb") as file:
            begin = file.read(24)
            if begin.startswith(b"version https://git"):
                raise CheckpointError(f"{path}: found a git-lfs pointer, expected tensors; run `git lfs pull` there.")
            if len(begin) < 24 or begin[:4] != MAGIC:
                raise CheckpointError(f"{path}: begins with {begin[:4]!r}, expected {MAGIC!r}: no GGUF file; {AGAIN}.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return Reading(path, data).file()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}.") from None


class Reading:
    """One pass through a header. Every method reads what is next; CheckpointError where that would be beyond the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4
        self.end = min(len(data), METADATA_BYTES)

    def fault(self, found: str) -> CheckpointError:
        """The error for what is next."""
        return CheckpointError(f"{self.path}: {found} at byte {self.at}; {AGAIN}.")

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        if count > self.end - self.at:
            raise self.fault(f"{what} of {count} bytes goes beyond the header's {self.end}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: int, what: str) -> Any:
        """One number, as Python has it."""
        dtype = np.dtype(NUMBERS[kind])
        data = self.take(dtype.itemsize, what)
        if kind == BOOL and data not in (b"\0", b"\1"):
            raise self.fault(f"{what} is {data!r}, expected true or false")
        return np.frombuffer(data, dtype)[0].item() if kind != 6 else float(str(np.frombuffer(data, dtype)[0]))

    def count(self, size: int, what: str) -> int:
        """How many things of at least `size` bytes each are next; so many have to fit."""
        (count,) = struct.unpack("<Q", self.take(8, what))
        if count * size > self.end - self.at:
            raise self.fault(f"{what} is {count:,}, more than {self.end - self.at:,} bytes can hold,")
        return count

    def text(self, what: str) -> str:
        """A string."""
        data = self.take(self.count(1, f"the length of {what}"), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fault(f"{what} is not UTF-8") from None

    def new(self, what: str, known: Mapping[str, Any]) -> str:
        """A string that has not been a name of its kind before."""
        name = self.text(what)
        if not name or len(name) > MOST_NAME or name in known:
            raise self.fault(f"{what} is {shown(name)}, expected one that is new")
        return name

    def value(self, kind: int, what: str) -> Any:
        """A value of metadata: a number, a text, a list of texts, or an array of numbers."""
        if kind == STRING:
            return self.text(what)
        if kind in NUMBERS:
            return self.number(kind, what)
        if kind != ARRAY:
            raise self.fault(f"{what} has the type {kind}, expected 0 to 12,")
        inner = self.number(4, f"the type of {what}")
        if inner == STRING:
            return [self.text(what) for _ in range(self.count(8, f"the length of {what}"))]
        if inner not in NUMBERS:
            raise self.fault(f"{what} is a list of the type {inner}, expected numbers or texts,")
        dtype = np.dtype(NUMBERS[inner])
        data = self.take(self.count(dtype.itemsize, f"the length of {what}") * dtype.itemsize, what)
        return np.frombuffer(data, "u1" if inner == BOOL else dtype)

    def file(self) -> GGUF:
        """All of it."""
        version = self.number(4, "the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            other = (
                "big-endian, expected little-endian" if swapped in VERSIONS else f"version {version}, expected 2 or 3"
            )
            raise CheckpointError(f"{self.path}: is {other}; convert the model again.")
        tensors = self.count(24, "the number of tensors")
        entries = self.count(13, "the number of entries")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self.new("the name of an entry", metadata)
            metadata[key] = self.value(self.number(4, f"the type of {shown(key)}"), shown(key))
        found: dict[str, Any] = {}
        for _ in range(tensors):
            name = self.new("the name of a tensor", found)
            axes = self.number(4, f"the axes of {shown(name)}")
            if not 0 < axes <= MOST_AXES:
                raise self.fault(f"tensor {shown(name)} has {axes} axes, expected 1 to {MOST_AXES},")
            lengths = [self.number(10, shown(name)) for _ in range(axes)]
            found[name] = (self.number(4, shown(name)), lengths, self.number(10, shown(name)))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
            raise self.fault(f"general.alignment is {shown(alignment)}, expected a power of two,")
        return GGUF(self.path, metadata, self.place(found, -(-self.at // alignment) * alignment, alignment))

    def place(self, found: dict[str, Any], begin: int, alignment: int) -> dict[str, TensorInfo]:
        """Types, lengths and offsets -> where each tensor lies.  begin: the first byte behind the header"""
        tensors, end = {}, 0
        for name, (kind, lengths, offset) in sorted(found.items(), key=lambda item: item[1][2]):
            # What type another is nobody knows, so its bytes are not looked at; who wants it is told.
            word, count, nbytes = TYPES.get(kind, (f"{kind} (unknown)", 1, 0))
            size = math.prod(lengths) // count * nbytes
            if min(lengths) < 1 or max(lengths) >= 2**63 or lengths[0] % count:
                raise CheckpointError(
                    f"{self.path}: tensor {shown(name)} {word} has axes of {lengths}, expected lengths above 0, the first "
                    f"a multiple of {count}; {AGAIN}."
                )
            if offset % alignment or offset < end or begin + offset + size > len(self.data):
                raise CheckpointError(
                    f"{self.path}: tensor {shown(name)} {word} of {size:,} bytes begins at {offset:,}, expected a multiple "
                    f"of {alignment} behind {end:,} and {len(self.data) - begin:,} bytes for all; {AGAIN}."
                )
            tensors[name] = TensorInfo(self.path, word, tuple(reversed(lengths)), begin + offset)
            end = offset + size
        return tensors
