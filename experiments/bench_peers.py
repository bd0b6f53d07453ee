"""nanollm_jax beside transformers and llama.cpp: the same shapes, weights and prompts, in one run, engine after engine.

    make bench-peers                          # installs the peers, then runs this
    python experiments/bench_peers.py --shape llama-110m --engine nanollm --engine llama.cpp-f32 --measure decode-1

Each engine has a process of its own and takes its turn in every round, so that what disturbs the machine disturbs all.
Every call was made once before it is timed. No engine is timed before its logits were found to be those of transformers
in float32, and for engines in float32 its greedy tokens too.

    decode-N       tokens per second, N rows together, greedy, behind a prompt of --prompt-tokens
    prefill-N      tokens per second of one prompt of N tokens, up to the logits of what follows it
    first-token    seconds from starting a command to its first output: `nanollm generate` and a script of transformers
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import typer

from nanollm_jax.measure.bench import machine

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CHECK_ROWS, CHECK_STEPS = 8, 16
PLAIN = string.ascii_letters + string.digits
PROMPT = "The quick brown fox jumps over the lazy dog, and then it does so once more. "


class Engine(Protocol):
    """What is measured of each: make room, read prompts, write tokens."""

    def reset(self, rows: int, capacity: int, exact: bool = False) -> None:
        """Forget everything; room for so many rows of so many positions. exact: in float32 throughout, where that is slower."""

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Prefill.  tokens [B T] -> the logits of what comes next [B V]"""

    def write(self, steps: int) -> np.ndarray:
        """Greedy decode behind what was read.  -> tokens [B steps]"""


