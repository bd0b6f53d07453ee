"""`nanollm plan`: what a model would need on a mesh, and how fast it could be, from its config alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.devices import Dp, Tp
from nanollm_jax.cli.options import AnyModel, AsJson, Cache, Revision, Speculate, guesses_of
from nanollm_jax.cli.printing import harmless, plural, print_json, print_table
from nanollm_jax.errors import ConfigError

if TYPE_CHECKING:
    from nanollm_jax.config import ModelConfig

BATCH = "Rows that are generated together."
CONTEXT = "Positions of a row, prompt and answer. Left out: all that the model has."
DTYPE = (
    "auto, float32, bfloat16 or float16; auto is bfloat16, and weights that are published in few bits in these. int8 and int4 "
    "are matrices in 8 or 4 bits and the rest in bfloat16."
)
DEVICE = "Show the limits of this device too: a100, h100, h200, v5e, v5p, v6e, or cpu, which is this machine."


def plan(
    model: AnyModel = None,
    revision: Revision = None,
    dp: Dp = 1,
    tp: Tp = 1,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help=BATCH)] = 1,
    context: Annotated[int | None, typer.Option(metavar="N", min=1, help=CONTEXT)] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help=DTYPE)] = "auto",
    device: Annotated[str | None, typer.Option(metavar="NAME", help=DEVICE)] = None,
    speculate: Speculate = None,
    cache: Cache = "auto",
    as_json: AsJson = False,
) -> None:
    """Show what each device of a mesh would hold, and the limits of decoding and of reading prompts.

    Closed forms of the shapes in config.json, and of a file's header where weights are in few bits: nothing else is downloaded
    but GGUF files, which have all in one, and nothing allocated.
    """
    from nanollm_jax.dtypes import is_auto
    from nanollm_jax.families import read_config
    from nanollm_jax.measure.plan import device as look_up
    from nanollm_jax.measure.plan import make_plan
    from nanollm_jax.partition import made_up
    from nanollm_jax.sources import config_json_at
    from nanollm_jax.weights.source import find_config, find_shape

    if device == "cpu" and dp * tp > 1:
        raise ConfigError("cpu is this machine, one device; leave out --dp and --tp.")
    guesses = guesses_of(speculate)
    limits = None if device is None else look_up(device)
    path, alone = find_config(model, revision), find_shape(model, revision) is not None
    config, _ = read_config(config_json := config_json_at(path), str(path))
    drafts, kept, unseen = 0 if guesses is None else guesses.tokens, dtype, False
    few: dict[str, int] = {}
    if is_auto(dtype):
        kept, few, unseen = as_published(path, config_json, config, alone, dp * tp > 1)
    made = make_plan(
        config, dp=dp, tp=tp, batch=batch, context=context, dtype=kept, drafts=drafts, cache=cache, few=few
    )
    report: dict[str, Any] = dataclasses.asdict(made) | {
        "total": made.total, "padded": made_up(config, tp), "dtype": kept, "in_few_bits": bool(few),
    }  # fmt: skip
    if limits is not None:
        report |= {
            "device": device,
            "fits": made.total <= limits.memory,
            "decode_limit": made.decode_limit(limits),
            "prefill_limit": made.prefill_limit(limits),
        }
    if as_json:
        return print_json(report)
    form = f"as they are published, what is not in few bits in {kept}" if few else f"in {kept}"
    where = f"{plural(dp * tp, 'device')}: dp={dp}, tp={tp}; {plural(made.rows, 'row')}"
    print(f"{harmless(str(path))}\n{where}; weights {form}")
    if unseen:
        print("config.json says that they are published in few bits, which is not counted: their files are not here")
    print()
    parts = ("weights", "cache", "state", "temporaries", "total")
    sizes = [(name, f"{report[name] / 1e9:.3f}") for name in parts]
    if report["padded"]:
        sizes.append(("of it padding", f"{made.padding / 1e9:.3f}"))
    print_table(("bytes of each device", "GB"), sizes, right=1)
    for words in report["padded"]:
        print(f"padding: {words}")
    if limits is not None:
        verdict = "fits" if report["fits"] else "does NOT fit"
        rows = [
            (f"memory ({verdict})", f"{limits.memory / 1e9:.0f} GB"),
            ("decode, at most", f"{report['decode_limit']:,.0f} tok/s"),
            ("prefill, at most", f"{report['prefill_limit']:,.0f} tok/s"),
        ]
        print_table((f"limits of {dp * tp} x {device}", ""), rows, right=1)


def as_published(
    path: Path, config_json: dict[str, Any], config: ModelConfig, alone: bool, on_mesh: bool
) -> tuple[str, dict[str, int], bool]:
    """What "auto" is of a model: its dtype, the bytes of parameters that stay in few bits, by path, and whether it has some of
    which nothing is known, because there is a config alone or the hub's folder without its weights.
    """
    from nanollm_jax.sources import kept_in, nbytes_of_few, source_at
    from nanollm_jax.weights import quantised
    from nanollm_jax.weights.gguf import is_gguf

    if kept := kept_in(config_json, str(path)):
        return kept, {}, False
    if not is_gguf(path):
        if not any(config_json.get(key) for key in quantised.KEYS):
            return "bfloat16", {}, False
        if alone or not any(path.parent.glob("*.safetensors")):
            return "bfloat16", {}, True
    source = source_at(path if is_gguf(path) else path.parent)
    _, family = source.config()
    return "bfloat16", nbytes_of_few(source.tensors(), config, family, on_mesh), False
