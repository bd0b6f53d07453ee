"""Operations in C, for the one place where XLA on CPU has nothing quick; see README.md beside this file."""

from nanollm_jax.ops.native.attention import attention
from nanollm_jax.ops.native.library import Library, library, portable, wanted

__all__ = ["Library", "attention", "library", "portable", "wanted"]
