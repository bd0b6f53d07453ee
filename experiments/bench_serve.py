"""`nanollm serve` beside other servers of the same API: the same shapes, weights and prompts, in one run, server after server.

    make bench-serve                                  # installs and builds the peers, then runs this
    python experiments/bench_serve.py --quick         # 110M, one round
    python experiments/bench_serve.py --small         # a shape of no size, to see whether it runs through

In every round each server is started, warmed, asked by the openai client, and stopped, in turn; medians over rounds, ratios
within a round. Requests ignore the end of a text, so that all write the same number of tokens. A server whose answer to a first
prompt is not the others' is not timed.

    closed-N     N clients, each asks again when it has its answer: prompts of 128 tokens, answers of 64
    mixed        8 clients; prompts of 32, 128 and 512 tokens, answers of 64 and 128
    open-R       the same requests, arriving at random, R times as many a second as `mixed` answered; not for transformers
    tokens       written a second, by all together      requests    answered a second; good: those with a first token within
                 1 s and 150 ms for each later one      first       ms to the first token      token       ms for each later one
    cpu          ms of processors that the server took for each token (the rest is the client's, and waiting)
    gap          ms between two chunks of an answer (nanollm sends 4 tokens in one, or 2)
    prefix       ms to the first token of 512 tokens and an end of 8: new (cold), and the same with another end (held)
    stall        ms between two chunks of one who writes, at most, while three prompts of 512 tokens arrive; alone: before,
                 the mean
    others       answers of the load that are not those to the same requests alone
    repeats      a lone answer to a text that says the same four times; right: the share of guessed tokens that were
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import json
import math
import operator
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import openai
from bench_peers import PLAIN, apart, convert, write_checkpoint
from tokenizers import Tokenizer

from nanollm_jax.engine.buckets import PIECE
from nanollm_jax.measure.subject import machine

ROWS, CONTEXT, PROMPT, NEW, LONG = 8, 1024, 128, 64, 512
MIX = list(itertools.product((32, PROMPT, LONG), (NEW, 2 * NEW)))
FIRST, LATER = 1.0, 0.15  # seconds of a good answer
CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Plan(NamedTuple):
    """What is asked of a shape: how often, by how many clients, how many times by each; and what arrives, at which rates."""

    rounds: int
    clients: tuple[int, ...] = (1, 2, 4, 8, 16)
    answers: int = 2
    arrivals: int = 12
    rates: tuple[float, ...] = (0.5, 0.8, 1.2)


PLANS = {"llama-110m": Plan(3), "llama-1.1b": Plan(2, (1, ROWS), 1, 0, ()), "none": Plan(3, (1, ROWS), 8, 0, ())}
QUICK = {"llama-110m": Plan(1, (1, ROWS), rates=(0.8,)), "none": Plan(1, (1, ROWS), 8, 0, ())}
TRIED = {"small": Plan(1, (1, ROWS), 1, 2, (0.8,)), "none": Plan(1, (ROWS,), 1, 0, ())}


# the servers


def nanollm(*options: str) -> Callable[[argparse.Namespace, Path, int], list[str]]:
    """Ours."""
    command = [sys.executable, "-m", "nanollm_jax", "serve", "--log-level", "warning", "--dtype", "float32"]
    return lambda given, folder, port: [
        *command, "--context", str(CONTEXT), "--model", str(folder), "--served-model-name", str(folder),
        "--port", str(port), *options,
    ]  # fmt: skip


def llama_server(given: argparse.Namespace, folder: Path, port: int) -> list[str]:
    """llama.cpp's, as many rows of as many tokens; its cache is float16, its attention the fastest that it has."""
    return [
        str(given.llama_server), "-m", str(folder / "f32.gguf"), "-np", str(ROWS), "-cb", "--metrics", "-c",
        str(ROWS * CONTEXT), "--threads", str(os.cpu_count()), "--port", str(port), "--alias", str(folder),
    ]  # fmt: skip


