"""From a Model to a folder that load reads: the inverse of the families' tables of tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nanollm_jax import files
from nanollm_jax import params as parameters
from nanollm_jax.dtypes import PLAIN
from nanollm_jax.errors import RequestError
from nanollm_jax.loading import Model
from nanollm_jax.sources import source_at
from nanollm_jax.weights import quantised
from nanollm_jax.weights.checkpoint import SINGLE
from nanollm_jax.weights.kept import description
from nanollm_jax.weights.rows import Row, rearrange, stored_shape
from nanollm_jax.weights.write import Stored, write_tensors


def save(model: Model, folder: str | os.PathLike[str]) -> Path:
    """Write a model into a new folder as a checkpoint, in its dtype: for load, and for whoever reads its family. -> the folder

    Parameters that were changed, by training them elsewhere, are what is written: save(dataclasses.replace(model,
    params=...), folder). config.json and the tokenizer's files are those of model.folder, where the model is from, or made of
    what its GGUF file says; tensors have the names that this family is published with. Of models that see images too, the
    text's alone are written.
    One whose matrices are in few bits is written as it is in memory, which load alone reads, and in one step.
    Raises RequestError where the folder is there, cannot be written or has no room, for a model on a mesh, with adapters
    beside its weights or made in memory, and where model.folder has another architecture's config.json.
    """
    if not isinstance(model, Model):
        raise RequestError(f"the first argument is {type(model).__name__}; expected a model, as load gives.")
    if model.mesh is not None:
        raise RequestError(f"this model is on a mesh of {dict(model.mesh.shape)}; load it without one to save it.")
    if parameters.adapted(model.params):
        raise RequestError(
            "this model has adapters beside its weights, which no checkpoint has; load it with merge= to write it with one of "
            "them in its weights, or without adapters."
        )
    few = [name for name in parameters.names(model.params, model.config) if name not in PLAIN]
    if few and model.dtype.name in PLAIN:
        raise RequestError(
            f"this model's matrices are in the bits that they were published in ({' and '.join(few)}), in which none is "
            f"written; load it with dtype {', '.join(PLAIN)}, or int8 or int4, which round it anew."
        )
    if model.folder is None:
        raise RequestError(
            "this model was made in memory, so there is no config.json for it, and no file with its tokenizer; "
            "dataclasses.replace(model, folder=...) names a folder that has them, such as the checkpoint's."
        )
    source = source_at(model.folder)
    config, family = source.config()
    if config != model.config:
        raise RequestError(f"{model.folder}: config.json is of another architecture than this model's.")
    config_json = {key: value for key, value in source.config_json.items() if key not in quantised.KEYS}
    if model.dtype.name in PLAIN:
        rows = [row for row in family.table(config) if row.path in parameters.layout(config) and not row.instead]
        tensors = tensors_of(model, rows, family.PREFIXES[0])
    else:
        tensors, config_json = as_kept(model), config_json | description(model.dtype.name)
    with files.new_folder(folder, RequestError, model.nbytes + 2**24) as part:
        write_tensors(part / SINGLE, tensors)
        for key in [key for key in ("dtype", "torch_dtype") if key in config_json] or ["torch_dtype"]:
            config_json |= {key: model.dtype.activations.name}
        (part / "config.json").write_text(json.dumps(config_json, indent=2) + "\n")
        source.copy_beside(part)
    return Path(os.path.expanduser(folder))


def as_kept(model: Model) -> dict[str, Stored]:
    """{name: array} of all parameters, as they are in memory. Raises RequestError where a matrix is in another form."""
    flat, forms = parameters.flatten(model.params), parameters.forms(model.config, model.dtype)
    like = lambda found: [(leaf.shape, np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(found)]  # noqa: E731
    trees: list[Any] = [jax.tree.structure(tree) for tree in (flat, forms)]
    if trees[0] != trees[1] or like(flat) != like(forms):
        raise RequestError(
            f"this model's matrices are in few bits of another form than {model.dtype.name}; load it in float32 or bfloat16."
        )
    arrays = parameters.named(flat)
    return {name: (leaf.dtype.name, leaf.shape, partial(np.asarray, leaf)) for name, leaf in arrays.items()}


def tensors_of(model: Model, rows: list[Row], prefix: str) -> dict[str, Stored]:
    """{published name: tensor} of all parameters, each made when it is its turn."""
    sizes, flat = model.config.sizes, parameters.flatten(model.params)
    sharing: dict[str, list[Row]] = {}
    for row in rows:
        sharing.setdefault(row.names(prefix)[0], []).append(row)

    def tensor(rows: list[Row]) -> np.ndarray:
        """The one tensor of which each of these rows takes a part."""
        whole = np.empty(stored_shape(rows, sizes), flat[rows[0].path].dtype)
        for row in rows:
            theirs, _, ours = row.axes.partition("->")
            back = f"{ours or theirs} -> {theirs}"
            whole[row.cut()] = rearrange(np.asarray(flat[row.path])[row.piece()], back, sizes)
        return whole

    def described(rows: list[Row]) -> tuple[str, tuple[int, ...], Callable[[], Any]]:
        return model.dtype.name, stored_shape(rows, sizes), partial(tensor, rows)

    return {name: described(rows) for name, rows in sharing.items()}
