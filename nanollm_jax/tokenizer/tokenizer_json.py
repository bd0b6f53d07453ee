"""tokenizer.json, and any other tokenizer that the `tokenizers` library runs."""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer.checks import Checks
from nanollm_jax.tokenizer.confined import copied, opened, says
from nanollm_jax.tokenizer.files import Settings, read, read_json
from nanollm_jax.tokenizer.parts import with_secret_names
from nanollm_jax.tokenizer.pieces import SPACE_MARK, byte_level_bytes, marked_bytes
from nanollm_jax.tokenizer.table import TableTokenizer

if TYPE_CHECKING:
    import tokenizers

# The decoder steps of a vocabulary stored with "▁", and what each must say for `marked_bytes` to mean the same.
MARKED_STEPS: dict[str, dict[str, Any]] = {
    "Metaspace": {"replacement": SPACE_MARK},
    "Replace": {"pattern": {"String": SPACE_MARK}, "content": " "},
    "ByteFallback": {},
    "Fuse": {},
    "Strip": {"content": " ", "start": 1, "stop": 0},
}

# The classes that leave the whole text to tokenizer.json, whatever else the config says of spaces.
BY_THE_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")


def from_tokenizer_json(path: Path, settings: Settings) -> TableTokenizer:
    """tokenizer.json -> its tokenizer. Raises TokenizerError for a damaged file, and by name for a kind not known."""
    content, data = read_json(path), read(path)
    if settings.add_prefix_space is not None and settings.tokenizer_class not in BY_THE_FILE:
        Checks(path).tokenizer(content)  # so that its steps are what they should be
        content = with_prefix_space(path, content, settings.add_prefix_space)
        data = json.dumps(content).encode()
    library = opened(path, data, content)
    spell, spell_added = _spelling(path, content.get("decoder"))
    unigram = content["model"].get("type") == "Unigram"
    with says(path):
        return adapt(path, library, settings, spell, spell_added=spell_added, spells_special=unigram)


def adapt(
    path: Path,
    library: "tokenizers.Tokenizer",
    settings: Settings,
    spell: Callable[[str], bytes],
    *,
    spell_added: Callable[[str], bytes] = str.encode,
    add_bos: bool | None = None,
    spells_special: bool = False,
) -> TableTokenizer:
    """A tokenizer of the library -> one of ours.  path: the file that errors name.

    spell, spell_added: a model's entry, or an added token -> its bytes.
    add_bos: where the config does not say; None looks whether the post-processor puts the BOS in front of a text.
    spells_special: the model itself would take special tokens for words of the text, as unigram models do.
    """
    _add_tokens(library, settings)
    library.encode_special_tokens = True  # which means: special tokens found in the text are encoded as text
    library.no_truncation()
    library.no_padding()

    vocabulary = library.get_vocab(with_added_tokens=True)
    special = {
        token.content: token_id for token_id, token in library.get_added_tokens_decoder().items() if token.special
    }
    hidden = with_secret_names(path, library, frozenset(special.values())) if spells_special else None

    def encode(text: str) -> list[int]:
        with says(path):
            return library.encode(text, add_special_tokens=False).ids if hidden is None else hidden([text])

    text = library.encode("a", add_special_tokens=False).ids
    if not text:
        raise TokenizerError(f"{path}: 'a' encodes to nothing; expected a vocabulary that can spell English.")
    front = _front(path, library.encode("a").ids, text)
    added = library.get_added_tokens_decoder()
    pieces = [""] * (max(vocabulary.values()) + 1)
    spellings = [b""] * len(pieces)
    for piece, token_id in vocabulary.items():
        pieces[token_id] = piece
        if piece not in special:
            spellings[token_id] = spell_added(piece) if token_id in added else spell(piece)

    bos_id, eos_id = settings.bos_and_eos(special, bos_id=front if front in special.values() else None)
    default = (front is not None and front == bos_id) if add_bos is None else add_bos
    return TableTokenizer(
        pieces=pieces,
        spellings=spellings,
        text_to_ids=encode,
        special_to_ids=finding_special(path, library),
        frame=lambda markers: with_secret_names(path, library, markers),
        adds_space=spellings[text[0]].startswith(b" "),
        special_ids=frozenset(special.values()),
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=settings.wants_bos(bos_id, default=default),
        added={token.content: token_id for token_id, token in added.items()},
        names=settings.names,
    )


