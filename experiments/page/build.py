"""Run every chapter of the series and build one page that needs no network: experiments/index.html.

    python experiments/page/build.py [CHAPTER ...]

A chapter is read by jupytext, run by nbclient and rendered by nbconvert with the templates beside this file. A failed check, a
warning or anything else on the error stream stops the build.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

import jinja2
import jupytext
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from rich.progress import track
from traitlets.config import Config

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent


def run(path: Path) -> NotebookNode:
    """A chapter with its outputs. Raises if a cell fails or writes to the error stream."""
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with tempfile.TemporaryDirectory() as folder:  # sockets in a folder of ours, not ports that others could listen to
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        resources = {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=600, resources=resources, config=config).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise RuntimeError(f"{path.name} wrote to the error stream:\n{output.text}")
    return notebook


def render(notebook: NotebookNode, path: Path) -> str:
    """The HTML of one chapter, images embedded, links to other chapters turned into links inside the page."""
    exporter = HTMLExporter(template_name="chapter", extra_template_basedirs=[str(HERE)], embed_images=True)
    exporter.exclude_anchor_links = True
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"path": str(path.parent)}})
    body = re.sub(r'(<h[1-6]) id="[^"]*"', r"\1", body)  # "The question" stands in each chapter, an id may only once
    body = re.sub(r'href="(\d\d_\w+)\.py"', r'href="#\1"', body)
    return body.replace('href="README.md"', 'href="#contents"')


def title(notebook: NotebookNode) -> str:
    """The chapter's first line, without the mark of a heading."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def main() -> None:
    """Run the chapters named, or all, one after the other: some of them measure time."""
    paths = [Path(name).resolve() for name in sys.argv[1:]] or sorted(EXPERIMENTS.glob("[0-9][0-9]_*.py"))
    chapters = []
    for path in track(paths, "running chapters"):
        begun = time.perf_counter()
        notebook = run(path)
        print(f"{path.stem}: {time.perf_counter() - begun:.0f} s")
        chapters.append({"name": path.stem, "title": title(notebook), "body": render(notebook, path)})
    colours = {name: HtmlFormatter(style=style).get_style_defs(".highlight")
               for name, style in {"light": "xcode", "dark": "github-dark"}.items()}  # fmt: skip
    page = jinja2.Template((HERE / "index.html.j2").read_text()).render(chapters=chapters, colours=colours)
    (EXPERIMENTS / "index.html").write_text(page)
    print(f"{EXPERIMENTS / 'index.html'}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
