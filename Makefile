# Tests are nearly all compilation. Without LLVM's optimiser, with XLA's plain emitter of fusions, and in one piece per program,
# that takes a fraction of the time. tests/programs.py names the flags, those that the installed version has; the user's own
# XLA_FLAGS come behind them. Tests that read a compiled program turn the emitter on again; parity has one case of every
# family with mathematics of its own, and the laws have all of theirs, compiled as for users.
#
# Everything runs in .venv, which is made on the first call from any Python 3.11 to 3.13: make PYTHON=python3.12 test
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
QUICK = $(shell $(BIN)/python tests/programs.py)
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
TESTS := $(PYTEST) -m "not parity and not laws and not clients and not ray"
# Bytecode is kept, also where the environment says otherwise: tests start a hundred processes that import the package
export PYTHONDONTWRITEBYTECODE :=
# An x86 processor that ends with AVX2, as far as NumPy, OpenBLAS and XLA can be told to do without the rest
AVX2 := NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" OPENBLAS_CORETYPE=Haswell

.PHONY: help demo serve look soak clients fuzz test test-portable test-ray native-check laws parity lint bench bench-peers bench-peers-avx2 bench-serve gpu gpu-compile tpu-compile experiments reference figures clean

help: ## list these targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: .venv/installed ## a story from the bundled model, printed as it is generated
	@$(BIN)/nanollm generate "Once upon a time" --echo --max-new-tokens 300 --temperature 0.7 --top-p 0.9 --seed 4

serve: .venv/installed-serve ## an OpenAI-compatible server of the bundled model, at http://127.0.0.1:8000/v1
	@$(BIN)/nanollm serve

look: .venv/installed-serve ## a page that shows the bundled model from inside while it writes
	@$(BIN)/nanollm look

test: .venv/installed-test ## every room, without reference implementations
	XLA_FLAGS="$(QUICK) $(XLA_FLAGS)" $(TESTS)

test-portable: .venv/installed-test ## the same tests as on a processor without AVX-512, then compiled as for users; takes long
	$(AVX2) XLA_FLAGS="--xla_cpu_max_isa=AVX2 $(QUICK) $(XLA_FLAGS)" $(TESTS)
	$(TESTS)

# Ray gives a process of its own five seconds to begin, and replicas what others leave of the processor: too little for a small one
test-ray: export RAY_worker_niceness = 0
test-ray: export RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S = 120
test-ray: export RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S = 120
test-ray: .venv/installed-test-ray ## replicas by Ray Serve, of one process and of two, on this machine
	XLA_FLAGS="$(QUICK) $(XLA_FLAGS)" $(BIN)/python -m pytest -m ray tests/test_ray.py

# Plain C is the oracle, in the same file. Of products, -march=native would let the compiler mix what is told apart here; attention
# is compiled for one processor, so for each size of vectors
CHECK = -std=gnu11 -g -I nanollm_jax/ops/native -I $$($(BIN)/python -c "import jax; print(jax.ffi.include_dir())") -lm -lpthread \
	-o experiments/run/native_check
SANITIZED = cc -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
native-check: .venv/installed-test ## products and attention in C, every instruction set that this processor has, with sanitizers; NEON under qemu where it is installed
	mkdir -p experiments/run
	$(SANITIZED) tests/native_check.c $(CHECK) && experiments/run/native_check
	cc -O1 -fsanitize=thread tests/native_check.c $(CHECK) && experiments/run/native_check
	for march in native $$(uname -m | sed -n s/x86_64/x86-64-v3/p); do \
		$(SANITIZED) -march=$$march tests/native_attention_check.c $(CHECK) && experiments/run/native_check || exit 1; done
	if command -v aarch64-linux-gnu-gcc && command -v qemu-aarch64; then \
		for check in native native_attention; do \
			aarch64-linux-gnu-gcc -O2 -static tests/$${check}_check.c $(CHECK) && qemu-aarch64 experiments/run/native_check || exit 1; done; \
	else echo "NEON was not tried: it needs gcc-aarch64-linux-gnu and qemu-user"; fi

soak: .venv/installed-test ## ten minutes of 64 clients against the server, of which many misbehave: nothing lost, nothing mixed
	$(BIN)/python experiments/soak_serve.py

# -W: the clients' libraries leave event loops and sockets open
clients: .venv/installed-clients ## other people's clients against a real server: openai, LangChain, LiteLLM, the AI SDK, lm-evaluation-harness, a browser
	mkdir -p experiments/run/clients && npm install --silent --no-audit --no-fund --prefix experiments/run/clients ai@6 @ai-sdk/openai-compatible@2
	$(BIN)/python -m pytest -m clients -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning \
		tests/test_serve_clients.py tests/test_serve_page.py tests/test_glass_page.py tests/test_report.py tests/test_course_pages.py tests/test_course_parts.py tests/test_playground.py

laws: .venv/installed-test ## an answer has the same bits alone and beside others: 1,000 random schedules in each dtype, over all families; meshes; two processes; takes long
	$(PYTEST) -m laws

parity: .venv/installed-parity ## the same logits and tokens as transformers, and on meshes of every size; installs torch
	XLA_FLAGS="$(QUICK) $(XLA_FLAGS)" $(PYTEST) -m "parity and not as_users"
	$(PYTEST) -m as_users

fuzz: .venv/installed-test ## 10,000 damaged files at every door; another hundred thousand: make fuzz SEED=1
	$(BIN)/python tests/fuzzing.py --seed $(or $(SEED),0)

