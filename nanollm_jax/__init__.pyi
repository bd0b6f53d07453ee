# What the package gives, and where it is from: read by type checkers and editors, and by __init__.py when it runs.

from nanollm_jax.cache import KVCache as KVCache
from nanollm_jax.cache import init_cache as init_cache
from nanollm_jax.chat import ChatTemplate as ChatTemplate
from nanollm_jax.config import LayerConfig as LayerConfig
from nanollm_jax.config import ModelConfig as ModelConfig
from nanollm_jax.config import Rope as Rope
from nanollm_jax.decode import State as State
from nanollm_jax.decode import decode as decode
from nanollm_jax.decode import prefill as prefill
from nanollm_jax.defaults import Defaults as Defaults
from nanollm_jax.devices.mesh import make_mesh as make_mesh
from nanollm_jax.devices.programs import forward as forward
from nanollm_jax.engine.answer import Generation as Generation
from nanollm_jax.engine.conversation import Conversation as Conversation
from nanollm_jax.engine.conversation import chat as chat
from nanollm_jax.engine.conversation import encode_chat as encode_chat
from nanollm_jax.engine.conversation import stream_chat as stream_chat
from nanollm_jax.engine.drafts import Lookup as Lookup
from nanollm_jax.engine.embed import embed as embed
from nanollm_jax.engine.generate import Stream as Stream
from nanollm_jax.engine.generate import generate as generate
from nanollm_jax.engine.generate import stream as stream
from nanollm_jax.engine.request import encode as encode
from nanollm_jax.engine.score import Score as Score
from nanollm_jax.engine.score import score as score
from nanollm_jax.engine.warmup import warmup as warmup
from nanollm_jax.errors import CheckpointError as CheckpointError
from nanollm_jax.errors import ConfigError as ConfigError
from nanollm_jax.errors import GrammarError as GrammarError
from nanollm_jax.errors import NanoLLMError as NanoLLMError
from nanollm_jax.errors import NanoLLMWarning as NanoLLMWarning
from nanollm_jax.errors import NumericsError as NumericsError
from nanollm_jax.errors import RequestError as RequestError
from nanollm_jax.errors import TokenizerError as TokenizerError
from nanollm_jax.families import read_config as read_config
from nanollm_jax.glass.harvest import harvest as harvest
from nanollm_jax.glass.observe import observe as observe
from nanollm_jax.grammar import Grammar as Grammar
from nanollm_jax.loading import Model as Model
from nanollm_jax.loading import load as load
from nanollm_jax.loading import shard as shard
from nanollm_jax.params import init_params as init_params
from nanollm_jax.settings import Sampling as Sampling
from nanollm_jax.startup import keep_compiled as keep_compiled

__version__: str
