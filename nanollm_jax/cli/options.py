"""What several commands take: which model, in what dtype, a text that may come from standard input."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from jax.sharding import Mesh

INTERRUPTED = 130  # the exit code after Ctrl-C: what a shell shows for SIGINT
MODEL = "A folder in checkpoint form, or a hub id such as openai-community/gpt2. Default: the bundled model."
DTYPE = "Of weights and activations: auto, float32, bfloat16 or float16; auto is float32 on CPU, else bfloat16."
DEVICES = "Make N virtual devices of a CPU, to try a mesh without the hardware."
STDIN = "- reads it from standard input, as it is but for one newline at its end."

Source = Annotated[str | None, typer.Option("--model", metavar="SOURCE", help=MODEL)]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="A branch, tag or commit of a hub id.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help=DTYPE)]
Dp = Annotated[int, typer.Option("--dp", metavar="N", min=1, help="Split the rows over N devices.")]
Tp = Annotated[int, typer.Option("--tp", metavar="N", min=1, help="Split the model over N devices.")]
Devices = Annotated[int | None, typer.Option(metavar="N", min=1, help=DEVICES)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def mesh_for(dp: int, tp: int, devices: int | None) -> Mesh | None:
    """The mesh that --dp and --tp ask for, None for a single device. Raises ConfigError where devices are missing.

    --devices has to come before JAX looks for devices, once in a process.
    """
    import jax

    import nanollm_jax as nano

    if devices is not None:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # JAX has looked already, in a process that ran something before
            if len(jax.devices("cpu")) != devices:
                raise RequestError(
                    f"--devices {devices} comes too late: this process has {len(jax.devices('cpu'))}; start a new one."
                ) from None
    return nano.make_mesh(dp, tp) if dp * tp > 1 else None


def read_text(text: str) -> str:
    """The text itself, or standard input for "-". Raises RequestError where that is not UTF-8."""
    if text != "-":
        return text
    data = sys.stdin.buffer.read()
    try:
        return re.sub(r"\r?\n\Z", "", data.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise RequestError(f"standard input is not UTF-8: {found}; convert it, for example with iconv.") from None
