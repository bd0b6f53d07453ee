"""What each row may do in a chunk: how many steps, and which tokens it may draw, in bits as keep_allowed takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike

from nanollm_jax.config import ModelConfig
from nanollm_jax.engine.rows import Owner, Slot
from nanollm_jax.letters import spec
from nanollm_jax.sampling import EVERYTHING, WORD


def anything(rows: int, config: ModelConfig, mesh: Mesh | None) -> jax.Array:
    """A mask by which so many rows may draw every token, on the device.  -> [B ceil(V/32)] uint32"""
    where = None if mesh is None else NamedSharding(mesh, spec("B"))
    return jax.device_put(np.full((rows, -(-config.vocab_size // WORD)), EVERYTHING), where)


def allowed_of(anything: jax.Array, slots: Mapping[int, Slot]) -> ArrayLike:
    """Which tokens may be drawn, as programs take it [B W]: `anything`, but where a slot in this place follows a grammar."""
    matchers = {at: slot.ticket.answer.matcher for at, slot in slots.items() if slot.ticket is not None}
    masks = {at: matcher.mask for at, matcher in matchers.items() if matcher is not None}
    if not masks:
        return anything
    allowed = np.full(anything.shape, EVERYTHING)
    for at, mask in masks.items():
        allowed[at] = mask
    return allowed


def steps_of(owners: Sequence[Owner], rows: int) -> np.ndarray:
    """How many steps each row of an engine may go, as write_tokens takes it [B]: each writes one token at least."""
    steps = np.zeros(rows, np.int32)
    for owner in owners:
        steps[owner.slot.row] = owner.tokens
    return steps
