"""Where a model's parts are read: of any source the same five, config, defaults of generating, tensors, tokenizer, template."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from nanollm_jax import files, layout
from nanollm_jax.chat import ChatTemplate, load_chat_template
from nanollm_jax.chat.load import sources_in, template_in
from nanollm_jax.config import ModelConfig
from nanollm_jax.defaults import Defaults, read_defaults
from nanollm_jax.dtypes import DTYPES, PLAIN
from nanollm_jax.errors import CheckpointError
from nanollm_jax.families import FAMILIES, read_config
from nanollm_jax.families.gguf import checkpoint_of, config_of
from nanollm_jax.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from nanollm_jax.tokenizer.gguf import files_of, from_metadata
from nanollm_jax.tokenizer.load import FILES, tiktoken_files
from nanollm_jax.weights import Checkpoint, open_checkpoint, quantised
from nanollm_jax.weights.gguf import GGUF, is_gguf, open_gguf
from nanollm_jax.weights.kept import described
from nanollm_jax.weights.quantised.together import joined
from nanollm_jax.weights.source import read_json

# what a checkpoint has besides its weights and config.json
BESIDE = (
    *FILES, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "LICENSE", "LICENSE.txt",
)  # fmt: skip
# what a GGUF file says of choosing tokens, in generation_config.json's words
SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """A folder in checkpoint form."""

    path: Path

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.path

    @cached_property
    def config_json(self) -> dict[str, Any]:
        """What is in config.json, and what a file beside it says of quantised weights where it says nothing."""
        return config_json_at(self.path / "config.json")

    @property
    def kept(self) -> str | None:
        """The dtype in which its tensors are parameters as they are kept in memory; None where they are a family's."""
        return kept_in(self.config_json, str(self.path / "config.json"))

    def config(self) -> tuple[ModelConfig, ModuleType]:
        """Of config.json."""
        return read_config(self.config_json, str(self.path / "config.json"))

    def tensors(self) -> Checkpoint:
        """Of *.safetensors, those that make one weight in few bits together under its name."""
        checkpoint, where = open_checkpoint(self.path), str(self.path / "config.json")
        if self.kept is not None:
            return checkpoint
        if (method := quantised.describe(self.config_json, where)) is None:
            return checkpoint
        family = FAMILIES.get(str(self.config_json.get("model_type")))
        return quantised.decoded(checkpoint, method, getattr(family, "INPUTS_FIRST", None))

    def tokenizer(self) -> Tokenizer | None:
        """Of tokenizer.json, tokenizer.model and the like."""
        return load_tokenizer(self.path) if has_tokenizer(self.path) else None

    def template(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Of chat_template.jinja or tokenizer_config.json."""
        return load_chat_template(self.path, tokenizer)

    def defaults(self, config: ModelConfig, eos_id: int | None = None) -> Defaults:
        """Of generation_config.json."""
        return read_defaults(self.config_json, self.path, config, eos_id)

    def copy_beside(self, folder: Path) -> None:
        """Put all that it has besides weights and config.json into another folder."""
        for path in (*(self.path / name for name in BESIDE), *tiktoken_files(self.path)):
            if files.present(path):
                files.copy(path, folder, CheckpointError)


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file, or several that are parts of one, of which this is the first."""

    path: Path

    kept = None  # none has parameters as they are kept

    @property
    def folder(self) -> Path:
        """Where all of it is: the file."""
        return self.path

    @cached_property
    def file(self) -> GGUF:
        """Its header."""
        return open_gguf(self.path)

    @cached_property
    def config_json(self) -> dict[str, Any]:
        """Its metadata in config.json's words."""
        return config_of(self.file)

    def config(self) -> tuple[ModelConfig, ModuleType]:
        """Of its metadata."""
        return read_config(self.config_json, str(self.path))

    def tensors(self) -> Checkpoint:
        """Its tensors under the family's names."""
        return checkpoint_of(self.file, self.config_json)

    def tokenizer(self) -> Tokenizer | None:
        """Of its metadata."""
        return from_metadata(self.path, self.file.metadata)

    def template(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Of its metadata."""
        return template_in(self.path, self.file.metadata, tokenizer)

    def defaults(self, config: ModelConfig, eos_id: int | None = None) -> Defaults:
        """The ids that end an answer, and general.sampling.*; who writes these means tokens to be drawn."""
        return read_defaults(self.config_json, self.path, config, eos_id, self.generation)

    @property
    def generation(self) -> dict[str, Any]:
        """What it says of choosing tokens, in generation_config.json's words."""
        said = {name: self.file.metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
        given = {name: value for name, value in said.items() if value is not None}
        return given | ({"do_sample": True} if given else {})

    def copy_beside(self, folder: Path) -> None:
        """Write the files of tokenizer, template and defaults that a checkpoint has besides weights and config.json."""
        found = files_of(self.path, self.file.metadata)
        if templates := sources_in(self.path, self.file.metadata):
            config = json.loads(found.get("tokenizer_config.json", b"{}"))
            named = [{"name": name, "template": text} for name, text in templates.items()]
            config["chat_template"] = templates["default"] if [*templates] == ["default"] else named
            found["tokenizer_config.json"] = (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode()
        ends = self.config_json["eos_token_id"]
        found["generation_config.json"] = json.dumps(self.generation | {"eos_token_id": ends}, indent=1).encode()
        for name, data in found.items():
            (folder / name).write_bytes(data)


Source = Folder | GGUFFile


def source_at(path: Path) -> Source:
    """What is at a path: a GGUF file, or else a folder. Nothing of it is read.

    Each part is read when it is asked for; ConfigError, CheckpointError or TokenizerError name the file.
    """
    return GGUFFile(path) if is_gguf(path) else Folder(path)


def nbytes_of_few(
    checkpoint: Checkpoint, config: ModelConfig, family: ModuleType, on_mesh: bool = False
) -> dict[str, int]:
    """{path: bytes in memory} of the parameters that stay in the few bits that they are published in, where dtype is "auto".

    At most so many: offsets that are zeros are found when numbers are read, and so are pieces of one that are of several kinds.
    """
    few, letters, shapes = checkpoint.few(), layout.layout(config), layout.shapes(config)
    pieces: dict[str, set[str]] = {path: set() for path in layout.large_matrices(config)} if any(few.values()) else {}
    for row in family.table(config) if pieces else []:
        names = {name for prefix in family.PREFIXES for name in row.names(prefix)} & checkpoint.names()
        pieces.get(row.path, set()).update(names)
    found = {}
    for path, names in pieces.items():
        forms = [form for name in names if (form := few.get(name)) is not None]
        if on_mesh and any(map(checkpoint.reordered, names)):
            continue  # decoded
        if forms and len(forms) == len(names) and (kept := joined(forms, config.sizes[letters[path].split()[-1]])):
            found[path] = kept.nbytes(math.prod(shapes[path]))
    return found


def kept_in(config_json: dict[str, Any], where: str) -> str | None:
    """The dtype in which a checkpoint has parameters as they are kept in memory; None for another. Raises ConfigError."""
    return described(config_json, where, tuple(name for name in DTYPES if name not in PLAIN))


def config_json_at(path: Path) -> dict[str, Any]:
    """What a file says of an architecture, in config.json's words: one in that form, or a GGUF file.

    What another file beside it says of quantised weights stands there too, where it says nothing itself.
    """
    if is_gguf(path):
        return GGUFFile(path).config_json
    values = quantised.of_whole(read_json(path))
    return values if any(values.get(key) for key in quantised.KEYS) else values | quantised.beside(path.parent)
