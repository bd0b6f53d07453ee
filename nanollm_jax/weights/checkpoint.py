"""What is in a checkpoint's safetensors file(s): every header read and checked, every tensor mapped when asked for.

The format (github.com/huggingface/safetensors, "Format"): 8 bytes, the header's length N, little-endian; N bytes of
JSON, {name: {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}}; then the tensors' bytes, row-major and
little-endian, which fill the rest of the file without gap or overlap. Offsets count from the end of the header.

The reader is our own and not the safetensors library's, which hands out copies in NumPy: a mapped tensor costs no
memory but the pages that are in use, and they go back when the last view of it is dropped.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np

from nanollm_jax import files
from nanollm_jax.errors import UNQUANTISED, CheckpointError, NanoLLMWarning, shown

if TYPE_CHECKING:
    from nanollm_jax.weights.quantised.groups import Footprint, Groups

FLOATS = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
# ... and what else is read where weights are in few bits
NUMBERS = FLOATS | {
    "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "I32": np.dtype(np.int32), "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}  # fmt: skip
MAX_HEADER = 25_000_000  # bytes; the format allows 100 million, and 140,000 tensors need 20
MAX_INDEX = 25_000_000
MAX_AXES = 32  # of one tensor
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "download or copy it again"
NUMBERED = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})\.safetensors")
# What other programs write beside weights that they have quantised, in a way that is not read
QUANTISED_BESIDE = ("quant_model_description.json",)
# ... and how they call what they keep beside them, or pack them into
QUANTISED_TENSOR = re.compile(
    r".*[._](qweight|qzeros|g_idx|scales|biases|zeros|absmax|quant_map|nested_\w+|quant_state\..+|SCB|codes|codebooks"
    r"|(weight|input|output|k|v|q)_(scale|zero_point)(_inv|_2)?|(weight|scales)_(packed|shape|format)|blocks)"
)


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
    remedy: ClassVar[str] = "check that config.json belongs to these weights"  # where they are not those of a config

    def names(self) -> set[str]:
        """The names of all tensors, of whatever dtype."""
        return set(self.tensors)

    def dtype(self, name: str) -> np.dtype:
        """A tensor's NumPy dtype. Raises CheckpointError unless it is float32, float16, bfloat16 or float64."""
        info = self.tensors[name]
        if info.dtype not in FLOATS:
            raise CheckpointError(
                f"{info.file}: tensor {name!r} has dtype {info.dtype}, expected one of {listed(list(FLOATS))}; "
                f"quantised weights are read where quantization_config in config.json says how. Otherwise {UNQUANTISED}."
            )
        return FLOATS[info.dtype]

    def quantised(self) -> list[str]:
        """The tensors that only quantised weights have: scales and the like beside a weight, or a weight of few bits."""
        return sorted(
            name
            for name, info in self.tensors.items()
            if QUANTISED_TENSOR.fullmatch(name) or info.dtype.startswith(("F8", "F4", "F6"))
        )

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped read-only: its pages are read when touched, and freed with the last view of the array.

        Raises CheckpointError for an unknown name and for a dtype that `dtype` refuses.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: has no tensor {name!r}; it has {listed(sorted(self.tensors))}.")
        self.dtype(name)
        return mapped(self.tensors[name])

    def few(self) -> dict[str, Footprint | None]:
        """The names of tensors in few bits, and what those take in memory that can be kept so."""
        return {}

    def reordered(self, name: str) -> bool:
        """Whether inputs of a tensor in few bits are in an order of their own, in which no mesh divides them."""
        return False

    def groups(self, name: str) -> Groups | None:
        """The numbers of a tensor that is in few bits, where they can be kept so. None for others."""
        return None


def mapped(info: TensorInfo) -> np.ndarray:
    """The numbers of a tensor, mapped read-only. Its dtype is one of NUMBERS."""
    dtype = NUMBERS[info.dtype]
    if 0 in info.shape:  # nothing to map
        return np.empty(info.shape, dtype)
    return np.memmap(info.file, dtype=dtype, mode="r", offset=info.offset, shape=info.shape)


