"""A checkpoint whose weights are in few bits, shown as if they were plain: under the names and shapes of the family's table."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nanollm_jax.errors import CheckpointError
from nanollm_jax.weights.checkpoint import AGAIN, FLOATS, Checkpoint, listed, mapped
from nanollm_jax.weights.quantised.groups import Footprint, Groups
from nanollm_jax.weights.quantised.packed import Method, Packed, Part

# scales of activations and of a cache in 8 bits, which are not computed here
SPARE = re.compile(
    r".*[._](input_scale|activation_scale|output_scale|(k|v|q|kv|prob)_scale|input_zero_point|(k|v)_zero_point|input_global_scale"
    r"|qscale_act)"
)


@dataclass(frozen=True)
class Decoded(Checkpoint):
    """The tensors under the names that a family publishes them by.

    stored  all that the files have; packed  which of them make one weight together, by its name
    """

    stored: Checkpoint
    packed: Mapping[str, Packed]

    def dtype(self, name: str) -> np.dtype:
        """A tensor's NumPy dtype as read gives it: float32 of a weight in few bits."""
        return FLOATS["F32"] if name in self.packed else self.stored.dtype(name)

    def quantised(self) -> list[str]:
        """The tensors of quantised weights that are part of none which is understood."""
        return [name for name in self.stored.quantised() if name in self.tensors and name not in self.packed]

    def read(self, name: str) -> np.ndarray:
        """One tensor: mapped read-only where it is stored as it is, otherwise decoded into float32.

        Raises CheckpointError as Checkpoint.read does, and for scales that are no numbers.
        """
        if name not in self.packed:
            return super().read(name)
        packed = self.packed[name]
        with np.errstate(all="ignore"):  # looked for here
            weight = self.numbers(name).weight()
        weight = weight.reshape(-1)[: math.prod(packed.shape)].reshape(packed.shape)
        if not np.isfinite(weight).all():
            raise CheckpointError(
                f"{self.tensors[name].file}: tensor {name!r} has a weight that is no number; {AGAIN}."
            )
        return np.swapaxes(weight, -1, -2) if packed.inputs_first else weight

    def few(self) -> dict[str, Footprint | None]:
        """The names of weights in few bits, and what those take in memory that can be kept so."""
        return {name: one.footprint if one.in_rows(self.part(name)) else None for name, one in self.packed.items()}

    def reordered(self, name: str) -> bool:
        """Whether inputs of a weight in few bits are in groups that do not follow each other."""
        if name not in self.packed or "order" not in self.packed[name].parts:
            return False
        order = self.part(name)("order")
        return not np.array_equal(order, np.arange(len(order)) // self.packed[name].footprint.size)

    def part(self, name: str) -> Part:
        """What gives the numbers of a weight's parts."""
        return lambda part: mapped(self.stored.tensors[self.packed[name].parts[part]])

    def numbers(self, name: str) -> Groups:
        """The groups of a weight in few bits."""
        return self.packed[name].groups(self.part(name))

    def groups(self, name: str) -> Groups | None:
        """The numbers of a weight in few bits; None where groups do not follow each other, or lie across rows."""
        packed = self.packed.get(name)
        if packed is None:
            return None
        with np.errstate(all="ignore"):  # looked for by who puts them together
            found = self.numbers(name)
        fits = found.values.shape == packed.shape
        return dataclasses.replace(found, inputs_first=packed.inputs_first) if fits else None


def decoded(checkpoint: Checkpoint, method: Method, inputs_first: str | None = None) -> Decoded:
    """A checkpoint with its weights as the method has them.

    inputs_first: names of weights that the family's table has with inputs first, a regular expression
    Raises CheckpointError where tensors of one weight do not fit together, and where the config says of one that has scales
    that it was left as it was.
    """
    stored = {name: info for name, info in checkpoint.tensors.items() if not SPARE.fullmatch(name)}
    packed = method.packed(stored)
    left = {name.removesuffix(".weight") for name in packed} & set(method.left)
    if left:
        raise CheckpointError(
            f"{checkpoint.folder}: config.json says that {listed(sorted(left))} was not quantised, but there are scales of it."
        )
    parts = {part for one in packed.values() for part in one.parts.values()}
    tensors = {name: info for name, info in stored.items() if name not in parts}
    for name, one in packed.items():
        if name in tensors:
            raise CheckpointError(f"{checkpoint.folder}: has {name!r} twice, as it is and in few bits; {AGAIN}.")
        if inputs_first and len(one.shape) == 2 and re.fullmatch(inputs_first, name):
            one = packed[name] = dataclasses.replace(one, inputs_first=True)
        *rest, outputs, inputs = one.shape
        shape = (*rest, inputs, outputs) if one.inputs_first else one.shape
        first = checkpoint.tensors[next(iter(one.parts.values()))]
        tensors[name] = dataclasses.replace(first, dtype=one.form, shape=shape)
    return Decoded(checkpoint.folder, tensors, checkpoint, packed)
