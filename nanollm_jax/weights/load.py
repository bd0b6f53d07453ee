"""Tensors -> parameters: match names to a family's table, check every shape, then place them one by one.

No second copy of the model exists at any time. On the host there are, beside the parameters that are already placed,
the pages of a tensor and at most two copies of it, for each of a few threads; of a parameter that is rounded to few bits only
small parts are there in more.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import ml_dtypes
import numpy as np

from nanollm_jax.errors import UNQUANTISED, CheckpointError
from nanollm_jax.weights.checkpoint import FLOATS, Checkpoint, forget, listed
from nanollm_jax.weights.pages import empty_aligned, in_large_pages
from nanollm_jax.weights.quantised.groups import Groups
from nanollm_jax.weights.quantised.together import together
from nanollm_jax.weights.rows import Row, rearrange, source_shape, stored_shape

HELD = [dtype for dtype in FLOATS.values() if dtype.itemsize < 8]  # what parameters can be
THREADS = 2  # that read parameters: what each of them holds is memory, and the bus is soon busy
PART = 1 << 18  # numbers of a parameter that are rounded to few bits at a time
BAR_AFTER = 2.0  # seconds; a load that is quicker shows no progress bar

# of a parameter whose first axes, so many, are not inputs: where each part begins, and its numbers
Parts = Callable[[int], Iterator[tuple[tuple[int, ...], jax.Array]]]


def load_params(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    layout: dict[str, str],
    sizes: dict[str, int],
    dtype: Any,
    *,
    ignore: Sequence[str] = (),
    prefixes: Sequence[str] = ("",),
    progress: bool | None = None,
    spread: Callable[[Callable[[tuple[slice, ...]], np.ndarray], str], jax.Array] | None = None,
    finish: Callable[[str, jax.Array], Any] = lambda path, array: array,
    fill: Mapping[str, Callable[[tuple[int, ...], Parts], Any]] = MappingProxyType({}),
    few: Mapping[str, Callable[[Groups], Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Tensors -> {path: array} for every path of `layout`, in `dtype`, on the default device or as spread has it.

    rows      the family's table; a row whose path is not in `layout` is not used
    layout    {path: "D N H"}, sizes {letter: size}: which parameters there are, and their shapes
    dtype     float32, bfloat16 or float16; values are rounded to the nearest
    ignore    regular expressions; a tensor whose whole name matches one, with or without prefix, may go unused
    prefixes  what may stand before the rows' names ("transformer."); the one that finds most names is taken,
              and the bare name serves where the prefixed one is missing
    progress  a bar on stderr: True always, False never, None on a terminal once loading took two seconds

    spread    places one parameter on several devices: it is given a function from an index to that part of the
              parameter, read from the file when it is called, and the parameter's letters
    finish    what becomes of each parameter, by its path, once it is placed
    fill      what becomes in place of finish, by its path, of a parameter that may be made a part at a time: it is given the
              shape and what gives the parts, whole along its inputs, each read when it is asked for
    few       what becomes, by its path, of a parameter whose tensors are in few bits and can be kept so; where that is None,
              and of others, they are decoded

    Every name, shape and dtype is checked before the first tensor is read. Raises CheckpointError where tensors or parameters
    are left over, or a shape, a dtype or a value does not fit.
    """
    dtype = np.dtype(dtype)
    if dtype not in HELD:
        raise CheckpointError(f"weights cannot be loaded as {dtype}; expected float32, bfloat16 or float16.")
    pairs = match(checkpoint, rows, layout, sizes, ignore, prefixes)
    takers: dict[str, list[Row]] = {}
    for row, name in pairs:
        takers.setdefault(name, []).append(row)
    shapes = {name: stored_shape(sharing, sizes) for name, sharing in takers.items()}
    for row, name in pairs:
        check(checkpoint, row, name, layout[row.path], sizes, shapes[name])
    sources: dict[str, list[tuple[Row, str]]] = {}
    for row, name in pairs:
        sources.setdefault(row.path, []).append((row, name))

    def read(path: str) -> jax.Array:
        pieces = [(row, checkpoint.read(name)) for row, name in sources[path]]
        if spread is None:
            return place(pieces, tuple(sizes[letter] for letter in layout[path].split()), sizes, dtype)
        return jax.block_until_ready(spread(partial(assemble, pieces, sizes, dtype), layout[path]))

    def parts(path: str, shape: tuple[int, ...], outputs: int) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
        pieces = [(row, checkpoint.read(name)) for row, name in sources[path]]
        for index in cuts(shape, outputs):
            part = assemble(pieces, sizes, dtype, index)
            for _, tensor in pieces:
                forget(tensor)
            yield tuple(cut.start for cut in index), jax.device_put(part)

    device = jax.config.jax_default_device  # type: ignore[attr-defined]  # which may be a thread's own

    def one(path: str) -> Any:
        with jax.default_device(device):
            numbers = [(row, checkpoint.groups(name)) for row, name in sources[path]] if path in few else []
            groups = together(numbers, layout[path], sizes) if numbers else None
            if groups is not None and (weight := few[path](groups)) is not None:
                return in_large_pages(weight)
            shape = tuple(sizes[letter] for letter in layout[path].split())
            if path in fill and spread is None and math.prod(shape) > PART:
                return in_large_pages(fill[path](shape, partial(parts, path, shape)))
            array = read(path)  # by now the pages of the file are free
            made = finish(path, array)
            return in_large_pages(made, by_numpy=made is array)

    # the processes of a mesh run the same in the same order
    threads = THREADS if spread is None else 1
    with progress_bar(len(layout), progress) as advance, ThreadPoolExecutor(threads) as pool:
        try:
            params = {}
            for path, made in zip(layout, pool.map(one, layout), strict=True):
                params[path] = made
                advance()
        finally:
            pool.shutdown(cancel_futures=True)
    return params


def match(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    layout: dict[str, str],
    sizes: dict[str, int],
    ignore: Sequence[str],
    prefixes: Sequence[str],
) -> list[tuple[Row, str]]:
    """The rows for every path of layout, with their tensors' full names. One CheckpointError lists the leftovers of both.

    Of several ways to store a parameter whose names are all there, that with the shapes of these tensors.
    """
    found = checkpoint.names()
    wanted = [row for row in rows if row.path in layout]
    prefix = max(prefixes, key=lambda prefix: sum(prefix + row.name in found for row in wanted))
    ways: dict[str, dict[int, list[tuple[Row, str | None]]]] = {path: {} for path in layout}
    for row in wanted:
        name = next((name for name in row.names(prefix) if name in found), None)
        ways[row.path].setdefault(row.instead, []).append((row, name))
    pairs, missing = [], []
    for path, stored in ways.items():
        there = [way for _, way in sorted(stored.items()) if all(name for _, name in way)]
        if len(there) > 1:
            there = [way for way in there if all(fits(checkpoint, *one, sizes) for one in way)] or there
        way = there[0] if there else stored.get(0, [])
        pairs += [(row, name) for row, name in way if name is not None]
        missing += [f"{path} (tensor {row.names(prefix)[0]})" for row, name in way if name is None]
        missing += [] if way else [f"{path} (no row in the family's table)"]
    unused = [
        name
        for name in sorted(found - {name for _, name in pairs})
        if not any(re.fullmatch(p, name) or re.fullmatch(p, name.removeprefix(prefix)) for p in ignore)
    ]
    if not missing and not unused:
        return pairs
    if quantised := checkpoint.quantised():
        raise CheckpointError(
            f"{checkpoint.folder}: has {listed(quantised, 3)}, as quantised weights do, for which quantization_config in "
            f"config.json does not account; take config.json as it came with these weights. Otherwise {UNQUANTISED}."
        )
    wrong = [f"{len(unused)} tensor(s) were not used: {listed(unused)}"] if unused else []
    wrong += [f"{len(missing)} parameter(s) have no tensor: {listed(missing)}"] if missing else []
    if missing and all(row.outside for way in ways.values() for row, name in way.get(0, []) if name is None):
        wrong.append("config.json has the head apart from the embedding; if it is not, set tie_word_embeddings to true")
    raise CheckpointError(f"{checkpoint.folder}: {'; '.join(wrong)}; {checkpoint.remedy}.")


def fits(checkpoint: Checkpoint, row: Row, name: str | None, sizes: dict[str, int]) -> bool:
    """Has a tensor the shape that its row says?"""
    return name is not None and checkpoint.tensors[name].shape == source_shape(row.axes, sizes)


def check(
    checkpoint: Checkpoint, row: Row, name: str, letters: str, sizes: dict[str, int], expected: tuple[int, ...]
) -> None:
    """Check one tensor's dtype and shape. Raises CheckpointError, or ValueError where table and layout disagree."""
    wanted, target = letters.split(), row.axes.split("->")[-1].split()
    filled = row.places()
    fits = [ours == theirs or axis in filled or (theirs == "1" and sizes[ours] == 1)
            for axis, (ours, theirs) in enumerate(zip(wanted, target, strict=False))]  # fmt: skip
    if len(target) != len(wanted) or not all(fits):
        raise ValueError(f"{row.path}: the axes of its row, {row.axes!r}, do not end in the layout's {letters!r}.")
    checkpoint.dtype(name)
    info = checkpoint.tensors[name]
    if info.shape != expected:
        raise CheckpointError(
            f"{info.file}: tensor {name!r} has shape {list(info.shape)}, expected {list(expected)} for {row.path} "
            f"({row.axes}); {checkpoint.remedy}."
        )


def place(
    pieces: Sequence[tuple[Row, np.ndarray]], shape: tuple[int, ...], sizes: dict[str, int], dtype: np.dtype
) -> jax.Array:
    """Tensors as they lie in the file -> the parameter that they are the pieces of, in dtype, on the default device.

    Raises CheckpointError for a value that the dtype cannot hold.
    """
    # On CPU, device_put takes over aligned row-major memory instead of copying it, whatever may_alias says (seen in
    # jax 0.10.2), and weights must not change with their file: what is put together, cast, or row-major already is
    # copied here. The rest device_put transposes straight from the mapped file, several times faster than NumPy.
    if len(pieces) == 1 and pieces[0][1].dtype == dtype:
        row, tensor = pieces[0]
        view = rearrange(tensor[row.cut()], row.axes, sizes)
        if not view.flags.c_contiguous:
            return jax.block_until_ready(jax.device_put(view))
    parameter = assemble(pieces, sizes, dtype, tuple(slice(0, size) for size in shape))
    return jax.block_until_ready(jax.device_put(parameter))


def assemble(
    pieces: Sequence[tuple[Row, np.ndarray]], sizes: dict[str, int], dtype: np.dtype, index: tuple[slice, ...]
) -> np.ndarray:
    """One part of a parameter, copied from its tensors: of each only what the index, slices from a to b, asks for.

    Raises CheckpointError for a value that the dtype cannot hold.
    """
    parameter = empty_aligned(tuple(cut.stop - cut.start for cut in index), dtype)
    for row, tensor in pieces:
        # along the axes of Row.into a tensor fills a piece: what of it lies in the part, and where
        into = {axis: (slice(max(cut.start, piece.start), min(cut.stop, piece.stop)), piece.start)
                for axis, piece in row.places().items() for cut in index[axis : axis + 1]}  # fmt: skip
        if any(both.start >= both.stop for both, _ in into.values()):
            continue
        asked = tuple(moved(*into[axis]) if axis in into else cut for axis, cut in enumerate(index))
        there = tuple(
            moved(into[axis][0], cut.start) if axis in into else slice(None) for axis, cut in enumerate(index)
        )
        with np.errstate(over="ignore"):  # looked for here
            parameter[there] = rearrange(tensor[row.cut()], row.axes, sizes)[asked]
        narrow = dtype == np.float16 or tensor.dtype == np.float64
        if narrow and tensor.dtype != dtype and not np.isfinite(parameter[there]).all():
            most = float(ml_dtypes.finfo(dtype).max)
            raise CheckpointError(
                f"tensor {row.name!r} has values beyond {dtype}'s {most:g}; load it in another dtype."
            )
    return parameter


def moved(cut: slice, begin: int) -> slice:
    """A slice, counted from `begin` on."""
    return slice(cut.start - begin, cut.stop - begin)


def cuts(shape: tuple[int, ...], outputs: int) -> Iterator[tuple[slice, ...]]:
    """Parts of one size, about PART numbers, which cover a parameter and are whole along all but its first axes, so many; the
    last of an axis may overlap the one before.

    PART = 2^18, [2 1000 1000] with two: 1 by 250 by 1000, eight times.
    """
    axis = next((axis for axis in range(outputs) if math.prod(shape[axis + 1 :]) <= PART), outputs - 1)
    length, most = shape[axis], max(1, PART // math.prod(shape[axis + 1 :]))
    size = -(-length // -(-length // most))
    for before in np.ndindex(shape[:axis]):
        for at in range(0, length, size):
            here = slice(begin := min(at, length - size), begin + size)
            yield (*(slice(i, i + 1) for i in before), here, *(slice(0, n) for n in shape[axis + 1 :]))


@contextlib.contextmanager
def progress_bar(total: int, progress: bool | None) -> Iterator[Callable[[], None]]:
    """Yields a function to call once for each of `total` parameters; the bar is gone at the end."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("loading weights", total=total)
    began = time.monotonic()

    def advance() -> None:
        bar.advance(task)
        if progress or time.monotonic() - began > BAR_AFTER:
            bar.start()  # a bar that has started stays as it is

    try:
        yield advance
    finally:
        bar.stop()
