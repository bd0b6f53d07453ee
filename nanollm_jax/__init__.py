"""nanollm_jax: transformer language-model inference in JAX, minimal and complete.

import nanollm_jax as nano
model = nano.load()
print(nano.generate(model, "Once upon a time").text)

A name is imported when it is first used: `import nanollm_jax` alone does not wait for jax.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanollm_jax.answer import Generation
    from nanollm_jax.cache import KVCache, init_cache
    from nanollm_jax.chat import ChatTemplate
    from nanollm_jax.config import ModelConfig
    from nanollm_jax.conversation import Conversation, chat, encode_chat, stream_chat
    from nanollm_jax.decode import State, decode, prefill
    from nanollm_jax.errors import CheckpointError, ConfigError, NanoLLMError, RequestError, TokenizerError
    from nanollm_jax.families import read_config
    from nanollm_jax.generate import Stream, generate, stream
    from nanollm_jax.loading import Defaults, Model, load, shard
    from nanollm_jax.observe import observe
    from nanollm_jax.params import init_params
    from nanollm_jax.sampling import Sampling
    from nanollm_jax.score import Score, score
    from nanollm_jax.sharding import forward, make_mesh
    from nanollm_jax.startup import keep_compiled, warmup

__version__ = "0.1.0"

HOME = {
    "ChatTemplate": "chat",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Conversation": "conversation",
    "Defaults": "loading",
    "Generation": "answer",
    "KVCache": "cache",
    "Model": "loading",
    "ModelConfig": "config",
    "NanoLLMError": "errors",
    "RequestError": "errors",
    "Sampling": "sampling",
    "Score": "score",
    "State": "decode",
    "Stream": "generate",
    "TokenizerError": "errors",
    "chat": "conversation",
    "decode": "decode",
    "encode_chat": "conversation",
    "forward": "sharding",
    "generate": "generate",
    "init_cache": "cache",
    "init_params": "params",
    "keep_compiled": "startup",
    "load": "loading",
    "make_mesh": "sharding",
    "observe": "observe",
    "prefill": "decode",
    "read_config": "families",
    "score": "score",
    "shard": "loading",
    "stream": "generate",
    "stream_chat": "conversation",
    "warmup": "startup",
}
__all__ = [
    "ChatTemplate",
    "CheckpointError",
    "ConfigError",
    "Conversation",
    "Defaults",
    "Generation",
    "KVCache",
    "Model",
    "ModelConfig",
    "NanoLLMError",
    "RequestError",
    "Sampling",
    "Score",
    "State",
    "Stream",
    "TokenizerError",
    "chat",
    "decode",
    "encode_chat",
    "forward",
    "generate",
    "init_cache",
    "init_params",
    "keep_compiled",
    "load",
    "make_mesh",
    "observe",
    "prefill",
    "read_config",
    "score",
    "shard",
    "stream",
    "stream_chat",
    "warmup",
]


class Package(ModuleType):
    """This module. Importing the file decode.py would bind its name here, where it is that of the function decode."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Bind a name, unless it is a public one and the value the file of that name."""
        if not (name in HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """A public name, from its room, on its first use."""
        if name not in HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        """What there is, imported or not."""
        return sorted({*super().__dir__(), *HOME})


sys.modules[__name__].__class__ = Package
