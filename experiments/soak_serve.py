"""Ten minutes of many clients against `nanollm serve`: nothing lost, nothing mixed, nothing left behind.

    make soak                                     # 10 minutes, 64 clients
    python experiments/soak_serve.py --minutes 1

Clients ask for streams of the bundled model, of which some keep to a grammar and some share their cache with few others; a
fifth of them hang up in the middle, a twentieth sends damaged bodies, a few connect and say nothing, send half a request, or
do not read. Every answer that is read to its end is compared with the one that the same request had alone, before: text,
tokens and log-probabilities, ==. At the end all rows are idle, and the memory of the server (RssAnon + VmSwap: what is shared
or on a disk would hide a leak) has stopped growing. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import damaged_bodies
import httpx2

STORIES = (
    "Once upon a time", "The dog", "One day, a girl named Lily found a needle in her room. She knew it was",
    "Tom and his mother went to the park. They saw a big tree and", "There was a cat who",
    "A little bird could not fly. Every day the bird sat in the nest and looked at the sky. " * 4,
)  # fmt: skip
PET = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]}
FORMS = (
    {"json": PET},
    {"regex": r" [a-z ,]{5,60}\."},
    {"choice": [" yes", " no", " maybe not"]},
    {"json_object": True},
)


@dataclass
class Tally:
    """What happened: answers that were the same as alone, that were not, that did not come; and the rest."""

    same: int = 0
    mixed: int = 0
    lost: int = 0
    left: int = 0
    busy: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)


def bodies(rng: random.Random, count: int) -> list[dict]:
    """Requests of many kinds."""
    made = []
    for n in range(count):
        body = {"prompt": rng.choice(STORIES), "max_tokens": rng.randint(1, 60), "logprobs": rng.choice((0, 2))}
        if n % 3:
            body |= {"temperature": 1.0, "seed": n, "top_p": rng.choice((0.5, 0.9, 1.0)), "top_k": rng.choice((0, 5))}
        if n % 5 == 0:
            body |= {"repetition_penalty": 1.2, "ignore_eos": True}
        if n % 7 == 0:
            body |= {"stop": ["."]}
        if n % 6 == 2:
            body |= {"structured_outputs": rng.choice(FORMS)}
        if n % 4 == 1:
            body |= {"cache_salt": f"caller {n % 3}"}
        made.append(body | {"stream": True})
    return made


async def ask(client: httpx2.AsyncClient, body: dict, most: int | None = None) -> tuple[str, list, list, str] | None:
    """An answer: text, tokens, log-probabilities and reason; None where the queue is full. most: chunks before hanging up"""
    text, tokens, logprobs, reason, seen = "", [], [], "", 0
    async with client.stream("POST", "/v1/completions", json=body) as found:
        if found.status_code == 503:
            await found.aread()
            return None
        if found.status_code != 200:
            raise RuntimeError((await found.aread()).decode())
        async for line in found.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(line)
            choice = chunk["choices"][0]
            text += choice["text"]
            reason = choice["finish_reason"] or reason
            if about := choice["logprobs"]:
                tokens += about["tokens"]
                logprobs += about["token_logprobs"]
            seen += 1
            if most is not None and seen >= most:
                break
    return text, tokens, logprobs, reason


async def damage(client: httpx2.AsyncClient, path: str, data: bytes, tally: Tally) -> None:
    """Send a damaged body, and look at what comes back."""
    found = await client.post(path, content=data, headers={"content-type": "application/json"})
    tally.refused += found.status_code != 200
    if damaged_bodies.wrong(found.status_code, found.headers["content-type"], found.text):
        tally.wrong.append(f"{found.status_code} to {path} {data!r}: {found.text}")


async def client_of(base: str, asked: list, alone: list, until: float, seed: int, tally: Tally) -> None:
    """One client: asks again and again."""
    rng = random.Random(seed)
    async with httpx2.AsyncClient(base_url=base, timeout=300) as client:
        while time.monotonic() < until:
            at, dice = rng.randrange(len(asked)), rng.random()
            try:
                if dice < 0.05:
                    data = damaged_bodies.bent(rng, json.dumps(asked[at]).encode())
                    await damage(client, "/v1/completions", data, tally)
                elif dice < 0.25:
                    tally.left += 1
                    await ask(client, asked[at], most=rng.randint(0, 4))
                else:
                    answer = await ask(client, asked[at])
                    if answer is None:
                        tally.busy += 1
                        await asyncio.sleep(1)
                    elif answer == alone[at]:
                        tally.same += 1
                    else:
                        tally.mixed += 1
                        tally.wrong.append(f"{asked[at]}: {answer} and alone {alone[at]}")
            except Exception as error:
                tally.lost += 1
                tally.wrong.append(repr(error))


async def nuisance(port: int, until: float, seed: int) -> None:
    """Somebody who connects and says nothing, says half, or asks and does not read."""
    rng = random.Random(seed)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    body = json.dumps({"prompt": "Once", "stream": True, "max_tokens": 100}).encode()
    says = (b"", head, head + b"content-length: 1000\r\n\r\n{", head + b"x: " + b"y" * 200_000,
            head + b"content-length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(rng.choice(says))
        await asyncio.sleep(rng.uniform(0, 5))
        writer.close()


def memory(process: int) -> float:
    """Megabytes that are the process's own, in memory and swapped."""
    status = Path(f"/proc/{process}/status").read_text()
    return sum(int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("RssAnon", "VmSwap")) / 1024


