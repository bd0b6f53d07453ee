"""The series: every chapter runs and its checks hold, has the parts it should have, and names and links only what exists."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import sys
from pathlib import Path

import jax
import jupytext
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
CHAPTERS = sorted(EXPERIMENTS.glob("[0-9][0-9]_*.py"))
HEADINGS = ["## The question", "## The idea", "## From scratch", "## In the engine", "## Exercises"]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")

every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def as_a_reader_runs_it(monkeypatch):
    """chapter.py beside the chapter, --quick, and JAX's usual promotion of ranks instead of the tests' strict mode."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setattr(sys, "argv", ["chapter", "--quick"])
    with jax.numpy_rank_promotion("allow"):
        yield


def cells(path, kind=None):
    """The cells of a chapter, of one kind or all."""
    return [cell for cell in jupytext.read(path).cells if kind in (None, cell.cell_type)]


def text(path):
    """The text of a chapter without its code, or a Markdown file."""
    return path.read_text() if path.suffix == ".md" else "\n\n".join(cell.source for cell in cells(path, "markdown"))


def code(path):
    """The syntax tree of a chapter's code."""
    return ast.parse("\n".join(cell.source for cell in cells(path, "code")))


def tags(cell):
    return cell.metadata.get("tags", [])


def title(path):
    """ "NN · Topic", what stands before the colon."""
    return cells(path)[0].source.splitlines()[0].removeprefix("# ").partition(":")[0]


@every_chapter
def test_chapter_runs(chapter, capsys):
    """In this process: warnings are errors, and figures that were opened are closed."""
    before = {path.name: path.stat().st_mtime_ns for path in EXPERIMENTS.rglob("*.png")}
    runpy.run_path(str(chapter), run_name="__main__")
    printed = capsys.readouterr()
    assert printed.out.count("\nok   ") >= 3
    assert not printed.err
    assert not plt.get_fignums()
    assert {path.name: path.stat().st_mtime_ns for path in EXPERIMENTS.rglob("*.png")} == before


@every_chapter
def test_chapter_has_its_parts(chapter):
    headings = re.findall(r"^## .*$", text(chapter), re.MULTILINE)
    assert [heading for heading in headings if heading in HEADINGS] == HEADINGS
    assert re.fullmatch(rf"{chapter.name[:2]} · [^.]+", title(chapter))

    found = cells(chapter)
    questions = [i for i, cell in enumerate(found) if "question" in tags(cell)]
    assert questions
    for i in questions:
        assert found[i].source.startswith("predict(") and "answer" in tags(found[i + 1])
    exercises = next(i for i, cell in enumerate(found) if "## Exercises" in cell.source)
    assert len(re.findall(r"^\d\. ", found[exercises].source.partition("## Exercises")[2], re.MULTILINE)) == 3
    assert [("answer" in tags(cell)) for cell in found[exercises + 1 :]] == [True, True, True, False]
    engine = text(chapter).partition("## In the engine")[2].partition("## Exercises")[0]
    assert re.search(r"`nanollm_jax\.\w+", engine)
    assert "$" not in text(chapter), "no LaTeX"


@every_chapter
def test_chapter_shows_its_figures(chapter):
    """Each figure that is saved is shown once, and the file is there, small, under the chapter's number."""
    saved = [
        node.args[1].value for node in ast.walk(code(chapter))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "save"
    ]  # fmt: skip
    shown = [target for image, _, target in LINK.findall(text(chapter)) if image]
    assert saved and shown == [f"figures/{name}.png" for name in saved]
    for name in saved:
        assert name.startswith(chapter.name[:3])
        assert 1_000 < (EXPERIMENTS / "figures" / f"{name}.png").stat().st_size < 150_000


def test_no_figure_without_a_chapter():
    shown = {target for chapter in CHAPTERS for _, _, target in LINK.findall(text(chapter))}
    assert {f"figures/{path.name}" for path in (EXPERIMENTS / "figures").iterdir()} <= shown


def look_up(dotted):
    """The object of a dotted name in the library; AttributeError for one that is not there.

    As much of the name as can be imported is a module: the package has a function beside a module of the same name.
    """
    names, rest = dotted.split("."), []
    while True:
        try:
            found = importlib.import_module(".".join(names))
            break
        except ModuleNotFoundError:
            rest.insert(0, names.pop())
    for name in rest:
        if name not in getattr(found, "__dataclass_fields__", ()):
            found = getattr(found, name)
    return found


