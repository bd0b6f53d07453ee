"""An adapter as PEFT publishes it: adapter_config.json and adapter_model.safetensors -> what it adds to our parameters.

The tensors say which modules are adapted, and of which rank: target_modules, layers_to_transform, rank_pattern and the like
say how they were chosen in training. A family's table of rows (rows.py) says where a module's outputs stand among ours: three
adapters of queries, keys and values become one of wqkv, whose rank is the sum of theirs, as each has inputs of its own.
LoRA: Hu et al. 2021, arXiv:2106.09685; scaled by sqrt(r): Kalajdzievski 2023, arXiv:2312.03732; DoRA: arXiv:2402.09353.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanollm_jax import files
from nanollm_jax.checks import single, whole
from nanollm_jax.errors import CheckpointError, shown
from nanollm_jax.weights.checkpoint import Checkpoint, listed, read_header
from nanollm_jax.weights.rows import Row, parse, rearrange, stored_shape

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# keys that change what an adapter computes, and what they may be: what is none of this is refused by its name
MEANS_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "use_dora": (True, False, None), "use_rslora": (True, False, None),
    "bias": ("none", "all", "lora_only", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}  # fmt: skip
NUMBERS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
# how the adapter was made and trained, and where from: nothing is computed otherwise for it
INERT = frozenset(
    """task_type auto_mapping base_model_name_or_path revision inference_mode target_modules exclude_modules lora_dropout
    fan_in_fan_out modules_to_save layers_to_transform layers_pattern peft_version megatron_core megatron_config loftq_config
    eva_config corda_config lora_ga_config runtime_config ensure_weight_tying qalora_group_size merge_weights enable_lora
    library_name tags transformers_version""".split()
)
NAME = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?")
EMPTY = "has no tensor that is an adapter's"
# alpha_pattern has regular expressions, from a stranger: such that none of them takes long
PLAIN, REPEATED_GROUP, MOST_REPEATS, MOST_FREE, LONGEST = (
    re.compile(r"\^?[\w.-]+"),
    re.compile(r"\)[*+?{]|\(\?|\\\d"),
    2,
    32,
    200,
)


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

    large: {path: how many axes count outputs} of the parameters that may be adapted.
    """

    rows: Sequence[Row]
    layout: dict[str, str]
    sizes: dict[str, int]
    prefixes: Sequence[str]
    large: Mapping[str, int]

    def named(self) -> dict[str, list[Row]]:
        """The rows that take each tensor, by all names that it may have."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.path in self.layout:
                for name in dict.fromkeys(name for prefix in self.prefixes for name in row.names(prefix)):
                    found.setdefault(name, []).append(row)
        return found

    def shape(self, path: str) -> tuple[int, ...]:
        """That of a parameter."""
        return tuple(self.sizes[letter] for letter in self.layout[path].split())


def read_adapter(folder: Path, base: Base) -> Adapter:
    """The adapter in a folder. Touches no tensor of the model.

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
    unknown = [name for name in full if name not in named]
    unknown += [module for module in modules if f"{module}.weight" not in named]
    if unknown or not modules:
        found = (
            f"is of {listed(unknown, 3)}, which this model does not have as tensors of their own" if unknown else EMPTY
        )
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
                "can be adapted: no experts, no norms, no table of positions."
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


@dataclass(frozen=True)
class Scale:
    """What the product of an adapter is multiplied by: alpha over its rank, or (rsLoRA) over the root of its rank."""

    alpha: float
    patterns: dict[str, float]
    ranks: tuple[int, ...]
    rooted: bool

    def of(self, module: str, rank: int, file: Path) -> float:
        """That of one module. Raises CheckpointError for a rank that adapter_config.json does not speak of."""
        if rank not in self.ranks:
            said = " or ".join(map(str, self.ranks[:8]))
            raise CheckpointError(
                f"{file}: {module} is of rank {rank}; {CONFIG} says {said}. They belong to different ones."
            )
        alpha = next((a for key, a in self.patterns.items() if re.match(rf"(.*\.)?({key})$", module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rooted else rank)


def read_config(path: Path) -> Scale:
    """adapter_config.json. Raises CheckpointError for what is not LoRA, and for what changes it in a way not known here."""
    values = files.read_json(path, CheckpointError)
    for key, value in values.items():
        allowed = ALLOWED.get(key, MEANS_NOTHING)
        if key not in (*NUMBERS, *INERT) and not any(type(value) is type(one) and value == one for one in allowed):
            expected = ", ".join(map(str, allowed)) if key in ALLOWED else "nothing"
            raise CheckpointError(
                f"{path}: {key} is {shown(value)}, which is not supported; expected {expected}. With peft it can be merged "
                "into its model, and what save_pretrained writes then is read."
            )
    if "peft_type" not in values:
        raise CheckpointError(f"{path}: has no peft_type; expected the file of a LoRA adapter, as peft writes it.")
    ranks, alphas = ({"": values.get(key, 8)} | table(path, values, f"{name}_pattern")
                     for key, name in (("r", "rank"), ("lora_alpha", "alpha")))  # fmt: skip
    for key, value in [*ranks.items(), *alphas.items()]:
        wrong = single(value) is None or (key in ranks and ranks[key] is value and not (whole(value) or 0) > 0)
        if wrong:
            raise CheckpointError(
                f"{path}: the rank or alpha of {key or 'all modules'} is {shown(value)}; expected a number."
            )
    patterns = {key: float(alpha) for key, alpha in alphas.items() if key}
    check_patterns(path, list(patterns))
    return Scale(
        float(alphas[""]), patterns, tuple(dict.fromkeys(map(int, ranks.values()))), bool(values.get("use_rslora"))
    )


def table(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    """An object of config.json, empty where there is none."""
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: {key} is {shown(found)}; expected an object.")
    return found


def check_patterns(path: Path, patterns: Sequence[str]) -> None:
    """Raise CheckpointError for regular expressions that are none, or that may take for ever."""
    free = [pattern for pattern in patterns if not PLAIN.fullmatch(pattern)]
    for pattern in free:
        repeats = sum(map(pattern.count, "*+?{"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(f"({pattern})$")
        except (re.error, OverflowError, RecursionError):
            repeats = MOST_REPEATS + 1
        if len(free) > MOST_FREE or len(pattern) > LONGEST or repeats > MOST_REPEATS or REPEATED_GROUP.search(pattern):
            raise CheckpointError(
                f"{path}: alpha_pattern has {shown(pattern)}; expected names of modules, or a few regular expressions with at "
                f"most {MOST_REPEATS} repetitions and none of a group."
            )
