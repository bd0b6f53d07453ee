# %% [markdown]
# # 15 · Tokenizer: text to integers and back
#
# [Previous: 14 · Residual stream](14_residual_stream.py) · [Contents](README.md) · [Next: 16 · Weights](16_weights_on_disk.py)
#
# ## The question
# A model reads integers, one vector of its embedding for each. How does a text become integers so that nothing is
# lost, no text is impossible, and the list stays short? And how does it become text again while the answer is still
# being written, when half a character may have arrived?
#
# This part has no weights to multiply, and it is easy to get wrong all the same, without any error: a space in the wrong
# place gives other integers, and the model answers a slightly different question.

# %%
from __future__ import annotations

import tempfile
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece
from chapter import BLUE, GREY, ORANGE, REPOSITORY, check, interactive, plt, predict, quick, save, table
from engine_steps import grow
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import nanollm_jax as nano
from nanollm_jax import tokenizer as library

LICENCE = (REPOSITORY / "LICENSE").read_text()  # an English text that every copy of this repository has
TOKENIZER_MODEL = Path(nano.__file__).parent / "assets/nano-stories/tokenizer.model"
HARD = [
    "", " ", "  two  spaces  ", "tabs\tand\nlines\r\n\n", "don't we'll I'm they'd he's", "12,345.67 + x²=½",
    "naïve café Zürich",
    "ΑΒΓ αβγ", "привет мир", "你好，世界", "नमस्ते", "مرحبا", "👩‍👩‍👧 🙂 🇨🇭", "e\u0301 is e and an accent", "nul \x00 and \x7f",
    "<s> </s> <0x41> ▁ Ġ",
    "\u00a0\u2003\u3000wide spaces\u3000", "\ufeffmark", "xooo, oooo, ooooo",
    "a" * 50, "ThisIsCamelCase__and_snake(case)!!", "'S 'LL ''t", "'ve begun, 're here",
    "signs\x1c! that\x1d\x1ePython\x1f? calls spaces", "\x85. one that is",
]  # fmt: skip
random = np.random.default_rng(15)


def fuzz(count):
    """Random texts of random characters, spaces and letters more often than the rest."""
    assigned = [chr(c) for c in range(0x3000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")] + list(
        "你好世界🙂👩🇨한글"
    )
    often = list("  \n\t'aetoinsrLl0123.,") * 60
    return ["".join(random.choice(assigned + often, random.integers(1, 30))) for _ in range(count)]


TEXTS = HARD + fuzz(100 if quick() else 1000)

# %% [markdown]
# ## The idea
# A *tokenizer* cuts a text into pieces out of a fixed list, its *vocabulary*. A *token* is the number of a piece in
# that list.
#
# Whole words would make short lists, but there are too many words, and new ones every day. Single letters are few,
# but a text becomes long, and every token that is written costs one run of the model. *Byte-pair encoding*, BPE, lies
# between: begin with single bytes, find the pair of neighbours that occurs most often, and make it a new piece.
# Repeat some thousand times. Frequent words end as one piece, rare words as several, and anything at all can be
# spelled in bytes.
#
# Two forms are common. *Byte-level BPE* (GPT-2, LLaMA 3) works on the bytes of the text. *SentencePiece* (LLaMA 2,
# Mistral, the bundled model) works on characters, and spells in bytes only what it has no piece for.
#
# ## From scratch
# ### Bytes
# Computers store text as bytes in *UTF-8*: English letters take one byte, most other letters two or three, an emoji
# four. The first byte of a character tells how many follow, and every byte that follows begins with the bits 10.

# %%
for character in "aé你🙂":
    print(f"{character}  U+{ord(character):04X}  {' '.join(f'{byte:08b}' for byte in character.encode())}")


def utf8_length(first):
    """How many bytes the character has that begins with this byte; 0 for a byte from the middle."""
    return 1 if first < 0x80 else 0 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


check(
    "the first byte tells the length",
    all(utf8_length(c.encode()[0]) == len(c.encode()) for text in TEXTS for c in text),
)

# %% [markdown]
# Vocabularies are stored as text files, and many bytes are not printable. So byte-level BPE writes each byte as a
# visible letter: printable bytes stand for themselves, the others take the letters from U+0100 on, in order. A space
# becomes "Ġ". Only the spelling in the file changes.

# %%
printable = [byte for byte in range(256) if 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)]
letters = {byte: chr(byte) for byte in printable}
for byte in range(256):
    if byte not in letters:
        letters[byte] = chr(0x100 + len(letters) - len(printable))