def transformers_serve(given: argparse.Namespace, folder: Path, port: int) -> list[str]:
    """Hugging Face's, with a cache of twice as many tokens; without being told it takes most of the machine's memory."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--continuous-batching"]
    command += ["--cb-num-blocks", str(2 * ROWS * CONTEXT // 256), "--cb-max-batch-tokens", str(CONTEXT)]
    return [*command, "--device", "cpu", "--dtype", "float32", "--port", str(port)]


OURS = f"nanollm, {ROWS} rows"
ONE, LOOKUP = "nanollm, 1 row", "nanollm, 1 row, lookup"
LLAMA, TRANSFORMERS, INSIDE = "llama-server", "transformers serve", "nanollm bench"
SERVERS = {
    OURS: nanollm("--rows", str(ROWS)),
    ONE: nanollm("--rows", "1"),
    LOOKUP: nanollm("--rows", "1", "--speculate", "lookup:4"),
    LLAMA: llama_server,
    TRANSFORMERS: transformers_serve,
}


def missing(given: argparse.Namespace) -> dict[str, str]:
    """The engines that cannot be had here, and why."""
    found = {}
    if given.llama_server is None:
        found[LLAMA] = "no --llama-server; experiments/llama_server.sh builds one"
    if importlib.util.find_spec("fastapi") is None:
        found[TRANSFORMERS] = "pip install 'transformers[serving]'"
    command = [sys.executable, "-m", "nanollm_jax", "serve", "--speculate", "none", "--port", "-1"]
    if "No such option" in subprocess.run(command, capture_output=True, text=True).stderr:
        found[LOOKUP] = "this version has no --speculate"
    return found


class Server(NamedTuple):
    """One that answers, and seconds from its start until it was ready."""

    name: str
    base: str
    model: str
    pid: int
    ready: float
    client: openai.AsyncOpenAI

    @property
    def ours(self) -> bool:
        """Has it our metrics?"""
        return self.name.startswith("nanollm")

    def peak(self) -> int:
        """The most memory that it has had, in bytes."""
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1])

    def cpu(self) -> float:
        """Milliseconds of processors that it has taken."""
        values = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return 1000 * (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")

    def counted(self, name: str) -> float:
        """One of our metrics."""
        text = urllib.request.urlopen(self.base + "/metrics").read().decode()
        found = re.search(rf"^nanollm:{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextlib.contextmanager
def started(name: str, given: argparse.Namespace, folder: Path) -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base, log = f"http://127.0.0.1:{port}", folder / f"{name}.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder.parent / "cache")}
    begun = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(SERVERS[name](given, folder, port), stdout=out, stderr=out, env=environment)
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(base + "/health", timeout=5)
                break
            if process.poll() is not None:
                sys.exit(f"{name} ended with code {process.returncode}: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        ready = time.perf_counter() - begun
        # a connection for each request: llama-server closes one that was used often, at the moment when it is used again
        client = openai.AsyncOpenAI(
            base_url=base + "/v1", api_key="none", max_retries=0,
            http_client=httpx2.AsyncClient(timeout=900, limits=httpx2.Limits(max_keepalive_connections=0)),
        )  # fmt: skip
        yield Server(name, base, str(folder), process.pid, ready, client)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


# asking


class Answer(NamedTuple):
    """When it was asked, when each chunk with text came, and the text."""

    begun: float
    times: list[float]
    text: str
    tokens: int


class Prompt(NamedTuple):
    """A text, and how many tokens are to be written behind it."""

    text: str
    new: int


class Prompts:
    """Texts that nobody has read before, of so many tokens."""

    def __init__(self, folder: Path, seed: int) -> None:
        """The same seed gives the same texts."""
        self.tokenizer, self.rng = Tokenizer.from_file(str(folder / "tokenizer.json")), random.Random(seed)

    def text(self, tokens: int) -> str:
        """One text."""
        while True:
            words = ("".join(self.rng.choices(PLAIN, k=self.rng.randint(2, 9))) for _ in range(tokens))
            ids = self.tokenizer.encode(" ".join(words)).ids[:tokens]
            if len(self.tokenizer.encode(text := self.tokenizer.decode(ids)).ids) == tokens:
                return text

    def mixed(self, count: int) -> list[Prompt]:
        """Requests of all sizes, in any order."""
        sizes = list(itertools.islice(itertools.cycle(MIX), count))
        self.rng.shuffle(sizes)
        return [Prompt(self.text(tokens), new) for tokens, new in sizes]


async def ask(server: Server, prompt: Prompt) -> Answer:
    """One answer, as it comes."""
    extra = {} if server.name == TRANSFORMERS else {"ignore_eos": True}
    begun, times, text, tokens = time.perf_counter(), [], "", 0
    stream = await server.client.completions.create(
        model=server.model, prompt=prompt.text, max_tokens=prompt.new, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body=extra,
    )  # fmt: skip
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].text:
            times.append(time.perf_counter())
            text += chunk.choices[0].text
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    if tokens != prompt.new or not times:
        sys.exit(f"{server.name} wrote {tokens} of {prompt.new} tokens, in {len(times)} chunks with text.")
    return Answer(begun, times, text, tokens)


async def closed(server: Server, clients: int, prompts: list[Prompt]) -> list[Answer]:
    """So many clients, who share the prompts."""
    left, found = iter(enumerate(prompts)), {}

    async def one() -> None:
        for at, prompt in left:
            found[at] = await ask(server, prompt)

    await asyncio.gather(*(one() for _ in range(clients)))
    return [found[at] for at in range(len(prompts))]


async def arriving(server: Server, rate: float, prompts: list[Prompt], rng: random.Random) -> list[Answer]:
    """So many a second, at random."""
    tasks = []
    for prompt in prompts:
        tasks.append(asyncio.create_task(ask(server, prompt)))
        await asyncio.sleep(rng.expovariate(rate))
    return list(await asyncio.gather(*tasks))


def gaps(answer: Answer) -> list[float]:
    """Seconds between its chunks."""
    return [later - earlier for earlier, later in itertools.pairwise(answer.times)]


def part(values: list[float], share: float) -> float:
    """The value below which this share of them is."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def figures(answers: list[Answer]) -> dict[str, float]:
    """What a load cost."""
    seconds = max(one.times[-1] for one in answers) - min(one.begun for one in answers)
    first = [1000 * (one.times[0] - one.begun) for one in answers]
    later = [1000 * (one.times[-1] - one.times[0]) / (one.tokens - 1) for one in answers]
    between = [1000 * gap for one in answers for gap in gaps(one)]
    good = [a <= 1000 * FIRST and b <= 1000 * LATER for a, b in zip(first, later, strict=True)]
    return {
        "tokens": sum(one.tokens for one in answers) / seconds, "requests": len(answers) / seconds,
        "good": sum(good) / seconds, "first-50": part(first, 0.5), "first-95": part(first, 0.95),
        "token-50": part(later, 0.5), "gap-50": part(between, 0.5), "gap-99": part(between, 0.99),
        "rate": 1000 / part(later, 0.5),
    }  # fmt: skip


