"""Run chapters of the series and build their pages, which need no network: experiments/pages/index.html and one a chapter.

    python experiments/page/build.py [--renew] [CHAPTER ...]

A chapter is read by jupytext, run by nbclient and rendered by nbconvert with the templates beside this file. What went
wrong in one does not stop the others: a cell that fails ends its chapter, the page shows it up to there, and the exit
status is 1. So it is after a warning or anything else on the error stream. A claim about time that did not hold is
named and fails nothing.

All that a run makes is in experiments/run/, which git ignores: the figures, each chapter as it stands on its page, what the
cover writes, and the bundled model for the page that runs it (experiments/playground.py). The pages are written from there
after every chapter, so running one again leaves the others as they are. --renew
(make figures) then copies the figures of the chapters in which everything held to experiments/figures/, where the text
of the chapters and the READMEs show them.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jinja2
import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter
from rich.progress import track
from traitlets.config import Config

from nanollm_jax.glass import report

HERE = Path(__file__).parent
PARTS = (HERE / "parts", HERE / "model", report.PAGE)  # what they are made of is that of the glass box's page
EXPERIMENTS = HERE.parent
sys.path.append(str(EXPERIMENTS))  # where this file was started as a script

import playground  # noqa: E402

THUMBNAIL = (360, 200)  # pixels
RUN_THERE = ("17", "18", "19", "20", "23", "24")  # chapters of which the page that runs the model shows something
IMPORTS = re.compile(r"from __future__ import annotations\n+(?:(?:import|from) .*(?:\n(?:    .*|\)))*\n+)+")


def run(path: Path) -> tuple[NotebookNode, list[str]]:
    """A chapter with its outputs, and what went wrong in it. Cells behind one that failed have no output."""
    notebook, wrong = jupytext.read(path), []
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with tempfile.TemporaryDirectory() as folder:  # sockets in a folder of ours, not ports that others could listen to
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        resources = {"metadata": {"path": str(path.parent)}}
        # no limit on a cell, and much time to start: a machine may be slow
        client = NotebookClient(notebook, timeout=None, startup_timeout=600, resources=resources, config=config)
        try:
            client.execute()
        except CellExecutionError as error:
            wrong.append(f"{error.ename}: {error.evalue}")
        except DeadKernelError as error:
            wrong.append(f"the process of the chapter ended: {error}")
    for text in printed(notebook, "stderr"):
        wrong.append(f"wrote to the error stream: {text.strip()}")
    return notebook, wrong


def printed(notebook: NotebookNode, stream: str) -> list[str]:
    """What the cells wrote to stdout or stderr, piece by piece."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.text for output in outputs if output.output_type == "stream" and output.name == stream]


def slow(notebook: NotebookNode) -> list[str]:
    """The claims about time that did not hold: chapter.check_time begins their lines with SLOW."""
    return re.findall(r"^SLOW (.*)$", "".join(printed(notebook, "stdout")), re.MULTILINE)


def figures(path: Path, notebook: NotebookNode) -> list[Path]:
    """The figures that a chapter shows, in order: those of the run, and committed ones where it did not come that far."""
    shown = [name for cell in notebook.cells for name in re.findall(r"\]\(figures/(\w+\.png)\)", cell.source)]
    folders = [path.parent / "run", path.parent / "figures"]
    return [next(folder / name for folder in folders if (folder / name).exists()) for name in shown]


