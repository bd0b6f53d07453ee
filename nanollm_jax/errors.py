"""The library's own exceptions: one root, one child for each door that bad input can come through; and its warning.

Every message says what was found, what was expected, and what to do about it.
"""

from typing import Any

UNQUANTISED = 'take the original checkpoint; --dtype int8 (in Python dtype="int8") keeps it in a quarter of the memory'
LONGEST = 2000  # characters of a message: what was found may be a file


class NanoLLMError(Exception):
    """Root of every error that this library raises on purpose."""

    def __init__(self, message: str = "") -> None:
        """A message that is too long to be read loses its middle."""
        super().__init__(readable(message))


def readable(message: str) -> str:
    """A message of at most LONGEST characters and three dots, its beginning and its end."""
    half = LONGEST // 2
    return message if len(message) <= LONGEST else f"{message[:half]} ... {message[-half:]}"


def shown(value: Any, most: int = 80) -> str:
    """How a value looks in a message: its beginning, where it is long, and its type, where Python cannot write it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of 5,000 digits, a list of lists of lists ...
        return f"a {type(value).__name__} too long to be written"
    return text if len(text) <= most else f"{text[:most]}..."


class ConfigError(NanoLLMError):
    """A model description (config.json, generation_config.json or ModelConfig) that is broken or not supported."""


class CheckpointError(NanoLLMError):
    """Files of weights that are missing, damaged, or do not match their config."""


class TokenizerError(NanoLLMError):
    """Tokenizer files that are missing, damaged, or do not match the model."""


class NumericsError(NanoLLMError):
    """A model that computes numbers that are none.  where: "the logits of token 3" """

    def __init__(self, where: str) -> None:
        self.where = where
        super().__init__(
            f"{where} are infinite or NaN: the weights are damaged, or their dtype is too small for this model; copy its "
            "files again, or load it with dtype='float32'."
        )


class RequestError(NanoLLMError):
    """A call whose arguments cannot be honoured: prompts, counts, sampling settings, stops, seeds."""


class GrammarError(RequestError):
    """A grammar that cannot be read, needs too much, or cannot be followed with the tokens that a model has."""


class NanoLLMWarning(UserWarning):
    """Something in a model's files that is left aside: nothing that is computed depends on it, or it is said what does."""

    def __init__(self, message: str = "") -> None:
        """A message that is too long to be read loses its middle."""
        super().__init__(readable(message))