lint: .venv/installed-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy nanollm_jax

bench: .venv/installed ## how fast the bundled model and a 110M LLaMA start, read and write
	$(BIN)/nanollm bench
	$(BIN)/nanollm bench configs/llama-110m.json

bench-peers: export CMAKE_ARGS = -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF
bench-peers: export CMAKE_BUILD_PARALLEL_LEVEL = $(shell getconf _NPROCESSORS_ONLN)
bench-peers: .venv/installed-peers ## the same beside transformers and llama.cpp, which it installs and compiles; ARGS=--quick
	$(BIN)/python experiments/bench_peers.py $(ARGS)

bench-peers-avx2: export CMAKE_ARGS = -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF
bench-peers-avx2: export CMAKE_BUILD_PARALLEL_LEVEL = $(shell getconf _NPROCESSORS_ONLN)
bench-peers-avx2: .venv/installed-peers ## bench-peers as on a processor that ends with AVX2; compiles another llama.cpp, once
	test -d experiments/run/llama-avx2 || $(BIN)/python -m pip install --quiet --no-deps --no-cache-dir --no-binary llama-cpp-python \
		--target experiments/run/llama-avx2 --constraint constraints.txt llama-cpp-python
	PYTHONPATH=experiments/run/llama-avx2 $(BIN)/python experiments/bench_peers.py --isa avx2 $(ARGS)

bench-serve: .venv/installed-peers ## nanollm serve beside llama-server, which it builds, and transformers serve; half an hour, or ARGS=--quick
	server=$$(PYTHON=$(CURDIR)/$(BIN)/python sh experiments/llama_server.sh "$${XDG_CACHE_HOME:-$$HOME/.cache}/nanollm_jax/llama-server") && \
	$(BIN)/python experiments/bench_serve.py --folder experiments/run/bench-serve --llama-server "$$server" $(ARGS)

gpu: $(if $(SMALL),.venv/installed-plot) ## measure the GPU of this machine with its own Python, below 5 minutes; SMALL=1 tries it on a CPU
	PYTHONPATH=. $(if $(SMALL),$(BIN)/python,$(PYTHON)) experiments/on_a_gpu.py $(if $(SMALL),--small) --out gpu-results

# Compilers of devices that are not there, each in a folder of its own: out of .venv JAX would load them whenever it starts
COMPILERS := experiments/run/compilers
COMPILER_gpu := jax-cuda12-pjrt jax-cuda12-plugin nvidia-cuda-nvcc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-cupti-cu12
COMPILER_tpu := libtpu
gpu-compile tpu-compile: export JAX_PLATFORMS = cpu
gpu-compile tpu-compile: export TF_CPP_MIN_LOG_LEVEL = 2
# neither plugin is to look for a device or a driver, and no kernel can be timed
gpu-compile: export JAX_SKIP_CUDA_CONSTRAINTS_CHECK = 1
gpu-compile: export XLA_FLAGS = --xla_gpu_cuda_data_dir=$(CURDIR)/$(COMPILERS)/gpu/nvidia/cuda_nvcc --xla_gpu_autotune_level=0
tpu-compile: export TPU_SKIP_MDS_QUERY = 1
tpu-compile: export TPU_ACCELERATOR_TYPE = v5p-8
tpu-compile: export TPU_WORKER_HOSTNAMES = localhost
gpu-compile: $(COMPILERS)/gpu .venv/installed ## the engine's programs for an H100, compiled and read on a machine without one; downloads 600 MB
	PYTHONPATH=$(CURDIR)/$< $(BIN)/python tests/compile_for.py gpu $(ARGS)

tpu-compile: $(COMPILERS)/tpu .venv/installed ## the same for TPUs, v5p and v5e; downloads 200 MB
	PYTHONPATH=$(CURDIR)/$< $(BIN)/python tests/compile_for.py tpu $(ARGS)

$(COMPILERS)/%: .venv/bin/python constraints.txt
	@echo "installing the compiler for a $* into $@"
	@rm -rf $@ $@.part && mkdir -p $(COMPILERS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt --target $@.part $(COMPILER_$*)
	@mv $@.part $@ && touch $@

experiments: reference ## run every chapter of experiments/ and build the pages, experiments/pages/index.html
	$(BIN)/python experiments/page/build.py

# what the course speaks of, beside the public names
ROOMS := $(addprefix nanollm_jax.,model params layout config sampling decode cache ops.attention ops.dot_product ops.embedding ops.linear \
	ops.mlp ops.moe ops.norm ops.rope ops.int8 collectives partition engine.engine engine.slots engine.buckets weights.checkpoint weights.load)
reference: .venv/installed-experiments ## the library's functions, from their docstrings, as pages: experiments/pages/reference/index.html
	$(BIN)/pdoc --output-directory experiments/pages/reference --template-directory experiments/page/reference nanollm_jax $(ROOMS)

figures: .venv/installed-experiments ## the same, then renew the committed figures; on a machine with nothing else to do
	$(BIN)/python experiments/page/build.py --renew

clean: ## remove .venv and what tools left behind
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis experiments/run experiments/pages

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and "nanollm_jax needs Python 3.11 to 3.13, found %d.%d; try make PYTHON=python3.12 ..." % v)'
	@echo "making .venv and installing; this takes a minute or two, once"
	@$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@$(PIP) .
	@touch $@

.venv/installed-%: .venv/bin/python pyproject.toml constraints.txt
	@$(PIP) ".[$*]"
	@touch $@ .venv/installed