def render(notebook: NotebookNode, path: Path) -> dict[str, Any]:
    """One chapter: its HTML with images embedded and an id for each section, and the sections [(id, title, text)]."""
    newest = {file.name: file for file in figures(path, notebook)}
    if re.fullmatch(r".*\[Contents\]\(README\.md\).*", notebook.cells[-1].source):
        notebook.cells.pop()  # the page ends with links of its own
    for cell in notebook.cells:
        if cell.cell_type == "code" and (
            imports := IMPORTS.match(cell.source)
        ):  # folded: each chapter begins with them
            cell.metadata["imports"], cell.source = imports[0].strip(), cell.source[imports.end() :]
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"\]\(figures/(\w+\.png)\)",
                lambda shown: f"]({newest[shown[1]].relative_to(path.parent)})",
                cell.source,
            )
    exporter = HTMLExporter(template_name="chapter", extra_template_basedirs=[str(HERE)], embed_images=True)
    exporter.exclude_anchor_links = True
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"path": str(path.parent)}})
    body = re.sub(r'href="(\d\d_\w+)\.py"', r'href="\1.html"', body).replace('href="README.md"', 'href="index.html"')
    body = re.sub(r'<a href="\w+\.py">(.*?)</a>', r"<code>\1</code>", body)  # the engine is no page
    found: list[tuple[str, str]] = []

    def heading(shown: re.Match[str]) -> str:
        title = re.sub("<[^>]+>", "", shown[2])
        name = re.sub(r"\W+", "-", html.unescape(title).lower()).strip("-")
        while name in [taken for taken, *_ in found]:
            name += "-2"
        found.append((name, title))
        return f'<h{shown[1]} id="{name}"><a href="#{name}">{shown[2]}</a></h{shown[1]}>'

    body = re.sub(r"<h([23])[^>]*>(.*?)</h\1>", heading, body)
    parts = [part.partition("</h")[2].partition(">")[2] for part in re.split(r'<h[23] id="', body)[1:]]
    plain = [re.sub(r"<(pre|script).*?</\1>|<[^>]+>", " ", part, flags=re.DOTALL) for part in parts]
    texts = [" ".join(html.unescape(part).split()) for part in plain]
    sections = [(name, html.unescape(title), text) for (name, title), text in zip(found, texts, strict=True)]
    return {"body": body, "sections": sections}


def opening(notebook: NotebookNode, body: str) -> str | None:
    """The figure that opens a page, and gives no answer away: that of the cell tagged "opening", or else the first one, where
    it stands before the first question."""
    images, before = re.findall(r"<img [^>]*>", body), 0
    for cell in notebook.cells:
        if "opening" in cell.metadata.get("tags", []):
            return images[before]
        before += len(re.findall(r"\]\(\w+/\w+\.png\)", cell.source)) if cell.cell_type == "markdown" else 0
    first = re.search(r"<img [^>]*>", body.partition('class="question"')[0])
    return None if first is None else first[0]


def moving(body: str) -> dict[str, str]:
    """Script and style of the interactive parts that a chapter has; nothing where it has none."""
    kinds = sorted(set(re.findall(r'<div [^>]*data-kind="(\w+)"', body)))
    if not kinds:
        return {}
    script = report.joined("begin.js", *(f"{kind}.js" for kind in kinds), folders=PARTS)
    style = "".join((folder / "parts.css").read_text() for folder in (report.PAGE, HERE / "parts"))
    return {"script": f"{script}\nbegin({{ {', '.join(kinds)} }});", "style": style}


