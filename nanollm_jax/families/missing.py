"""What models of other families need that is not computed here, for the error that refuses them.

An entry goes when its family comes; families/README.md says of the largest what they would cost.
"""

from __future__ import annotations

CHOSEN = "an indexer that chooses, for each query, the positions that attention looks at"
COMPRESSED = (
    "attention over compressed positions that an indexer chooses, and several residual streams beside each other"
)
STREAMS = "several residual streams beside each other, and a second path beside attention"
NAMES = "a table of its tensors' names; its code is published beside its weights only, and nothing here could check it"
IMAGES = "the text's part of a model that sees, under its names"
DISTANCE = "scores of attention that fall with the distance (ALiBi)"
CHANNELS = "a state space whose channels decay each by itself (Mamba 1)"
ENCODER = "an encoder: every token looks at all others, and none is generated"

MISSING = {
    "bert": ENCODER,
    "bloom": DISTANCE,
    "chatglm": NAMES,
    "clip_vision_model": "an encoder of images: there is no text in it",
    "dbrx": "a table of its tensors' names, whose experts lie below each other",
    "deepseek_ref": COMPRESSED,
    "deepseek_v32": CHOSEN,
    "deepseek_v4": COMPRESSED,
    "exaone": NAMES,
    "falcon": "a table of its tensors' names, and for its oldest sizes scores of attention that fall with the distance",
    "falcon_mamba": CHANNELS,
    "gemma3n": STREAMS,
    "gemma3n_text": STREAMS,
    "glm4v": IMAGES,
    "glm4v_moe": IMAGES,
    "glm_moe_dsa": CHOSEN,
    "idefics3": IMAGES,
    "internlm": NAMES,
    "internlm2": NAMES,
    "internvl": IMAGES,
    "jamba": CHANNELS,
    "kimi_linear": "a delta rule whose state fades by a share of its own in each channel, beside attention over latents",
    "llama4": "attention within chunks, norms of heads without a scale, and experts weighted before they are asked",
    "llava_next": IMAGES,
    "llava_onevision": IMAGES,
    "mamba": CHANNELS,
    "minicpm": NAMES,
    "mllama": "layers that look at an image instead of at the text",
    "mpt": DISTANCE,
    "nemotron-nas": "heads and widths that differ from layer to layer",
    "opt": "learned positions that are counted from 2, and a table of its tensors' names",
    "phi-msft": "its older names of tensors; the same weights are published as 'phi'",
    "phi3_v": IMAGES,
    "phi3small": "attention to blocks of positions in a pattern for each head, and an activation of its own",
    "phimoe": "a router that masks what is far below the best expert, twice",
    "qwen": NAMES,
    "qwen2_5_omni": IMAGES,
    "qwen3_5_vision": "an encoder of images: there is no text in it",
    "qwen3_omni_moe": IMAGES,
    "recurrent_gemma": "a linear recurrence with gates in place of attention (RG-LRU)",
    "rwkv": "a recurrence of its own in place of attention",
    "smolvlm": IMAGES,
    "step3p7": "heads whose number differs from layer to layer, with a gate of each",
}
