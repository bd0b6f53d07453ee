"""`nanollm serve`: an OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanollm_jax.cli.access import LOCAL, check_keys, hosts_of, origins_of, path_of
from nanollm_jax.cli.chat import TEMPLATE, with_template
from nanollm_jax.cli.devices import (
    Coordinator,
    Devices,
    Distributed,
    Dp,
    Processes,
    ProcessId,
    Tp,
    agreed,
    join,
    mesh_for,
    process,
)  # fmt: skip
from nanollm_jax.cli.options import (
    Adapter,
    Cache,
    Draft,
    Dtype,
    KeepCompiled,
    Merge,
    Revision,
    Source,
    Speculate,
    a_number,
    adapters_of,
    check_merge,
    checkpoint,
    decoded,
    expanded,
    guesses_of,
    keep_compiled,
)
from nanollm_jax.cli.printing import plural, warn
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from nanollm_jax.engine.engine import Engine

HOST = "Where to listen. The default can be reached from this machine only."
PORT = "0 takes a free one, which is printed."
NAME = "Under which clients ask for the model. May be repeated. Default: what --model says."
ROWS = "Answers that are written at the same time. Default: 4 on a CPU, else 32. Another number has other last bits."
CONTEXT = "Tokens of the longest prompt and answer together. Default: what the model has, at most 4096."
QUEUE = "Requests that may wait for a row; beyond, the answer is 503."
KEY = "A key that clients have to send. May be repeated; each has prefixes of prompts of its own."
ALLOW_HOST = "A name by which this server is reached, besides --host. May be repeated."
CORS = "A page of another host whose scripts may ask, such as https://example.com. May be repeated."
ROOT_PATH = "What a proxy in front cuts off every path."
DRAIN = "Seconds that answers under way are given after SIGTERM or Ctrl-C; a second one ends at once."
BODY = "Megabytes of a request, at most."
LOG_LEVEL = "debug, info (a line for each request), warning or error."
LOG_PROMPTS = "Write what is asked into the log too."
PREFIX = (
    "Megabytes for beginnings of prompts that were read before. Default: two texts of the model's length, at most 1024."
)
STEP_LIMIT = (
    "Seconds that one step of the engine may take, in which the prompts of all rows may be read; a longer one is taken for "
    "stuck, and ends the server. Default: 300 with --distributed, where a process may wait for another, else none."
)
CHECK = (
    "Serve nothing: ask some random requests alone and beside each other, on the device and with the options that there are, "
    "and say whether their answers have the same bits. Exit code 1 where they have not."
)
GLASS = (
    "Have the page of nanollm look too, at /glass: watched answers, in an engine of their own that leaves those of others as "
    "they are, one at a time. On a mesh both engines take turns, and others wait while a new program of the page is compiled."
)


def serve(
    model: Source = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    adapter: Adapter = None,
    merge: Merge = None,
    cache: Cache = "auto",
    template: Annotated[Path | None, typer.Option(metavar="FILE", help=TEMPLATE)] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help=HOST)] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help=PORT)] = 8000,
    served_model_name: Annotated[list[str] | None, typer.Option(metavar="NAME", help=NAME)] = None,
    rows: Annotated[int | None, typer.Option(metavar="N", min=1, help=ROWS)] = None,
    context: Annotated[int | None, typer.Option(metavar="N", min=2, help=CONTEXT)] = None,
    queue: Annotated[int, typer.Option(metavar="N", min=0, help=QUEUE)] = 256,
    prefix_memory: Annotated[int | None, typer.Option(metavar="MB", min=0, help=PREFIX)] = None,
    api_key: Annotated[list[str] | None, typer.Option(metavar="KEY", envvar="NANOLLM_API_KEY", help=KEY)] = None,
    allow_host: Annotated[list[str] | None, typer.Option(metavar="NAME", help=ALLOW_HOST)] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help=CORS)] = None,
    root_path: Annotated[str, typer.Option(metavar="PATH", help=ROOT_PATH)] = "",
    max_body: Annotated[int, typer.Option(metavar="MB", min=1, help=BODY)] = 16,
    drain: Annotated[float, typer.Option(metavar="S", min=0, callback=a_number, help=DRAIN)] = 30.0,
    step_limit: Annotated[float | None, typer.Option(metavar="S", min=1, callback=a_number, help=STEP_LIMIT)] = None,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help=LOG_LEVEL)] = "info",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help=LOG_PROMPTS)] = False,
    speculate: Speculate = None,
    draft: Draft = None,
    dp: Dp = 1,
    tp: Tp = 1,
    devices: Devices = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: Processes = None,
    process_id: ProcessId = None,
    compile_cache: KeepCompiled = True,
    glass: Annotated[bool, typer.Option("--glass", help=GLASS)] = False,
    check: Annotated[bool, typer.Option("--check", help=CHECK)] = False,
) -> None:
    """Answer over HTTP, as OpenAI's API does: http://127.0.0.1:8000/v1 for any of its clients.

    Chat completions, completions, embeddings, models, tokenize, health and metrics. An answer has the same bits whatever
    else is asked at the same time; the header x-nanollm-seed says with which seed it can be had again. Adapters are models of
    their own names, and answers of all of them are written at the same time.

    With --distributed every process runs this command. Process 0 listens, and tells the others what is asked over a
    connection of their own, which is not encrypted. Where one is lost, all of them end.
    """
    levels = ("debug", "info", "warning", "error")
    if log_level not in levels:
        raise RequestError(f"--log-level {log_level}: expected {', '.join(levels)}.")
    local, adapters = host in LOCAL, adapters_of(adapter)
    keys, hosts, origins = check_keys(api_key or ()), hosts_of(host, allow_host or ()), origins_of(cors_origin or ())
    root_path, names = path_of(root_path), tuple(dict.fromkeys(served_model_name or ()))
    if not all(names):
        raise RequestError("--served-model-name is empty; give a name, or leave it out.")
    check_merge(merge, adapters)
    if glass and not local and not keys:
        raise RequestError(
            f"--glass with --host {host}: who reaches it sees what is inside; ask for a key with --api-key."
        )
    if glass and distributed:
        raise RequestError(
            "--glass with --distributed: what somebody looks at runs in process 0 alone, and a mesh over several processes "
            "needs all of them; leave out one of the two."
        )
    written = None if template is None else decoded(expanded(template).read_bytes(), str(template))
    join(distributed, coordinator, num_processes, process_id)
    folder = checkpoint(model, revision)
    try:
        from nanollm_jax.serve import followers
        from nanollm_jax.serve.server import bind, run
    except ModuleNotFoundError as error:
        raise RequestError(
            f"{error.name} is not installed; the server needs {sys.executable} -m pip install 'nanollm-jax[serve]', or "
            "'.[serve]' in a clone."
        ) from None
    mesh = mesh_for(dp, tp, devices)
    number, count = process(distributed)
    with bind(host, port) if number == 0 and not check else contextlib.nullcontext() as bound:
        import nanollm_jax as nano
        from nanollm_jax.engine.engine import Engine
        from nanollm_jax.engine.memory import served
        from nanollm_jax.serve.service import Options, Service
        from nanollm_jax.serve.watcher import Watcher

        keep_compiled(compile_cache)
        guesses = guesses_of(speculate, draft, lambda name: nano.load(checkpoint(name, None), dtype=dtype, mesh=mesh))
        loaded = nano.load(folder, dtype=dtype, mesh=mesh, adapters=adapters, merge=merge, cache=cache)
        if template is not None and written is not None:
            loaded = with_template(loaded, template, written)
        rows, context = served(loaded, rows, context, guesses)
        engine = Engine(
            loaded,
            rows,
            prefix_bytes=None if prefix_memory is None else prefix_memory * 2**20,
            speculate=guesses,
            context=context,
        )
        if check:
            raise typer.Exit(checked(engine, context, said=number == 0))
        step_limit = followers.limit_of(step_limit, count)
        links = meet(engine, context, coordinator, number, count) if count > 1 else {}
        if bound is None:
            signal.set_wakeup_fd(-1)  # as below
            followers.leave_signals_to_process_0()
            raise typer.Exit(followers.run(engine, links[0], context, step_limit))
        if not local and not keys:
            warn(f"everybody who reaches {host} can ask this server; --api-key asks them for a key.")
        options = Options(
            names=names or (model or folder.name,), context=context, queue=queue, body=max_body * 2**20, keys=keys,
            hosts=hosts, origins=origins, root_path=root_path, log_prompts=log_prompts, step_limit=step_limit,
        )  # fmt: skip
        logging.getLogger("nanollm.serve").setLevel(log_level.upper())
        name, number = bound.getsockname()[:2]
        where = f"http://{f'[{name}]' if ':' in name else name}:{number}{options.root_path}/v1"
        warn(
            f"{', '.join(options.names)} at {where}, {engine.rows} row{'s' * (engine.rows > 1)} of {options.context} tokens"
        )
        if glass:
            warn(f"look inside at {where.removesuffix('/v1')}/glass")
        signal.set_wakeup_fd(-1)  # from here on Ctrl-C is the server's, as SIGTERM is
        watcher = Watcher(loaded) if glass else None
        service = Service(loaded, engine, options, nano.__version__, followers.Followers(links), watcher)
        raise typer.Exit(run(service, bound, drain))


def checked(engine: Engine, context: int, *, said: bool) -> int:
    """Run the law of load in small; said: and say what was found. Returns the exit code."""
    import jax

    from nanollm_jax.cli.progress import compiling_shown
    from nanollm_jax.engine.check import check

    with compiling_shown():
        found = check(engine, context)
    if said:
        for line in found.others:
            print(line)
        bits = f"{len(found.others)} with other bits" if found.others else "all with the same bits"
        asked = f"{found.requests} requests in {engine.rows} rows of {context}, {found.tokens} tokens"
        orders = f"alone and in {found.orders} orders beside each other, {found.cached} tokens of prompts cached"
        compiled = f"{plural(found.compiled, 'program')} compiled meanwhile"
        print(f"{asked}, {orders}: {bits}; {compiled}; on {jax.devices()[0].device_kind}, jax {jax.__version__}")
    return 1 if found.others or found.compiled else 0


def meet(engine: Engine, context: int, coordinator: str | None, number: int, count: int) -> dict[int, socket.socket]:
    """Of one of several processes, its connections: those of process 0 to all others, of another one the one to process 0."""
    from nanollm_jax.serve import meeting

    setup = meeting.setup_of(engine, context)
    if number:
        told = agreed({"host": "", "port": 0, "secret": ""})
        return {0: meeting.attend(**told, number=number, setup=setup)}
    # whoever told JAX who is who, where nobody said, knows hosts by their names
    host = coordinator.rpartition(":")[0].strip("[]") if coordinator else socket.gethostname()
    listener, secret = meeting.listen(host), secrets.token_hex(32)
    agreed({"host": host, "port": listener.getsockname()[1], "secret": secret})
    return meeting.gather(listener, secret, setup, count - 1)