def title(notebook: NotebookNode) -> str:
    """The chapter's first line, without the mark of a heading."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def thumbnail(image: str | None) -> str | None:
    """The figure that opens a page, as an <img>: small, as the address of an image that is its own content."""
    if image is None:
        return None
    shown = base64.b64decode(re.search(r"base64,([^\"]+)", image)[1])
    small, written = Image.open(io.BytesIO(shown)).convert("RGB"), io.BytesIO()
    small.thumbnail(THUMBNAIL)
    small.quantize(64).save(written, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def phases(experiments: Path) -> dict[str, str]:
    """{chapter: its phase}, by the table of the README; a phase holds until the next one is named."""
    readme, found, phase = experiments / "README.md", {}, ""
    for named, chapter in re.findall(
        r"^\| \d\d \| (.*?) ?\|.*\[(\d\d_\w+)\]", readme.read_text() if readme.exists() else "", re.M
    ):
        phase = named or phase
        found[chapter] = phase
    return found


def write_pages(experiments: Path) -> Path:
    """Put the chapters of experiments/run/ together, each on a page of its own, with a cover before them."""
    chapters = [json.loads(path.read_text()) for path in sorted((experiments / "run").glob("[0-9][0-9]_*.json"))
                if (experiments / f"{path.stem}.py").exists()]  # fmt: skip
    colours = {name: HtmlFormatter(style=style).get_style_defs(".highlight")
               for name, style in {"light": "xcode", "dark": "github-dark"}.items()}  # fmt: skip
    story, model = experiments / "run" / "story.json", experiments / "run" / "playground.json"
    common = {
        "chapters": chapters, "phases": phases(experiments), "colours": colours,
        "style": (HERE / "style.css").read_text(), "script": (HERE / "page.js").read_text(),
        "story": story.read_text() if story.exists() else "null",
        "playground": model.exists(), "run_there": RUN_THERE,
        "reference": (experiments / "pages" / "reference" / "index.html").exists(),
    }  # fmt: skip
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True)
    folder = experiments / "pages"
    folder.mkdir(exist_ok=True)
    for page in folder.glob("*.html"):
        page.unlink()
    for place, chapter in enumerate(chapters):
        beside = {"before": chapters[place - 1] if place else None, "behind": [*chapters, None][place + 1]}
        page = templates.get_template("chapter.html.j2").render(
            chapter=chapter, moving=moving(chapter["body"]), **beside, **common
        )
        (folder / f"{chapter['name']}.html").write_text(page)
    (folder / "index.html").write_text(templates.get_template("cover.html.j2").render(**common))
    if model.exists():
        (folder / "playground.html").write_text(playground.page(json.loads(model.read_text())))
    return folder / "index.html"


def write_story(experiments: Path) -> None:
    """What the bundled model writes on the cover, token by token, with what it would have written instead."""
    import nanollm_jax as nano

    model = nano.load(dtype="float32")
    prompt, sampling = "Once upon a time", nano.Sampling(temperature=0.7, top_p=0.9)
    answer = nano.generate(model, prompt, max_new_tokens=160, sampling=sampling, seed=4, top_logprobs=5)
    decoder, tokens = model.tokenizer.decoder(), []
    for token, logprob, best in zip(answer.token_ids, answer.logprobs, answer.top_logprobs, strict=True):
        others = [(model.tokenizer.piece(other).replace("▁", " "), value) for other, value in best]
        tokens.append({"text": decoder.push(token), "logprob": logprob, "others": others})
    story = {"prompt": prompt, "tokens": tokens, "settings": "temperature 0.7, top-p 0.9, seed 4"}
    (experiments / "run" / "story.json").write_text(json.dumps(story))


def main(arguments: list[str], experiments: Path = EXPERIMENTS) -> int:
    """Run the chapters named, or all, one after the other: some of them measure time. The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("chapters", nargs="*", type=Path)
    asked = parser.parse_args(arguments)
    drawn = experiments / "run"
    drawn.mkdir(exist_ok=True)
    if not (drawn / "story.json").exists():
        write_story(experiments)
    told = drawn / "playground.json"
    if not told.exists() or told.stat().st_mtime < Path(playground.__file__).stat().st_mtime:
        told.write_text(json.dumps(playground.data()))
    failed = {}
    for path in track(asked.chapters or sorted(experiments.glob("[0-9][0-9]_*.py")), "running chapters"):
        begun, number, path = time.perf_counter(), path.stem[:2], path.resolve()
        for left in drawn.glob(f"{number}_*"):
            left.unlink()
        notebook, wrong = run(path)
        if wrong:
            failed[path.stem] = wrong
        print(f"{path.stem}: {time.perf_counter() - begun:.0f} s" + " FAILED" * bool(wrong))
        for line in wrong + [f"did not hold in this run, on this machine: {claim}" for claim in slow(notebook)]:
            print(f"    {line}")
        chapter = {"name": path.stem, "title": title(notebook), "wrong": wrong, "slow": slow(notebook)}
        chapter |= render(notebook, path)
        chapter["opening"] = opening(notebook, chapter["body"])
        chapter["small"] = thumbnail(chapter["opening"])
        (drawn / f"{path.stem}.json").write_text(json.dumps(chapter))
        page = write_pages(experiments)
        if asked.renew and not wrong and not slow(notebook):
            for figure in drawn.glob(f"{number}_*.png"):
                shutil.copy(figure, experiments / "figures" / figure.name)
        elif asked.renew:
            print("    its figures are not renewed")
    print(f"{page}: {sum(file.stat().st_size for file in page.parent.iterdir()) / 1e6:.1f} MB with the pages beside it")
    if failed:
        print(
            f"{len(failed)} failed: {', '.join(failed)}. The page shows how far they came; run one alone for the place."
        )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
