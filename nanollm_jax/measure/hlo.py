"""A compiled program, read: which part of the model each instruction belongs to, what it computes and what it moves.

The parts are the named scopes of the ops. XLA keeps a scope in an instruction's metadata (op_name), but loses it where it
rewrites a product or copies a buffer; then the part is that of the weight it reads, of its users, or of its operands.
Costs are per execution, so that a loop's body counts as often as a trace says it ran.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

PARTS = ("embedding", "norm", "attention", "rope", "cache", "scores", "recurrent", "mlp", "logits", "sampling")
OTHER = "other"  # residual additions, the loop's own counting, and what no part claims
CONTAINERS = {"while", "conditional", "call"}  # they last as long as what runs inside
TRANSPARENT = {"bitcast", "copy", "transpose", "reshape", "convert", "copy-start", "copy-done"}
FREE = {"bitcast", "get-tuple-element", "tuple", "parameter", "constant"}
# one operation per number that comes out; XLA's own analysis counts exponentials and logarithms apart
ELEMENTWISE = {"add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "compare", "select", "power",
               "exponential", "log", "rsqrt", "sqrt", "tanh", "logistic", "cosine", "sine", "and", "or", "xor", "not",
               "shift-left", "shift-right-logical", "floor", "clamp"}  # fmt: skip


@dataclass
class Instruction:
    """One line of a program. Sizes are of what comes out."""

    name: str
    opcode: str
    type: str
    operands: list[str]
    attributes: str
    computation: str
    users: list[str] = field(default_factory=list)

    @property
    def shape(self) -> list[int]:
        """The sizes of what comes out, where that is one array."""
        found = re.match(r"\w+\[([\d,]*)\]", self.type)
        return [int(size) for size in found[1].split(",") if size] if found else []

    @property
    def nbytes(self) -> int:
        """Bytes of what comes out, tuples included."""
        total = 0.0
        for name, bits, sizes in re.findall(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", self.type):
            width = 1 if name == "pred" else int(bits) / 8  # pred[4], f32[2,8], s4[16], f8e4m3fn[8]
            total += width * math.prod(int(size) for size in sizes.split(",") if size)
        return math.ceil(total)

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in what follows the operands, or nothing."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Cost:
    """One execution of one instruction: the part of the model, FLOPs, bytes read and written."""

    part: str
    flops: int
    nbytes: int


class Program:
    """The text of a compiled program (Compiled.as_text()), as instructions by name."""

    def __init__(self, text: str) -> None:
        """Read every computation. name is what the program is called in a trace."""
        module = re.search(r"HloModule ([^\s,]+)", text)
        self.name = module[1] if module else ""
        self.instructions: dict[str, Instruction] = {}
        self.inside: dict[str, list[Instruction]] = {}
        computation = ""
        for line in text.splitlines():
            if found := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
                computation = found[1]
                self.inside[computation] = []
            elif found := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$", line):
                name, kind, opcode, rest = found.groups()
                between, attributes = split_operands(rest)
                operands = [between] if opcode == "parameter" else re.findall(r"%([\w.-]+)", between)
                one = Instruction(name, opcode, kind, operands, attributes, computation)
                self.instructions[name] = one
                self.inside[computation].append(one)
        for one in self.instructions.values():
            for operand in [] if one.opcode == "parameter" else one.operands:
                self.instructions[operand].users.append(one.name)
        self.loops = {
            one.attribute(r"body=%?([\w.-]+)"): one for one in self.instructions.values() if one.opcode == "while"
        }

    def costs(self) -> dict[str, Cost]:
        """Every instruction that runs by itself: {name: Cost}. What only contains others or costs nothing is left out."""
        inner = {self.called(one) for one in self.instructions.values() if one.opcode not in CONTAINERS}
        return {
            one.name: Cost(self.part(one), self.flops(one), self.moved(one))
            for one in self.instructions.values()
            if one.computation not in inner and one.opcode not in FREE | CONTAINERS
        }

    def called(self, one: Instruction) -> str:
        """The computation inside a fusion, or that a reduction applies."""
        return one.attribute(r"(?:calls|to_apply)=%?([\w.-]+)")

    def part(self, one: Instruction) -> str:
        """The part of the model that an instruction belongs to."""
        return self.own_part(one) or self.weight_part(one) or self.neighbours_part(one) or OTHER

    def own_part(self, one: Instruction) -> str:
        """By its own metadata, or by most of what is fused into it. OTHER where it has metadata that names no part."""
        inner = self.inside.get(self.called(one), []) if one.opcode == "fusion" else []
        names = [name for name in (op_name(each) for each in [one, *inner]) if name]
        parts = Counter(part for part in map(last_part, names) if part)
        first = last_part(op_name(one))
        return first or (parts.most_common(1)[0][0] if parts else OTHER if names else "")

    def weight_part(self, one: Instruction) -> str:
        """By the parameter of the model that it reads, through loops and changes of shape."""
        for operand in one.operands:
            found = re.match(r"params(\[.*)", self.origin(self.instructions[operand]).replace("\\", ""))
            if found:
                keys = re.findall(r"\[\'?(\w+)\'?\]", found[1])
                owner = keys[-2] if len(keys) > 1 else ""
                return {"embedding": "logits", "unembedding": "logits"}.get(owner, "norm" if "norm" in owner else owner)
        return ""

    def origin(self, one: Instruction) -> str:
        """The op_name of the argument of the whole program that a value is, or nothing."""
        while True:
            if one.opcode in TRANSPARENT:
                one = self.instructions[one.operands[0]]
            elif one.opcode == "get-tuple-element" and one.computation in self.loops:
                initial = self.instructions[self.loops[one.computation].operands[0]]
                if initial.opcode != "tuple" or self.instructions[one.operands[0]].opcode != "parameter":
                    return ""
                one = self.instructions[initial.operands[int(one.attribute(r"index=(\d+)"))]]
            else:
                return op_name(one) if one.opcode == "parameter" else ""

    def neighbours_part(self, one: Instruction) -> str:
        """That of the nearest user that has one, else of the nearest operand; scores, if it is either's.

        The product of weights and values lies between scores and attention, and belongs to the former.
        """
        parts = [self.nearest_part(one, side) for side in ("users", "operands")]
        return "scores" if "scores" in parts else parts[0] or parts[1]

    def nearest_part(self, one: Instruction, side: str) -> str:
        """The part of the nearest user or operand that has one, or nothing."""
        seen, near = {one.name}, list(getattr(one, side))  # a parameter's operand is its number: never reached
        while near:
            other = self.instructions[near.pop(0)]
            if other.name in seen or other.opcode in ("tuple", "parameter", *CONTAINERS):
                continue
            seen.add(other.name)
            part = self.own_part(other) or self.weight_part(other)
            if part and part != OTHER:
                return part
            if not part:
                near += getattr(other, side)
        return ""

    def flops(self, one: Instruction) -> int:
        """Two per multiply-add of a product, one per number of anything else that computes."""
        if one.opcode == "fusion":
            return sum(self.flops(each) for each in self.inside[self.called(one)])
        if one.opcode == "dot":
            sizes = self.instructions[one.operands[0]].shape
            axes = one.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
            return 2 * math.prod(one.shape) * math.prod(sizes[int(axis)] for axis in axes.split(",") if axis)
        if one.opcode == "custom-call":  # in C: a product, or attention over all slots of [B K S H]
            name, given = one.attribute(r'custom_call_target="nanollm_(\w+)"'), self.instructions
            if name == "attention":
                return 4 * math.prod(one.shape) * given[one.operands[1]].shape[2]
            return 2 * math.prod(one.shape) * given[one.operands[0]].shape[1] if name else 0
        if one.opcode in ("reduce", "reduce-window"):
            return math.prod(self.instructions[one.operands[0]].shape)
        return math.prod(one.shape) if one.opcode in ELEMENTWISE else 0

    def moved(self, one: Instruction) -> int:
        """Bytes of operands and results; of a table that is looked up or a buffer written in place only what is touched."""
        if one.opcode != "fusion":
            return self.touched(one, [self.instructions[name].nbytes for name in one.operands], [one])
        body = self.inside[self.called(one)]
        sizes = [0] * len(one.operands)
        for each in body:
            if each.opcode == "parameter":
                index = int(each.operands[0])  # parameter(3)
                users = [self.instructions[name] for name in each.users]
                whole = self.instructions[one.operands[index]].nbytes
                looked_up = all(
                    user.opcode in ("gather", "dynamic-slice") and user.operands[0] == each.name for user in users
                )
                sizes[index] = sum(user.nbytes for user in users) if users and looked_up else whole
        return self.touched(one, sizes, body)

    def in_place(self, one: Instruction) -> bool:
        """Does an instruction only write a few numbers into a buffer that it was given?"""
        body = self.inside.get(self.called(one), []) if one.opcode == "fusion" else [one]
        return any(each.opcode in ("scatter", "dynamic-update-slice") and each.nbytes == one.nbytes for each in body)

    def touched(self, one: Instruction, sizes: list[int], body: list[Instruction]) -> int:
        """The bytes of one instruction whose operands have these sizes."""
        written = [each for each in body if each.opcode in ("scatter", "dynamic-update-slice")]
        if written and written[-1].nbytes == one.nbytes:  # in place: the update is read and written, the rest stays
            update = written[-1].operands[2 if written[-1].opcode == "scatter" else 1]
            rest = sum(size for size in sizes if size < one.nbytes)
            return rest + self.instructions[update].nbytes
        if one.opcode in ("gather", "dynamic-slice"):
            return 2 * one.nbytes + sum(sizes[1:])
        return sum(sizes) + one.nbytes


def split_operands(rest: str) -> tuple[str, str]:
    """What stands up to the parenthesis that closes the operands, and what follows it."""
    depth = 1
    for index, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:index], rest[index + 1 :]
    return rest, ""


def op_name(one: Instruction) -> str:
    """Where in the traced program an instruction comes from: "jit(f)/while/body/attention/dot_general"."""
    return one.attribute(r'op_name="([^"]*)"')


def last_part(name: str) -> str:
    """The innermost part in an op_name, or nothing."""
    return next((word for word in reversed(re.split(r"[/;]", name)) if word in PARTS), "")
