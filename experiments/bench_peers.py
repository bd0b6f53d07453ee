"""nanollm_jax beside transformers and llama.cpp: the same shapes, weights and prompts, in one run, engine after engine.

    make bench-peers                          # installs the peers, then runs this; make bench-peers-avx2: without AVX-512
    python experiments/bench_peers.py --quick                                       # 110M, three rounds, a few minutes
    python experiments/bench_peers.py --shape llama-1.1b --format 8 --format 4 --measure decode-1

Engines are compared within a format, the number of bits of a weight: those of one are loaded together, each in a process of
its own, and take turns in every round, so that what disturbs the machine disturbs all. Every call was made once before it
is timed. No engine is timed before its logits were found to be those of transformers in float32, and for engines in float32
its greedy tokens too.

    decode-N       tokens per second, N rows together, greedy, behind a prompt of --prompt-tokens
    prefill-N      tokens per second of one prompt of N tokens, up to the logits of what follows it
    first-token    seconds from starting a command to its first output: `nanollm generate`, scripts of transformers and of
                   llama.cpp's Python binding
    memory         MB that an engine's process had at most in all of this, the pages of the file that it mapped among them
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import typer

from nanollm_jax.measure.subject import machine

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
        if os.environ.get(NATIVE) == "avx2" and b"AVX512 = 1" in llama_cpp.llama_print_system_info():
            raise RuntimeError(
                "this llama.cpp was compiled for AVX-512; `make bench-peers-avx2` compiles one that is not, or let "
                "LLAMA_CPP_LIB_PATH name its folder."
            )
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
# far when it is timed: |difference| / |reference|), of LAYERS layers or fewer
ENGINES: dict[str, tuple[Callable[[Path], Engine], float | None, float]] = {
    "nanollm": (lambda folder: Nano(folder, "float32"), 1e-4, 1e-4),
    "nanollm-bf16": (lambda folder: Nano(folder, "bfloat16"), None, 1e-1),
    "nanollm-f16": (lambda folder: Nano(folder, "float16"), None, 2e-2),
    "nanollm-int8": (lambda folder: Nano(folder, "int8"), None, 2e-1),
    "nanollm-int4": (lambda folder: Nano(folder, "int4"), None, 6e-1),
    "transformers": (lambda folder: Transformers(folder, "float32"), 1e-4, 1e-4),
    "transformers-compiled": (lambda folder: Transformers(folder, "float32", compiled=True), 1e-4, 1e-4),
    "transformers-bf16": (lambda folder: Transformers(folder, "bfloat16"), None, 1e-1),
    # llama.cpp looks GELU up in a table of 16-bit numbers: 4e-4 in GPT-2
    "llama.cpp-f32": (lambda folder: LlamaCpp(folder, "f32"), 1e-3, 1e-2),
    "llama.cpp-f16": (lambda folder: LlamaCpp(folder, "f16"), None, 2e-2),
    "llama.cpp-q8_0": (lambda folder: LlamaCpp(folder, "q8_0"), None, 2e-1),
    "llama.cpp-q4_0": (lambda folder: LlamaCpp(folder, "q4_0"), None, 6e-1),
}
LAYERS = 12  # what each layer rounds away adds up, with any sign: of more the root of how many times as many
REFERENCE = "transformers"
# by the bits of a weight; the first of each is ours, which the others are compared with
FORMATS = {
    "32": ["nanollm", "transformers", "transformers-compiled", "llama.cpp-f32"],
    "16": ["nanollm-bf16", "nanollm-f16", "transformers-bf16", "llama.cpp-f16"],
    "8": ["nanollm-int8", "llama.cpp-q8_0"],
    "4": ["nanollm-int4", "llama.cpp-q4_0"],
}
SLOW = "transformers-compiled"  # to get ready: half a minute for each number of rows and tokens
DTYPES = {"nanollm": "float32", "nanollm-bf16": "bfloat16", "nanollm-f16": "float16", "transformers": "float32",
          "transformers-bf16": "bfloat16"}  # fmt: skip
TRANSFORMERS_COMMAND = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, dtype = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
ids = tokenizer(prompt, return_tensors="pt")
answer = model.generate(**ids, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(answer[0, ids["input_ids"].shape[1]:]), flush=True)
"""
LLAMA_COMMAND = """
import sys
from llama_cpp import Llama
file, prompt, threads = sys.argv[1:]
model = Llama(file, n_ctx=512, n_threads=int(threads), n_threads_batch=int(threads), verbose=False)
print(model(prompt, max_tokens=1, temperature=0.0)["choices"][0]["text"], flush=True)
"""
NATIVE = "NANOLLM_NATIVE"  # what our own C listens to, and by which we tell that --isa was given
# how each library is kept from using what the processor has besides; llama.cpp has to be compiled without it, and XLA's own
# library for products of several rows in 32 and 16 bits, YNNPACK, looks at the processor itself and takes all that there is
ISAS = {
    "avx2": {
        NATIVE: "avx2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
    }
}  # fmt: skip


