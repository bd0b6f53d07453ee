"""What commands take about devices: a mesh, virtual devices to try one, and the other processes of a run on several hosts."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from jax.sharding import Mesh

DEVICES = "Make N virtual devices of a CPU, to try a mesh without the hardware."
DISTRIBUTED = (
    "This is one of several processes that run this same command together, on one host or on many. Slurm, Open MPI, "
    "Kubernetes and TPU slices say which; elsewhere the next three options do. Process 0 prints."
)
SAID = 1024  # bytes of what process 0 may tell the others
HEARTBEAT = 20  # seconds of silence after which a process is taken for dead
LOST = (
    "nanollm: this process was stopped, because another one of the run ended or cannot be reached; the lines above say which. "
    "Start all of them again."
)

Dp = Annotated[int, typer.Option("--dp", metavar="N", min=1, help="Split the rows over N devices.")]
Tp = Annotated[int, typer.Option("--tp", metavar="N", min=1, help="Split the model over N devices.")]
Devices = Annotated[int | None, typer.Option(metavar="N", min=1, help=DEVICES)]
Distributed = Annotated[bool, typer.Option("--distributed", help=DISTRIBUTED)]
Coordinator = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where the others find process 0.")]
Processes = Annotated[int | None, typer.Option("--num-processes", metavar="N", min=1, help="How many there are.")]
ProcessId = Annotated[int | None, typer.Option("--process-id", metavar="I", min=0, help="Which this is, from 0.")]


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


def agreed(value: Any) -> Any:
    """Of what each process of a run made up, in JSON's terms, what all of them take: that of process 0."""
    import jax

    if jax.process_count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    words = np.frombuffer(json.dumps(value).encode().ljust(SAID), np.uint32)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(words)).tobytes())


def process(distributed: bool) -> tuple[int, int]:
    """Which process of its run this is, and how many there are."""
    if not distributed:
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def join(distributed: bool, coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Meet the other processes of the run, with JAX's own runtime. Raises RequestError where they cannot be found.

    From then on JAX ends this process when another one dies: with a message and a stack trace of its own, and without
    a word to Python. So one line more is left to a shell that waits for the end of this process.
    """
    given = {"--coordinator": coordinator, "--num-processes": processes, "--process-id": process_id}
    if not distributed:
        if wrong := [name for name, value in given.items() if value is not None]:
            raise RequestError(f"{', '.join(wrong)} without --distributed: add it, or leave them out.")
        return
    if processes is not None and process_id is not None and process_id >= processes:
        raise RequestError(f"--process-id {process_id} of {processes} processes; they are counted from 0.")
    # what libraries write to standard output (gloo greets its neighbours) goes to standard error: answers stay clean
    sys.stdout.flush()
    sys.stdout = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115
    os.dup2(2, 1)
    if shell := shutil.which("sh"):
        watcher = subprocess.Popen([shell, "-c", f'read end || echo "{LOST}" >&2'], stdin=subprocess.PIPE)
        atexit.register(watcher.communicate, b"\n")  # before jax is imported, and so after all that it does at the end

    import jax

    try:
        jax.distributed.initialize(
            coordinator, processes, process_id, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        missing = ", ".join(name for name, value in given.items() if value is None)
        hint = f"; no cluster was recognised, so give {missing}" if missing else ""
        raise RequestError(f"the processes of the run did not meet: {error}{hint}.") from None
