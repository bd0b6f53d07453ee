"""Run chapters of the series and build one page that needs no network: experiments/index.html.

    python experiments/page/build.py [--renew] [CHAPTER ...]

A chapter is read by jupytext, run by nbclient and rendered by nbconvert with the templates beside this file. What went
wrong in one does not stop the others: a cell that fails ends its chapter, the page shows it up to there, and the exit
status is 1. So it is after a warning or anything else on the error stream. A claim about time that did not hold is
named and fails nothing.

All that a run makes is in experiments/run/, which git ignores: the figures, and each chapter as it stands on the page. The
page is put together from there after every chapter, so running one again leaves the others as they are. --renew
(make figures) then copies the figures of the chapters in which everything held to experiments/figures/, where the text
of the chapters and the READMEs show them.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jinja2
import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from rich.progress import track
from traitlets.config import Config

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent


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


def render(notebook: NotebookNode, path: Path) -> str:
    """The HTML of one chapter, images embedded, links to other chapters turned into links inside the page.

    Figures are those of the run where it drew them, and the committed ones where it did not come that far.
    """

    def newest(shown: re.Match[str]) -> str:
        return f"](run/{shown[1]})" if (path.parent / "run" / shown[1]).exists() else shown[0]

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(figures/(\w+\.png)\)", newest, cell.source)
    exporter = HTMLExporter(template_name="chapter", extra_template_basedirs=[str(HERE)], embed_images=True)
    exporter.exclude_anchor_links = True
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"path": str(path.parent)}})
    body = re.sub(r'(<h[1-6]) id="[^"]*"', r"\1", body)  # "The question" stands in each chapter, an id may only once
    body = re.sub(r'href="(\d\d_\w+)\.py"', r'href="#\1"', body)
    return body.replace('href="README.md"', 'href="#contents"')


def title(notebook: NotebookNode) -> str:
    """The chapter's first line, without the mark of a heading."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def write_page(experiments: Path) -> Path:
    """Put the chapters of experiments/run/ together, in their order, as experiments/index.html."""
    chapters = [json.loads(path.read_text()) for path in sorted((experiments / "run").glob("*.json"))
                if (experiments / f"{path.stem}.py").exists()]  # fmt: skip
    colours = {name: HtmlFormatter(style=style).get_style_defs(".highlight")
               for name, style in {"light": "xcode", "dark": "github-dark"}.items()}  # fmt: skip
    page = jinja2.Template((HERE / "index.html.j2").read_text()).render(chapters=chapters, colours=colours)
    (experiments / "index.html").write_text(page)
    return experiments / "index.html"


def main(arguments: list[str], experiments: Path = EXPERIMENTS) -> int:
    """Run the chapters named, or all, one after the other: some of them measure time. The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("chapters", nargs="*", type=Path)
    asked = parser.parse_args(arguments)
    drawn = experiments / "run"
    drawn.mkdir(exist_ok=True)
    failed = {}
    for path in track(asked.chapters or sorted(experiments.glob("[0-9][0-9]_*.py")), "running chapters"):
        begun, number = time.perf_counter(), path.stem[:2]
        for left in drawn.glob(f"{number}_*"):
            left.unlink()
        notebook, wrong = run(path.resolve())
        if wrong:
            failed[path.stem] = wrong
        print(f"{path.stem}: {time.perf_counter() - begun:.0f} s" + " FAILED" * bool(wrong))
        for line in wrong + [f"did not hold in this run, on this machine: {claim}" for claim in slow(notebook)]:
            print(f"    {line}")
        chapter = {"name": path.stem, "title": title(notebook), "body": render(notebook, path.resolve())}
        (drawn / f"{path.stem}.json").write_text(json.dumps(chapter | {"wrong": wrong, "slow": slow(notebook)}))
        page = write_page(experiments)
        if asked.renew and not wrong and not slow(notebook):
            for figure in drawn.glob(f"{number}_*.png"):
                shutil.copy(figure, experiments / "figures" / figure.name)
        elif asked.renew:
            print("    its figures are not renewed")
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    if failed:
        print(
            f"{len(failed)} failed: {', '.join(failed)}. The page shows how far they came; run one alone for the place."
        )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
