"""`nanollm info`: what a model is, from its files' headers. No weight is read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.options import AnyModel, AsJson, Cache, Revision, Speculate, guesses_of
from nanollm_jax.cli.printing import harmless, print_json, print_table, spelled
from nanollm_jax.errors import NanoLLMError, RequestError

if TYPE_CHECKING:
    from nanollm_jax.config import ModelConfig
    from nanollm_jax.engine.drafts import Speculate as Guesses
    from nanollm_jax.sources import Source

DTYPE = (
    "What to count bytes in: float32, bfloat16, float16, int8, int4, or auto for this machine's. Default: the config's own. "
    "With either of the last two, weights that are published in few bits are counted in these."
)
DEVICE = "Look at the device too: every program that is compiled for it, with its shapes, and what rows take there."
AXES = {
    "vocab_size": "V", "hidden_size": "D", "num_layers": "L", "num_heads": "N", "num_kv_heads": "K", "head_dim": "H",
    "intermediate_size": "F", "max_positions": "P",
}  # fmt: skip


def info(
    model: AnyModel = None,
    revision: Revision = None,
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", show_default=False, help=DTYPE)] = None,
    device: Annotated[bool, typer.Option("--device", help=DEVICE)] = False,
    speculate: Speculate = None,
    cache: Cache = "auto",
    as_json: AsJson = False,
) -> None:
    """Show a model's architecture, parameters and files.

    Nothing is computed and no weight loaded: shapes, counts and bytes follow from the config, the rest from the files'
    headers.
    """
    from rich.filesize import decimal

    if not device and (speculate is not None or cache != "auto"):
        raise RequestError(f"--{'cache' if speculate is None else 'speculate'} without --device; leave it out.")
    guesses = guesses_of(speculate)
    report = describe(model, revision, dtype)
    if device:
        report["device"] = describe_device(model, revision, dtype, guesses, cache)
    if as_json:
        return print_json(report)
    count, nbytes = f"{report['count']:,}", decimal(report["bytes"])
    few = report["in_few_bits"]
    form = f", {decimal(few)} of them in the few bits that they are published in" if few else ""
    print(f"{harmless(report['config_file'])}\n{count} parameters, {nbytes} in {report['dtype']}{form}\n")
    config = [(name, value) for name, value in flat(report["config"]) if value != ()]
    print_table(("architecture", "", "axis"), [(name, in_words(value), AXES.get(name, "")) for name, value in config])
    rows = [(*words, f"{numbers:,}", decimal(size)) for *words, numbers, size in tree_rows(report["parameters"])]
    rows.append(("total", "", "", count, nbytes))
    print_table(("parameter", "axes", "shape", "count", "bytes" if few else report["dtype"]), rows, right=2)
    if device:
        show_device(report["device"])
    else:
        sizes = [(name, " ".join(map(str, values))) for name, values in report["compiled_for"].items()]
        print_table(("programs are compiled for", ""), sizes)
    if "checkpoint" in report:
        print_table(("checkpoint", ""), [(name, in_words(value)) for name, value in flat(report["checkpoint"])])


def describe(source: str | None, revision: str | None, dtype_name: str | None) -> dict[str, Any]:
    """What --json prints. The config has to be right; what is wrong with other files is said in their place."""
    from nanollm_jax import layout
    from nanollm_jax.dtypes import PLAIN, resolve_weights
    from nanollm_jax.engine import buckets
    from nanollm_jax.families import read_config
    from nanollm_jax.sources import config_json_at, kept_in, source_at
    from nanollm_jax.weights.gguf import is_gguf
    from nanollm_jax.weights.source import find_config, find_shape

    if dtype_name is not None:
        resolve_weights(dtype_name)  # a wrong one is found before anything is looked for
    path = find_config(source, revision)
    alone = find_shape(source, revision) is not None
    config_json = config_json_at(path)
    config, _ = read_config(config_json, str(path))
    said = config_json.get("dtype", config_json.get("torch_dtype"))
    dtype = resolve_weights(
        dtype_name or kept_in(config_json, str(path)) or (said if said in tuple(PLAIN) else "float32")
    )
    fields = {"num_layers": config.num_layers} | dataclasses.asdict(config)
    for layer, said in zip(config.layers, fields["layers"], strict=True):
        if layer.rope is not None and layer.rope.scaling is not None:
            said["rope"]["scaling"] = {"kind": layer.rope.scaling.kind} | said["rope"]["scaling"]
    shapes, count = layout.shapes(config), layout.count(config)
    files = None if alone else source_at(path if is_gguf(path) else path.parent)
    few = bytes_of_few(files, config) if files is not None and dtype_name in (None, "auto") else {}
    nbytes = layout.nbytes(config, dtype) | few
    report = {
        "config_file": str(path),
        "config": {"model_type": config_json["model_type"]} | fields,
        "parameters": {
            name: {"axes": axes, "shape": shapes[name], "count": math.prod(shapes[name]), "bytes": nbytes[name]}
            for name, axes in layout.layout(config).items()
        },
        "count": count,
        "bytes": sum(nbytes.values()),
        "in_few_bits": sum(few.values()),
        "dtype": dtype.name,
        "compiled_for": {
            "rows": list(buckets.ROWS),
            "prompt_tokens": sorted({buckets.piece(2**n) for n in range(buckets.PIECE.bit_length())}),
            "capacities": buckets.capacities(config.max_positions),
        },
    }  # fmt: skip
    return report if files is None else report | {"checkpoint": describe_files(files, config)}


def bytes_of_few(source: Source, config: ModelConfig) -> dict[str, int]:
    """{path: bytes in memory} of what stays in few bits; none where files cannot be read, as is said elsewhere."""
    from nanollm_jax.sources import nbytes_of_few

    try:
        return nbytes_of_few(source.tensors(), config, source.config()[1])
    except NanoLLMError:
        return {}


def describe_device(
    source: str | None, revision: str | None, dtype_name: str | None, speculate: Guesses, cache: str
) -> dict[str, Any]:
    """The device that a model would be loaded to, what rows take there, and every program that is compiled for them."""
    import jax

    from nanollm_jax import layout
    from nanollm_jax.cache import dtype_of
    from nanollm_jax.dtypes import check_kept, resolve_weights
    from nanollm_jax.engine import buckets, drafts, memory
    from nanollm_jax.families import read_config
    from nanollm_jax.ops import native
    from nanollm_jax.sources import config_json_at
    from nanollm_jax.weights.source import find_config

    path = find_config(source, revision)
    config, _ = read_config(config_json_at(path), str(path))
    if speculate is not None:
        layout.check_goes_back(config)
    kind, found = jax.default_backend(), native.library()
    dtype, spare = dtype_of(resolve_weights(dtype_name or "auto").activations), drafts.spare(speculate)
    sizes = buckets.capacities(config.max_positions)
    row = {S: sum(layout.row_nbytes(config, S, dtype.itemsize, spare=spare, kept=check_kept(cache))) for S in sizes}
    return {
        "kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "native": None
        if kind != "cpu"
        else {
            "compiled": bool(found.digest),
            "instructions": found.instructions or None,
            "reason": found.reason or None,
        },
        "free_bytes": memory.free(),
        "rows": [{"rows": B, "positions": S, "bytes": B * row[S]} for B in buckets.ROWS for S in row],
        "programs": [
            {"name": name, "lengths": lengths, "positions": sizes, "rows": list(buckets.ROWS)}
            for name, (lengths, sizes) in buckets.programs(config.max_positions, spare=spare).items()
        ],
    }


def show_device(found: dict[str, Any]) -> None:
    """The tables of --device."""
    from rich.filesize import decimal

    free = "" if found["free_bytes"] is None else f", {decimal(found['free_bytes'])} free"
    print(f"{found['devices']} x {harmless(found['kind'])}{free}")
    if found["native"] is not None:
        reason, instructions = found["native"]["reason"], found["native"]["instructions"]
        made = f"compiled, {instructions or 'for attention alone'}" if reason is None else f"none, {harmless(reason)}"
        print(f"native operations: {made}")
    print()
    words = lambda numbers: " ".join(map(str, numbers))  # noqa: E731
    programs = [
        (one["name"], words(one["lengths"]), words(one["rows"]), words(one["positions"])) for one in found["programs"]
    ]
    print_table(("compiled once for each of", "tokens", "rows", "positions"), programs)
    sizes = [(f"{one['rows']} of {one['positions']:,} positions", decimal(one["bytes"])) for one in found["rows"]]
    print_table(("rows", "bytes"), sizes, right=1)


def describe_files(source: Source, config: ModelConfig) -> dict[str, Any]:
    """What a model's source has beside the config, each part by itself: {"error": ...} where it cannot be read."""
    from nanollm_jax import layout
    from nanollm_jax.settings import Sampling

    def weights() -> dict[str, Any]:
        checkpoint = source.tensors()
        tensors = checkpoint.tensors
        files = {tensor.file for tensor in tensors.values()}
        found: dict[str, Any] = {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}
        found["dtypes"] = sorted({tensor.dtype for tensor in tensors.values()})
        if not (few := checkpoint.few()):
            return found
        _, family = source.config()
        large = [row for row in family.table(config) if row.path in layout.large_matrices(config)]
        names = {name for row in large for prefix in family.PREFIXES for name in row.names(prefix)}
        kept = {name for name, may in few.items() if may and name in names}
        for said, which in (("kept in their bits", kept), ("decoded once", few.keys() - kept)):
            counts = Counter(tensors[name].dtype for name in which)
            found[said] = [f"{form} ({count})" for form, count in sorted(counts.items())]
        return found

    def tokenizer() -> dict[str, Any] | None:
        if (loaded := source.tokenizer()) is None:
            return None
        names = ("vocab_size", "bos_id", "eos_id", "add_bos")
        return {name: getattr(loaded, name) for name in names} | {"special_tokens": len(loaded.special_ids)}

    def defaults() -> dict[str, Any]:
        found = source.defaults(config)
        given = {name: value for name, value in vars(found.sampling).items() if value != getattr(Sampling(), name)}
        return {"eos_ids": found.eos_ids, "sampling": {"temperature": found.sampling.temperature} | given}

    def attempt(part: Callable[[], Any]) -> Any:
        try:
            return part()
        except NanoLLMError as error:
            return {"error": str(error)}

    return {part.__name__: attempt(part) for part in (weights, tokenizer, defaults)}


