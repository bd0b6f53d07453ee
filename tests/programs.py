"""Compiled programs, for tests that read them."""

from __future__ import annotations

import jax


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """With XLA's own emitter of fusions, as users have it; make test turns it off and then XLA rewrites some operations."""
    return lowered.compile(compiler_options={"xla_cpu_use_fusion_emitters": True})
