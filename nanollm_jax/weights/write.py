"""Tensors into a safetensors file, one after the other: beside them, no more than a copy of one is in memory.

The library's own writer takes all of them at once, on the host. The format is described in checkpoint.py, which reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

NAMES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "uint8": "U8", "int32": "I32", "uint32": "U32",
    "bool": "BOOL",
}  # fmt: skip
Stored = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]  # a tensor: its dtype and shape, and what makes it


def write_tensors(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Write {name: tensor}, each made when it is its turn; the widest numbers first, so that all lie as their kind may."""
    ordered = sorted(tensors.items(), key=lambda tensor: -size_of(tensor[1][0]))
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    begin = 0
    for name, (dtype, shape, _) in ordered:
        end = begin + math.prod(shape) * size_of(dtype)
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, (dtype, shape, make) in ordered:
            array = make()
            assert array.shape == shape and array.dtype.name == dtype
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def size_of(dtype: str) -> int:
    """Bytes of one number."""
    return np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize
