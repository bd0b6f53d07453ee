"""An adapter as PEFT publishes it: adapter_config.json (adapter_config.py) and adapter_model.safetensors -> what it adds to
our parameters.

The tensors say which modules are adapted, and of which rank: target_modules, layers_to_transform, rank_pattern and the like
say how they were chosen in training. A family's table of rows (rows.py) says where a module's outputs stand among ours: three
adapters of queries, keys and values become one of wqkv, whose rank is the sum of theirs, as each has inputs of its own.
LoRA: Hu et al. 2021, arXiv:2106.09685; scaled by sqrt(r): Kalajdzievski 2023, arXiv:2312.03732; DoRA: arXiv:2402.09353.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nanollm_jax import files
from nanollm_jax.errors import CheckpointError, shown
from nanollm_jax.weights.adapter_config import CONFIG, Scale, read_config
from nanollm_jax.weights.checkpoint import Checkpoint, listed, read_header
from nanollm_jax.weights.hub import resolve
from nanollm_jax.weights.rows import Row, parse, rearrange, stored_shape

TENSORS = "adapter_model.safetensors"
NAME = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?")
EMPTY = "has no tensor that is an adapter's"


class Piece(NamedTuple):
    """What is added to one parameter [*O *I]: b [*O R] times a [R *I], and how long DoRA has each output's weights [*O].

    What the adapter is scaled by is in b. NaN is the length of an output that keeps its own; magnitude None is that of all.
    """

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None


class Part(NamedTuple):
    """What one module adds to the piece of a parameter that its row fills: as a Piece, its outputs those of the row."""

    row: Row
    module: str
    piece: Piece


@dataclass(frozen=True)
class Adapter:
    """An adapter: the piece of each parameter that it has one of, by path; and parameters that it has trained whole.

    replaced    {path: the rows that fill it, and their tensors}: biases, modules_to_save
    merges      modules for which it has to be merged; apart those for which it cannot be
    """

    folder: Path
    pieces: dict[str, Piece]
    replaced: dict[str, list[tuple[Row, np.ndarray]]]
    merges: list[str]
    apart: list[str]


@dataclass(frozen=True)
class Base:
    """The model that an adapter is for, as load_params has it: rows, layout, sizes and what may stand before names.

    large: {path: how many axes count outputs} of the parameters that may be adapted. ignored: patterns of tensors that are not
    needed, and no more where an adapter is of them: a tower for images, keys of a layer that looks at another's.
    """

    rows: Sequence[Row]
    layout: dict[str, str]
    sizes: dict[str, int]
    prefixes: Sequence[str]
    large: Mapping[str, int]
    ignored: Sequence[str] = ()

    def named(self) -> dict[str, list[Row]]:
        """The rows that take each tensor, by all names that it may have; of two ways to store it under one, the published."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.path in self.layout:
                for name in dict.fromkeys(name for prefix in self.prefixes for name in row.names(prefix)):
                    if all(one.path != row.path or one.instead == row.instead for one in found.setdefault(name, [])):
                        found[name].append(row)
        return found

    def needs(self, name: str) -> bool:
        """Is a tensor of this name, which no row takes, none of those that are not needed?"""
        bare = {name, *(name.removeprefix(prefix) for prefix in self.prefixes)}
        return not any(re.fullmatch(pattern, one) for pattern in self.ignored for one in bare)

    def shape(self, path: str) -> tuple[int, ...]:
        """That of a parameter."""
        return tuple(self.sizes[letter] for letter in self.layout[path].split())


def read_adapters(
    given: Mapping[str, str | os.PathLike[str]], merge: str | None, base: Base
) -> tuple[list[Adapter], Adapter | None]:
    """The adapters that are kept apart, or the one that is merged. Raises CheckpointError where they cannot be."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) and name.strip() for name in given):
        raise CheckpointError(f"adapters is {shown(given)}; expected a mapping from names to folders or hub ids.")
    if merge is not None and list(given) != [merge]:
        raise CheckpointError(
            f"merge is {shown(merge)} and adapters has {', '.join(given) or 'none'}; expected that one alone: others are made "
            "for the weights without it."
        )
    read = {name: read_adapter(resolve(source), base) for name, source in given.items()}
    for name, adapter in read.items():
        wrong = adapter.merges if merge is None else adapter.apart
        if wrong:
            how = f"load it with merge={name!r}" if merge is None else "load it without merge"
            raise CheckpointError(f"{adapter.folder}: this adapter is of {wrong[0]}; {how}.")
    return ([*read.values()], None) if merge is None else ([], read[merge])


def read_adapter(folder: Path, base: Base) -> Adapter:
    """The adapter in a folder, without what no text goes through (Base.ignored). Touches no tensor of the model.

    Raises CheckpointError for files that are missing or damaged, for what is no LoRA, and for modules and shapes that this
    model does not have.
    """
    scale, checkpoint, named = read_config(folder / CONFIG), open_tensors(folder), base.named()
    modules: dict[str, dict[str, str]] = {}
    full: dict[str, str] = {}
    for tensor in sorted(checkpoint.names()):
        bare = tensor.removeprefix("base_model.model.")
        if match := NAME.fullmatch(bare):
            modules.setdefault(match[1], {})[match[2]] = tensor
        else:
            full[bare.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = tensor
    others = [name for name in full if name not in named]
    others += [module for module in modules if f"{module}.weight" not in named]
    unknown = [name for name in others if base.needs(name if name in full else f"{name}.weight")]
    full = {name: tensor for name, tensor in full.items() if name not in others}
    modules = {module: tensors for module, tensors in modules.items() if module not in others}
    if unknown or not modules:
        found = EMPTY if not others else f"is of {listed(others, 3)} alone, which text does not go through"
        if unknown:
            found = f"is of {listed(unknown, 3)}, which this model does not have as tensors of their own"
        raise CheckpointError(f"{folder / TENSORS}: {found}; check that the adapter belongs to this model.")
    parts: dict[str, list[Part]] = {}
    tied = "unembedding.tokens" not in base.layout
    merges: list[str] = []
    apart: list[str] = []
    for module, tensors in modules.items():
        taking = named[f"{module}.weight"]
        looked_up = "lora_embedding_A" in tensors
        table = taking[0].path == "embedding.tokens" and not taking[0].outside
        wrong = [row.path for row in taking if row.path not in base.large]
        if wrong or table != looked_up or (table and tied):
            why = (
                f"({wrong[0]}), and only"
                if wrong
                else "(tied to the output), and only"
                if table and tied
                else "and only"
            )
            raise CheckpointError(
                f"{folder / TENSORS}: adapts {module} {why} matrices of attention and of plain MLPs and an output of its own "
                "can be adapted: no experts, no norms, no table beside that of tokens."
            )
        merges += [module] * looked_up
        apart += [module] * (tied and taking[0].outside)
        for part in parts_of(checkpoint, scale, module, tensors, taking, base):
            parts.setdefault(part.row.path, []).append(part)
    replaced: dict[str, list[tuple[Row, np.ndarray]]] = {}
    for name, tensor in full.items():
        array = read(checkpoint, tensor, stored_shape(named[name], base.sizes))
        for row in named[name]:
            replaced.setdefault(row.path, []).append((row, array))
    pieces = {path: assembled(own, base.shape(path), base.large[path]) for path, own in parts.items()}
    return Adapter(folder, pieces, replaced, merges, apart)


def parts_of(
    checkpoint: Checkpoint, scale: Scale, module: str, tensors: dict[str, str], taking: list[Row], base: Base
) -> Iterator[Part]:
    """What a module adds to each of the parameters that take a part of its weight."""
    kind = "lora_embedding_" if "lora_embedding_A" in tensors else "lora_"
    if missing := {f"{kind}A", f"{kind}B"} - tensors.keys():
        raise CheckpointError(f"{checkpoint.folder / TENSORS}: has no {min(missing)} of {module}; copy it again.")
    if kind == "lora_embedding_" and "lora_magnitude_vector" in tensors:
        raise CheckpointError(f"{checkpoint.folder / TENSORS}: DoRA of a table ({module}) is not supported.")
    stored, groups = stored_shape(taking, base.sizes), parse(taking[0].axes)[0]
    inside = set(base.layout[taking[0].path].split()[base.large[taking[0].path] :])
    inner = next(axis for axis, group in enumerate(groups) if set(group) & inside)
    I, O = stored[inner], stored[1 - inner]  # noqa: E741
    shape = checkpoint.tensors[tensors[f"{kind}A"]].shape
    rank = shape[0] if len(shape) == 2 else 0
    factor = scale.of(module, rank, checkpoint.folder / TENSORS)
    if kind == "lora_embedding_":  # stored as what is multiplied by a one: the table's rows are its outputs
        b, a = (read(checkpoint, tensors[kind + one], size).T for one, size in (("A", (rank, O)), ("B", (I, rank))))
    else:
        a, b = (read(checkpoint, tensors[kind + one], size) for one, size in (("A", (rank, I)), ("B", (O, rank))))
    vector = tensors.get("lora_magnitude_vector")
    magnitude = None if vector is None else read(checkpoint, vector, (O,))
    sizes = base.sizes | {"rank": rank}  # a word, where every axis of a config has a letter
    for row in taking:
        count, target = base.large[row.path], [group[0] for group in parse(row.axes)[1]]
        groups = parse(row.axes)[0]
        theirs, ours = (" ".join(groups[axis]) for axis in (inner, 1 - inner))
        cut = slice(None) if row.part is None else slice(*row.part[1:])
        outputs = " ".join(target[:count])
        yield Part(row, module, Piece(
            rearrange(a, f"rank ({theirs}) -> rank {' '.join(target[count:])}", sizes),
            factor * rearrange(b[cut], f"({ours}) rank -> {outputs} rank", sizes),
            None if magnitude is None else rearrange(magnitude[cut], f"({ours}) -> {outputs}", sizes),
        ))  # fmt: skip


def assembled(parts: Sequence[Part], shape: tuple[int, ...], outputs: int) -> Piece:
    """One piece of what several modules add to a parameter: each has ranks of its own, with zeros where others' outputs are."""
    ranks = {part.module: len(part.piece.a) for part in parts}
    begins = dict(zip(ranks, np.cumsum([0, *ranks.values()]), strict=False))
    R = sum(ranks.values())
    a, b = np.zeros((R, *shape[outputs:]), np.float32), np.zeros((*shape[:outputs], R), np.float32)
    magnitude = np.full(shape[:outputs], np.nan, np.float32)
    for row, module, piece in parts:
        own = slice(begins[module], begins[module] + ranks[module])
        place = (*row.piece(), *[slice(None)] * (outputs - len(row.piece())))
        a[own], b[(*place, own)] = piece.a, piece.b
        if piece.magnitude is not None:
            magnitude[place] = piece.magnitude
    return Piece(a, b, None if np.isnan(magnitude).all() else magnitude)


def read(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor in float32. Raises CheckpointError for another shape, and for numbers that are none."""
    info = checkpoint.tensors[name]
    if info.shape != shape or 0 in shape:
        raise CheckpointError(
            f"{info.file}: tensor {name!r} has shape {list(info.shape)}, expected {list(shape)}; check that the adapter "
            "belongs to this model."
        )
    with np.errstate(over="ignore"):
        array = checkpoint.read(name).astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{info.file}: tensor {name!r} has values that are infinite or NaN; copy it again.")
    return array


def open_tensors(folder: Path) -> Checkpoint:
    """The tensors of an adapter."""
    if not files.present(folder / TENSORS) and files.present(folder / "adapter_model.bin"):
        raise CheckpointError(
            f"{folder}: has its tensors in adapter_model.bin: pickles can run code and are never opened here; load it with "
            "peft and save it again, which writes safetensors."
        )
    return Checkpoint(folder, read_header(folder / TENSORS))
