"""Where a model is, and its config: the bundled one, a folder, a hub id or a file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from nanollm_jax import files
from nanollm_jax.errors import CheckpointError, ConfigError
from nanollm_jax.weights import resolve


def find(source: str | os.PathLike[str] | None, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a model: None is the one that ships with the library, a hub id is downloaded.

    weights False leaves the tensors of a hub model where they are. Raises CheckpointError where there is no such model.
    """
    if source is not None:
        return resolve(source, revision, weights=weights)
    if revision is not None:
        raise CheckpointError("revision was given without a hub id; the bundled model has only one.")
    return Path(str(resources.files("nanollm_jax"))) / "assets" / "nano-stories"


def find_config(source: str | os.PathLike[str] | None, revision: str | None = None) -> Path:
    """A file in the form of config.json: the source itself, or that of the model that it names."""
    file = Path(os.path.expanduser(source or ""))
    return file if revision is None and os.path.isfile(file) else find(source, revision, weights=False) / "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError naming the file where there is none."""
    if not files.present(path):
        raise ConfigError(f"{path} not found; expected a checkpoint folder with config.json and *.safetensors.")
    return files.read_json(path, ConfigError)