def tree_rows(parameters: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, int, int]]:
    """Rows of (name, axes, shape, count, bytes): every block, then what is in it. Layers that are alike are one block."""
    blocks: dict[str, dict[str, Any]] = {}
    for path, parameter in parameters.items():
        block, name = re.split(r"(?<!^layers)\.", path, maxsplit=1)  # layers.3.attention.wq -> layers.3, attention.wq
        blocks.setdefault(block, {})[name] = parameter
    rows = []
    for _, group in groupby(blocks.items(), key=lambda item: item[1]):
        names = [name for name, _ in group]
        inside = blocks[names[0]]
        count, nbytes = (sum(parameter[key] for parameter in inside.values()) for key in ("count", "bytes"))
        indent = "  "
        if len(names) == 1:
            rows.append((names[0], "", "", count, nbytes))
        else:
            rows.append((f"{names[0]} … {names[-1]} (×{len(names)})", "", "", count * len(names), nbytes * len(names)))
            rows.append((f"{indent}each", "", "", count, nbytes))
            indent *= 2
        for name, parameter in inside.items():
            shape = " ".join(map(str, parameter["shape"]))
            rows.append((indent + name, parameter["axes"], shape, parameter["count"], parameter["bytes"]))
    return rows


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested dicts -> (dotted name, value), in order. Of a list of dicts the values of each name are one list."""
    rows: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
            each = [dict(flat(item, f"{prefix}{name}.")) for item in value]
            names = dict.fromkeys(one for item in each for one in item)
            rows += [(one, tuple(item.get(one) for item in each)) for one in names]
        else:
            rows.append((prefix + name, value))
    return rows


def in_words(value: Any) -> str:
    """A value as one reads it: none, yes, "4096 (32 times)" for a list of the same."""
    if isinstance(value, list | tuple):
        runs = [(in_words(item), len(list(same))) for item, same in groupby(value)]
        return ", ".join(f"{item} ({times} times)" if times > 1 else item for item, times in runs) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return spelled(str(value))