async def first(server: Server, text: str) -> float:
    """Milliseconds to the first token."""
    answer = await ask(server, Prompt(text, 8))  # some, in case the first ones are parts of a character
    return 1000 * (answer.times[0] - answer.begun)


async def prefixes(server: Server, prompts: Prompts) -> dict[str, float]:
    """A long prompt that is new, and the same with another end."""
    cold, held = [], []
    for _ in range(2):
        long = prompts.text(LONG)
        cold.append(await first(server, f"{long} {prompts.text(7)}"))
        held.append(await first(server, f"{long} {prompts.text(7)}"))
    return {"cold": statistics.median(cold), "held": statistics.median(held)}


async def stalled(server: Server, prompts: Prompts) -> dict[str, float]:
    """One writes; long prompts arrive when it has some chunks."""
    writer = asyncio.create_task(ask(server, Prompt(prompts.text(32), 2 * NEW)))
    stream = asyncio.create_task(
        ask(server, Prompt(prompts.text(32), NEW // 2))
    )  # ends when the first one is well on its way
    await stream
    arrived = time.perf_counter()
    await asyncio.gather(*(ask(server, Prompt(prompts.text(LONG), 4)) for _ in range(3)))
    left, times = time.perf_counter(), (await writer).times
    pairs = [(1000 * (b - a), a, b) for a, b in itertools.pairwise(times)]
    before = [gap for gap, _, b in pairs if b < arrived] or [math.nan]
    beside = [gap for gap, a, b in pairs if b > arrived and a < left] or [math.nan]  # it had ended
    return {"alone": statistics.fmean(before), "most": max(beside)}


def guesses(server: Server) -> tuple[float, float]:
    """Tokens that it has guessed ahead, and those of them that were right."""
    return server.counted("spec_decode_num_draft_tokens_total"), server.counted("spec_decode_num_accepted_tokens_total")


async def measured(server: Server, prompts: Prompts, plan: Plan) -> dict[str, Any]:
    """One round of one server."""
    one_row, slow = server.name in (ONE, LOOKUP), server.name == TRANSFORMERS
    for load in ([prompts.text(PROMPT) for _ in range(1 if one_row else ROWS)], [prompts.text(LONG)]):
        await closed(server, ROWS, [Prompt(text, 8) for text in load])
    found: dict[str, Any] = {}
    for clients in (1,) if one_row else (1, ROWS) if slow else plan.clients:
        count = min(clients * plan.answers, max(clients, 2 * ROWS))
        load = [Prompt(prompts.text(PROMPT), NEW) for _ in range(count)]
        before = server.cpu()
        answers = await closed(server, clients, load)
        found[f"closed-{clients}"] = figures(answers) | {"cpu": (server.cpu() - before) / (count * NEW)}
    if one_row:
        again, before = " ".join([prompts.text(32)] * 4), guesses(server)
        found["repeats"] = figures([await ask(server, Prompt(again, 2 * NEW))])
        guessed, right = (now - then for now, then in zip(guesses(server), before, strict=True))
        return found | {"right": right / guessed if guessed else 0.0}
    if plan.arrivals:
        load = prompts.mixed(plan.arrivals)
        answers = await closed(server, ROWS, load)
        found["mixed"] = figures(answers)
        for rate in () if slow else plan.rates:
            arrived = await arriving(
                server, rate * found["mixed"]["requests"], prompts.mixed(plan.arrivals), prompts.rng
            )
            found[f"open-{rate}"] = figures(arrived)
    found["prefix"] = await prefixes(server, prompts)
    found["stall"] = await stalled(server, prompts)
    some = random.Random(0).sample(range(len(load)), min(2 if plan.answers == 1 else 4, len(load)))
    alone = [(await ask(server, load[at])).text for at in some]
    return found | {"others": sum(answers[at].text != text for at, text in zip(some, alone, strict=True))}


def turn(
    name: str, given: argparse.Namespace, folder: Path, plan: Plan, seed: int, expected: dict[str, str]
) -> dict[str, Any]:
    """One server in one round."""

    async def all_of_it(server: Server) -> dict[str, Any]:
        async with server.client:
            probe = Prompt(Prompts(folder, 0).text(32), 8)
            known = expected.setdefault("probe", text := (await ask(server, probe)).text)
            if text[:6] != known[:6]:
                sys.exit(f"{name} says {text!r} where others say {known!r}; its times would mean nothing.")
            return await measured(server, Prompts(folder, seed), plan)

    with started(name, given, folder) as server:
        found = asyncio.run(all_of_it(server)) | {"ready": server.ready, "megabytes": server.peak() / 1e6}
        if server.ours:
            found["compiled"] = server.counted("compiled_programs_total")
        return found


def bench(folder: Path) -> dict[str, Any]:
    """The engine in this project's own benchmark, without HTTP: the work of closed-8."""
    command = [sys.executable, "-m", "nanollm_jax", "bench", str(folder), "--json", "--dtype", "float32"]
    command += ["--starts", "0", "--repeats", "2", "--rows", str(ROWS)]
    command += ["--prompt-tokens", str(PROMPT), "--new-tokens", str(NEW)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache")}
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)
    read, written = (report[kind][0]["tokens_per_second"]["median"] for kind in ("prefill", "decode"))
    return {"tokens": NEW / (PROMPT / read + NEW / written), "decode": written, "prefill": read}


# the run


def flat(found: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Figures by their whole names."""
    flattened: dict[str, float] = {}
    for name, value in found.items():
        flattened |= flat(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: float(value)}
    return flattened


HOLDS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}
Rounds = dict[str, list[dict[str, float]]]  # server -> its figures in each round


def run_shape(shape: str, plan: Plan, given: argparse.Namespace, folder: Path, absent: dict[str, str]) -> Rounds:
    """All rounds of one shape."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIGS / f"{shape}.json"
    if not config.exists():
        (config := folder / "shape.json").write_text(json.dumps(SMALL))
    if not (folder / "tokenizer.json").exists():
        say("writing a checkpoint of random weights")
        apart(write_checkpoint, config, folder)
    if LLAMA not in absent and not (folder / "f32.gguf").exists():
        say("converting it for llama.cpp")
        apart(convert, folder, "f32")
    names = [name for name in SERVERS if name not in absent and (shape != "none" or name == OURS)]
    for name in (name for name in names if name.startswith("nanollm")):
        say(f"{shape}: {name} compiles its programs, where it has not yet")
        with started(name, given, folder):
            pass
    rounds: Rounds = {name: [] for name in [*names, INSIDE]}
    expected: dict[str, str] = {}
    for number in range(plan.rounds):
        order = [*names[number % len(names) :], *names[: number % len(names)]]
        for name in order:
            say(f"{shape}: round {number + 1} of {plan.rounds}, {name}")
            rounds[name].append(flat(turn(name, given, folder, plan, number, expected)))
        say(f"{shape}: round {number + 1} of {plan.rounds}, {INSIDE}")
        rounds[INSIDE].append(flat(bench(folder)))
    return rounds


def say(text: str) -> None:
    """A line for who waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def ratio(rounds: Rounds, server: str, figure: str, other: str, its: str | None = None) -> float | None:
    """The median of a figure of one server over that of another, in the same round; None where one was not had."""
    pairs = zip(rounds.get(server, []), rounds.get(other, []), strict=False)
    found = [a[figure] / b[its or figure] for a, b in pairs if figure in a and (its or figure) in b]
    return statistics.median(found) if found else None


def goals(rounds: Rounds, shape: str) -> list[tuple[str, float | None, str, float]]:
    """What is to be reached: its name, what was found, the relation, the bound."""
    eight = f"closed-{ROWS} tokens"
    ours = rounds.get(OURS)
    if not ours:
        return []

    def own(function: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(function, ours))

    def stall(one: dict[str, float]) -> float:
        return one["stall most"] / (one["prefix cold"] / -(-LONG // PIECE) + one["stall alone"])

    if shape == "none":
        spent = own(lambda one: one[f"closed-{ROWS} cpu"])
        return [("the server's own ms per token and row: of processors, with a model of no size", spent, "<=", 0.2)]
    return [
        ("8 clients, tokens/s, over nanollm bench at 8 rows", ratio(rounds, OURS, eight, INSIDE, "tokens"), ">=", 0.9),
        ("8 clients, tokens/s, over llama-server", ratio(rounds, OURS, eight, LLAMA), ">=", 1.0),
        ("8 clients, tokens/s, over transformers serve", ratio(rounds, OURS, eight, TRANSFORMERS), ">=", 2.0),
        ("first token, 512-token prefix held, over cold", own(lambda one: one["prefix held"] / one["prefix cold"]), "<=", 0.25),
        ("first token, prefix held, over llama-server's", ratio(rounds, OURS, "prefix held", LLAMA), "<=", 1.0),
        ("longest gap while others arrive, over a piece and a chunk", own(stall), "<=", 1.0),
        ("a lone client's rate, over nanollm bench at 8 rows, of one row", lone(rounds), ">=", 0.9),
        ("a lone client's rate, over the same with --rows 1", ratio(rounds, OURS, "closed-1 rate", ONE), "", 0.0),
        ("lookup on a text that repeats, tokens/s, over without", ratio(rounds, LOOKUP, "repeats rate", ONE), ">=", 1.5),
        ("programs compiled after ready", max(one["compiled"] for one in ours), "<=", 0.0),
        ("answers that differ from alone", sum(one["others"] for one in ours), "<=", 0.0),
        ("second start to ready, s", own(lambda one: one["ready"]), "<=", 5.0),
    ]  # fmt: skip


def lone(rounds: Rounds) -> float | None:
    """A lone client's tokens a second behind the first, over those of a row of `nanollm bench`."""
    found = ratio(rounds, OURS, "closed-1 rate", INSIDE, "decode")
    return None if found is None else ROWS * found


def row(*cells: str) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def heading(*cells: str) -> str:
    """The first two lines of one."""
    return f"\n{row(*cells)}\n{row(*['---'] * len(cells))}"


def tables(shape: str, rounds: Rounds, absent: dict[str, str]) -> Iterator[str]:
    """In Markdown: a line each goal, then a line each load and server."""
    yield f"\n### {shape}" + "\n" + heading("goal", "bound", "measured", "")
    for name, found, relation, bound in goals(rounds, shape):
        reached = "" if found is None or not relation else "yes" if HOLDS[relation](found, bound) else "no"
        yield row(
            name,
            f"{relation} {bound:g}" if relation else "",
            "not measured" if found is None else f"{found:.3g}",
            reached,
        )
    for name, why in absent.items():
        yield f"\n{name}: not measured, {why}."
    middle = {
        name: {one: statistics.median(each[one] for each in found) for one in found[0]}
        for name, found in rounds.items() if found
    }  # fmt: skip
    columns = ["tokens", "requests", "good", "first-50", "first-95", "token-50", "gap-50", "gap-99", "cpu"]
    yield heading("load", "server", *columns)
    wholes = (one for found in middle.values() for one in found)
    for load in dict.fromkeys(one.removesuffix(" first-50") for one in wholes if one.endswith(" first-50")):
        for name, found in middle.items():
            if f"{load} first-50" in found:
                yield row(
                    load,
                    name,
                    *(f"{value:.3g}" if (value := found.get(f"{load} {column}")) else "" for column in columns),
                )
    columns = [
        "ready",
        "megabytes",
        "prefix cold",
        "prefix held",
        "stall alone",
        "stall most",
        "others",
        "compiled",
        "right",
    ]
    yield heading("server", *columns)
    for name, found in middle.items():
        if name != INSIDE:
            yield row(name, *(f"{found[one]:.4g}" if one in found else "" for one in columns))
    if INSIDE in middle:
        yield f"\n{INSIDE}: " + ", ".join(f"{name} {value:.4g}" for name, value in middle[INSIDE].items())


def main() -> None:
    """Measure, print tables, and write every sample to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path, metavar="FILE", help="what experiments/llama_server.sh built")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="110M alone, one round: about 5 minutes, more where programs are compiled first",
    )
    parser.add_argument("--small", action="store_true", help="a shape of no size, all servers: does it run through?")
    parser.add_argument("--shape", action="append", help=f"of {', '.join(PLANS)}; default: all")
    parser.add_argument("--rounds", type=int, help="default: 3 of 110M, 2 of 1.1B")
    parser.add_argument("--without", action="append", default=[], choices=list(SERVERS), help="a server to leave out")
    parser.add_argument(
        "--folder", type=Path, help="for checkpoints and programs, to be used again; default: a temporary one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample")
    given = parser.parse_args()
    plans = TRIED if given.small else QUICK if given.quick else PLANS
    plans = {
        name: plan._replace(rounds=given.rounds or plan.rounds)
        for name, plan in plans.items()
        if name in (given.shape or plans)
    }
    absent = missing(given) | dict.fromkeys(given.without, "left out")
    with contextlib.ExitStack() as stack:
        root = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reports = {
            shape: run_shape(shape, plan, given, root.absolute() / shape, absent) for shape, plan in plans.items()
        }
    about = machine() | {"openai": openai.__version__}
    if given.json:
        given.json.write_text(json.dumps({"machine": about, "absent": absent, "shapes": reports}))
    for shape, rounds in reports.items():
        for line in tables(shape, rounds, absent):
            print(line)
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))


if __name__ == "__main__":
    main()
