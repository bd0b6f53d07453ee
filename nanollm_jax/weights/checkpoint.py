"""What is in a checkpoint's safetensors file(s): every header read and checked, every tensor mapped when asked for.

The format (github.com/huggingface/safetensors, "Format"): 8 bytes, the header's length N, little-endian; N bytes of
JSON, {name: {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}}; then the tensors' bytes, row-major and
little-endian, which fill the rest of the file without gap or overlap. Offsets count from the end of the header.

The reader is our own and not the safetensors library's, which hands out copies in NumPy: a mapped tensor costs no
memory but the pages that are in use, and they go back when the last view of it is dropped.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from nanollm_jax import files
from nanollm_jax.errors import CheckpointError, shown

FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
MAX_HEADER = 25_000_000  # bytes; the format allows 100 million, and 140,000 tensors need 20
MAX_INDEX = 100_000_000  # bytes
MAX_AXES = 32  # of one tensor
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "download or copy it again"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: its file, dtype as the format spells it ("BF16"), shape, and first byte in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder's safetensors file(s), by name. Made by open_checkpoint."""

    folder: Path
    tensors: dict[str, TensorInfo]

    def names(self) -> set[str]:
        """The names of all tensors, of whatever dtype."""
        return set(self.tensors)

    def dtype(self, name: str) -> np.dtype:
        """A tensor's NumPy dtype. Raises CheckpointError unless it is float32, float16 or bfloat16."""
        info = self.tensors[name]
        if info.dtype not in FLOATS:
            raise CheckpointError(
                f"{info.file}: tensor {name!r} has dtype {info.dtype}, expected one of {listed(list(FLOATS))}; "
                "quantised checkpoints are not supported, take one in full or half precision."
            )
        return FLOATS[info.dtype]

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped read-only: its pages are read when touched, and freed with the last view of the array.

        Raises CheckpointError for an unknown name and for a dtype other than float32, float16 and bfloat16.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: has no tensor {name!r}; it has {listed(sorted(self.tensors))}.")
        info, dtype = self.tensors[name], self.dtype(name)
        if 0 in info.shape:  # nothing to map
            return np.empty(info.shape, dtype)
        return np.memmap(info.file, dtype=dtype, mode="r", offset=info.offset, shape=info.shape)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read and check the headers of model.safetensors, or of the shards that model.safetensors.index.json names.

    Touches no tensor. Raises CheckpointError where files are missing, damaged, or disagree with each other.
    """
    if not os.path.isdir(folder):
        raise CheckpointError(f"{folder}: folder not found; expected one with {SINGLE} or {INDEX}.")
    if files.present(folder / SINGLE):
        return Checkpoint(folder, read_header(folder / SINGLE))
    if not files.present(folder / INDEX):
        raise no_safetensors(folder)
    weight_map = read_index(folder / INDEX)
    tensors: dict[str, TensorInfo] = {}
    promised: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        promised.setdefault(shard, []).append(name)
    for shard in sorted(promised):
        if not files.present(folder / shard):
            raise CheckpointError(f"{folder / INDEX}: names the shard {shard}, which is not there; download it.")
        found = read_header(folder / shard)
        if twice := sorted(found.keys() & tensors.keys()):
            both = f"{tensors[twice[0]].file.name} and {shard}"
            raise CheckpointError(f"{folder}: {both} both hold {listed(twice)}, expected each tensor once; {AGAIN}.")
        if lost := sorted(name for name in promised[shard] if name not in found):
            raise CheckpointError(f"{folder / shard}: lacks {listed(lost)}, which {INDEX} says it holds; {AGAIN}.")
        tensors |= found
    return Checkpoint(folder, tensors)


def read_index(path: Path) -> dict[str, str]:
    """model.safetensors.index.json -> {tensor name: shard's file name}."""
    weight_map = files.read_json(path, CheckpointError, MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(s, str) for s in weight_map.values()):
        raise CheckpointError(f"{path}: expected a weight_map of tensor names to file names; {AGAIN}.")
    # A plain name cannot leave the folder; "../x", "/x" and "c:x" are none. The file itself may be a symbolic link.
    if outside := sorted({shard for shard in weight_map.values() if set("/\\:\0") & set(shard)}):
        raise CheckpointError(f"{path}: names {listed(outside)}, expected shards in its own folder; do not trust it.")
    return weight_map


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the header of one safetensors file and check it against the file's size."""
    files.check_regular(path, CheckpointError)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            header = file.read(length) if length <= min(size - 8, MAX_HEADER) else b""
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}.") from error
    if first == b"version ":
        raise CheckpointError(f"{path}: found a git-lfs pointer, expected tensors; run `git lfs pull` in its folder.")
    if not header:
        limits = f"expected 8 and a header of {length} (1 to {MAX_HEADER})"
        raise CheckpointError(f"{path}: found {size} bytes, {limits}; {AGAIN}.")
    try:
        entries = files.parse(header)
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not JSON: {error}; {AGAIN}.") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: the header is {type(entries).__name__}, expected a JSON object; {AGAIN}.")
    entries.pop("__metadata__", None)
    if wrong := sorted(name for name, entry in entries.items() if not is_entry(entry)):
        raise CheckpointError(f"{path}: expected dtype, shape and data_offsets for {listed(wrong)}; {AGAIN}.")
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        # Other dtypes may be there (a mask of integers); nobody reads them, so their size is what the offsets say.
        nbytes = math.prod(shape) * FLOATS[dtype].itemsize if dtype in FLOATS else max(stop - begin, 0)
        if (begin, stop) != (end, end + nbytes):
            offsets = f"offsets {begin}:{stop}, expected {end}:{end + nbytes}"
            raise CheckpointError(f"{path}: tensor {name!r} {dtype} {shown(shape)} has {offsets}; {AGAIN}.")
        tensors[name] = TensorInfo(path, dtype, tuple(shape), 8 + length + begin)
        end = stop
    if size != 8 + length + end:
        raise CheckpointError(f"{path}: found {size} bytes, expected {8 + length + end} by its header; {AGAIN}.")
    return tensors


def is_entry(entry: Any) -> bool:
    """Whether a header's entry has a dtype, a shape and two offsets, of the right JSON types and sizes."""
    match entry:
        case {"dtype": str(), "shape": list(shape), "data_offsets": [begin, stop]} if len(shape) <= MAX_AXES:
            return all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, stop))
    return False


def no_safetensors(folder: Path) -> CheckpointError:
    """The error for a folder without weights that we read; names what is there instead."""
    suffixes = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
    try:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
    except OSError as error:
        return CheckpointError(f"{folder}: cannot be read ({error.strerror}), expected {SINGLE} or {INDEX}.")
    remedy = "point to a checkpoint's folder in Hugging Face form"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in others):
        remedy = (
            "pickled weights can run code and are never opened here; to convert them, where transformers and torch are "
            "installed: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    return CheckpointError(f"{folder}: found {listed(others) or 'no weights'}, expected {SINGLE} or {INDEX}; {remedy}.")


def listed(names: list[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
