"""The series: every chapter runs and its checks hold, has the parts it should have, and names and links only what exists."""

from __future__ import annotations

import ast
import base64
import importlib.util
import itertools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import chapter
import jax
import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pytest
from glossary import TERMS

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
CHAPTERS = sorted(EXPERIMENTS.glob("[0-9][0-9]_*.py"))
HEADINGS = ["## The question", "## The idea", "## From scratch", "## In the engine", "## Exercises"]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")

every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
# seconds each: with make parity
LONG = {*(f"{number:02}" for number in (1, 6, 7, 8, 9, 10, 11, 12, 13, 14, *range(17, 27)))}


@pytest.fixture(autouse=True)
def as_a_reader_runs_it(monkeypatch):
    """--quick, and JAX's usual promotion of ranks instead of the tests' strict mode."""
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


@pytest.mark.parametrize(
    "chapter",
    [pytest.param(path, marks=pytest.mark.parity if path.name[:2] in LONG else []) for path in CHAPTERS],
    ids=lambda path: path.stem,
)
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


def paragraphs(path):
    """What is read of a chapter, item by item: its text, captions and questions, without code and figures."""
    for cell in cells(path):
        if cell.cell_type == "markdown":
            for paragraph in re.split(r"\n\s*\n|\n(?=- |\d\. )", cell.source):
                plain = re.sub(r"`[^`]*`|!\[[^\]]*\]\([^)]*\)|\[(Previous|Contents|Next)[^)]*\)", "", paragraph).strip()
                # a caption is in italics, which explain nothing in it
                yield plain.strip("*") if re.fullmatch(r"\*[^*].*\*", plain, re.DOTALL) else plain
        elif "question" in tags(cell):
            yield cell.source


def chapters_named(paragraph):
    """ "chapters 03 and 05 to 07" -> {3, 5, 6, 7}"""
    named = set()
    for numbers in re.findall(r"chapters? (\d\d(?:(?:, | and | to )\d\d)*)", paragraph.lower()):
        for first, last in re.findall(r"(\d\d)(?: to (\d\d))?", numbers):
            named |= set(range(int(first), int(last or first) + 1))
    return named


def early_words(chapters, terms):
    """Where a word is used before the chapter that explains it, and neither explained there nor that chapter named."""
    found = []
    for term, (home, pattern) in terms.items():
        uses = [
            (number, p) for number, ps in chapters for p in ps if re.search(rf"\b(?:{pattern})\b", p, re.IGNORECASE)
        ]
        explained = {n for n, p in uses if re.search(rf"\*[^*\n]*\b(?:{pattern})\b[^*\n]*\*", p, re.IGNORECASE)}
        for number in sorted({n for n, _ in uses if n < min(explained | {home})}):
            first = next(p for n, p in uses if n == number)
            if home not in chapters_named(first):
                found.append(f"chapter {number:02} says {term!r} before chapter {home:02} explains it: {first[:80]!r}")
        if home not in explained:
            found.append(f"chapter {home:02} does not explain {term!r} in italics")
    return found


def test_words_are_explained_before_they_are_used():
    assert not early_words([(int(path.name[:2]), list(paragraphs(path))) for path in CHAPTERS], TERMS)


def test_a_word_that_comes_too_early_is_noticed():
    words = {"cow": (3, r"cows?")}
    assert not early_words([(1, ["grass"]), (3, ["A *cow* gives milk."])], words)
    assert not early_words([(1, ["Cows (chapters 02 to 04) eat."]), (3, ["A *cow* gives milk."])], words)
    assert not early_words([(1, ["The *cow* is an animal."]), (2, ["cow"]), (3, ["A *cow* gives milk."])], words)
    assert len(early_words([(1, ["Cows eat. Chapter 02."]), (3, ["A *cow* gives milk."])], words)) == 1
    assert len(early_words([(1, ["Cows (chapter 03) eat."]), (2, ["cows"]), (3, ["A cow gives milk."])], words)) == 2


def test_the_table_of_chapters():
    """26 rows in order; a row is a link exactly when the chapter is there. Every phase begun has a figure."""
    readme = (EXPERIMENTS / "README.md").read_text()
    rows = re.findall(r"^\| (\d\d) \| ([\w ]*?) ?\| .* \| (?:\[(\w+)\]\((\w+\.py)\)|(\w+)) \|$", readme, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 27))
    assert [name or planned for _, _, name, _, planned in rows] == sorted(
        name or planned for _, _, name, _, planned in rows
    )
    assert [file for *_, file, _ in rows if file] == [path.name for path in CHAPTERS]
    for number, _, name, file, planned in rows:
        assert (name or planned).startswith(number) and (not file or file == f"{name}.py")
    assert "experiments/README.md" in (ROOT / "README.md").read_text()


