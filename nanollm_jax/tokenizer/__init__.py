"""Text to ids and back: one `Tokenizer` protocol over the file formats that checkpoints come with.

Every format ends as the same thing: a table from id to bytes and a function from text to ids (table.py). The adapters
only read files: sentencepiece_model.py, tokenizer_json.py, bpe_files.py, ranks.py, gguf.py. pieces.py says how an entry
spells bytes.

A file may come from anywhere, and the libraries that run it build whatever it says: checks.py, charsmap.py, protobuf.py and
patterns.py look at it first, and what they cannot bound is run in a process with limits (confined.py, sandbox.py).
"""

from nanollm_jax.tokenizer.interface import Tokenizer
from nanollm_jax.tokenizer.load import has_tokenizer, load_tokenizer
from nanollm_jax.tokenizer.table import IncrementalDecoder

__all__ = ["IncrementalDecoder", "Tokenizer", "has_tokenizer", "load_tokenizer"]
