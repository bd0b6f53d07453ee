"""Weights: a folder, a GGUF file or a hub id -> the file(s) with tensors -> arrays on their device, tensor by tensor.

rows.py says how one tensor becomes one parameter, checkpoint.py and gguf.py what is in the files, load.py brings the two
together, hub.py finds the folder or the file. Nothing here knows a model family or its config: tables, layouts and sizes
are handed in. Of these only load.py needs jax, and it is not imported here.
"""

from nanollm_jax.weights.checkpoint import Checkpoint, open_checkpoint
from nanollm_jax.weights.hub import resolve
from nanollm_jax.weights.rows import Row

__all__ = ["Checkpoint", "Row", "open_checkpoint", "resolve"]
