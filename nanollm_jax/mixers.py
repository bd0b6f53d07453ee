"""What a layer may have in place of attention: mixers whose memory of a text is a state of one size, however long the text is.

Each record says what it needs, so that nobody has to ask which it is: the parameters and what its axis letters mean, what is
kept of each row, and the work of a token. Nothing about devices or weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nanollm_jax.checks import check_count, check_positive
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
    def parameters(self) -> dict[str, Any]:
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
        return replace(self, channels=-(-self.channels // members) * members)


@dataclass(frozen=True)
class GatedDelta:
    """A state of each value head that maps keys to values, a little of which each token forgets and corrects.
    Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464.

    groups     how many key heads there are: h
    heads      how many value heads each of them serves: r
    key        width of a key and of a query: i
    value      width of a value: j
    width      how many tokens the convolution in front of it sees: w
    eps        of the norm behind it
    """

    kind: ClassVar[str] = "gated_delta"
    groups: int
    heads: int
    key: int
    value: int
    width: int
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("groups", "heads", "key", "value", "width"):
            object.__setattr__(self, name, check_count(f"gated delta: {name}", getattr(self, name)))
        object.__setattr__(self, "eps", check_positive("gated delta: eps", self.eps))

    @property
    def sizes(self) -> dict[str, int]:
        """How long its axis letters are. Of a group v are its values, z what is convolved (a query, a key, values), e these
        with as many gates as values, s two numbers of each head, and y all of them.
        """
        values, rates = self.heads * self.value, 2 * self.heads
        convolved = 2 * self.key + values
        return {
            "h": self.groups, "r": self.heads, "i": self.key, "j": self.value, "w": self.width, "v": values,
            "z": convolved, "e": convolved + values, "s": rates, "y": convolved + values + rates,
        }  # fmt: skip

    @property
    def parameters(self) -> dict[str, Any]:
        """{name: axis letters}."""
        rates = {"decay": "h r", "decay_bias": "h r"}
        return {"win": "h y D", "taps": "h z w"} | rates | {"norm": {"scale": "j"}, "wo": "D h v"}

    @property
    def tail(self) -> tuple[int, ...]:
        """What is kept of the last tokens of a row, in the dtype of the cache.  [u h z], u = w - 1"""
        return (self.width - 1, self.groups, self.sizes["z"])

    @property
    def state(self) -> tuple[int, ...] | None:
        """What is kept of all tokens of a row, in float32.  [h r i j]"""
        return (self.groups, self.heads, self.key, self.value)

    @property
    def flops(self) -> int:
        """Of a token, beside the products with its matrices: the convolution, and three products with each state."""
        return 2 * self.groups * self.sizes["z"] * self.width + 6 * self.groups * self.heads * self.key * self.value

    def divided(self, members: int) -> GatedDelta:
        """The same with groups of zeros, until so many devices have as many each."""
        return replace(self, groups=-(-self.groups // members) * members)


@dataclass(frozen=True)
class StateSpace:
    """A state of each head to which a token writes its values under a key, and which fades as fast as the token says (Mamba 2).
    Dao & Gu 2024, arXiv:2405.21060.

    groups     how many keys and queries a token has, each with a norm of its heads: h
    heads      how many heads each of them serves: r
    key        width of a key and of a query: i
    value      width of a value: j
    width      how many tokens the convolution in front of it sees: w
    eps        of the norm behind it
    bias       is there one in the products with its two matrices?
    taps_bias  is there one in the convolution?
    """

    kind: ClassVar[str] = "state_space"
    groups: int
    heads: int
    key: int
    value: int
    width: int
    eps: float = 1e-6
    bias: bool = False
    taps_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("groups", "heads", "key", "value", "width"):
            object.__setattr__(self, name, check_count(f"state space: {name}", getattr(self, name)))
        object.__setattr__(self, "eps", check_positive("state space: eps", self.eps))
        for name in ("bias", "taps_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"state space: {name} is {getattr(self, name)!r}; expected True or False.")

    @property
    def sizes(self) -> dict[str, int]:
        """How long its axis letters are. Of a group v are its values, z what is convolved (a query, a key, values), and y these
        with as many gates as values and a number of each head.
        """
        values = self.heads * self.value
        convolved = 2 * self.key + values
        return {
            "h": self.groups, "r": self.heads, "i": self.key, "j": self.value, "w": self.width, "v": values,
            "z": convolved, "y": convolved + values + self.heads,
        }  # fmt: skip

    @property
    def parameters(self) -> dict[str, Any]:
        """{name: axis letters}."""
        biases = {"win_bias": "h y", "wo_bias": "D"} if self.bias else {}
        biases |= {"taps_bias": "h z"} if self.taps_bias else {}
        heads = dict.fromkeys(("decay", "decay_bias", "skip"), "h r")
        return {"win": "h y D", "taps": "h z w"} | heads | biases | {"norm": {"scale": "h v"}, "wo": "D h v"}

    @property
    def tail(self) -> tuple[int, ...]:
        """What is kept of the last tokens of a row, in the dtype of the cache.  [u h z], u = w - 1"""
        return (self.width - 1, self.groups, self.sizes["z"])

    @property
    def state(self) -> tuple[int, ...] | None:
        """What is kept of all tokens of a row, in float32.  [h r i j]"""
        return (self.groups, self.heads, self.key, self.value)

    @property
    def flops(self) -> int:
        """Of a token, beside the products with its matrices: the convolution, and two products with each state."""
        return 2 * self.groups * self.sizes["z"] * self.width + 4 * self.groups * self.heads * self.key * self.value

    def divided(self, members: int) -> StateSpace:
        """The same with groups of zeros, until so many devices have as many each."""
        return replace(self, groups=-(-self.groups // members) * members)


Mixer = ShortConvolution | GatedDelta | StateSpace
