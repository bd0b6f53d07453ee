"""What a layer may have in place of attention: mixers whose memory of a text is a state of one size, however long the text is.

Each record says what it needs, so that nobody has to ask which it is: the parameters and what its axis letters mean, what is
kept of each row, and the work of a token. Nothing about devices or weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nanollm_jax.checks import check_count
from nanollm_jax.errors import ConfigError


@dataclass(frozen=True)
class ShortConvolution:
    """A gate, a convolution of each channel over its last few tokens, another gate. Liquid AI 2025, arXiv:2511.23404.

    channels  how many there are: h
    width     how many tokens each output is made of, its own included: w
    bias      is there one in each of the three products?
    """

    kind: ClassVar[str] = "convolution"  # of a form in ops/mixing.py
    channels: int
    width: int
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("channels", "width"):
            object.__setattr__(self, name, check_count(f"convolution: {name}", getattr(self, name)))
        if not isinstance(self.bias, bool):
            raise ConfigError(f"convolution: bias is {self.bias!r}; expected True or False.")

    @property
    def sizes(self) -> dict[str, int]:
        """How long its axis letters are."""
        return {"h": self.channels, "w": self.width, "t": 3}

    @property
    def parameters(self) -> dict[str, str]:
        """{name: axis letters}."""
        biases = {"win_bias": "t h", "taps_bias": "h", "down_bias": "D"}
        return {"win": "t h D", "taps": "h w", "down": "D h"} | (biases if self.bias else {})

    @property
    def tail(self) -> tuple[int, ...]:
        """What is kept of the last tokens of a row, in the dtype of the cache.  [u h], u = w - 1"""
        return (self.width - 1, self.channels)

    @property
    def state(self) -> tuple[int, ...] | None:
        """What is kept of all tokens of a row, in float32: nothing."""
        return None

    @property
    def flops(self) -> int:
        """Of a token, beside the products with its matrices."""
        return 2 * self.channels * self.width

    def divided(self, members: int) -> ShortConvolution:
        """The same with channels of zeros, until so many devices have as many each."""
        return ShortConvolution(-(-self.channels // members) * members, self.width, self.bias)


Mixer = ShortConvolution
