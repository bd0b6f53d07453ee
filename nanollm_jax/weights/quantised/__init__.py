"""Weights in few bits, as other programs publish them: one small file for each way to lie in tensors.

description.py reads what config.json says of it, and has the table of methods. A method says which of a checkpoint's tensors
make one weight together (packed.py) and gives their numbers as groups (groups.py): whole numbers or small floats, a scale and
perhaps an offset for each group of a row. All forms come down to that one record. checkpoint.py shows the result under
the names that the model's family has in its table.

What only speeds other programs up, or computes with activations in 8 bits, changes nothing here: weights have
the published numbers, activations stay as they are.
"""

from nanollm_jax.weights.quantised.checkpoint import decoded
from nanollm_jax.weights.quantised.description import KEYS, beside, describe, of_whole

__all__ = ["KEYS", "beside", "decoded", "describe", "of_whole"]
