"""Reading tokenizer files, and the small JSON files beside them that say which tokens are special."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nanollm_jax import files
from nanollm_jax.errors import TokenizerError, shown

MOST = 100_000_000  # bytes of one file; the largest that was published, of 262,144 tokens, has 33 million

# Which token begins and ends a text, where no file says so: the first of these that is among the special tokens.
USUAL_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>")
USUAL_EOS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
# The tokens that a config can give a name of its own; chat templates ask for them by these.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read(path: Path) -> bytes:
    """The bytes of a file. Raises TokenizerError where it cannot be read, is empty, or is not the file itself."""
    return files.read(path, TokenizerError, MOST)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises TokenizerError for anything else."""
    return files.read_json(path, TokenizerError, MOST)


class AddedToken(NamedTuple):
    """One entry of added_tokens_decoder."""

    content: str
    special: bool


@dataclass(frozen=True)
class Settings:
    """What tokenizer_config.json and special_tokens_map.json say; None and {} for what they leave open."""

    path: Path
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos_token: bool | None = None
    add_prefix_space: bool | None = None
    tokenizer_class: str | None = None
    legacy: bool | None = None
    none: frozenset[str] = frozenset()  # what the config says there is none of: "bos_token": null
    names: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[int, AddedToken] = field(default_factory=dict)

    def special_names(self) -> set[str]:
        """The tokens that these files call special."""
        named = {name for name in (self.bos_token, self.eos_token) if name}
        return named | {token.content for token in self.added.values() if token.special}

    def bos_and_eos(
        self, special: Mapping[str, int], *, bos_id: int | None = None, eos_id: int | None = None
    ) -> tuple[int | None, int | None]:
        """The ids of BOS and EOS: as named here, else as the tokenizer file has them, else by their usual names, unless the
        config says that there is none.

        special: token -> id.  bos_id, eos_id: what the tokenizer file says.  Raises TokenizerError for an unknown name.
        """

        def find(key: str, name: str | None, token_id: int | None, usual: tuple[str, ...]) -> int | None:
            if name is None and (token_id is not None or key in self.none):
                return token_id
            if name is None:
                return next((special[t] for t in usual if t in special), None)
            if name not in special:
                raise TokenizerError(f"{self.path}: names {name!r}, which is not in the vocabulary; correct the name.")
            return special[name]

        bos = find("bos_token", self.bos_token, bos_id, USUAL_BOS)
        return bos, find("eos_token", self.eos_token, eos_id, USUAL_EOS)

    def wants_bos(self, bos_id: int | None, *, default: bool) -> bool:
        """add_bos_token where the config has it, otherwise the default of the format; never where there is no BOS."""
        if self.add_bos_token and bos_id is None:
            raise TokenizerError(f"{self.path}: add_bos_token is true, but there is no BOS; name it as bos_token.")
        return bos_id is not None and (default if self.add_bos_token is None else self.add_bos_token)


def read_settings(folder: Path) -> Settings:
    """The Settings of a folder; both files may be absent. Raises TokenizerError for a value of the wrong kind."""
    path, map_path = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_json(path) if files.present(path) else {}
    none = frozenset(key for key in NAMED if key in config and config[key] is None)
    said = read_json(map_path) if files.present(map_path) else {}
    said = {key: value for key, value in said.items() if key not in none}
    said |= {key: value for key, value in config.items() if value not in (None, "")}

    def value(key: str, kind: type, default: Any = None, entries: Mapping[str, Any] = said) -> Any:
        found = entries.get(key)
        if found is not None and not isinstance(found, kind):
            raise TokenizerError(f"{path}: {key} is {shown(found)}; expected {kind.__name__}.")
        return default if found is None else found

    def name(key: str) -> str | None:
        # Some versions store {"content": "<s>", "lstrip": false, ...} where others store "<s>".
        found = said.get(key)
        return (value("content", str, entries=found) if isinstance(found, dict) else value(key, str)) or None

    added = {}
    for token_id, entry in value("added_tokens_decoder", dict, {}).items():
        if not (
            re.fullmatch("[0-9]{1,9}", token_id) and isinstance(entry, dict) and isinstance(entry.get("content"), str)
        ):
            found = f"{shown(token_id)}: {shown(entry)}"
            raise TokenizerError(f"{path}: added_tokens_decoder has {found}; expected an id and its content.")
        added[int(token_id)] = AddedToken(entry["content"], value("special", bool, False, entry))
    if "added_tokens_decoder" not in config and not files.present(folder / "tokenizer.json"):
        special = {token for key in NAMED if (token := name(key))} | further(path, said)
        added = added_tokens(folder / "added_tokens.json", special)
    return Settings(
        path,
        bos_token=name("bos_token"),
        eos_token=name("eos_token"),
        add_bos_token=value("add_bos_token", bool),
        add_prefix_space=value("add_prefix_space", bool),
        tokenizer_class=value("tokenizer_class", str),
        legacy=value("legacy", bool),
        none=none,
        names={key: content for key in NAMED if (content := name(key))},
        added=added,
    )


def further(path: Path, said: Mapping[str, Any]) -> set[str]:
    """The special tokens without a name of their own: a list of texts, or of objects with a content."""
    found: set[str] = set()
    for key in ("additional_special_tokens", "extra_special_tokens"):
        for entry in said.get(key, ()) if isinstance(said.get(key, ()), list) else ():
            content = entry.get("content") if isinstance(entry, dict) else entry
            if not isinstance(content, str):
                raise TokenizerError(f"{path}: {key} has {shown(entry)}; expected a token.")
            found.add(content)
    return found


def added_tokens(path: Path, special: set[str]) -> dict[int, AddedToken]:
    """added_tokens.json, where the config of an older checkpoint has no added_tokens_decoder: {token: id} -> id -> token"""
    found = {}
    for content, token_id in read_json(path).items() if files.present(path) else ():
        if not content or type(token_id) is not int or not 0 <= token_id < 10**9:
            raise TokenizerError(f"{path}: has {shown(content)}: {shown(token_id)}; expected a token and its id.")
        found[token_id] = AddedToken(content, content in special)
    return found