def forget(tensor: np.ndarray) -> None:
    """Give the pages of a mapped tensor back, which are read again when they are touched; nothing is done to others."""
    pages = getattr(tensor, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read and check the headers of model.safetensors, or of the shards that model.safetensors.index.json names, or that
    are numbered as all N of N.

    Touches no tensor. Raises CheckpointError where files are missing, damaged, or disagree with each other, or beside them is
    the description of a quantisation. Of two forms side by side the first is read, and a NanoLLMWarning says so.
    """
    if not os.path.isdir(folder):
        raise CheckpointError(f"{folder}: folder not found; expected one with {SINGLE} or {INDEX}.")
    for name in QUANTISED_BESIDE:
        if files.present(folder / name):
            raise CheckpointError(f"{folder / name}: describes quantised weights, which are not read; {UNQUANTISED}.")
    if files.present(folder / SINGLE):
        whole = Checkpoint(folder, read_header(folder / SINGLE))
        indexed = set(read_index(folder / INDEX).values()) if files.present(folder / INDEX) else {SINGLE}
        name_strays(folder, {SINGLE, INDEX} if indexed == {SINGLE} else {SINGLE})
        return whole
    promised: dict[str, list[str]] = {}
    if files.present(folder / INDEX):
        for name, shard in read_index(folder / INDEX).items():
            promised.setdefault(shard, []).append(name)
    else:
        promised = {shard: [] for shard in numbered(folder)}
    if not promised:
        raise no_safetensors(folder)
    tensors: dict[str, TensorInfo] = {}
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
    name_strays(folder, {INDEX, *promised})
    return Checkpoint(folder, tensors)


def name_strays(folder: Path, used: set[str]) -> None:
    """Warn of another form of the same weights beside the one that is read."""
    others = [
        name for name in names(folder) if name == INDEX or (name.startswith("model-") and NUMBERED.fullmatch(name))
    ]
    if unread := [name for name in others if name not in used]:
        read = listed(sorted(used - {INDEX}), 2)
        message = f"{folder}: {read} is read, not {listed(unread, 3)}; take away what is not meant."
        warnings.warn(message, NanoLLMWarning, stacklevel=3)


def numbered(folder: Path) -> list[str]:
    """The shards of a folder without an index, by their names: "model-00002-of-00003.safetensors". [] where there are none."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for name in names(folder):
        if match := NUMBERED.fullmatch(name):
            found.setdefault((match[1], int(match[3])), {})[int(match[2])] = name
    if named := {key: shards for key, shards in found.items() if key[0] == "model"}:
        found = named  # beside them there may be shards of another library's
    if len(found) > 1:
        sets = [f"{name}-...-of-{count}" for name, count in sorted(found)]
        raise CheckpointError(f"{folder}: has shards of {listed(sets)} and no {INDEX}; keep one of them.")
    for (_, count), shards in found.items():
        first = 0 if 0 in shards else 1
        if len(shards) != count or max(shards) - first != count - 1:
            lost = [str(n) for n in range(first, first + min(count, 2 * len(shards) + 9)) if n not in shards]
            raise CheckpointError(
                f"{folder}: has {len(shards)} shards of {count} (no {', '.join(lost[:8])}); download the rest."
            )
        return list(shards.values())
    return []


def names(folder: Path) -> list[str]:
    """The names of the files in a folder. Raises CheckpointError where it cannot be looked into."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror}), expected {SINGLE} or {INDEX}.") from None


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
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is {shown(metadata)}, expected texts by name; {AGAIN}.")
    if (wrong := next((name for name, entry in entries.items() if not is_entry(entry)), None)) is not None:
        raise CheckpointError(f"{path}: expected dtype, shape and data_offsets for {wrong}; {AGAIN}.")
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        # Other dtypes may be there (a mask); nobody reads them, so their size is what the offsets say.
        nbytes = math.prod(shape) * NUMBERS[dtype].itemsize if dtype in NUMBERS else max(stop - begin, 0)
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
    others = [name for name in names(folder) if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf"))]
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
