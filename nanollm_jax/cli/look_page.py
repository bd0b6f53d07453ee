"""`nanollm look` without --report: a page of a model that writes while somebody looks inside."""

from __future__ import annotations

import logging
import secrets
import signal
import sys

from nanollm_jax.cli.access import LOCAL, check_keys
from nanollm_jax.cli.devices import mesh_for
from nanollm_jax.cli.options import checkpoint, keep_compiled
from nanollm_jax.cli.printing import warn
from nanollm_jax.errors import RequestError

DRAIN = 1.0  # seconds; what is watched can be watched again


def serve_page(
    prompt: str | None, model: str | None, revision: str | None, dtype: str, *, adapters: dict[str, str],
    merge: str | None, cache: str, dp: int, tp: int, devices: int | None, host: str, port: int, context: int | None,
    api_key: str | None, memory: int, compile_cache: bool,
) -> int:  # fmt: skip
    """Serve the page until a signal ends it. Returns the exit code.

    prompt: of what is written first, an example where it is None; memory: megabytes that all pages together may keep.
    """
    given = check_keys([api_key] if api_key else ())
    folder = checkpoint(model, revision)
    mesh = mesh_for(dp, tp, devices)
    try:
        from nanollm_jax.serve.server import bind, run
    except ModuleNotFoundError as error:
        raise RequestError(
            f"{error.name} is not installed; the page needs {sys.executable} -m pip install 'nanollm-jax[serve]', or "
            "'.[serve]' in a clone; --report FILE needs nothing more."
        ) from None
    with bind(host, port) as bound:
        import nanollm_jax as nano
        from nanollm_jax.engine.memory import served
        from nanollm_jax.serve.looking import Looking
        from nanollm_jax.serve.service import Options
        from nanollm_jax.serve.watcher import Watcher

        keep_compiled(compile_cache)
        loaded = nano.load(folder, dtype=dtype, mesh=mesh, adapters=adapters, merge=merge, cache=cache)
        _, context = served(loaded, 2, context)
        local = host in LOCAL
        keys = given or (() if local else (secrets.token_urlsafe(16),))
        options = Options(
            names=(model or folder.name,), context=context, body=2**20, keys=keys, hosts=LOCAL if local else ()
        )
        watcher = Watcher(loaded, prompt=prompt, limit=memory * 2**20)
        logging.getLogger("nanollm.serve").setLevel("WARNING")
        name, number = bound.getsockname()[:2]
        where = f"http://{f'[{name}]' if ':' in name else name}:{number}/"
        warn(f"{options.names[0]}: look at {where}{f'#key={keys[0]}' if keys else ''}")
        signal.set_wakeup_fd(-1)  # from here on Ctrl-C is the server's, as SIGTERM is
        return run(Looking(watcher, options), bound, DRAIN)
