"""Which tensors make one weight together, what they must look like, and how scales are spread over rows and groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nanollm_jax.errors import CheckpointError
from nanollm_jax.weights.checkpoint import NUMBERS, TensorInfo
from nanollm_jax.weights.quantised.groups import Footprint, Groups

Tensors = Mapping[str, TensorInfo]
Part = Callable[[str], np.ndarray]  # from what a part is called in Packed.parts to its numbers
FLOAT8 = ("F8_E4M3", "F8_E5M2")
FLOATS = ("F32", "F16", "BF16")
SCALES = (*FLOATS, "F8_E4M3", "F8_E8M0")


@dataclass(frozen=True)
class Packed:
    """One weight as it lies in a checkpoint.

    form    what it is called: "gptq, 4 bits"
    shape   [*O I]
    parts   {what it is here: the tensor's name}
    groups  its numbers, out of those of the parts, outputs first
    footprint  of these
    inputs_first  the family's table has it as [*O' I O]: the last two axes are turned
    in_rows  what tells whether its groups lie in rows and follow each other; of most forms they do
    """

    form: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    groups: Callable[[Part], Groups]
    footprint: Footprint
    inputs_first: bool = False
    in_rows: Callable[[Part], bool] = lambda part: True


class Method(Protocol):
    """How weights lie in tensors."""

    @property
    def left(self) -> tuple[str, ...]:
        """What the config says was left as it was: modules, or patterns of them."""

    def packed(self, tensors: Tensors) -> dict[str, Packed]:
        """Which tensors make one weight together, by the weight's name. Raises CheckpointError where they do not fit."""


def wrong(info: TensorInfo, name: str, expected: str) -> CheckpointError:
    """The error for a tensor that does not fit the others of its weight."""
    return CheckpointError(
        f"{info.file}: tensor {name!r} is {info.dtype} {list(info.shape)}, expected {expected}; check that config.json "
        "belongs to these weights."
    )


def need(tensors: Tensors, name: str, dtypes: Sequence[str], *shapes: tuple[int, ...], beside: str) -> TensorInfo:
    """A tensor that has to be there, of one of these dtypes and shapes (any, where none is given)."""
    if name not in tensors:
        raise CheckpointError(
            f"{tensors[beside].file}: tensor {beside!r} is quantised and has no {name!r} beside it; download it again."
        )
    info = tensors[name]
    if info.dtype not in dtypes or (shapes and info.shape not in shapes):
        sizes = " or ".join(str(list(shape)) for shape in shapes) or "numbers"
        raise wrong(info, name, f"{' or '.join(dtypes)} {sizes}")
    return info


def itemsize(info: TensorInfo) -> int:
    """Bytes of each number of a tensor."""
    return NUMBERS[info.dtype].itemsize


def spread(
    scale: tuple[int, ...], shape: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, Callable[[np.ndarray], np.ndarray]] | None:
    """How scales of one shape belong to a weight of another: one for all of it, an expert, a row, or a block.

    -> the inputs of a group, and what makes [*O G] float32 of them; None where they do not fit.  block: (outputs, inputs)
    """
    *outputs, inputs = shape
    experts = outputs[:-1]
    sizes = {(*experts, 1, 1), (*outputs, 1), tuple(outputs)} | ({tuple(experts)} if experts else set())
    if math.prod(scale) == 1 or (scale in sizes and block is None):
        tail = (1,) if scale == tuple(outputs) else (1, 1)
        whole = (1,) * len(shape) if math.prod(scale) == 1 else scale if len(scale) == len(shape) else (*scale, *tail)
        return inputs, lambda x: np.broadcast_to(x.astype(np.float32).reshape(whole), (*outputs, 1))
    if block is None or scale != (*experts, -(-outputs[-1] // block[0]), -(-inputs // block[1])):
        return None
    return block[1], lambda x: np.repeat(x.astype(np.float32), block[0], axis=-2)[..., : outputs[-1], :]


def scaled(
    tensors: Tensors, name: str, scale: str, form: str, block: tuple[int, int] | None = None, zeros: str | None = None
) -> Packed:
    """A weight whose own tensor has a number of 8 bits for each of its own, and others the scales, and zeros to subtract."""
    info = tensors[name]
    given = need(tensors, scale, SCALES, beside=name)
    if len(info.shape) < 2 or 0 in info.shape:
        raise wrong(info, name, "a matrix")
    if (way := spread(given.shape, info.shape, block)) is None:
        fits = f"{block[0]} by {block[1]} numbers" if block else "row, or one"
        raise wrong(given, scale, f"scales of {name!r} {list(info.shape)}, one for each {fits}")
    size, spreading = way
    parts = {"values": name, "scale": scale}
    if zeros is not None:
        need(tensors, zeros, ("I8", *FLOATS, *FLOAT8), given.shape, beside=name)
        parts["zeros"] = zeros

    def groups(part: Part) -> Groups:
        scales = spreading(part("scale"))
        offset = None if zeros is None else -spreading(part("zeros")) * scales
        return Groups(part("values"), scales, size, offset)

    return Packed(form, info.shape, parts, groups, Footprint(8, size, 4 if zeros is None else 8))
