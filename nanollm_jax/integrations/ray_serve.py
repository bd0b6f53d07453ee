"""Ray Serve: replicas of a model, each one engine behind the app of `nanollm serve` (an extra: pip install '.[ray]').

serve run nanollm_jax.integrations.ray_serve:app model=meta-llama/Llama-3.1-8B-Instruct num_gpus=1 max_replicas=4

What HTTP asks and how it is answered is nanollm_jax.serve's, path by path; Ray has the port, the replicas and their number.
With `processes` a replica is tensor parallel over as many actors of one placement group: the replica is process 0, and the
others follow it (nanollm_jax.serve.followers). Where one of them is lost, Ray starts the replica anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

try:
    import msgspec
    import ray
    from ray import serve
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
except ModuleNotFoundError as error:
    error.msg += f"; install Ray Serve: {sys.executable} -m pip install 'nanollm-jax[ray]'"
    raise

import nanollm_jax as nano
from nanollm_jax.cli.devices import HEARTBEAT, mesh_for
from nanollm_jax.cli.options import guesses_of
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.memory import served
from nanollm_jax.serve import followers, meeting
from nanollm_jax.serve.app import make_app
from nanollm_jax.serve.service import Options, Service

# bounds that nan does not meet, as those of the options of `nanollm serve`
Seconds = Annotated[float, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1024)]


class Setup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `serve run` is given; what `nanollm serve` takes too means the same here.

    processes               actors of a replica, over which tp is spread
    num_cpus, num_gpus      of each of these; num_gpus 0 is a CPU
    devices                 virtual devices of each, to try it without the hardware
    min_replicas and max_replicas: Ray takes as many as keep the requests under way, those that wait too, at `rows` a replica.
    """

    model: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    served_model_name: str | None = None
    rows: int | None = None
    context: int | None = None
    queue: int = 256
    prefix_memory: int | None = None
    speculate: str | None = None
    draft: str | None = None
    api_key: str | tuple[str, ...] = ()
    log_prompts: bool = False
    step_limit: Seconds | None = None
    tp: int = 1
    processes: int = 1
    num_cpus: Share = 1.0
    num_gpus: Share = 0.0
    devices: int | None = None
    min_replicas: int = 1
    max_replicas: int = 1


def app(given: dict[str, Any]) -> serve.Application:
    """The application, of what `serve run` or a config file of Serve's gives. Raises RequestError for what is not known."""
    try:
        setup = msgspec.convert(given, Setup, strict=False)
    except msgspec.ValidationError as error:
        raise nano.RequestError(f"{error}; known are {', '.join(Setup.__struct_fields__)}.") from None
    rows = setup.rows or (32 if setup.num_gpus else 4)
    actor = {"num_cpus": setup.num_cpus, "num_gpus": setup.num_gpus}
    bundle = {"CPU": setup.num_cpus} | ({"GPU": setup.num_gpus} if setup.num_gpus else {})
    several = {"placement_group_bundles": [bundle] * setup.processes} if setup.processes > 1 else {}
    return serve.deployment(serve.ingress()(NanoLLM)).options(
        ray_actor_options=actor, max_ongoing_requests=rows + setup.queue, max_queued_requests=setup.queue,
        autoscaling_config={"min_replicas": setup.min_replicas, "max_replicas": setup.max_replicas,
                            "target_ongoing_requests": rows},
        health_check_period_s=5, **several,
    ).bind(msgspec.structs.replace(setup, rows=rows))  # fmt: skip


class NanoLLM:
    """One replica: one engine. Ready when its programs are compiled.

    Plain, and made a deployment by app: a class that Ray's decorators have replaced in its module would go to the replicas with
    all that it refers to.
    """

    def __init__(self, setup: Setup) -> None:
        """Load the model, and meet the replica's other processes."""
        self.others: list[Any] = []
        if setup.processes == 1:
            engine, context = opened(setup)
            links = {}
        else:
            host, secret = ray.util.get_node_ip_address(), secrets.token_hex(32)
            listener, coordinator = meeting.listen(host), f"{host}:{free_port()}"
            told = {"host": host, "port": listener.getsockname()[1], "secret": secret}
            group, actor = (
                ray.util.get_current_placement_group(),
                {"num_cpus": setup.num_cpus, "num_gpus": setup.num_gpus},
            )
            for number in range(1, setup.processes):
                where = PlacementGroupSchedulingStrategy(group, number)
                other = ray.remote(Follower).options(scheduling_strategy=where, **actor).remote()
                other.follow.remote(setup, number, coordinator, told)
                self.others.append(other)  # they end with their handles, and so with this replica
            engine, context = opened(setup, coordinator)
            links = meeting.gather(listener, secret, meeting.setup_of(engine, context), setup.processes - 1)
        options = Options(
            names=(setup.served_model_name or setup.model or "nano-stories",), context=context, queue=setup.queue,
            keys=(setup.api_key,) if isinstance(setup.api_key, str) else setup.api_key,
            log_prompts=setup.log_prompts,
            step_limit=followers.limit_of(setup.step_limit, setup.processes),
        )  # fmt: skip
        self.service = Service(engine.model, engine, options, nano.__version__, followers.Followers(links))

    def __serve_build_asgi_app__(self) -> Any:
        """The app; it starts when the engine is ready, so that Ray sends nothing before."""
        made = make_app(self.service)
        life, thread = made.router.lifespan_context, self.service.thread

        @contextlib.asynccontextmanager
        async def ready(app: Any) -> AsyncIterator[None]:
            async with life(app):
                while not (thread.warm or thread.broken):
                    await asyncio.sleep(0.1)
                yield

        made.router.lifespan_context = ready
        return made

    def check_health(self) -> None:
        """Ray asks; where this raises it starts another replica."""
        if self.service.thread.broken is not None:
            raise RuntimeError(f"the engine failed: {self.service.thread.broken}")


class Follower:
    """Another process of a replica: an actor in its placement group."""

    def follow(self, setup: Setup, number: int, coordinator: str, told: dict[str, Any]) -> int:
        """Do what process 0 does, until it ends."""
        engine, context = opened(setup, coordinator, number)
        link = meeting.attend(**told, number=number, setup=meeting.setup_of(engine, context))
        return followers.run(engine, link, context, followers.limit_of(setup.step_limit, setup.processes))


def opened(setup: Setup, coordinator: str | None = None, number: int = 0) -> tuple[Engine, int]:
    """The engine of one process, and how many positions a prompt and its answer may have."""
    import jax

    if coordinator is not None:
        jax.distributed.initialize(coordinator, setup.processes, number, heartbeat_timeout_seconds=HEARTBEAT)
    mesh = mesh_for(1, setup.tp, setup.devices)
    nano.keep_compiled()
    model = nano.load(setup.model, revision=setup.revision, dtype=setup.dtype, mesh=mesh)
    guesses = guesses_of(setup.speculate, setup.draft, lambda name: nano.load(name, dtype=setup.dtype, mesh=mesh))
    rows, context = served(model, setup.rows, setup.context, guesses)
    kept = None if setup.prefix_memory is None else setup.prefix_memory * 2**20
    return Engine(model, rows, prefix_bytes=kept, speculate=guesses, context=context), context


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]