@pytest.mark.parity
def test_the_page(tmp_path, capsys):
    """Output, folded answer, this run's figure, links inside; a failure is named, ends its own chapter and loses nothing."""
    build = runpy.run_path(str(EXPERIMENTS / "page" / "build.py"))
    dot, other = ((EXPERIMENTS / f"figures/{name}.png").read_bytes() for name in ("01_views", "02_contraction"))
    for folder in ("figures", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run/story.json").write_text("null")
    for name in ("01_dot", "02_dot"):
        (tmp_path / f"figures/{name}.png").write_bytes(dot)
    draw = "import base64; open('run/{}.png', 'wb').write(base64.b64decode({!r}))"
    (tmp_path / "01_small.py").write_text(
        "# %% [markdown]\n# # 01 · Small\n# [Next](02_broken.py) [own](engine.py) ![dot](figures/01_dot.png)\n"
        "# ## The idea\n# Some words.\n# ## The idea\n# %%\n"
        "from __future__ import annotations\n\nimport sys\n\nprint(sys.byteorder)\n"
        "# %% tags=['question']\nprint('Predict: 6 < 7?')\n# %% tags=['answer']\nprint(6 * 7, '<b>')\n"
        f"# %% tags=['figure']\n{draw.format('01_dot', base64.b64encode(other))}; print('drawn')\n"
        f"# %%\nfrom IPython.display import display; display({{{chapter.PART!r}: {{'kind': 'sampling', 'alt': '<i>\"', "
        "'data': ['</script>', 'hidden words']}, 'text/plain': 'in words'}, raw=True)\n"
    )
    (tmp_path / "02_broken.py").write_text(
        "# %% [markdown]\n# # 02 · Broken\n# ![dot](figures/02_dot.png)\n# %%\nprint('before')\n"
        "import warnings; warnings.warn('take care')\n"
        "# %%\nprint('SLOW lightning is slower')\n# %%\nassert False, '<7> is 6'\n"
        f"# %%\n{draw.format('02_dot', base64.b64encode(other))}; print('behind')\n"
    )
    assert build["main"](["--renew"], tmp_path) == 1
    said = capsys.readouterr().out
    assert "AssertionError: <7> is 6" in said and "take care" in said and "1 failed: 02_broken" in said
    assert "did not hold in this run, on this machine: lightning is slower" in said

    pages = tmp_path / "pages"
    first, second = ((pages / f"{name}.html").read_text().partition("<main>")[2] for name in ("01_small", "02_broken"))
    png = [base64.b64encode(image).decode() for image in (dot, other)]
    assert "<code>own</code>" in first
    assert 'href="02_broken.html"' in first and f'src="data:image/png;base64,{png[1]}"' in first
    assert '<h2 id="the-idea">' in first and '<h2 id="the-idea-2">' in first
    assert "Predict: 6 &lt; 7?" in first and "print('Predict" not in first
    imports, answer, figure = first.split("<details>")[1:]
    assert "annotations" in imports.partition("</details>")[0] and "byteorder" in imports.partition("</details>")[2]
    assert "42 &lt;b&gt;" in answer.partition("</details>")[0]
    assert "import" in figure.partition("</details>")[0] and "drawn" in figure.partition("</details>")[2]
    assert 'class="part" data-kind="sampling"' in first and "&lt;i&gt;" in first and "<i>" not in first
    assert '["\\u003c/script\\u003e", "hidden words"]' in first and ">in words" not in first
    assert "begin({ sampling });" in first
    assert "failed" not in first and "This run of the chapter failed" in second and "lightning is slower." in second
    assert "before\n" in second and second.count("AssertionError: &lt;7&gt; is 6") == 2 and "behind\n" not in second
    assert png[0] in second  # not drawn in this run: the committed one
    assert (tmp_path / "figures/01_dot.png").read_bytes() == other
    assert (tmp_path / "figures/02_dot.png").read_bytes() == dot

    # run again alone, the chapter takes its place among the others
    (tmp_path / "02_broken.py").write_text(
        "# %% [markdown]\n# # 02 · Mended\n# %% [markdown]\n# [Contents](README.md)\n"
    )
    assert build["main"]([str(tmp_path / "02_broken.py")], tmp_path) == 0
    cover = (pages / "index.html").read_text()
    assert "hidden words" not in cover
    (small,) = re.findall(r'data-chapter="01_small"><img src="([^"]+)"', cover)
    assert small == build["thumbnail"](f'<img src="data:image/png;base64,{png[1]}">')
    assert 'data-chapter="02_broken"><span>' in cover  # it shows nothing before its first question
    assert "begin({" not in (pages / "02_broken.html").read_text()
    assert ">Contents</a>" not in (pages / "02_broken.html").read_text().partition('<div class="ends">')[0]
    assert (
        "Mended" in cover
        and 'href="01_small.html"' in cover
        and '"text": "Some words."' in cover
        and "failed" not in cover
    )
    assert "42 &lt;b&gt;" in (pages / "01_small.html").read_text()
    for page in pages.iterdir():  # from disk, and without a network
        assert not re.findall(r"""(?:src|href)=["'](?!data:|#|\w+\.html)""", page.read_text()), page.name


def test_a_page_opens_with_a_figure_that_gives_nothing_away():
    opening = runpy.run_path(str(EXPERIMENTS / "page" / "build.py"))["opening"]
    notebook = jupytext.reads(
        "# %% [markdown]\n# ![a](run/01_a.png) ![b](figures/01_b.png)\n# %% tags=['question']\nask()\n"
        "# %% [markdown] tags=['opening']\n# ![c](run/01_c.png)\n",
        "py:percent",
    )
    body = '<img a><img b><pre class="question">which?</pre><img c>'
    assert opening(notebook, body) == "<img c>"
    notebook.cells[-1].metadata.clear()
    assert opening(notebook, body) == "<img a>"
    assert opening(notebook, body.removeprefix("<img a><img b>")) is None
    for path in CHAPTERS:
        shown = [LINK.findall(cell.source) for cell in cells(path) if "opening" in tags(cell)]
        assert all(len([image for image, *_ in links if image]) == 1 for links in shown) and len(shown) <= 1
        before = list(itertools.takewhile(lambda cell: "question" not in tags(cell), cells(path)))
        assert shown or any(image for cell in before for image, *_ in LINK.findall(cell.source)), path.stem


def test_the_rooms_of_the_reference_exist():
    named = re.search(
        r"^ROOMS := \$\(addprefix nanollm_jax\.,(.*?)\)$", (ROOT / "Makefile").read_text(), re.DOTALL | re.MULTILINE
    )
    rooms = named[1].replace("\\", " ").split()
    assert len(rooms) > 10
    for room in rooms:
        assert importlib.util.find_spec(f"nanollm_jax.{room}"), room


@pytest.mark.parametrize("quick", [False, True])
def test_claims_about_time_are_reported_and_not_raised(monkeypatch, capsys, quick):
    monkeypatch.setattr(sys, "argv", ["chapter"] + ["--quick"] * quick)
    chapter.check_time("light is fast", 3e8 > 1)
    chapter.check_time("snails are fast", np.bool_(False))
    assert capsys.readouterr().out == ("" if quick else "ok   light is fast\nSLOW snails are fast\n")


def test_a_part_is_a_sentence_in_a_terminal_and_small(capsys):
    chapter.interactive("ring", {"held": np.arange(3), "share": np.float32(0.5)}, "Step on.")
    assert capsys.readouterr().out == "On the chapter's page: Step on.\n"
    part = chapter.Part("ring", '{"held": [0, 1]}', "Step on.")._repr_mimebundle_()
    assert part[chapter.PART] == {"kind": "ring", "alt": "Step on.", "data": {"held": [0, 1]}}
    with pytest.raises(ValueError, match="the values for ring are 400,002 bytes; expected at most 300,000"):
        chapter.interactive("ring", "x" * 400_000, "")
    with pytest.raises(ValueError, match="JSON compliant"):
        chapter.interactive("ring", [float("nan")], "")


def test_what_does_not_hold_is_raised():
    with pytest.raises(AssertionError, match="two is one: they differ by 1 of the largest number, more than 1e-05"):
        chapter.same("two is one", [2.0], [1.0])
    with pytest.raises(AssertionError, match="up is down"):
        chapter.check("up is down", np.bool_(False))


def test_a_chapter_without_what_it_draws_with_says_what_to_do():
    code = "import sys; sys.modules['matplotlib'] = None; sys.path.insert(0, 'experiments'); import chapter"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(chapter.__file__).parents[1]
    )
    assert done.returncode == 1 and done.stderr.startswith("The chapters draw, and matplotlib is not installed: make ")
    assert done.stderr.count("\n") == 1
