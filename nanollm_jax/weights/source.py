"""Where a model is, and its config: the bundled one, a folder, a GGUF file, a hub id or a config file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from nanollm_jax import files
from nanollm_jax.errors import CheckpointError, ConfigError
from nanollm_jax.weights import resolve
from nanollm_jax.weights.gguf import is_gguf

BUNDLED = Path(str(resources.files("nanollm_jax"))) / "assets" / "nano-stories"


def find(source: str | os.PathLike[str] | None, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a model, or its GGUF file: None is the one that ships with the library, a hub id is downloaded.

    weights False leaves the tensors of a hub model where they are. Raises CheckpointError where there is no such model.
    """
    if source is not None:
        return resolve(source, revision, weights=weights)
    if revision is not None:
        raise CheckpointError("revision was given without a hub id; the bundled model has only one.")
    return BUNDLED


def find_shape(source: str | os.PathLike[str] | None, revision: str | None = None) -> Path | None:
    """A file in the form of config.json with no model around it: the source itself, or a published shape that ships with the
    library, by its name ("llama-3.1-8b"). None where the source is neither.
    """
    file = Path(os.path.expanduser(source or ""))
    if revision is not None or source is None or os.path.isdir(file) or is_gguf(file):
        return None
    return file if os.path.isfile(file) else shipped().get(os.fspath(source))


def shipped() -> dict[str, Path]:
    """The shapes that ship with the library: {name: file}. They lie in the package, or beside it in a clone."""
    package = Path(str(resources.files("nanollm_jax")))
    folder = next(filter(os.path.isdir, (package / "configs", package.parent / "configs")), package)
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def find_config(source: str | os.PathLike[str] | None, revision: str | None = None) -> Path:
    """The file that says what a model is: one in the form of config.json that stands alone (see find_shape), or that of the
    model that source names, which may be a GGUF file.
    """
    if shape := find_shape(source, revision):
        return shape
    found = find(source, revision, weights=False)
    return found if is_gguf(found) else found / "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError naming the file where there is none."""
    if not files.present(path):
        other = min(path.parent.glob("*.gguf"), default=None) if path.parent.is_dir() else None  # of parts the first
        raise ConfigError(
            f"{path} not found; expected a checkpoint folder with config.json and *.safetensors."
            + (f" To load {other.name}, name the file itself." if other else "")
        )
    return files.read_json(path, ConfigError)