check(
    "256 letters, the same as the tokenizers package has",
    sorted(letters.values()) == sorted(pre_tokenizers.ByteLevel.alphabet()),
)
print("' the' is stored as", "".join(letters[byte] for byte in b" the"))

# %% [markdown]
# ### Words first
# A pair should not reach from one word into the next, or the vocabulary fills with pieces such as "e of". So the text
# is first cut into words, and each is encoded by itself. GPT-2's rule takes the first of these that fits: an English
# ending such as 's or 'll; letters; digits; other signs, each of these three together with one space in front if there is
# one; spaces and line breaks, of which the last is left for the word behind them. The rule is usually written as a regular
# expression. Here it is as a loop.


# %%
def kind(character):
    """letter, number, space, or other, by the Unicode table"""
    if character.isspace() and not "\x1c" <= character <= "\x1f":  # Python calls these four spaces, Unicode does not
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


def words(text):
    """text -> its words; joined, they are the text again"""
    found, at = [], 0
    while at < len(text):
        ending = next((e for e in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(e, at)), None)
        start = at + 1 if text[at] == " " and at + 1 < len(text) and kind(text[at + 1]) != "space" else at
        end = start
        while end < len(text) and kind(text[end]) == kind(text[start]):
            end += 1
        if ending:
            end = at + len(ending)
        elif kind(text[start]) == "space" and end < len(text) and end - at > 1:
            end -= 1  # the last space belongs to the next word
        found.append(text[at:end])
        at = end
    return found


print(words("The dog's 12 toys,  and more..."))
reference = pre_tokenizers.ByteLevel(add_prefix_space=False)
spelled = lambda word: "".join(letters[byte] for byte in word.encode())  # noqa: E731
check(
    f"the same words as the tokenizers package, {len(TEXTS):,} texts",
    all(
        [spelled(w) for w in words(text)] == [piece for piece, _ in reference.pre_tokenize_str(text)] for text in TEXTS
    ),
)

# %% [markdown]
# ### Training
# Count the pairs in all words, merge the most frequent one everywhere, count again. The result is the list of merges,
# in order. Where two pairs are equally frequent, the one with the lower numbers goes first; any rule would do, but
# both sides have to use the same one.


# %%
def merge(symbols, pair):
    """Replace every occurrence of the pair, from the left.  ("a", "b", "c") with ("a", "b") -> ("ab", "c")"""
    out = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def train(text, count):
    """-> the merges, and the number of each piece"""
    vocabulary = {letter: number for number, letter in enumerate(sorted(letters.values()))}
    counted = Counter(tuple(spelled(word)) for word in words(text))  # {symbols: how often}
    merges = []
    for _ in range(count):
        pairs = Counter()
        for symbols, often in counted.items():
            for pair in pairwise(symbols):
                pairs[pair] += often
        best = min(pairs, key=lambda pair: (-pairs[pair], vocabulary[pair[0]], vocabulary[pair[1]]))
        merges.append(best)
        vocabulary.setdefault("".join(best), len(vocabulary))
        counted = Counter({merge(symbols, best): often for symbols, often in counted.items()})
    return merges, vocabulary


COUNT = 60 if quick() else 400
merges, vocabulary = train(LICENCE, COUNT)
check("as many merges as were asked for, none of them twice", len(set(merges)) == len(merges) == COUNT)
print("the first merges:", " ".join("+".join(pair) for pair in merges[:12]))
print("the last merges: ", " ".join("+".join(pair) for pair in merges[-6:]))

trained = Tokenizer(models.BPE())
trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=256 + COUNT, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
)
trained.train_from_iterator([LICENCE], trainer)
check("the tokenizers package learns the same pieces with the same numbers", trained.get_vocab() == vocabulary)

# %% [markdown]
# ### Encoding
# A new word is cut into bytes. Then merges are applied in the order in which they were learned: of all pairs in the
# word, take the one that was learned first, merge it, look again, until no pair is known. That repeats what training
# did to its own words.


# %%
ALL = {pair: rank for rank, pair in enumerate(merges)}


