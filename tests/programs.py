"""Compiled programs, for tests that read them. As a script: XLA's flags of make test, those that the jaxlib here has."""

from __future__ import annotations

from functools import cache

import jax

EMITTERS = "xla_cpu_use_fusion_emitters"
QUICK: dict[str, int | bool] = {
    "xla_backend_optimization_level": 0,
    EMITTERS: False,  # gone in jaxlib 0.11
    "xla_cpu_parallel_codegen_split_count": 1,
}


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """With XLA's own emitter of fusions, as users have it; make test turns it off and then XLA rewrites some operations."""
    return lowered.compile(compiler_options={EMITTERS: True} if known(EMITTERS, True) else None)


@cache
def known(flag: str, value: int | bool) -> bool:
    """Does this version of XLA have such a flag? It ends the process for one in XLA_FLAGS that it has not."""
    try:
        jax.jit(lambda x: -x).lower(1).compile(compiler_options={flag: value})
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


if __name__ == "__main__":
    print(*(f"--{flag}={str(value).lower()}" for flag, value in QUICK.items() if known(flag, value)))