class Nano:
    """This library, through its functional core: the programs that generate runs."""

    def __init__(self, folder: Path, dtype: str) -> None:
        """Load the checkpoint."""
        import nanollm_jax as nano

        nano.keep_compiled(folder / "compiled")  # for --one-at-a-time
        self.nano, self.model = nano, nano.load(folder, dtype=dtype)

    def reset(self, rows: int, capacity: int, exact: bool = False) -> None:
        """A new cache."""
        config = self.model.config
        self.cache = self.nano.init_cache(config, rows, capacity, self.model.params["embedding"]["tokens"].dtype)
        self.sampling = self.nano.Sampling(temperature=0.0).rows(rows, config.vocab_size)
        self.seeds = np.zeros(rows, np.uint32)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Prefill."""
        lengths = np.full(len(tokens), tokens.shape[1], np.int32)
        self.state = self.nano.prefill(self.model.params, tokens, lengths, self.cache, config=self.model.config)
        return np.asarray(self.state.logits)

    def write(self, steps: int) -> np.ndarray:
        """Decode, all steps in one call of the compiled loop."""
        tokens, _, self.state = self.nano.decode(
            self.model.params, self.state, self.sampling, self.seeds, config=self.model.config, steps=steps
        )
        return np.asarray(tokens)


class Transformers:
    """Hugging Face transformers, with a loop of its forward: less per token than its own generate()."""

    def __init__(self, folder: Path, dtype: str, compiled: bool = False) -> None:
        """Load the checkpoint; compiled: one graph per shape, with a cache of fixed size."""
        import torch
        import transformers

        torch.set_num_threads(CORES)
        self.torch, self.library, self.compiled = torch, transformers, compiled
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.forward = self.model
        if compiled:
            from torch._inductor import config

            config.freezing = config.cpp_wrapper = True  # weights packed once, calls without Python: measured the best
            self.forward = torch.compile(self.model, dynamic=False)

    def reset(self, rows: int, capacity: int, exact: bool = False) -> None:
        """A new cache."""
        if self.compiled:
            self.cache = self.library.StaticCache(config=self.model.config, max_cache_len=capacity)
        else:
            self.cache = self.library.DynamicCache(config=self.model.config)

    def step(self, tokens: Any) -> Any:
        """tokens [B T] -> the last position's logits [B V]"""
        with self.torch.inference_mode():
            return self.forward(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Prefill."""
        self.logits = self.step(self.torch.from_numpy(tokens).long())
        return self.logits.float().numpy()

    def write(self, steps: int) -> np.ndarray:
        """Decode, token by token."""
        drawn = []
        for _ in range(steps):
            drawn.append(self.logits.argmax(dim=-1, keepdim=True))
            self.logits = self.step(drawn[-1])
        return self.torch.cat(drawn, dim=1).numpy()


class LlamaCpp:
    """llama.cpp through the C functions that llama-cpp-python binds: all rows in one llama_batch."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Map the converted file."""
        import llama_cpp

        self.lib = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C holds only a pointer to it
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        file = folder / f"{kind}.gguf"
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.made, self.context = (0, 0, False), None

    def reset(self, rows: int, capacity: int, exact: bool = False) -> None:
        """An empty context; one that fits is used again. Its defaults, flash attention and a float16 cache, are the fastest."""
        lib = self.lib
        if self.made != (rows, capacity, exact):
            if self.context is not None:
                lib.llama_free(self.context)
            settings = lib.llama_context_default_params()
            settings.n_ctx, settings.n_seq_max = rows * capacity, rows
            settings.n_batch, settings.n_ubatch = rows * capacity, 512
            settings.n_threads = settings.n_threads_batch = CORES
            if exact:
                settings.type_k = settings.type_v = lib.GGML_TYPE_F32
                settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self.context, self.made = lib.llama_init_from_model(self.model, settings), (rows, capacity, exact)
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self.rows, self.length = rows, 0

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """tokens [B T] -> the last position's logits [B V]"""
        B, T = tokens.shape
        batch = self.lib.llama_batch_init(B * T, 0, 1)
        batch.n_tokens = B * T
        np.ctypeslib.as_array(batch.token, (B * T,))[:] = tokens.ravel()
        np.ctypeslib.as_array(batch.pos, (B * T,))[:] = np.tile(np.arange(self.length, self.length + T), B)
        np.ctypeslib.as_array(batch.n_seq_id, (B * T,))[:] = 1
        for index in range(B * T):
            batch.seq_id[index][0] = index // T
        np.ctypeslib.as_array(batch.logits, (B * T,))[:] = np.tile(np.arange(T) == T - 1, B)
        code = self.lib.llama_decode(self.context, batch)
        assert code == 0, f"llama_decode returned {code}"
        rows = [self.lib.llama_get_logits_ith(self.context, row * T + T - 1) for row in range(B)]
        logits = np.stack([np.ctypeslib.as_array(row, (self.vocab_size,)) for row in rows])
        self.lib.llama_batch_free(batch)
        self.length += T
        return logits

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Prefill."""
        self.logits = self.step(tokens)
        return self.logits

    def write(self, steps: int) -> np.ndarray:
        """Decode, token by token."""
        drawn = []
        for _ in range(steps):
            drawn.append(self.logits.argmax(axis=-1).astype(np.int32)[:, None])
            self.logits = self.step(drawn[-1])
        return np.concatenate(drawn, axis=1)


# name -> (how it is made from a folder, how far its logits may be in float32 throughout, None if it has no float32, and how
# far when it is timed: |difference| / |reference|)
ENGINES: dict[str, tuple[Callable[[Path], Engine], float | None, float]] = {
    "transformers": (lambda folder: Transformers(folder, "float32"), 1e-4, 1e-4),
    "transformers-compiled": (lambda folder: Transformers(folder, "float32", compiled=True), 1e-4, 1e-4),
    "transformers-bf16": (lambda folder: Transformers(folder, "bfloat16"), None, 1e-1),
    # llama.cpp looks GELU up in a table of 16-bit numbers: 4e-4 in GPT-2
    "llama.cpp-f32": (lambda folder: LlamaCpp(folder, "f32"), 1e-3, 1e-2),
    "llama.cpp-f16": (lambda folder: LlamaCpp(folder, "f16"), None, 2e-2),
    "llama.cpp-q8_0": (lambda folder: LlamaCpp(folder, "q8_0"), None, 2e-1),
    "nanollm": (lambda folder: Nano(folder, "float32"), 1e-4, 1e-4),
    "nanollm-bf16": (lambda folder: Nano(folder, "bfloat16"), None, 1e-1),
    "nanollm-int8": (lambda folder: Nano(folder, "int8"), None, 2e-1),
}
REFERENCE = "transformers"
COMMANDS = {
    "nanollm": ["generate", PROMPT, "--model", "{folder}", "--max-new-tokens", "1", "--temperature", "0"],
    "transformers": ["-c", """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
ids = tokenizer(prompt, return_tensors="pt")
answer = model.generate(**ids, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(answer[0, ids["input_ids"].shape[1]:]), flush=True)
""", "{folder}", PROMPT],
}  # fmt: skip


# checkpoints: one by transformers, and its conversions for llama.cpp


def write_checkpoint(config_file: Path, folder: Path) -> None:
    """A checkpoint of random weights with a tokenizer, biases and norm scales random too."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    values = json.loads(config_file.read_text())
    config = transformers.AutoConfig.for_model(**values)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = weight.ndim == 1 and not name.endswith("bias")
            weight.normal_(1.0 if is_scale else 0.0, 0.02)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # a byte-level BPE of the vocabulary's size: all bytes, then twos and threes of letters: answers are whole characters
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    twos = [(first, second) for first in PLAIN for second in PLAIN]
    merges = [*twos, *((a + b, c) for a, b in twos for c in PLAIN)][: config.vocab_size - len(letters)]
    vocab = {token: index for index, token in enumerate([*letters, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def convert(folder: Path, kind: str) -> None:
    """The checkpoint as a GGUF file: matrices in `kind` (f32, f16 or q8_0), vectors in float32."""
    import gguf
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    arch = config["model_type"]
    quantization = gguf.GGMLQuantizationType[kind.upper()]
    file = folder / f"{kind}.gguf"
    writer = gguf.GGUFWriter(file.with_suffix(".part"), arch)
    writer.add_file_type({"f32": 0, "f16": 1, "q8_0": 7}[kind])
    writer.add_vocab_size(config["vocab_size"])
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(words["vocab"], key=words["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(config["eos_token_id"])

    def add(name: str, tensor: np.ndarray) -> None:
        if tensor.ndim == 1 or name.startswith("position"):
            writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, quantization), raw_dtype=quantization)

    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        add_tensors = add_gpt2 if arch == "gpt2" else add_llama
        add_tensors(writer, config, add, tensors.get_tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file.with_suffix(".part").rename(file)


def add_llama(
    writer: Any, config: dict[str, Any], add: Callable[[str, np.ndarray], None], get: Callable[[str], np.ndarray]
) -> None:
    """LLaMA's sizes and tensors under llama.cpp's names."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])

    def interleaved(weight: np.ndarray, count: int) -> np.ndarray:
        """llama.cpp rotates neighbours, transformers the two halves of a head: [(count 2 half) D] -> [(count half 2) D]"""
        return weight.reshape(count, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(weight.shape)

    add("token_embd.weight", get("model.embed_tokens.weight"))
    add("output_norm.weight", get("model.norm.weight"))
    if not config["tie_word_embeddings"]:
        add("output.weight", get("lm_head.weight"))
    for layer in range(config["num_hidden_layers"]):
        block, source = f"blk.{layer}", f"model.layers.{layer}"
        add(f"{block}.attn_norm.weight", get(f"{source}.input_layernorm.weight"))
        add(f"{block}.attn_q.weight", interleaved(get(f"{source}.self_attn.q_proj.weight"), heads))
        add(f"{block}.attn_k.weight", interleaved(get(f"{source}.self_attn.k_proj.weight"), kv_heads))
        add(f"{block}.attn_v.weight", get(f"{source}.self_attn.v_proj.weight"))
        add(f"{block}.attn_output.weight", get(f"{source}.self_attn.o_proj.weight"))
        add(f"{block}.ffn_norm.weight", get(f"{source}.post_attention_layernorm.weight"))
        for name in ("gate", "up", "down"):
            add(f"{block}.ffn_{name}.weight", get(f"{source}.mlp.{name}_proj.weight"))


def add_gpt2(
    writer: Any, config: dict[str, Any], add: Callable[[str, np.ndarray], None], get: Callable[[str], np.ndarray]
) -> None:
    """GPT-2's sizes and tensors under llama.cpp's names; its linear weights are stored [in, out] and turned."""
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    add("token_embd.weight", get("transformer.wte.weight"))
    add("position_embd.weight", get("transformer.wpe.weight"))
    for kind in ("weight", "bias"):
        add(f"output_norm.{kind}", get(f"transformer.ln_f.{kind}"))
        for layer in range(config["n_layer"]):
            block, source = f"blk.{layer}", f"transformer.h.{layer}"
            add(f"{block}.attn_norm.{kind}", get(f"{source}.ln_1.{kind}"))
            add(f"{block}.attn_qkv.{kind}", get(f"{source}.attn.c_attn.{kind}").T)
            add(f"{block}.attn_output.{kind}", get(f"{source}.attn.c_proj.{kind}").T)
            add(f"{block}.ffn_norm.{kind}", get(f"{source}.ln_2.{kind}"))
            add(f"{block}.ffn_up.{kind}", get(f"{source}.mlp.c_fc.{kind}").T)
            add(f"{block}.ffn_down.{kind}", get(f"{source}.mlp.c_proj.{kind}").T)


# one process per engine


def serve(connection: Connection, name: str, folder: Path, prompt_tokens: int, new_tokens: int) -> None:
    """Answer (function, argument) until the other side has no more: the body of an engine's process."""
    engine = ENGINES[name][0](folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]

    def prompts(rows: int, length: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, vocab_size, (rows, length), dtype=np.int32)

    def check(exact: bool) -> tuple[np.ndarray, np.ndarray]:
        """-> logits behind a prompt [B V], greedy tokens [B n]"""
        engine.reset(CHECK_ROWS, prompt_tokens + new_tokens, exact)
        logits = engine.read(prompts(CHECK_ROWS, prompt_tokens)).copy()
        return logits, engine.write(CHECK_STEPS)

    def measure(what: str) -> float:
        """-> tokens per second"""
        kind, _, count = what.partition("-")
        rows, length = (int(count), prompt_tokens) if kind == "decode" else (1, int(count))
        engine.reset(rows, length + new_tokens)
        begun = time.perf_counter()
        engine.read(prompts(rows, length))
        if kind == "prefill":
            return length / (time.perf_counter() - begun)
        begun = time.perf_counter()
        engine.write(new_tokens)
        return rows * new_tokens / (time.perf_counter() - begun)

    while (request := connection.recv()) is not None:
        connection.send(check(request == "exact") if request in ("exact", "check") else measure(request))


class Worker:
    """The near end of an engine's process. Raises typer.BadParameter naming the engine when that process dies."""

    def __init__(self, name: str, *rest: Any) -> None:
        """Start it."""
        self.name = name
        self.connection, far = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(far, name, *rest), daemon=True)
        self.process.start()
        far.close()

    def __call__(self, request: str) -> Any:
        """Ask, and wait for the answer."""
        self.connection.send(request)
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            raise typer.BadParameter(
                f"{self.name} ended with exit code {self.process.exitcode}; its own message, if any, is above "
                "(-9 is usually too little memory: try --one-at-a-time or fewer engines)."
            ) from None

    def stop(self) -> None:
        """End it and give its memory back."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(None)
        self.process.join()


SPAWN = multiprocessing.get_context("spawn")


def apart(function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in a process of its own, so that its memory is given back."""
    process = SPAWN.Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise typer.BadParameter(f"{function.__name__} ended with exit code {process.exitcode}; its message is above.")


def first_token(name: str, folder: Path) -> float:
    """Seconds from the start of a command to the first byte that it prints. Caches are private to the folder."""
    arguments = [str(folder) if word == "{folder}" else word for word in COMMANDS[name]]
    program = [str(Path(sys.executable).parent / "nanollm")] if name == "nanollm" else [sys.executable]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    with subprocess.Popen(
        [*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begun
        _, errors = process.communicate()
    if process.returncode or not first:
        raise typer.BadParameter(f"the command of {name} failed: {errors.decode()[-2000:]}")
    return seconds


# the run


Answer = tuple[np.ndarray, np.ndarray]  # logits [B V], greedy tokens [B n]


def compare(name: str, found: Answer, reference: Answer, bound: float, exact: bool) -> dict[str, float]:
    """How far an engine is from the reference. Raises typer.BadParameter where it does not compute the same model."""
    (logits, tokens), (right, right_tokens) = found, reference
    error = float(np.linalg.norm(logits - right) / np.linalg.norm(right))
    same = float(np.mean(tokens == right_tokens))
    if not error <= bound or (exact and same < 1):
        raise typer.BadParameter(
            f"{name} does not compute what {REFERENCE} does: its logits are {error:.1e} away, at most {bound:.0e} "
            f"expected, and {same:.0%} of its greedy tokens agree; its times would mean nothing."
        )
    return {"logits_error": error, "tokens_agree": same}


def run_shape(
    config_file: Path, folder: Path, engines: list[str], measures: list[str], rounds: int, prompt_tokens: int,
    new_tokens: int, one_at_a_time: bool, say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """All rounds of one shape -> {"checks": {engine: ...}, "samples": {measure: {engine: [one number a round]}}}"""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        say("writing a checkpoint of random weights")
        apart(write_checkpoint, config_file, folder)
    for name in engines:
        kind = name.removeprefix("llama.cpp-")
        if kind != name and not (folder / f"{kind}.gguf").exists():
            say(f"converting it to {kind}")
            apart(convert, folder, kind)
    workers: dict[str, Worker] = {}

    def worker(name: str) -> Worker:
        if name not in workers:
            workers[name] = Worker(name, folder, prompt_tokens, new_tokens)
            for what in calls:
                workers[name](what)  # compile, and touch every page
        return workers[name]

    def rest(name: str) -> None:
        if one_at_a_time:
            workers.pop(name).stop()

    calls = [measure for measure in measures if measure != "first-token"]
    samples: dict[str, dict[str, list[float]]] = {measure: {} for measure in measures}
    checks: dict[str, dict[str, float]] = {}
    try:
        if calls:
            say(f"asking {REFERENCE}")
            reference = worker(REFERENCE)("check")
            rest(REFERENCE)
            for name in engines:
                say(f"checking {name}")
                _, exact, bound = ENGINES[name]
                if exact is not None:
                    compare(name, worker(name)("exact"), reference, exact, exact=True)
                checks[name] = compare(name, worker(name)("check"), reference, bound, exact=False)
                rest(name)
            if REFERENCE not in engines and REFERENCE in workers:
                workers.pop(REFERENCE).stop()
        if "first-token" in measures:
            for name in [name for name in engines if name in COMMANDS]:
                say(f"first command of {name}")
                first_token(name, folder)  # fills its caches
        for turn in range(rounds):
            order = engines[turn % len(engines) :] + engines[: turn % len(engines)]
            for name in order:
                say(f"round {turn + 1} of {rounds}: {name}")
                if calls:
                    for measure in calls:
                        samples[measure].setdefault(name, []).append(worker(name)(measure))
                    rest(name)
                if "first-token" in measures and name in COMMANDS:
                    samples["first-token"].setdefault(name, []).append(first_token(name, folder))
    finally:
        for one in workers.values():
            one.stop()
    return {"checks": checks, "samples": samples}


def versions() -> dict[str, Any]:
    """Which machine and versions the figures belong to."""
    return machine() | {name: metadata.version(name) for name in ("torch", "transformers", "llama_cpp_python")}


def print_shape(shape: str, report: dict[str, Any], engines: list[str]) -> None:
    """One row per engine, one column per measure: the median, the lowest and highest, and how many times ours it is."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=shape, caption="median (lowest – highest) ×, by how much nanollm is better in the same round")
    table.add_column("")
    for measure in report["samples"]:
        table.add_column(f"{measure}\n{'s' if measure == 'first-token' else 'tok/s'}", justify="right")
    for name in engines:
        cells = []
        for measure, by_engine in report["samples"].items():
            values = by_engine.get(name)
            if values is None:
                cells.append("")
                continue
            digits = 2 if measure == "first-token" else 1 if statistics.median(values) < 100 else 0
            cell = f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
            if "nanollm" in by_engine and name != "nanollm":
                pairs = zip(by_engine["nanollm"], values, strict=True)
                ratios = [theirs / ours if measure == "first-token" else ours / theirs for ours, theirs in pairs]
                cell += f" ×{statistics.median(ratios):.2f}"
            cells.append(cell)
        table.add_row(name, *cells)
    Console(width=max(Console().width, 30 + 32 * len(report["samples"]))).print(table)


def main(
    shape: Annotated[list[str], typer.Option(help="A file of configs/, with or without path and .json.")] = ["llama-110m"],  # noqa: B006
    engine: Annotated[list[str], typer.Option(help=f"Of {', '.join(ENGINES)}.")] = [  # noqa: B006
        name for name in ENGINES if name != "nanollm-bf16"
    ],
    measure: Annotated[list[str], typer.Option(help="decode-ROWS, prefill-TOKENS or first-token.")] = [  # noqa: B006
        "decode-1", "decode-8", "prefill-128", "prefill-512", "first-token",
    ],
    rounds: Annotated[int, typer.Option(min=1, help="How often every engine is measured.")] = 5,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens in front of decode.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=CHECK_STEPS, help="Tokens per row of decode.")] = 64,
    one_at_a_time: Annotated[bool, typer.Option("--one-at-a-time", help="Load an engine for its turn only.")] = False,
    folder: Annotated[Path | None, typer.Option(help="For checkpoints, to be used again. Default: a temporary one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every sample.")] = False,
) -> None:  # fmt: skip
    """Measure nanollm_jax beside its peers, on the same random weights and prompts."""
    configs = Path(__file__).parents[1] / "configs"
    shapes = {Path(name).stem if name.endswith(".json") else name: name for name in shape}
    files = {
        name: Path(given) if given.endswith(".json") else configs / f"{given}.json" for name, given in shapes.items()
    }
    for file in files.values():
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in configs.glob("*.json")))
            raise typer.BadParameter(f"there is no file {file}; in configs/ are {known}.")
    if unknown := [name for name in engine if name not in ENGINES]:
        raise typer.BadParameter(f"engine {unknown[0]!r} is not known; expected one of {', '.join(ENGINES)}.")
    for what in measure:
        kind, _, count = what.partition("-")
        if what != "first-token" and not (kind in ("decode", "prefill") and count.isdecimal() and int(count) > 0):
            raise typer.BadParameter(
                f"measure {what!r} is not known; expected decode-ROWS, prefill-TOKENS or first-token."
            )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reports = {
            name: run_shape(file, root / name, engine, measure, rounds, prompt_tokens, new_tokens, one_at_a_time, say)
            for name, file in files.items()
        }
    if as_json:
        print(
            json.dumps(
                {"machine": versions(), "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "shapes": reports}
            )
        )
        return
    for name, report in reports.items():
        print_shape(name, report, engine)
        for peer, check in report["checks"].items():
            print(
                f"{peer}: logits within {check['logits_error']:.1e}, {check['tokens_agree']:.0%} of greedy tokens the same"
            )
    print(", ".join(f"{name} {value}" for name, value in versions().items()))


if __name__ == "__main__":
    typer.run(main)