def encode(text, ranks=ALL):
    """text -> tokens, with the merges in `ranks`: {pair: how early it was learned}"""
    tokens = []
    for word in words(text):
        symbols = tuple(spelled(word))
        while known := [pair for pair in pairwise(symbols) if pair in ranks]:
            symbols = merge(symbols, min(known, key=ranks.get))
        tokens += [vocabulary[symbol] for symbol in symbols]
    return tokens


bytes_of = {
    number: bytes(byte for letter in piece for byte, its in letters.items() if its == letter)
    for piece, number in vocabulary.items()
}


def decode(tokens):
    """tokens -> text: every piece is some bytes, and a text is its bytes"""
    return b"".join(bytes_of[token] for token in tokens).decode("utf-8", errors="replace")


with tempfile.TemporaryDirectory() as folder:
    trained.save(f"{folder}/tokenizer.json")
    ours = library.load_tokenizer(Path(folder))

EXAMPLE = "You may reproduce the Work, and give any other recipients a copy."
print([bytes_of[token].decode() for token in encode(EXAMPLE)])
check("the same tokens as the tokenizers package", all(encode(text) == trained.encode(text).ids for text in TEXTS))
check("the same tokens as the library", all(encode(text) == ours.encode(text) for text in TEXTS))
check("nothing is lost: decoding gives the text back", all(decode(encode(text)) == text for text in TEXTS))
check("the library decodes it too", all(ours.decode(encode(text)) == text for text in TEXTS))

# %% [markdown]
# ### SentencePiece
# The bundled model's vocabulary is in `tokenizer.model`: a list of pieces, each with a score and a type, in the
# *protobuf* format. A protobuf message is a row of fields; each begins with a number that holds the field's number
# and how it is stored. That is enough to read the file by hand.


