"""Parameters onto the devices of a mesh: every device asks for its own part, and for no more.

Along "tp" a device holds some heads, a part of the MLP and a part of the vocabulary. What tp does not divide is made up with
zeros, and key/value heads may be repeated, which changes no number that the model computes (partition.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from nanollm_jax import params
from nanollm_jax.config import ModelConfig
from nanollm_jax.letters import spec
from nanollm_jax.ops.groupwise_making import groupwise
from nanollm_jax.ops.kept import letters_of, parted
from nanollm_jax.params import Params
from nanollm_jax.partition import RULE, arrange, sources, stored_sizes

Part = Callable[[tuple[slice, ...]], np.ndarray]  # from an index to that part of a parameter


def spread(
    part: Part, letters: str, dtype: Any, config: ModelConfig, mesh: Mesh, held: Sequence[int] | None = None
) -> jax.Array:
    """One parameter onto its devices, each of which asks for its own part only.

    part(index) gives that part of the parameter as `config`, not arranged, has it, in dtype. Heads are divided and repeated
    here, and what tp does not divide is made up with zeros. held is how long the axes of the array are, where the config
    knows nothing of one, or an entry stands for several of the config's: a scale for a group of inputs.
    """
    tp, names = mesh.shape["tp"], letters.split()
    own, sizes = sources(config, tp), stored_sizes(arrange(config, tp), tp)
    share = [1] * len(names)
    if held is not None:
        share = [config.sizes.get(name, size) // size for name, size in zip(names, held, strict=True)]
        sizes = dict(zip(names, held, strict=True)) | sizes
    shape = tuple(sizes[letter] // count for letter, count in zip(names, share, strict=True))

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        wanted = {axis: (own[name][:: share[axis]] // share[axis])[index[axis]]
                  for axis, name in enumerate(names) if name in own}  # fmt: skip
        cuts = [around(wanted[axis]) if axis in wanted else slice(0, size) for axis, size in enumerate(shape)]
        if Q := next((name for name in names if name[0] in "QR"), None):  # asked for whole: several tensors share it
            k, mark = names.index(Q) - 1, Q[1:]
            whole, G, R = (config.sizes[letter + mark] for letter in (Q[0], "G", "R"))
            query = own[f"N{mark}"].reshape(sizes[f"K{mark}"], sizes[f"G{mark}"])[index[k]]
            found = part((*cuts[: k + 1], slice(0, whole), *cuts[k + 2 :]))
            first, front, back = cuts[k].start, range(k), range(-k, 0)
            heads = behind(wanted[k], first), behind(query, first * G)
            return np.moveaxis(divide_heads(np.moveaxis(found, front, back), *heads, G, whole - R), back, front)
        found = part(tuple(cuts))
        for axis, source in wanted.items():
            found = select(found, behind(source, cuts[axis].start), axis)
        return found

    def placed(index: Any) -> np.ndarray:
        return np.ascontiguousarray(piece(index), dtype)

    return jax.make_array_from_callback(shape, NamedSharding(mesh, spec(letters)), placed)


def around(source: np.ndarray) -> slice:
    """The shortest slice that has all of these positions in it; -1 is none of them."""
    there = source[source >= 0]
    return slice(int(there.min()), int(there.max()) + 1) if there.size else slice(0, 0)


def behind(source: np.ndarray, first: int) -> np.ndarray:
    """Positions counted from `first` on; -1 stays."""
    return np.where(source < 0, -1, source - first)


def select(array: np.ndarray, source: np.ndarray, axis: int = 0) -> np.ndarray:
    """These positions of an axis, and zeros for -1; the array itself where they are all that it has."""
    if np.array_equal(source, np.arange(array.shape[axis])):
        return array
    found = np.zeros((*array.shape[:axis], len(source), *array.shape[axis + 1 :]), array.dtype)
    there: Any = (*[slice(None)] * axis, source >= 0)
    found[there] = np.take(array, source[source >= 0], axis)
    return found


def divide_heads(wqkv: np.ndarray, key: np.ndarray, query: np.ndarray, G: int, beside: int = 2) -> np.ndarray:
    """Key/value heads with their queries, cut into shares.  wqkv [k R+2 ...], key [K'], query [K' G'] -> [K' R'+2 ...]

    R is G, or 2G where a gate comes behind each query, and goes with it. beside is 2, 1 where a key is the value too, or 0. key
    says which head each new one is, query which of the k*G queries it serves; -1 is zeros. k = 1, G = 7, G' = 4, key (0 0),
    query (0 1 2 3), (4 5 6 -1): the head (q0 ... q6 k v) becomes (q0 q1 q2 q3 k v) and (q4 q5 q6 0 k v).
    """
    k, Q, *rest = wqkv.shape
    if np.array_equal(query.reshape(query.size), np.arange(k * G)):
        return wqkv  # as it is
    R = Q - beside
    each = R // G
    queries = select(wqkv[:, :R].reshape(k * G, each, *rest), query.reshape(query.size))
    shares = queries.reshape(query.shape[0], query.shape[1] * each, *rest)
    return np.concatenate([shares, select(wqkv[:, R:], key)], axis=1)


def shard_params(whole: Params, config: ModelConfig, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Parameters that are in one place -> the config as the mesh holds it, and the parameters on it.

    Where that place is a device, it holds them all; NumPy's arrays come to each device in its part. Raises CheckpointError
    where config and parameters do not match.
    """
    arranged = arrange(config, mesh.shape["tp"])
    params.check_params(whole, config)
    letters, flat = params.layout(config), params.flatten(whole)
    return arranged, params.nest({path: shard_weight(flat[path], letters[path], config, mesh) for path in letters})


def shard_weight(weight: Any, letters: str, config: ModelConfig, mesh: Mesh) -> Any:
    """One weight that is in one place, of any kind, onto the devices of a mesh; where its arrays are NumPy's, on no other."""
    tp = mesh.shape["tp"]

    def placed(array: Any, axes: str) -> jax.Array:
        array = np.asarray(array)
        # copied: JAX on CPU takes over memory as it is, and a file's may change
        return spread(lambda index: array[index].copy(), axes, array.dtype, config, mesh, array.shape)

    last, sizes = letters.split()[-1], stored_sizes(arrange(config, tp), tp)
    found = parted(weight, sizes[last] // (tp if RULE.get(last) == "tp" else 1))
    return jax.tree.map(placed, found, letters_of(found, letters))


def keep_few(path: str, dtype: Any, config: ModelConfig, mesh: Mesh | None, groups: Any) -> Any:
    """A weight in the bits that its file has (Groups of weights/quantised), for activations in dtype; None where a mesh cannot
    divide it.
    """
    if mesh is not None and groups.order is not None:
        return None
    table, order = None if groups.table is None else tuple(map(float, groups.table)), groups.order
    arrays = groups.values, groups.scale, groups.offset
    how: Any = dict(bits=groups.bits, dtype=np.dtype(dtype), table=table)
    if mesh is None:
        return params.few(*arrays, order, **how)
    return shard_weight(groupwise(*arrays, **how), params.layout(config)[path], config, mesh)
