"""nanollm_jax: transformer language-model inference in JAX, minimal and complete.

import nanollm_jax as nano
model = nano.load()
print(nano.generate(model, "Once upon a time").text)
"""

from nanollm_jax.answer import Generation
from nanollm_jax.cache import KVCache, init_cache
from nanollm_jax.config import ModelConfig
from nanollm_jax.decode import State, decode, prefill
from nanollm_jax.errors import CheckpointError, ConfigError, NanoLLMError, RequestError, TokenizerError
from nanollm_jax.families import read_config
from nanollm_jax.generate import Stream, generate, stream
from nanollm_jax.loading import Defaults, Model, load, shard
from nanollm_jax.observe import observe
from nanollm_jax.params import init_params
from nanollm_jax.sampling import Sampling
from nanollm_jax.sharding import forward, make_mesh

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Defaults",
    "Generation",
    "KVCache",
    "Model",
    "ModelConfig",
    "NanoLLMError",
    "RequestError",
    "Sampling",
    "State",
    "Stream",
    "TokenizerError",
    "decode",
    "forward",
    "generate",
    "init_cache",
    "init_params",
    "load",
    "make_mesh",
    "observe",
    "prefill",
    "read_config",
    "shard",
    "stream",
]
