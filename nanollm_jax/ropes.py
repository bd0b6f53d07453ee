"""How queries and keys are rotated: the records of a layer's rope, and of what stretches it for longer contexts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from nanollm_jax.checks import check_count, check_positive
from nanollm_jax.errors import ConfigError, shown


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


@dataclass(frozen=True)
class LongRopeScaling:
    """Rope for longer contexts: every pair slowed by a factor of its own, one list up to the original length and one
    for texts beyond it. Ding et al. 2024, arXiv:2402.13753.

    attention_factor multiplies the rotated queries and the rotated keys.
    """

    kind: ClassVar[str] = "longrope"
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float


@dataclass(frozen=True)
class PartScaling:
    """Rope that turns a part of the pairs of a head, the first ones, and no other; factor divides every position."""

    kind: ClassVar[str] = "part"
    part: float
    factor: float = 1.0


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling | PartScaling


@dataclass(frozen=True)
class Rope:
    """How queries and keys are rotated: the base of the angles, and what stretches them for longer contexts."""

    theta: float = 10000.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "theta", check_positive("rope_theta", self.theta))
        if self.scaling is not None:
            check_rope_scaling(self.scaling)
            if self.theta == 1 and isinstance(self.scaling, YarnScaling):
                raise ConfigError("rope_theta is 1: all pairs turn alike, and yarn scaling has nothing to choose from.")


def check_rope_scaling(scaling: RopeScaling) -> None:
    """Raise ConfigError unless every number of a rope scaling makes sense."""
    if not isinstance(scaling, RopeScaling):
        raise ConfigError(
            f"rope_scaling is {shown(scaling)}; expected a LinearScaling, Llama3Scaling, YarnScaling, LongRopeScaling or "
            "PartScaling, or None."
        )
    for one in dataclasses.fields(scaling):
        name, value = f"rope scaling {scaling.kind}: {one.name}", getattr(scaling, one.name)
        if one.name == "original_max_positions":
            check_count(name, value)
        elif isinstance(value, tuple):
            for factor in value:
                check_positive(name, factor)
        elif one.name != "truncate":
            check_positive(name, value)
        elif not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; expected True or False.")
    if isinstance(scaling, PartScaling) and scaling.part > 1:
        raise ConfigError(f"rope scaling part: part is {scaling.part}; expected no more than 1.")
    if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ConfigError(
            f"rope scaling llama3: high_freq_factor {scaling.high_freq_factor} has to be above "
            f"low_freq_factor {scaling.low_freq_factor}."
        )
