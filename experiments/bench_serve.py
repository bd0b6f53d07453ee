"""How fast `nanollm serve` answers over HTTP, beside other servers of the same API, and beside the engine without HTTP.

    python experiments/bench_serve.py                                       # the bundled model
    python experiments/bench_serve.py --model CHECKPOINT --rows 8 --peer llama=http://127.0.0.1:8081/v1

Servers take their turn in every round, medians are shown. A peer is a server that runs already, with as many rows and the same
weights: llama-server of the llama.cpp in llama-cpp-python's source (`llama-server -m f32.gguf -np 8 -cb -c 32768 --port 8081`),
`transformers serve --continuous-batching`, vLLM. Every kind of request was made once before it is timed.

    write-N     tokens per second of all N clients together, each asks for one answer after the other, streamed
    first       milliseconds to the first token of a long prompt that nobody has asked before
    held        the same where all but its last words were asked before
    gap-50, gap-most   milliseconds between two chunks of one who writes while others arrive with long prompts: the median, the
                longest
    outside     (nanollm) milliseconds per token and row that were not spent in the engine's steps, N clients
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx2

WORDS = "the a dog cat girl boy went to ran saw big small red park ball tree house and was very happy sad with his her".split()


class Server(NamedTuple):
    """One that answers: its name, where it is, what it calls the model, and whether it is ours."""

    name: str
    base: str
    model: str
    ours: bool


def text(rng: random.Random, words: int) -> str:
    """Words that nobody has read before."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


async def pieces(client: httpx2.AsyncClient, server: Server, prompt: str, new: int) -> AsyncIterator[float]:
    """When each chunk with text of an answer came."""
    body = {
        "model": server.model, "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True, "ignore_eos": True,
    }  # fmt: skip
    async with client.stream("POST", f"{server.base}/completions", json=body) as found:
        if found.status_code != 200:
            sys.exit(f"{server.name}: {(await found.aread()).decode()[:500]}")
        async for line in found.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                yield time.perf_counter()


async def answer(client: httpx2.AsyncClient, server: Server, prompt: str, new: int) -> list[float]:
    """The same, all of it; it begins with when it was asked."""
    return [time.perf_counter(), *[at async for at in pieces(client, server, prompt, new)]]


async def write(
    client: httpx2.AsyncClient, server: Server, rng: random.Random, clients: int, given: argparse.Namespace
) -> float:
    """Tokens per second of so many clients."""

    async def one(prompts: list[str]) -> None:
        for prompt in prompts:
            await answer(client, server, prompt, given.new)

    prompts = [[text(rng, given.prompt // 2) for _ in range(given.answers)] for _ in range(clients)]
    begun = time.perf_counter()
    await asyncio.gather(*map(one, prompts))
    return clients * given.answers * given.new / (time.perf_counter() - begun)


async def gaps(
    client: httpx2.AsyncClient, server: Server, rng: random.Random, given: argparse.Namespace
) -> list[float]:
    """Seconds between the chunks of one answer while others arrive."""
    writing = asyncio.create_task(answer(client, server, "The", 2 * given.new))
    await asyncio.sleep(0.2)
    others = [asyncio.create_task(answer(client, server, text(rng, given.long), 4)) for _ in range(3)]
    _, _, *times = await writing
    await asyncio.gather(*others)
    return [b - a for a, b in itertools.pairwise(times)]


async def spent(client: httpx2.AsyncClient, server: Server) -> float:
    """Seconds that our engine's steps have taken."""
    found = (await client.get(server.base.removesuffix("/v1") + "/metrics")).text
    return float(re.search(r"engine_seconds_total{[^}]*} (\S+)", found)[1])


async def measured(server: Server, rng: random.Random, given: argparse.Namespace) -> dict[str, float]:
    """One round of one server."""
    async with httpx2.AsyncClient(timeout=600) as client:
        found = {}
        for clients in given.clients:
            before, begun = (await spent(client, server) if server.ours else 0), time.perf_counter()
            found[f"write-{clients}"] = await write(client, server, rng, clients, given)
            if server.ours:
                outside = time.perf_counter() - begun - (await spent(client, server) - before)
                found[f"outside-{clients}"] = 1000 * outside / (clients * given.answers * given.new)
        long = text(rng, given.long)
        for name in ("first", "held"):
            begun, first, *_ = await answer(client, server, f"{long} {text(rng, 3)}", 2)
            found[name] = 1000 * (first - begun)
        between = await gaps(client, server, rng, given)
        found |= {"gap-50": 1000 * statistics.median(between), "gap-most": 1000 * max(between)}
        return found


def start(given: argparse.Namespace) -> tuple[subprocess.Popen, Server]:
    """Our server, ready."""
    command = [sys.executable, "-m", "nanollm_jax", "serve", "--port", "0", "--log-level", "warning"]
    command += ["--rows", str(given.rows), "--dtype", "float32", "--context", str(given.context)]
    process = subprocess.Popen(
        [*command, *(["--model", given.model] if given.model else [])], stderr=subprocess.PIPE, text=True
    )
    base = None
    for line in process.stderr:
        if found := re.search(r" at (http://\S+/v1)", line):
            base = found[1]
        if "ready after" in line:
            print(line.strip(), file=sys.stderr)
            name = httpx2.get(f"{base}/models").json()["data"][0]["id"]
            return process, Server("nanollm", base, name, ours=True)
    sys.exit("nanollm serve did not start")


def main() -> None:
    """Measure, and print a table: a line each server, a column each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; default: the bundled one")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL", help="a server that runs already")
    parser.add_argument("--clients", type=int, action="append", help="default: 1 and 8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=4, help="of each client in a round")
    parser.add_argument("--prompt", type=int, default=64, help="tokens, about")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--long", type=int, default=300, help="words of a long prompt")
    parser.add_argument("--bench", action="store_true", help="and nanollm bench of the same checkpoint and rows")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.clients = given.clients or [1, 8]
    process, ours = start(given)
    try:
        servers = [ours]
        for peer in given.peer:
            name, _, base = peer.partition("=")
            found = httpx2.get(f"{base}/models").json()["data"][0]["id"]
            servers.append(Server(name, base.rstrip("/"), found, ours=False))
        rng = random.Random(0)
        rounds: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
        for server in servers:
            asyncio.run(measured(server, rng, given))  # once before
        for _ in range(given.rounds):
            for server in servers:
                rounds[server.name].append(asyncio.run(measured(server, rng, given)))
    finally:
        process.terminate()
        process.wait(60)
    table = {
        name: {figure: statistics.median(one[figure] for one in found) for figure in found[0]}
        for name, found in rounds.items()
    }
    if given.bench:
        command = [
            sys.executable,
            "-m",
            "nanollm_jax",
            "bench",
            *([given.model] if given.model else []),
            "--dtype",
            "float32",
        ]
        command += ["--starts", "0", "--repeats", "3", "--json", *(f"--rows={rows}" for rows in {1, given.rows})]
        table["bench"] = {
            "report": json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        }
    if given.json:
        print(json.dumps(table))
        return
    for name, figures in table.items():
        print(name)
        for figure, value in figures.items():
            print(f"  {figure:<12} {value:.2f}" if isinstance(value, float) else f"  {figure}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