def library_names(tree):
    """Every dotted name of the library in a syntax tree, written in full: {"nanollm_jax.ops.norm.rms_norm", ...}."""
    bound, names = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {
                alias.asname or alias.name: alias.name for alias in node.names if alias.name.startswith("nanollm_jax")
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanollm_jax"):
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        chain = node
        while isinstance(chain, ast.Attribute):
            chain = chain.value
        if isinstance(chain, ast.Name) and chain.id in bound:
            names.add(bound[chain.id] + ast.unparse(node).removeprefix(chain.id))
    return {name for name in names if not name.rpartition(".")[2].startswith("__")} | set(bound.values())


@pytest.mark.parametrize("path", [*CHAPTERS, EXPERIMENTS / "README.md"], ids=lambda path: path.stem)
def test_names_of_the_library_exist(path):
    """In the code, and in the text wherever it says nanollm_jax.something or nanollm_jax/something.py."""
    names = set(re.findall(r"\bnanollm_jax(?:\.[A-Za-z_]\w*)+", text(path)))
    if path.suffix == ".py":
        names |= library_names(code(path))
    assert names
    for name in names:
        look_up(name)
    for file in re.findall(r"\bnanollm_jax/[\w/]+\.py", text(path)):
        assert (ROOT / file).is_file(), file


def test_a_wrong_name_is_noticed():
    assert library_names(ast.parse("import nanollm_jax as nano\nnano.ops.norm.rms_norm(x)")) >= {
        "nanollm_jax.ops.norm.rms_norm"
    }
    assert library_names(ast.parse("from nanollm_jax.ops import norm\nnorm.nothing")) == {
        "nanollm_jax.ops.norm", "nanollm_jax.ops.norm.nothing"
    }  # fmt: skip
    for right in ("nanollm_jax.KVCache.length", "nanollm_jax.decode.prefill", "nanollm_jax.decode"):
        look_up(right)
    for wrong in ("nanollm_jax.ops.norm.nothing", "nanollm_jax.nothing.rms_norm", "nanollm_jax.KVCache.width"):
        with pytest.raises(AttributeError):
            look_up(wrong)


@pytest.mark.parametrize("path", [*CHAPTERS, EXPERIMENTS / "README.md", ROOT / "README.md"], ids=str)
def test_links_lead_somewhere(path):
    for _, _, target in LINK.findall(re.sub(r"`[^`\n]*`", "", text(path))):
        if not re.match(r"https?://|#", target):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@every_chapter
def test_chapter_links_to_its_neighbours(chapter):
    place = CHAPTERS.index(chapter)
    line = "[Contents](README.md)"
    if place > 0:
        line = f"[Previous: {title(CHAPTERS[place - 1])}]({CHAPTERS[place - 1].name}) · {line}"
    if place + 1 < len(CHAPTERS):
        line += f" · [Next: {title(CHAPTERS[place + 1])}]({CHAPTERS[place + 1].name})"
    assert cells(chapter)[0].source.splitlines()[2] == line
    assert cells(chapter)[-1].source == line


def test_the_table_of_chapters():
    """22 rows in order; a row is a link exactly when the chapter is there. Every phase begun has a figure."""
    readme = (EXPERIMENTS / "README.md").read_text()
    rows = re.findall(r"^\| (\d\d) \| ([\w ]*?) ?\| .* \| (?:\[(\w+)\]\((\w+\.py)\)|(\w+)) \|$", readme, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 23))
    assert [name or planned for _, _, name, _, planned in rows] == sorted(
        name or planned for _, _, name, _, planned in rows
    )
    assert [file for *_, file, _ in rows if file] == [path.name for path in CHAPTERS]
    for number, _, name, file, planned in rows:
        assert (name or planned).startswith(number) and (not file or file == f"{name}.py")
    assert "experiments/README.md" in (ROOT / "README.md").read_text()


def test_the_page(tmp_path, monkeypatch):
    """A small chapter as a page: output, folded answer, embedded figure, links inside it. A failure or a warning stops it."""
    build = runpy.run_path(str(EXPERIMENTS / "page" / "build.py"))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/01_dot.png").write_bytes((EXPERIMENTS / "figures/01_views.png").read_bytes())
    chapter = tmp_path / "01_small.py"
    chapter.write_text(
        "# %% [markdown]\n# # 01 · Small\n# [Next](02_other.py) ![dot](figures/01_dot.png)\n"
        "# %% tags=['question']\nprint('Predict: 6 < 7?')\n# %% tags=['answer']\nprint(6 * 7, '<b>')\n"
        "# %% tags=['figure']\nprint('drawn')\n"
    )
    notebook = build["run"](chapter)
    assert build["title"](notebook) == "01 · Small"
    body = build["render"](notebook, chapter)
    assert 'href="#02_other"' in body and 'src="data:image/png;base64,' in body
    assert "Predict: 6 &lt; 7?" in body and "print('Predict" not in body
    answer, figure = body.split("<details>")[1:]
    assert "42 &lt;b&gt;" in answer.partition("</details>")[0]
    assert "drawn" in figure.partition("</details>")[0] and "drawn" in figure.partition("</details>")[2]
    for line in ("assert False", "import warnings; warnings.warn('!')"):
        chapter.write_text(f"# %%\n{line}\n")
        with pytest.raises(Exception, match=r"AssertionError|error stream"):
            build["run"](chapter)