# %%
def varint(data, at):
    """A whole number in as many bytes as it needs: 7 bits each, the lowest first, the top bit says that more follow."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def fields(data):
    """The fields of one message: (number, value)"""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:  # a whole number
            value, at = varint(data, at)
        else:  # bytes with their length in front, or four bytes
            size, at = varint(data, at) if key & 7 == 2 else (4, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


check("300 is 2 * 128 + 44: the lower 7 bits first", varint(bytes([0x80 | 44, 2]), 0) == (300, 2))
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
pieces = []
for number, message in fields(TOKENIZER_MODEL.read_bytes()):
    if number == 1:  # one piece
        piece = dict(fields(message))
        pieces.append((piece[1].decode(), float(np.frombuffer(piece[2], "<f4")[0]), piece.get(3, NORMAL)))
processor = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER_MODEL))
check("all pieces", [text for text, *_ in pieces] == [processor.id_to_piece(i) for i in range(processor.vocab_size())])
check(
    "all scores", [score for _, score, _ in pieces] == [processor.get_score(i) for i in range(processor.vocab_size())]
)
for number in (0, 1, 2, 13, 259, 260, 1000, 2047):
    print(f"{number:5}  {pieces[number]}")

# %% [markdown]
# Piece 0 stands for the unknown, 1 and 2 begin and end a text, then come the 256 bytes, and then the learned pieces:
# "▁" (U+2581) stands for a space. Encoding puts a "▁" in front of the text, makes every space a "▁", cuts the text
# into characters, and merges: of all neighbours that together are a piece, the pair with the best score first. What
# is no piece in the end is spelled in bytes.

# %%
numbers = {text: number for number, (text, _, type_) in enumerate(pieces) if type_ == NORMAL}
scores = {text: score for text, score, type_ in pieces if type_ == NORMAL}


def sentencepiece_encode(text):
    """text -> tokens"""
    if not text:
        return []
    symbols = list(("▁" + text).replace(" ", "▁"))
    while True:
        known = [at for at in range(len(symbols) - 1) if symbols[at] + symbols[at + 1] in scores]
        if not known:
            break
        at = max(known, key=lambda at: (scores[symbols[at] + symbols[at + 1]], -at))
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [
        number
        for symbol in symbols
        for number in ([numbers[symbol]] if symbol in numbers else [3 + byte for byte in symbol.encode()])
    ]


tokenizer = library.load_tokenizer(TOKENIZER_MODEL.parent)
some = TEXTS[:300]
check(
    "the same tokens as the sentencepiece package",
    all(sentencepiece_encode(text) == processor.encode(text) for text in some),
)
check(
    "the same tokens as the library",
    all(sentencepiece_encode(text) == tokenizer.encode(text, bos=False) for text in some),
)
check("decoding gives the text back", all(tokenizer.decode(tokenizer.encode(t)) == t for t in some if "▁" not in t))
print("Once upon a time ->", [pieces[number][0] for number in sentencepiece_encode("Once upon a time")])

# %%
ranked = [score for _, score, type_ in pieces if type_ == NORMAL]
check("what was learned first has the lower number and the better score", ranked == sorted(ranked, reverse=True))

# %% tags=["figure"]
interactive(
    "merges",
    {
        "pieces": [text for text, *_ in pieces],
        "special": [number for number, (*_, type_) in enumerate(pieces) if type_ in (UNKNOWN, CONTROL)],
        "examples": ["Once upon a time", "a naïve elephant", "I ♥ you 🙂"],
    },
    "Type a text, and step through its merges: the orange pair is merged next.",
)

# %% [markdown]
# ## The experiment: what a language costs

# %% tags=["question"]
predict(
    "the bundled tokenizer knows English stories. How many tokens does a character cost in English, German, Hindi, Chinese?"
)

# %% tags=["answer"]
SENTENCES = {
    "English": "The little girl went to the park with her dog.",
    "German": "Das kleine Mädchen ging mit seinem Hund in den Park.",
    "Greek": "Το κοριτσάκι πήγε στο πάρκο με τον σκύλο του.",
    "Hindi": "छोटी लड़की अपने कुत्ते के साथ पार्क गई।",
    "Chinese": "小女孩带着她的狗去了公园。",
}  # fmt: skip
rows = []
for language, sentence in SENTENCES.items():
    n = len(tokenizer.encode(sentence, bos=False))
    rows.append((language, len(sentence), len(sentence.encode()), n, f"{n / len(sentence):.2f}"))
table("one sentence in five languages", ["language", "characters", "bytes", "tokens", "tokens per character"], rows)
print(f"the same sentence costs {rows[3][3] / rows[0][3]:.1f} times as many tokens in Hindi as in English")
per_character = [float(row[-1]) for row in rows]
check("so many pieces by our own encoding", [row[3] for row in rows] == [
    len(sentencepiece_encode(sentence)) for sentence in SENTENCES.values()])  # fmt: skip
check("English is cheapest; scripts without pieces cost their bytes", per_character[0] < 0.5 < 2.5 < per_character[-1])

# %% [markdown]
# Each token that is written is one run of the model, and each token, read or written, takes a place in its memory
# (chapter 20), of which there are only so many. So a language that the vocabulary does not know is written more slowly
# by that factor, and its texts fill the memory sooner by that factor. A larger vocabulary has room for pieces of more
# languages: that of LLaMA 3 has 128,256.
#
# ## Special tokens
# Tokens 1 and 2 of this model, `<s>` and `</s>`, are *special tokens*: they say "a text begins" and "it is over". They steer
# the model, so nobody may write them into a prompt by typing the letters: a text that contains "</s>" is about those four
# characters. The types in the file make the difference; pieces of the type CONTROL are never made out of text, and
# print nothing.

# %%
typed = tokenizer.encode("<s>hello</s>", bos=False)
check(
    "typed, they are ordinary text",
    not tokenizer.special_ids & set(typed) and tokenizer.decode(typed) == "<s>hello</s>",
)
check(
    "the model's own begin is put in front, once",
    tokenizer.encode("hello") == [tokenizer.bos_id, *tokenizer.encode("hello", bos=False)],
)
check("and prints nothing", tokenizer.decode([tokenizer.bos_id]) == "")

# %% [markdown]
# ## Streaming
# A model writes token by token, and the reader wants to see each at once. But a token may be a part of a character:
# the emoji below arrives in four tokens, and none of them is text. A decoder that turns each token into text by
# itself prints four marks of damage. The right one keeps bytes back until they are whole characters.


# %%
class Stream:
    """Tokens in, text out, whole characters only."""

    def __init__(self):
        self.held = b""

    def push(self, token):
        data = self.held + tokenizer.token_bytes(token)
        whole = len(data)
        for back in range(1, min(3, len(data)) + 1):  # look for a first byte among the last three
            if length := utf8_length(data[-back]):
                whole = len(data) - back if length > back else whole
                break
        self.held = data[whole:]
        return data[:whole].decode("utf-8", errors="replace")


message = tokenizer.encode("I like you 🙂!", bos=False)
check("four of them are the emoji, and each alone is a mark of damage",
      [tokenizer.token_bytes(token).decode(errors="replace") for token in message].count("\ufffd") == 4)  # fmt: skip
print("each by itself:", [tokenizer.token_bytes(token).decode(errors="replace") for token in message])
stream = Stream()
print("held back:     ", [stream.push(token) for token in message])


def streamed(text):
    """A text that went through our stream, and through the library's"""
    tokens, stream, incremental = tokenizer.encode(text), Stream(), tokenizer.decoder()
    return "".join(map(stream.push, tokens)), "".join(map(incremental.push, tokens)) + incremental.finish()