async def watch(process: int, until: float, tally: Tally) -> None:
    """Look at the memory every second."""
    while time.monotonic() < until:
        tally.memory.append((time.monotonic(), memory(process)))
        await asyncio.sleep(1)


def slope(points: list[tuple[float, float]]) -> float:
    """Megabytes a minute over the second half, by least squares."""
    half = points[len(points) // 2 :]
    return 60 * statistics.linear_regression(*zip(*half, strict=True)).slope


def value(text: str, name: str) -> float:
    """One number of /metrics."""
    return float(re.search(rf"^nanollm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)[1])


async def soak(port: int, process: int, given: argparse.Namespace) -> tuple[Tally, str]:
    """All of it. -> what happened, and the metrics at the end"""
    base, rng, tally = f"http://127.0.0.1:{port}", random.Random(given.seed), Tally()
    asked = bodies(rng, 60)
    async with httpx2.AsyncClient(base_url=base, timeout=300) as client:
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.5)
        alone = [await ask(client, body) for body in asked]
        for _ in range(given.damaged):
            await damage(client, *damaged_bodies.damaged(rng), tally)
        until = time.monotonic() + 60 * given.minutes
        work = [client_of(base, asked, alone, until, given.seed + n, tally) for n in range(given.clients)]
        work += [nuisance(port, until, given.seed + n) for n in range(4)]
        await asyncio.gather(*work, watch(process, until, tally))
        for _ in range(60):
            text = (await client.get("/metrics")).text
            if value(text, "num_requests_running") == value(text, "num_requests_waiting") == 0:
                break
            await asyncio.sleep(1)
        again = [await ask(client, body) for body in asked]
        if again != alone:
            tally.mixed += 1
            tally.wrong.append("afterwards the answers alone are others")
        return tally, (await client.get("/metrics")).text


def main() -> None:
    """Start a server, soak it, stop it, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damaged", type=int, default=2000, help="damaged bodies before it begins")
    parser.add_argument("--model", help="default: the bundled one")
    parser.add_argument("--speculate", help="as nanollm serve takes it")
    given = parser.parse_args()
    command = [sys.executable, "-m", "nanollm_jax", "serve", "--port", "0", "--log-level", "warning"]
    command += ["--model", given.model] if given.model else []
    command += ["--speculate", given.speculate] if given.speculate else []
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stderr if " at http://" in line)
        port = int(re.search(r":(\d+)/v1", line)[1])
        os.set_blocking(server.stderr.fileno(), False)
        tally, metrics = asyncio.run(soak(port, server.pid, given))
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    finally:
        server.kill()
    growth, compiled = slope(tally.memory), value(metrics, "compiled_programs_total")
    print(f"{given.clients} clients, {given.minutes:g} minutes")
    print(f"{tally.same} answers as alone, {tally.mixed} mixed, {tally.lost} lost")
    print(f"{tally.left} hung up on, {tally.busy} put off, {tally.refused} damaged bodies refused")
    print(
        f"{compiled:.0f} programs compiled meanwhile; rows at work at the end: {value(metrics, 'num_requests_running'):.0f}"
    )
    print(
        f"memory {tally.memory[0][1]:.0f} -> {tally.memory[-1][1]:.0f} MB, {growth:+.2f} MB a minute in the second half"
    )
    print(f"exit code {code}")
    for wrong in tally.wrong[:20]:
        print("  ", wrong[:500])
    good = not (tally.mixed or tally.lost or tally.wrong or compiled or code)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