def with_prefix_space(path: Path, content: dict[str, Any], wanted: bool) -> dict[str, Any]:
    """A tokenizer.json that puts a space in front of a text, or does not, as the config beside it says.

    Raises TokenizerError where the file has no step that could.
    """

    def change(step: Any) -> Any:
        if isinstance(step, list):
            return [new for old in step if (new := change(old)) is not None]
        if not isinstance(step, dict):
            return step
        match step.get("type"):
            case "Sequence":
                return {key: change(value) for key, value in step.items()}
            case "ByteLevel" if "add_prefix_space" in step:
                return step | {"add_prefix_space": wanted}
            case "Metaspace" if (step.get("prepend_scheme", "always") == "never") == wanted:
                return step | {"prepend_scheme": "first" if wanted else "never"}
            case "Prepend" if step.get("prepend") == SPACE_MARK and not wanted:
                return None
        return step

    parts = {part: change(content.get(part)) for part in ("normalizer", "pre_tokenizer")}
    if parts == {part: content.get(part) for part in parts}:
        written = json.dumps(parts)
        puts = any(word in written for word in ('"Prepend"', '"first"', '"always"', '"add_prefix_space": true'))
        if puts != wanted:
            raise TokenizerError(
                f"{path}: has no step for a space in front of a text, and tokenizer_config.json says add_prefix_space "
                f"{wanted}; take it out there, or use another tokenizer.json."
            )
        return content
    decoder = content.get("decoder")
    if not wanted and isinstance(decoder, dict) and decoder.get("type") == "Sequence":
        parts["decoder"] = decoder | {"decoders": [step for step in decoder["decoders"] if step["type"] != "Strip"]}
    return content | parts


def finding_special(path: Path, library: "tokenizers.Tokenizer") -> Callable[[str], list[int]]:
    """Text -> ids, special tokens found in it by the library's own rules. Its copy is made when it is first asked for."""

    @cache
    def copy() -> "tokenizers.Tokenizer":
        other = copied(path, library)
        other.encode_special_tokens = False
        return other

    def text_to_ids(text: str) -> list[int]:
        with says(path):
            return copy().encode(text, add_special_tokens=False).ids

    return text_to_ids


def _add_tokens(library: "tokenizers.Tokenizer", settings: Settings) -> None:
    """Give the library the added tokens that only the config has, and mark as special what the config calls special."""
    from tokenizers import AddedToken

    known = library.get_added_tokens_decoder()
    new = [(token_id, token) for token_id, token in sorted(settings.added.items()) if token_id not in known]
    # what is already in the vocabulary becomes special below, by its name
    library.add_tokens(
        [
            AddedToken(token.content, normalized=False, special=token.special and library.id_to_token(token_id) is None)
            for token_id, token in new
        ]
    )
    for token_id, token in settings.added.items():
        if (found := library.id_to_token(token_id)) != token.content:
            expected = f"{token.content!r} at id {token_id}, where the tokenizer has {found!r}"
            raise TokenizerError(f"{settings.path}: puts {expected}; expected the config of this tokenizer.")
    special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    plain = [name for name in sorted(settings.special_names() - special) if library.token_to_id(name) is not None]
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in plain])


def _front(path: Path, whole: list[int], text: list[int]) -> int | None:
    """The token that the post-processor puts in front of a text.  whole, text: ids with and without its tokens."""
    if text[0] not in whole:
        raise TokenizerError(f"{path}: its post-processor leaves the text out; copy it again from the checkpoint.")
    count = whole.index(text[0])
    if count > 1:
        raise TokenizerError(f"{path}: puts {count} tokens in front of a text, {whole[:count]}; one is supported.")
    return whole[0] if count else None


def _spelling(path: Path, decoder: dict[str, Any] | None) -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
    """How a model's entries, and added tokens, spell bytes: read off the decoder that the file asks for."""
    decoder = decoder or {"type": "none"}
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return byte_level_bytes, str.encode
    for step in steps:
        expected = MARKED_STEPS.get(step["type"])
        if expected is None or any(step.get(key) != value for key, value in expected.items()):
            known = f"ByteLevel, or a Sequence of {', '.join(MARKED_STEPS)} over {SPACE_MARK!r}"
            raise TokenizerError(f"{path}: decoder step {step} is not supported; known: {known}.")
    spell = partial(marked_bytes, byte_fallback="ByteFallback" in kinds)
    return spell, spell
