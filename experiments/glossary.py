"""The words of the course: which chapter explains each, in italics, and how it is written in a text.

A chapter that uses one before that explains it itself, or names the chapter beside it; tests/test_experiments.py looks. Words
that are explained where they are first needed, long before their own chapter, stand here with the earlier one.
"""

TERMS = {
    "inference": (1, r"inference"), "training": (1, r"train(?:ed|ing)"), "parameter": (1, r"parameters?"),
    "layer": (1, r"layers?"), "embedding": (1, r"embeddings?"), "score": (1, r"scores?"), "graph": (1, r"graphs?"),
    "transformer": (1, r"transformers?"), "TPU": (1, r"TPUs?"),
    "tensor": (1, r"tensors?"), "token": (1, r"tokens?"), "vocabulary": (1, r"vocabular(?:y|ies)"), "config": (1, r"configs?"),
    "checkpoint": (1, r"checkpoints?"), "tracing": (1, r"trac(?:e[sd]?|ing)"), "dtype": (1, r"dtypes?"),
    "stride": (1, r"strides?"), "broadcasting": (1, r"broadcast(?:ing|s)?"),
    "elementwise": (2, r"elementwise"), "reduction": (2, r"reductions?"), "contraction": (2, r"contractions?"),
    "einsum": (2, r"einsums?"), "jit": (2, r"jit(?:ted)?"), "XLA": (2, r"XLA"),
    "fusion": (2, r"fus(?:e[sd]?|ion|ing)"), "cache": (3, r"caches?"), "cache line": (3, r"cache lines?"),
    "arithmetic intensity": (4, r"intensity"),
    "FLOP": (4, r"G?FLOPs?"), "linear layer": (4, r"linear layers?"), "prompt": (4, r"prompts?"), "prefill": (4, r"prefill"),
    "decode": (4, r"decode"), "batch": (4, r"batch(?:es)?"), "roofline": (4, r"rooflines?"), "BLAS": (5, r"BLAS"),
    "neural network": (7, r"neural networks?"), "GPT-2": (7, r"GPT-2s?"), "LLaMA": (7, r"LLaMAs?"),
    "Mistral": (7, r"Mistral"), "sigmoid": (7, r"sigmoid"), "root mean square": (8, r"root mean squares?"),
    "epsilon": (8, r"epsilons?"), "mask": (9, r"masks?"),
    "log-sum-exp": (9, r"log-sum-exp"), "flash attention": (9, r"flash attention"),
    "projection": (10, r"projections?"), "grouped queries": (11, r"grouped quer(?:y|ies)"), "multi-query": (11, r"multi-query"),
    "bias": (7, r"bias(?:es)?"), "activation": (7, r"activations?"), "GELU": (7, r"GELU"), "SiLU": (7, r"SiLU"),
    "loss": (7, r"loss"), "norm": (8, r"RMS norm|layer norm|norms?"), "scan": (8, r"scans?"), "softmax": (9, r"softmax"),
    "logit": (9, r"logits?"), "attention": (10, r"attention"), "query": (10, r"quer(?:y|ies)"), "head": (11, r"heads?"),
    "causal mask": (11, r"causal"), "sliding window": (11, r"(?:sliding )?windows?"), "rope": (12, r"rope|rotary"),
    "MLP": (13, r"MLPs?|feed-forward"), "residual stream": (14, r"residual"), "logit lens": (14, r"lens"),
    "tokenizer": (15, r"tokenizers?"), "BPE": (15, r"BPE|byte-pair"), "safetensors": (16, r"safetensors"),
    "forward pass": (17, r"forward pass"), "tied": (17, r"tied"), "sampling": (18, r"sampling"),
    "temperature": (18, r"temperature"), "top-k": (18, r"top-k"), "top-p": (18, r"top-p|nucleus"), "min-p": (18, r"min-p"),
    "seed": (18, r"seeds?"), "greedy": (19, r"greedy"), "host": (19, r"hosts?"), "perplexity": (19, r"perplexit(?:y|ies)"),
    "KV cache": (20, r"KV cache"), "ring buffer": (20, r"rings?(?: buffers?)?"), "latent": (20, r"latents?"),
    "donation": (20, r"donat(?:e[sd]?|ion)"), "quantisation": (24, r"quantis\w+"), "collective": (22, r"collectives?"),
    "all-reduce": (22, r"all-reduces?"), "continuous batching": (25, r"continuous batching"),
    "speculation": (26, r"speculat\w+"), "acceptance": (26, r"acceptance"),
    "mesh": (22, r"mesh(?:es)?"), "activation patching": (23, r"patching"),
}  # fmt: skip
