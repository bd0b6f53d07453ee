"""What a cache holds: which position stands in which slot of each layer, and the bytes that are used and reserved."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from nanollm_jax import collectives
from nanollm_jax.cache import KVCache
from nanollm_jax.decode import State
from nanollm_jax.errors import RequestError


@dataclass(frozen=True)
class LayerView:
    """One layer of a cache.

    kind   "plain", "latents" where keys and values are one vector, "ring" where a new token takes the place of one that left
           the window, "recurrent", a state of each row in place of slots, "shared", which looks at an earlier
           layer's, or "nothing"
    held   the position that each slot holds, negative if none [B S]
    bytes  of all buffers, which are there whatever they hold; used those of slots that hold something, or of rows that do
    """

    kind: str
    held: np.ndarray
    bytes: int
    used: int


@dataclass(frozen=True, repr=False)
class CacheView:
    """A cache, layer by layer. length [B] says how many positions of each row were read; dtype that of keys and values."""

    layers: list[LayerView]
    length: np.ndarray
    dtype: str

    @property
    def bytes(self) -> int:
        """Of all layers."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def used(self) -> int:
        """Those of slots that hold something."""
        return sum(layer.used for layer in self.layers)

    def __repr__(self) -> str:
        kinds = [layer.kind for layer in self.layers]
        counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return (
            f"CacheView({counted} layers, rows of {self.length.tolist()} positions, {self.dtype}, "
            f"{self.used:,} of {self.bytes:,} bytes used)"
        )


def cache_view(cache: KVCache | State) -> CacheView:
    """Look into a cache, or the cache of a State.  Raises RequestError for what is neither.

    On a mesh the bytes are those of all devices together.
    """
    found = cache.cache if isinstance(cache, State) else cache
    if not isinstance(found, KVCache):
        raise RequestError(
            f"this is a {type(cache).__name__}; expected a cache from init_cache or forward, or a State from prefill."
        )
    length, views = collectives.whole(found.length), []
    for layer in found.layers:
        held = np.asarray(layer.held(jnp.asarray(length)))
        views.append(LayerView(type(layer).__name__.lower(), held, layer.nbytes, layer.used(jnp.asarray(length))))
    return CacheView(views, length, found.kept)
