"""Attention on an NVIDIA GPU, for which XLA needs many kernels and much memory; ops/attention.py is the text of it."""

from nanollm_jax.ops.gpu.flash import attention, takes

__all__ = ["attention", "takes"]
