"""Where a checkpoint keeps its chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanollm_jax.chat.template import ChatTemplate
from nanollm_jax.errors import TokenizerError, shown
from nanollm_jax.files import present
from nanollm_jax.tokenizer import Tokenizer
from nanollm_jax.tokenizer.files import read, read_json


def load_chat_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """chat_template.jinja, else chat_template in tokenizer_config.json, a text or a list of named ones; None without.

    Further named ones are in additional_chat_templates/*.jinja. They are read here and not looked into before they are used.
    Raises TokenizerError for a file that cannot be read and for an entry that is no template.
    """
    path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    sources: dict[str, str] = {}
    if present(path):
        sources["default"] = read_template(path)
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        sources[file.stem] = read_template(file)
    if not sources and present(config_path):
        path = config_path
        sources = named(path, read_json(path).get("chat_template"))
    return ChatTemplate(path, sources, tokenizer) if sources else None


def template_in(path: Path, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template of a GGUF file's metadata, None without. Raises TokenizerError for one that is no text."""
    return ChatTemplate(path, sources, tokenizer) if (sources := sources_in(path, metadata)) else None


def sources_in(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """name -> template: tokenizer.chat_template of a GGUF file's metadata, and further ones as tokenizer.chat_template.NAME."""
    key = "tokenizer.chat_template"
    sources = {}
    for name, source in metadata.items():
        if name == key or name.startswith(f"{key}."):
            if not isinstance(source, str):
                raise TokenizerError(f"{path}: {name} is {shown(source)}; expected a template.")
            sources[name.removeprefix(key).removeprefix(".") or "default"] = source
    return sources


def read_template(path: Path) -> str:
    """The text of one file."""
    try:
        return read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 ({error}); copy it again from the checkpoint.") from None


def named(path: Path, entry: Any) -> dict[str, str]:
    """What tokenizer_config.json says -> name -> template."""
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    sources = {}
    for one in entry if isinstance(entry, list) else [entry]:
        if (
            not isinstance(one, dict)
            or not isinstance(one.get("name"), str)
            or not isinstance(one.get("template"), str)
        ):
            raise TokenizerError(
                f"{path}: chat_template has {one!r:.80}; expected a text, or a list of names and templates."
            )
        sources[one["name"]] = one["template"]
    return sources
