"""The engine that grows in chapters 10 to 22, after one of them: python experiments/engine_steps.py 17 > engine.py

engine_parts/NN.py is what a chapter adds. What it defines takes the place of what had that name, and what is new comes behind
all else, under the chapter's name. engine.py is what stands there in the end (a test holds it to the parts):
python experiments/engine_steps.py 22 > experiments/engine.py
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

PARTS = Path(__file__).parent / "engine_parts"
FIRST, LAST = 10, 22


@dataclass
class Piece:
    """One definition of a file, with the chapter that brought its name."""

    chapter: str
    source: str


def name_of(statement: ast.stmt) -> str:
    """What a statement at the top of a file is known by."""
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            return statement.name
        case ast.Assign():
            return ast.unparse(statement.targets[0])
        case ast.Import() | ast.ImportFrom():
            return "imports"
        case ast.Expr(value=ast.Constant()):
            return "docstring"
        case ast.If():
            return "the command line"
    raise ValueError(f"a part cannot have {ast.unparse(statement)!r} at its top.")


def pieces_of(chapter: int) -> tuple[str, dict[str, str]]:
    """A part: the chapter's title, and {name: source}; all imports are one piece."""
    text = (PARTS / f"{chapter}.py").read_text()
    lines, found = text.splitlines(), {}
    for statement in ast.parse(text).body:
        first = min([statement.lineno, *(line.lineno for line in getattr(statement, "decorator_list", []))])
        found.setdefault(name_of(statement), []).append((first, statement.end_lineno))
    sources = {name: "\n".join(lines[spans[0][0] - 1 : spans[-1][1]]) for name, spans in found.items()}
    return lines[0].removeprefix("# "), sources


def after(chapter: int) -> str:
    """The whole file as it stands after a chapter."""
    if not FIRST <= chapter <= LAST:
        raise ValueError(f"the engine grows in chapters {FIRST} to {LAST}; there is none after chapter {chapter}.")
    pieces: dict[str, Piece] = {}
    for number in range(FIRST, chapter + 1):
        title, sources = pieces_of(number)
        for name, source in sources.items():
            pieces[name] = Piece(pieces[name].chapter if name in pieces else title, source)
    command = pieces.pop("the command line", None)
    text = "".join(f"{pieces.pop(name).source}\n\n" for name in ("docstring", "imports"))
    under, before = "", ""
    for piece in pieces.values():
        if piece.chapter != under:
            above = "\n\n\n" if under else "\n\n"
            text, under, before = f"{text.rstrip()}{above}# {piece.chapter}\n\n\n", piece.chapter, ""
        defines = piece.source.startswith(("def ", "class ", "@"))
        if before == "value" and not defines:
            text = f"{text.rstrip()}\n"
        text, before = text + piece.source + "\n\n\n", "definition" if defines else "value"
    return (text + command.source if command else text.rstrip()) + "\n"


def module(chapter: int) -> ModuleType:
    """The engine after a chapter, to be called."""
    made = ModuleType(f"engine_after_{chapter}")
    sys.modules[made.__name__] = made  # a dataclass looks itself up there
    exec(compile(after(chapter), f"{made.__name__}.py", "exec"), made.__dict__)
    return made


def grow(chapter: int) -> ModuleType:
    """Print what a chapter adds to the engine, and where the file stands; the engine, to be called."""
    _, now = pieces_of(chapter)
    before = after(chapter - 1) if chapter > FIRST else ""
    whole, shown = after(chapter), [name for name in now if name not in ("docstring", "imports")]
    changed = [name for name in shown if f"def {name}(" in before or f"class {name}" in before]
    print("\n\n".join(now[name] for name in shown), end="\n\n")
    print(f"engine.py has {len(whole.splitlines())} lines now, {len(before.splitlines())} before this chapter", end="")
    print(f"; written anew: {', '.join(changed)}." if changed else ".")
    print(f"The whole file: python experiments/engine_steps.py {chapter} > engine.py")
    return module(chapter)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal() or not FIRST <= int(sys.argv[1]) <= LAST:
        sys.exit(f"usage: python experiments/engine_steps.py CHAPTER > engine.py, a chapter from {FIRST} to {LAST}")
    print(after(int(sys.argv[1])), end="")
