"""The library's own exceptions: one root, one child for each door that bad input can come through.

Every message says what was found, what was expected, and what to do about it.
"""


class NanoLLMError(Exception):
    """Root of every error that this library raises on purpose."""


class ConfigError(NanoLLMError):
    """A model description (config.json, generation_config.json or ModelConfig) that is broken or not supported."""


class CheckpointError(NanoLLMError):
    """Files of weights that are missing, damaged, or do not match their config."""


class TokenizerError(NanoLLMError):
    """Tokenizer files that are missing, damaged, or do not match the model."""


class RequestError(NanoLLMError):
    """A call whose arguments cannot be honoured: prompts, counts, sampling settings, stops, seeds."""