def command(name: str, folder: Path) -> list[str] | None:
    """A program that answers one prompt with one token; None of an engine that has none."""
    kind = name.removeprefix("llama.cpp-")
    if kind != name:
        return [sys.executable, "-c", LLAMA_COMMAND, str(folder / f"{kind}.gguf"), PROMPT, str(CORES)]
    if name.startswith("nanollm"):
        dtype = DTYPES.get(name, name.removeprefix("nanollm-"))
        how = ["--dtype", dtype, "--max-new-tokens", "1", "--temperature", "0"]
        return [sys.executable, "-m", "nanollm_jax", "generate", PROMPT, "--model", str(folder), *how]
    if name in DTYPES:
        return [sys.executable, "-c", TRANSFORMERS_COMMAND, str(folder), PROMPT, DTYPES[name]]
    return None


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
    """The checkpoint as a GGUF file: matrices in `kind` (f32, f16, q8_0 or q4_0), vectors in float32."""
    import gguf
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    arch = config["model_type"]
    quantization = gguf.GGMLQuantizationType[kind.upper()]
    file = folder / f"{kind}.gguf"
    writer = gguf.GGUFWriter(file.with_suffix(".part"), arch)
    writer.add_file_type({"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}[kind])
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

    answers: dict[str, Callable[[], Any]] = {
        "exact": lambda: check(True), "check": lambda: check(False), "memory": peak_memory,
    }  # fmt: skip
    while (request := connection.recv()) is not None:
        connection.send(answers[request]() if request in answers else measure(request))


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
                "(-9 is usually too little memory: name fewer with --engine)."
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


def peak_memory() -> float:
    """MB of memory that this process had at most."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    # not ru_maxrss, which on Linux has that of the parent in it
    return (
        next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
    )


def first_token(name: str, folder: Path) -> float:
    """Seconds from the start of a command to the first byte that it prints. Caches are private to the folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    with subprocess.Popen(
        command(name, folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
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


class Measuring(NamedTuple):
    """What is measured of every engine, and how often."""

    measures: list[str]
    rounds: int
    prompt_tokens: int
    new_tokens: int

    @property
    def calls(self) -> list[str]:
        """Those that an engine's process is asked for; the first token is that of a new one."""
        return [measure for measure in self.measures if measure != "first-token"]


def make_files(config_file: Path, folder: Path, engines: list[str], say: Callable[[str], None]) -> None:
    """The checkpoint and what llama.cpp reads in its place, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        say("writing a checkpoint of random weights")
        apart(write_checkpoint, config_file, folder)
    for name in engines:
        kind = name.removeprefix("llama.cpp-")
        if kind != name and not (folder / f"{kind}.gguf").exists():
            say(f"converting it to {kind}")
            apart(convert, folder, kind)


def ask_reference(folder: Path, how: Measuring) -> Answer:
    """What every engine is checked against."""
    worker = Worker(REFERENCE, folder, how.prompt_tokens, how.new_tokens)
    try:
        return worker("check")
    finally:
        worker.stop()


def run_format(
    folder: Path, engines: list[str], reference: Answer | None, how: Measuring, say: Callable[[str], None]
) -> dict[str, Any]:
    """All rounds of one format -> {"checks": {engine: ...}, "samples": {measure: {engine: [one number a round]}}}

    reference: None where nothing but first tokens is measured.
    """
    samples: dict[str, dict[str, list[float]]] = {measure: {} for measure in how.measures}
    checks: dict[str, dict[str, float]] = {}
    commands = [name for name in engines if "first-token" in how.measures and command(name, folder)]
    workers: dict[str, Worker] = {}
    config = json.loads((folder / "config.json").read_text())
    layers = config["n_layer"] if "n_layer" in config else config["num_hidden_layers"]
    try:
        for name in engines if reference is not None else ():
            say(f"checking {name}")
            worker = workers[name] = Worker(name, folder, how.prompt_tokens, how.new_tokens)
            _, exact, bound = ENGINES[name]
            bound *= max(1, layers / LAYERS) ** 0.5
            if exact is not None:
                compare(name, worker("exact"), reference, exact, exact=True)
            checks[name] = compare(name, worker("check"), reference, bound, exact=False)
            for measure in how.calls:
                worker(measure)  # compile, and touch every page
        for name in commands:
            say(f"first command of {name}")
            first_token(name, folder)  # fills its caches
        for turn in range(how.rounds):
            first = turn % len(engines)
            for name in engines[first:] + engines[:first]:
                say(f"round {turn + 1} of {how.rounds}: {name}")
                for measure in how.calls:
                    samples[measure].setdefault(name, []).append(workers[name](measure))
                if name in commands:
                    samples["first-token"].setdefault(name, []).append(first_token(name, folder))
        if workers:
            samples["memory"] = {name: [worker("memory")] for name, worker in workers.items()}
    finally:
        for one in workers.values():
            one.stop()
    return {"checks": checks, "samples": samples}


def versions() -> dict[str, Any]:
    """Which machine and versions the figures belong to."""
    import torch
    import transformers

    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if is_installed("llama_cpp"):
        import llama_cpp

        found["llama_cpp_python"] = llama_cpp.__version__
    return machine() | found


def is_installed(module: str) -> bool:
    """Can it be imported?"""
    return importlib.util.find_spec(module) is not None


def title(measure: str) -> str:
    """The head of a column."""
    kind, _, count = measure.partition("-")
    return {
        "decode": f"decode, {count} row{'s' * (count != '1')}", "prefill": f"prefill, {count} tokens",
        "first": "first token, s", "memory": "memory, MB",
    }[kind]  # fmt: skip


def cells(report: dict[str, Any], name: str, ours: str) -> list[str]:
    """One engine's figures: each the median, and how many times better ours is in the same round."""
    found = []
    for measure, by_engine in report["samples"].items():
        if (values := by_engine.get(name)) is None:
            found.append("")
            continue
        middle = statistics.median(values)
        cell = f"{middle:.2f}" if measure == "first-token" else f"{middle:.1f}" if middle < 100 else f"{middle:.0f}"
        if ours in by_engine and name != ours:
            pairs = zip(by_engine[ours], values, strict=True)
            less = measure in ("first-token", "memory")
            ratios = [theirs / own if less else own / theirs for own, theirs in pairs]
            cell += f" ×{statistics.median(ratios):.2f}"
        found.append(cell)
    return found


def markdown(reports: dict[str, dict[str, Any]]) -> str:
    """A table of all shapes and formats, one engine a row. reports: {shape: {format: what run_format gives}}"""
    columns = next(iter(next(iter(reports.values())).values()))["samples"]
    heads = ["shape", "bits", "engine", *map(title, columns)]
    rows = [heads, ["---"] * len(heads)]
    for shape, formats in reports.items():
        for bits, report in formats.items():
            names = list(next(iter(report["samples"].values())))
            ours = FORMATS[bits][0]
            for name in sorted(names, key=FORMATS[bits].index):
                rows.append([shape, bits, name, *cells(report, name, ours)])
                shape = bits = " "  # said once
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(
    shape: Annotated[list[str], typer.Option(help="A file of configs/, with or without path and .json.")] = ["llama-110m"],  # noqa: B006
    format: Annotated[list[str] | None, typer.Option(help=f"Bits of a weight, of {', '.join(FORMATS)}. Default: all.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ENGINES)}. Default: those of the formats.")] = None,
    measure: Annotated[list[str], typer.Option(help="decode-ROWS, prefill-TOKENS or first-token.")] = [  # noqa: B006
        "decode-1", "decode-8", "prefill-512", "first-token",
    ],
    rounds: Annotated[int, typer.Option(min=1, help="How often every engine is measured.")] = 5,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens in front of decode.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=CHECK_STEPS, help="Tokens per row of decode.")] = 64,
    quick: Annotated[bool, typer.Option("--quick", help=f"Three rounds, 32 tokens, without {SLOW}.")] = False,
    isa: Annotated[str | None, typer.Option(help=f"Keep all from using more of the processor than {', '.join(ISAS)}.")] = None,
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
    for what, given, known in (("format", format, FORMATS), ("engine", engine, ENGINES), ("isa", isa and [isa], ISAS)):
        if unknown := [name for name in given or () if name not in known]:
            raise typer.BadParameter(f"{what} {unknown[0]!r} is not known; expected one of {', '.join(known)}.")
    for what in measure:
        kind, _, count = what.partition("-")
        if what != "first-token" and not (kind in ("decode", "prefill") and count.isdecimal() and int(count) > 0):
            raise typer.BadParameter(
                f"measure {what!r} is not known; expected decode-ROWS, prefill-TOKENS or first-token."
            )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    wanted = set(engine or [name for name in ENGINES if not (quick and name == SLOW)])
    if not is_installed("llama_cpp"):
        say("llama-cpp-python is not installed: llama.cpp is left out")
        wanted -= {name for name in ENGINES if name.startswith("llama.cpp")}
    chosen = {bits: [name for name in FORMATS[bits] if name in wanted] for bits in format or FORMATS}
    chosen = {bits: names for bits, names in chosen.items() if names}
    if not chosen:
        raise typer.BadParameter(f"none of {', '.join(sorted(wanted))} is of these formats; leave one option out.")
    for variable, value in ISAS.get(isa, {}).items():
        given = os.environ.get(variable, "") if variable == "XLA_FLAGS" else ""
        os.environ[variable] = f"{value} {given}".strip()
    how = Measuring(measure, 3 if quick else rounds, prompt_tokens, 32 if quick else new_tokens)
    reports: dict[str, dict[str, Any]] = {}
    refused: list[str] = []
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, file in files.items():
            make_files(file, root / name, [name for names in chosen.values() for name in names], say)
            say(f"asking {REFERENCE}")
            reference = ask_reference(root / name, how) if how.calls else None
            for bits, names in chosen.items():
                try:
                    reports.setdefault(name, {})[bits] = run_format(root / name, names, reference, how, say)
                except typer.BadParameter as error:  # the other formats' figures are not lost
                    refused.append(f"{name}: {error.message}")
                    say(refused[-1])
    reports = {name: formats for name, formats in reports.items() if formats}
    if not reports:
        raise typer.BadParameter("\n".join(refused))
    about = versions() | ({"isa": isa} if isa else {}) | how._asdict()
    if as_json:
        print(json.dumps({"about": about, "shapes": reports, "refused": refused}))
        raise typer.Exit(len(refused))
    print(markdown(reports) + "\n")
    for formats in reports.values():
        for report in formats.values():
            for peer, check in report["checks"].items():
                print(
                    f"{peer}: logits within {check['logits_error']:.1e}, {check['tokens_agree']:.0%} of greedy tokens the same"
                )
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    raise typer.Exit(len(refused))


if __name__ == "__main__":
    typer.run(main)
