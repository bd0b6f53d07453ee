"""The tensors of a GGUF file as a family's table knows them: blocks of few bits stay as they are, or are decoded.

Decoding is the gguf package's, some rows at a time; nothing else of it is used, as its reader trusts the lengths that it
reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from nanollm_jax.errors import CheckpointError
from nanollm_jax.weights.checkpoint import AGAIN, FLOATS, Checkpoint, TensorInfo
from nanollm_jax.weights.gguf import BLOCKS, TYPES
from nanollm_jax.weights.quantised.ggml import KINDS
from nanollm_jax.weights.quantised.groups import Footprint, Groups

CHUNK = 1 << 22  # numbers that are decoded at a time
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class GGUFCheckpoint(Checkpoint):
    """The tensors under the names that a family publishes them by.  folder: the file, which errors name

    stored: how each lies in the file, where that has another shape.
    changes: what undoes, by name, what the program that wrote the file did to a tensor's numbers.
    """

    stored: Mapping[str, TensorInfo] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)
    remedy: ClassVar[str] = f"{AGAIN}, or take another of the model's GGUF files"

    def dtype(self, name: str) -> np.dtype:
        """A tensor's NumPy dtype as read gives it: float32 where it is stored in blocks. Raises CheckpointError for others."""
        info = self.tensors[name]
        if info.dtype in FLOATS:
            return FLOATS[info.dtype]
        if info.dtype not in BLOCKS:
            known = ", ".join(kind for kind, *_ in TYPES.values())
            raise CheckpointError(
                f"{info.file}: tensor {name!r} is of type {info.dtype}, which is not read; known: {known}. Take another of "
                "the model's files, such as Q4_K_M or Q8_0."
            )
        dequantize()  # a package that is missing is missed before anything is read
        return FLOATS["F32"]

    def quantised(self) -> list[str]:
        """None: what is in blocks is decoded."""
        return []

    def read(self, name: str) -> np.ndarray:
        """One tensor: mapped read-only where it is stored as it is, otherwise decoded into float32.

        Raises CheckpointError as Checkpoint.read does, and for a block with a scale that is no number.
        """
        if name not in self.tensors or self.tensors[name].dtype in FLOATS:
            tensor = Checkpoint(self.folder, dict(self.stored)).read(name)
        else:
            tensor = self.decode(name)
        return self.changes[name](tensor) if name in self.changes else tensor

    def decode(self, name: str) -> np.ndarray:
        """A tensor in blocks -> float32, some rows at a time."""
        info = self.stored[name]
        kind, count, nbytes = BLOCKS[info.dtype]
        tensor = np.empty(info.shape, np.float32)
        rows = tensor.reshape(-1, info.shape[-1])
        width = info.shape[-1] // count * nbytes
        stored = np.memmap(info.file, np.uint8, "r", info.offset, (len(rows), width))
        step = max(1, CHUNK // max(1, info.shape[-1]))
        with np.errstate(all="ignore"):  # looked for here
            for at in range(0, len(rows), step):
                rows[at : at + step] = dequantize()(stored[at : at + step], kind)
                if not np.isfinite(rows[at : at + step]).all():
                    raise CheckpointError(f"{info.file}: tensor {name!r} has a block that is no number; {AGAIN}.")
        return tensor

    def few(self) -> dict[str, Footprint | None]:
        """The names of tensors in blocks, and what those take in memory that can be kept so."""
        return {name: footprint(info.dtype) if may_be_kept(info) else None
                for name, info in self.stored.items() if info.dtype in BLOCKS}  # fmt: skip

    def groups(self, name: str) -> Groups | None:
        """The numbers of a tensor in blocks of a kind that can be kept, its rows in the family's order."""
        info, change = self.stored.get(name), self.changes.get(name)
        if info is None or not may_be_kept(info):
            return None
        _, count, nbytes = BLOCKS[info.dtype]
        rows, width = info.shape
        blocks = np.memmap(info.file, np.uint8, "r", info.offset, (rows * width // count, nbytes))
        with np.errstate(all="ignore"):  # looked for by who puts them together
            found = KINDS[info.dtype](np.asarray(blocks), rows)
        if change is np.transpose:
            return replace(found, inputs_first=True)
        moved = (lambda part: part) if change is None else change
        offset = None if found.offset is None else moved(found.offset)
        return replace(found, values=moved(found.values), scale=moved(found.scale), offset=offset)


def may_be_kept(info: TensorInfo) -> bool:
    """Whether a tensor is a matrix of blocks that there is a weight of."""
    return info.dtype in KINDS and len(info.shape) == 2


@functools.cache
def footprint(kind: str) -> Footprint:
    """What blocks of a kind take in memory."""
    return KINDS[kind](np.zeros((1, BLOCKS[kind][2]), np.uint8), 1).footprint


def dequantize() -> Callable[[np.ndarray, int], np.ndarray]:
    """What decodes blocks: bytes [rows bytes] and their type -> numbers. Raises CheckpointError without the gguf package."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise CheckpointError(
            "blocks of a GGUF file are decoded by the gguf package, which is not installed: "
            "pip install 'nanollm-jax[gguf]'."
        ) from None
    return lambda data, kind: quants.dequantize(data, GGMLQuantizationType(kind))