whole = [tokenizer.decode(tokenizer.encode(text)) for text in some]
check("streamed, every text is what it is as a whole", [streamed(text)[0].removeprefix(" ") for text in some] == whole)
check("the library's stream, too", [streamed(text)[1] for text in some] == whole)

# %%


def first_merges(count):
    return {pair: rank for rank, pair in enumerate(merges[:count])}


def as_in_training(text, count):
    """text -> tokens, by going through all words with the first merges, one merge after the other"""
    cut = [tuple(spelled(word)) for word in words(text)]
    for pair in merges[:count]:
        cut = [merge(symbols, pair) for symbols in cut]
    return [vocabulary[symbol] for symbols in cut for symbol in symbols]


check("with no merges bytes are left, and with all of them it is cut as above",
      len(encode(EXAMPLE, first_merges(0))) == len(EXAMPLE.encode())
      and encode(EXAMPLE, first_merges(COUNT)) == encode(EXAMPLE))  # fmt: skip
steps = [0, COUNT // 8, COUNT // 2, COUNT]
lines = []
for step in steps:
    lines.append((f"{step} merges", [bytes_of[token].decode() for token in encode(EXAMPLE, first_merges(step))]))
lines.append(
    ("the bundled\ntokenizer", [pieces[number][0].replace("▁", " ") for number in sentencepiece_encode(EXAMPLE)])
)

story = "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom."
check("after each number of merges it is cut as training would have cut it", all(
    parts == [bytes_of[token].decode() for token in as_in_training(EXAMPLE, step)]
    for step, (_, parts) in zip(steps, lines, strict=False)))  # fmt: skip
cost = {
    "the licence itself": (LICENCE[:3000], BLUE),
    "a children's story": (story, ORANGE),
    "random letters": ("".join(random.choice(list("abcdefghijklmnopqrstuvwxyz "), 300)), GREY),
}
tried = np.unique(np.linspace(0, COUNT, 6 if quick() else 17).astype(int))

figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 3.4), width_ratios=[2.3, 1])
shades = ["#cfe0f3", "#fbe3c8", "#cdeadb", "#f6d3cf", "#e4e4ec"]
for y, (_, parts) in enumerate(lines):
    at = 0
    for n, part in enumerate(parts):
        left.barh(-y, len(part), left=at, height=0.72, color=shades[n % 5])
        for offset, letter in enumerate(part):
            left.text(at + offset + 0.5, -y, letter, ha="center", va="center", family="monospace", fontsize=8)
        at += len(part)
    left.text(at + 1.5, -y, len(parts), ha="left", va="center", color=BLUE)
left.set_yticks(-np.arange(len(lines)), [label for label, _ in lines])
left.set(title="one sentence in tokens, and how many", xticks=[], xlim=(-1, 72))
left.spines[:].set_visible(False)
left.tick_params(length=0)
for name, (text, colour) in cost.items():
    lengths = []
    for step in tried:
        lengths.append(len(encode(text, first_merges(step))) / len(text))
    check(f"{name}: a token for each letter without merges, with all of them as cut above",
          lengths[0] == 1 and lengths[-1] == len(encode(text)) / len(text))  # fmt: skip
    right.plot(tried, lengths, color=colour, label=name)
