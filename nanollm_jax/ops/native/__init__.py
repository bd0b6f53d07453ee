"""Operations in C, for the two places where XLA on CPU has nothing quick; see README.md beside this file."""

from nanollm_jax.identity import portable
from nanollm_jax.ops.native.attention import attention
from nanollm_jax.ops.native.library import Library, library, switched_off, wanted
from nanollm_jax.ops.native.product import (
    product,
    product_by_expert,
    product_in_groups,
    takes,
    takes_experts,
    takes_groups,
)

__all__ = [
    "Library",
    "attention",
    "library",
    "portable",
    "product",
    "product_by_expert",
    "product_in_groups",
    "switched_off",
    "takes",
    "takes_experts",
    "takes_groups",
    "wanted",
]
