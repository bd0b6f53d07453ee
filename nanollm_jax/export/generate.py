"""Continue a text with the model in this folder; README.md says what has to be installed.

python generate.py "Once upon a time" --new-tokens 64 --seed 7 --set temperature=0.8 --set top_p=0.95
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file


def write(folder, ids, new_tokens, seed=0, **changed):
    """The ids of a prompt -> those of its answer. changed: settings by name, in place of those in settings.safetensors."""
    facts = json.loads((folder / "export.json").read_text())
    programs = [export.deserialize(bytearray((folder / name).read_bytes())) for name in ("read.jax", "step.jax")]
    read, step = (jax.jit(program.call, donate_argnums=1) for program in programs)
    _, empty, *_ = jax.tree.unflatten(programs[0].in_tree, programs[0].in_avals)[0]
    weights, settings = (load_file(folder / name) for name in ("weights.safetensors", "settings.safetensors"))
    weights, text, T = jax.device_put(weights), list(ids), facts["piece"]
    for name, value in (changed | {"max_new_tokens": new_tokens}).items():
        settings[name][:] = value
    if not 0 < len(text) <= facts["capacity"] - new_tokens:
        raise SystemExit(
            f"{len(text)} + {new_tokens} tokens; there is room for {facts['capacity']}, at least one in front"
        )

    def read_all():
        state = {name: np.zeros(array.shape, array.dtype) for name, array in empty.items()}
        for at in range(0, len(text), T):
            piece = text[at : at + T]
            tokens, numbers = piece + [0] * (T - len(piece)), (len(piece), len(text))
            state = read(weights, state, np.array([tokens], np.int32), *np.array(numbers, np.int32)[:, None])
        return state

    state = read_all()
    while len(text) < len(ids) + new_tokens:
        token, _, state = step(weights, state, settings, np.array([seed], np.uint32))
        text.append(int(token[0]))
        if settings["ends"][0, text[-1]]:
            break
        if len(text) - 1 == facts["switch"]:  # longer texts are turned otherwise, from their beginning on
            state = read_all() | {name: value for name, value in state.items() if name.startswith("past.")}
    return text[len(ids) :]


def tokenizer(folder):
    """From a text to ids, and from ids to a text, by the library that the tokenizer's file is of."""
    if (folder / "tokenizer.json").exists():
        import tokenizers

        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        library.encode_special_tokens = True  # what is typed is text
        return lambda text: library.encode(text, add_special_tokens=False).ids, library.decode
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return processor.encode, processor.decode


if __name__ == "__main__":
    parser, here = argparse.ArgumentParser(), Path(__file__).parent
    parser.add_argument("prompt", help="a text, or with --ids numbers: 5,17,2")
    parser.add_argument("--ids", action="store_true", help="ids go in, and come out")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, such as temperature=0.8"
    )
    asked = parser.parse_args()
    changed = {name: float(value) for name, value in (text.split("=") for text in asked.set)}
    if asked.ids:
        ids = [int(token) for token in asked.prompt.split(",")]
        print(*write(here, ids, asked.new_tokens, asked.seed, **changed), sep=",")
    else:
        encode, decode = tokenizer(here)
        facts = json.loads((here / "export.json").read_text())
        ids = facts["begin"] + encode(asked.prompt)
        text = decode(ids + write(here, ids, asked.new_tokens, asked.seed, **changed))[len(decode(ids)) :]
        print(min([text, *(text.partition(end)[0] for end in facts["stop"])], key=len))