ends = [line.get_ydata()[-1] for line in right.lines]
check("the text that they were learned from is helped most, random letters least", ends == sorted(ends))
right.set(title="tokens per character", xlabel="merges", ylim=(0, 1.05))
right.legend(fontsize=9)
save(figure, "15_tokens")

# %% [markdown] tags=["opening"]
# ![A sentence cut into tokens after more and more merges, and tokens per character for three texts](figures/15_tokens.png)
#
# *Left: the same sentence after more and more merges, learned from the licence, and with the bundled tokenizer, which
# learned from stories and does not know the words of lawyers. Right: merges help most for texts like those they
# were learned from.*
#
# ## In the engine
# - `nanollm_jax.tokenizer.Tokenizer` is what every tokenizer can do. `nanollm_jax.tokenizer.load_tokenizer` finds out
#   which files a checkpoint has; the work of cutting is done by the packages `tokenizers` and `sentencepiece`, which
#   are fast.
# - Decoding is the library's own: whatever the format, it ends as one table from token to bytes,
#   `nanollm_jax.tokenizer.table.TableTokenizer`. So decoding a whole text and streaming it cannot disagree.
#   `nanollm_jax.tokenizer.IncrementalDecoder` is the stream.
# - `nanollm_jax.tokenizer.pieces` has the two alphabets of this chapter.
# - A special token can never be typed: every one of them is tried when a tokenizer is loaded, and one that leaks is
#   refused.
#
# ## Your engine
# The SentencePiece tokenizer of this chapter, its file read by hand, and the stream that holds bytes back. Nothing but
# Python is needed for it.

# %%
mine = grow(15)
own = mine.Tokenizer(TOKENIZER_MODEL)
check("your engine: the library's tokens", all(own.encode(text) == tokenizer.encode(text) for text in some))
check("and its text", all(own.decode(tokens) == tokenizer.decode(tokens) for tokens in map(tokenizer.encode, some)))
printed = mine.Stream(own)
print("held back:", [printed.push(token) for token in message])

# %% [markdown]
# ## Exercises
# 1. Why must merges be applied in the order of learning, and not the longest piece first?
# 2. What does `tokenizer.decode` return for the tokens of "🙂" without the last one? And what should a stream do with
#    them at the end of an answer?
# 3. "Once" and " once" are different pieces. How many of the bundled pieces exist with and without a space in front?

# %% tags=["answer"]
print(
    "The model learned from texts cut by this rule. Cut otherwise, a text is made of tokens it has hardly seen together."
)


def longest_first(word):
    parts, symbols = [], spelled(word)
    while symbols:
        size = next(n for n in range(len(symbols), 0, -1) if symbols[:n] in vocabulary)
        parts, symbols = [*parts, symbols[:size]], symbols[size:]
    return parts


plain = [w for w in sorted(set(words(LICENCE))) if w.isascii() and w.strip().isalpha()]
different = [w for w in plain if [vocabulary[p] for p in longest_first(w)] != encode(w)]
print(
    len(different),
    "words of the licence would be cut differently, for example",
    [longest_first(w) for w in different[:2]],
)
whole = {piece: bytes_of[number] for piece, number in vocabulary.items() if bytes_of[number].isascii()}
check("what is a piece is one piece", all(longest_first(word.decode()) == [piece] for piece, word in whole.items()))
check("the rules differ, for some words and not for most", 0 < len(different) < len(plain) / 2)

# %% tags=["answer"]
cut_short = tokenizer.encode("🙂", bos=False)[:-1]
print(
    repr(tokenizer.decode(cut_short)), "- one mark of damage. A stream prints it only when nothing can follow any more."
)
check("one mark for all that is there of it", tokenizer.decode(cut_short) == "\ufffd" and len(cut_short) > 1)
incremental = tokenizer.decoder()
check(
    "nothing until the end, then the mark",
    "".join(map(incremental.push, cut_short)) == "" and incremental.finish() == "\ufffd",
)

# %% tags=["answer"]
both = [text for text in numbers if "▁" + text in numbers]
print(len(both), "of", len(numbers), "- for example", ", ".join(both[:150:15]))
check("as many as both lists have", len(both) == len(set(numbers) & {text[1:] for text in numbers if text[0] == "▁"}))

# %% [markdown]
# [Previous: 14 · Residual stream](14_residual_stream.py) · [Contents](README.md) · [Next: 16 · Weights](16_weights_on_disk.py)
