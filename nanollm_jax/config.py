"""What a model is: its architecture as one frozen, hashable record. Nothing about devices, weights or sampling.

Precision policy, written here once and followed everywhere:
  weights, activations, cache   the run's dtype: float32 on CPU, bfloat16 on GPU and TPU, unless the user names one
  matrix products               accumulate in float32; float32 operands are multiplied in full float32 on every device
  norms, rope angles, softmax, logits, sampling   float32
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.errors import ConfigError

NORMS = ("rms_norm", "layer_norm")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclass(frozen=True)
class LinearScaling:
    """Rope for longer contexts: every position divided by `factor`. Chen et al. 2023, arXiv:2306.15595."""

    kind: ClassVar[str] = "linear"
    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Rope for longer contexts: long wavelengths divided by `factor`, short ones kept, a smooth band between.

    The Llama 3 Herd of Models, 2024, and its reference implementation.
    """

    kind: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class YarnScaling:
    """Rope for longer contexts: a ramp over the pairs of a head, and hotter attention. Peng et al. 2023, arXiv:2309.00071.

    attention_factor multiplies the rotated queries and the rotated keys.
    """

    kind: ClassVar[str] = "yarn"
    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one decoder-only transformer. Letters as in params.py. Raises ConfigError on values that cannot be.

    rope_theta None means that nothing is rotated; learned_positions adds a table of max_positions vectors instead.
    windows has one entry per layer: how many positions a query sees, itself included, or None for all.
    attention_scales has one entry per layer: what scores are multiplied by; empty means 1/sqrt(head_dim).
    """

    vocab_size: int  # V
    hidden_size: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    intermediate_size: int  # F
    max_positions: int  # P
    norm: str = "rms_norm"
    norm_eps: float = 1e-5
    activation: str = "silu"
    gated_mlp: bool = True
    learned_positions: bool = False
    rope_theta: float | None = 10000.0
    rope_scaling: RopeScaling | None = None
    windows: tuple[int | None, ...] = ()
    attention_scales: tuple[float, ...] = ()
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "intermediate_size", "max_positions"):  # fmt: skip
            check_count(name, getattr(self, name))
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: "
                "every key/value head serves the same number of query heads."
            )
        if self.norm not in NORMS:
            raise ConfigError(f"norm {self.norm!r} is not supported; known: {', '.join(NORMS)}.")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation {self.activation!r} is not supported; known: {', '.join(ACTIVATIONS)}.")
        check_positive("norm_eps", self.norm_eps)
        if self.rope_theta is not None:
            check_positive("rope_theta", self.rope_theta)
            if self.head_dim % 2:
                raise ConfigError(f"head_dim {self.head_dim} is odd; rope rotates pairs, so it has to be even.")
        if self.rope_scaling is not None:
            check_rope_scaling(self.rope_scaling)
            if self.rope_theta == 1 and isinstance(self.rope_scaling, YarnScaling):
                raise ConfigError("rope_theta is 1: all pairs turn alike, and yarn scaling has nothing to choose from.")
        for name in ("gated_mlp", "learned_positions", "qkv_bias", "attention_out_bias", "mlp_bias", "tie_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected True or False.")
        for name in ("windows", "attention_scales"):
            if not isinstance(getattr(self, name), tuple):  # a list has no hash, and jit needs one
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a tuple with one entry a layer, or ().")
        if self.windows and len(self.windows) != self.num_layers:
            raise ConfigError(
                f"windows has {len(self.windows)} entries for {self.num_layers} layers; give one a layer."
            )
        for window in self.windows:
            if window is not None:
                check_count("window", window)
        if self.attention_scales and len(self.attention_scales) != self.num_layers:
            raise ConfigError(
                f"attention_scales has {len(self.attention_scales)} entries for {self.num_layers} layers; give one a layer."
            )
        for scale in self.attention_scales:
            check_positive("attention scale", scale)

    @property
    def sizes(self) -> dict[str, int]:
        """How long each axis letter is."""
        return {
            "V": self.vocab_size, "D": self.hidden_size, "P": self.max_positions, "N": self.num_heads,
            "K": self.num_kv_heads, "G": self.num_heads // self.num_kv_heads, "H": self.head_dim,
            "Q": self.num_heads // self.num_kv_heads + 2, "F": self.intermediate_size, "U": 2 if self.gated_mlp else 1,
        }  # fmt: skip

    def window(self, layer: int) -> int | None:
        """How many positions a query of this layer sees, itself included; None for all."""
        return self.windows[layer] if self.windows else None

    def attention_scale(self, layer: int) -> float:
        """What this layer multiplies its scores by."""
        return self.attention_scales[layer] if self.attention_scales else self.head_dim**-0.5


def check_count(name: str, value: Any) -> None:
    """Raise ConfigError unless value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 1.")


def check_positive(name: str, value: Any) -> None:
    """Raise ConfigError unless value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise ConfigError(f"{name} is {value!r}; expected a finite number above 0.")


def check_rope_scaling(scaling: RopeScaling) -> None:
    """Raise ConfigError unless every number of a rope scaling makes sense."""
    if not isinstance(scaling, RopeScaling):
        raise ConfigError(
            f"rope_scaling is {scaling!r}; expected a LinearScaling, Llama3Scaling or YarnScaling, or None."
        )
    for field in dataclasses.fields(scaling):
        name, value = f"rope scaling {scaling.kind}: {field.name}", getattr(scaling, field.name)
        if field.name == "original_max_positions":
            check_count(name, value)
        elif field.name != "truncate":
            check_positive(name, value)
        elif not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; expected True or False.")
    if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ConfigError(
            f"rope scaling llama3: high_freq_factor {scaling.high_freq_factor} has to be above "
            f"low_freq_factor {scaling.low_freq_factor}."
        )


def resolve_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of weights and activations for "auto", a name, or a dtype. Raises ConfigError for any other.

    "auto" is float32 on CPU, where 16-bit products are converted one by one, and bfloat16 on GPU and TPU.
    """
    if isinstance(dtype, str) and dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    try:
        resolved = jnp.dtype(dtype) if dtype is not None else None
    except TypeError:
        resolved = None
    if resolved is None or resolved.name not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not supported; known: auto, {', '.join(DTYPES)}.")
    return resolved
