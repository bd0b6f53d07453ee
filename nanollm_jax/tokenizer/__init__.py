"""Text to ids and back: one `Tokenizer` protocol over the file formats that checkpoints come with.

Every format ends as the same thing: a table from id to bytes and a function from text to ids (table.py). The adapters
only read files: sentencepiece_model.py, tokenizer_json.py, bpe_files.py. pieces.py says how an entry spells bytes.
"""

from nanollm_jax.tokenizer.interface import Tokenizer
from nanollm_jax.tokenizer.load import has_tokenizer, load_tokenizer
from nanollm_jax.tokenizer.table import IncrementalDecoder

__all__ = ["IncrementalDecoder", "Tokenizer", "has_tokenizer", "load_tokenizer"]
