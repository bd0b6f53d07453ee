"""Adapters onto weights while these are loaded: kept apart beside them, or one of them added into them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.shards import spread
from nanollm_jax.errors import CheckpointError
from nanollm_jax.layout import adaptable, layout
from nanollm_jax.letters import spec
from nanollm_jax.ops.adapted import Adapted, added, gains
from nanollm_jax.ops.kept import Weight, decoded
from nanollm_jax.weights.adapters import Adapter
from nanollm_jax.weights.rows import rearrange

Keep = Callable[[str, jax.Array], Weight]
Fill = TypeVar("Fill")


@dataclass(frozen=True)
class Onto:
    """Adapters that are kept apart, and one that is merged, for a model of this config and on this mesh."""

    apart: Sequence[Adapter]
    merge: Adapter | None
    config: ModelConfig
    mesh: Mesh | None

    @cached_property
    def large(self) -> dict[str, int]:
        """{path: how many axes count outputs} of the parameters that may be adapted."""
        return adaptable(self.config)

    def keeper(self, keep: Keep) -> Keep:
        """What becomes of each parameter where it would be what keep makes of it without adapters."""
        letters = layout(self.config)

        def kept(path: str, array: jax.Array) -> Weight:
            if self.merge is not None:
                array = self.merged(self.merge, path, letters[path], array)
            for adapter in self.apart:
                same = self.replaced(adapter, path, letters[path], array)
                if same is not array and not jnp.array_equal(same.astype(array.dtype), array):
                    raise CheckpointError(
                        f"{adapter.folder}: this adapter has {path} whole, with other numbers than the model; load it with "
                        "merge=, which puts them in its place."
                    )
            return self.beside(path, keep(path, array), lambda: array)

        return kept

    def untouched(self, fill: Mapping[str, Fill]) -> dict[str, Fill]:
        """Of what makes parameters a part at a time that of those to which no adapter says anything."""
        given = [*self.apart, *([] if self.merge is None else [self.merge])]
        return {path: one for path, one in fill.items()
                if not any(path in adapter.pieces or adapter.replaced.get(path) for adapter in given)}  # fmt: skip

    def few(self, path: str, keep: Callable[[Any], Weight | None], groups: Any) -> Weight | None:
        """What becomes of a parameter that is published in few bits, where it would be what keep makes of it without adapters.

        None where its numbers have to be there: what is merged, and what an adapter has whole.
        """
        merged = self.merge is not None and path in self.merge.pieces
        if merged or any(one.replaced.get(path) for one in (*self.apart, self.merge) if one is not None):
            return None
        weight = keep(groups)
        return weight if weight is None else self.beside(path, weight, lambda: decoded(weight))

    def merged(self, adapter: Adapter, path: str, letters: str, array: jax.Array) -> jax.Array:
        """A parameter with all of an adapter in it, rounded once."""
        new = self.replaced(adapter, path, letters, array)
        if (piece := adapter.pieces.get(path)) is not None:
            names, outputs = letters.split(), self.large[path]
            before, behind = " ".join(names[:outputs]), " ".join(names[outputs:])
            a, b = self.place(piece.a, f"rank {behind}"), self.place(piece.b, f"{before} rank")
            whole = added(new, a, b)
            if piece.magnitude is not None:
                gain = gains(new, a, b, self.place(piece.magnitude, before))
                whole *= gain.reshape(*gain.shape, *(1,) * (whole.ndim - gain.ndim))
            new = whole
        return array if new is array else jax.device_put(new.astype(array.dtype), array.sharding)

    def replaced(self, adapter: Adapter, path: str, letters: str, array: jax.Array) -> jax.Array:
        """A parameter, in float32 with what an adapter has whole of it in its place; itself where that is nothing."""
        if not (replaced := adapter.replaced.get(path)):
            return array
        sizes = self.config.sizes
        shape = tuple(sizes[letter] for letter in letters.split())
        values, there = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for row, tensor in replaced:
            values[row.piece()] = rearrange(tensor[row.cut()], row.axes, sizes)
            there[row.piece()] = 1
        return jnp.where(self.place(there, letters) > 0, self.place(values, letters), array.astype(jnp.float32))

    def beside(self, path: str, weight: Weight, whole: Callable[[], jax.Array]) -> Weight:
        """A weight with its piece of each adapter, and of none in front of these; itself where none has one.

        whole gives the numbers that it was kept of.
        """
        pieces = [adapter.pieces.get(path) for adapter in self.apart]
        if not any(piece is not None for piece in pieces):
            return weight
        letters, outputs = layout(self.config)[path].split(), self.large[path]
        before, behind = " ".join(letters[:outputs]), " ".join(letters[outputs:])
        there = {n: piece for n, piece in enumerate(pieces, 1) if piece is not None}
        one = next(iter(there.values()))
        n, R = 1 + len(pieces), max(len(piece.a) for piece in there.values())
        a, b = np.zeros((n, R, *one.a.shape[1:]), np.float32), np.zeros((n, *one.b.shape[:-1], R), np.float32)
        for at, piece in there.items():
            rank = len(piece.a)
            a[at, :rank], b[at, ..., :rank] = piece.a, piece.b
        place = partial(self.place, dtype=weight.dtype)
        stacks = place(a, f"n rank {behind}"), place(b, f"n {before} rank")
        if all(piece.magnitude is None for piece in there.values()):
            return Adapted(weight, *stacks)
        ones = np.ones(one.b.shape[:-1], np.float32)
        gain = [self.place(ones, before)] * n
        for at, piece in there.items():
            if piece.magnitude is not None:
                parts = self.place(piece.a, f"rank {behind}"), self.place(piece.b, f"{before} rank")
                gain[at] = gains(whole(), *parts, self.place(piece.magnitude, before))
        where = None if self.mesh is None else NamedSharding(self.mesh, spec(f"n {before}"))
        return Adapted(weight, *stacks, jax.device_put(jnp.stack(gain), where))

    def place(self, array: np.ndarray, letters: str, dtype: Any = np.float32) -> jax.Array:
        """An array of the whole model's, with these axes, where the parameters are."""
        if self.mesh is None:
            return jnp.asarray(array, dtype)
        return spread(lambda index: array[index], letters, dtype, self.config, self.mesh, array.shape)
