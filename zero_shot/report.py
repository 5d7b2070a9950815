"""`report.html`: training curves, tables with intervals, confusion matrices and example images in one file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Final

from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from clip_med.data.shard_index import write_atomically
from clip_med.data.shards import ShardSet
from zero_shot import table
from zero_shot.suite import Evaluation, Example, TaskReport

_THUMBNAIL_SIDE: Final = 320
_SCORES: Final = {
    "classification": "In parentheses: the class's share of the softmax over classes; not calibrated.",
    "retrieval": "In parentheses: cosine of image and caption.",
}
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
.note { color: #5b6875; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e2e7ec; white-space: nowrap; }
thead th { border-bottom: 2px solid #1d2733; }
.matrix td { text-align: center; min-width: 2.6rem; border: 1px solid #fff; }
.matrix th { font-weight: 400; border: 0; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; }
figure { margin: 0; font-size: .82rem; } figure img { width: 100%; background: #000; border-radius: 4px; }
figure .note { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.right { color: #1a6b3c; } .wrong { color: #a8321f; }
svg { max-width: 100%; height: auto; }
"""


def write_report(path: Path, *, title: str, metrics: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> None:
    """Write the report: one HTML file that loads nothing from elsewhere; equal input gives equal bytes.

    Args:
        metrics: lines of `metrics.jsonl`; empty leaves the curves out.
        evaluation: its example images are read from the shards it names.
    """
    steps = [line for line in metrics if "loss" in line]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        '<p class="note">Written by clip-med. Research software, not a medical device. Brackets hold 95 % bootstrap '
        "intervals over patients or cases.</p>",
    ]
    for heading, lines in table.rows(evaluation):
        parts += [f"<h2>{html.escape(heading)}</h2>", html_table(lines)]
    if steps:
        parts += ["<h2>Training</h2>", _curves(steps)]
    opened: dict[str, ShardSet] = {}
    for task in evaluation.tasks:
        parts.append(f"<h2>{html.escape(task.name)}</h2>")
        if task.confusion:
            parts.append(_matrix(task))
        if task.prompts:
            parts.append(_prompts(task))
        parts += [f'<p class="note">{_SCORES[task.kind]}</p>', _examples(task.examples, opened)]
    write_document(path, title, parts)


def write_document(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write pieces of HTML as one page in the style of the report; it loads nothing from elsewhere."""
    body = "\n".join(parts)
    document = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, document)


def html_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of them the header; text is escaped, and a wide table scrolls by itself."""
    header, *rest = ["".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in line) for tag, line in _tagged(lines)]
    return (
        f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>'
        f"{''.join(f'<tr>{line}</tr>' for line in rest)}</tbody></table></div>"
    )


def _tagged(lines: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [("th" if number == 0 else "td", line) for number, line in enumerate(lines)]


def _curves(steps: Sequence[Mapping[str, Any]]) -> str:
    """Loss, learning rate and logit scale against samples seen, as one SVG."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    samples = [line["samples"] for line in steps]
    figure = Figure(figsize=(11, 3), layout="constrained")
    FigureCanvasSVG(figure)
    for place, (name, label) in enumerate(
        (("loss", "loss"), ("learning_rate", "learning rate"), ("logit_scale", "logit scale")), start=1
    ):
        axes = figure.add_subplot(1, 3, place)
        axes.plot(samples, [line[name] for line in steps], color="#1f6fb2", linewidth=1.2)
        axes.set_xlabel("samples seen")
        axes.set_title(label, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e2e7ec")
    text = StringIO()
    # A fixed salt and no metadata: the ids inside the drawing, and so the file, are the same every time.
    with matplotlib.rc_context({"svg.hashsalt": "clip-med", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]


def _matrix(task: TaskReport) -> str:
    """Confusion matrix, a cell shaded by its share of the row, and the recall of each class."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in task.classes)
    lines: list[str] = []
    for name, counts, recall in zip(task.classes, task.confusion, task.recalls, strict=True):
        total = sum(counts)
        cells = "".join(_shaded(count, count / total if total else 0.0) for count in counts)
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}<th>{table.cell(recall)}</th></tr>")
    return (
        '<p class="note">Rows: truth; columns: answer.</p><div class="wide"><table class="matrix">'
        f"<tr><th></th>{head}<th>recall</th></tr>{''.join(lines)}</table></div>"
    )


def _prompts(task: TaskReport) -> str:
    """Every prompt of every class, folded away: some tasks have hundreds."""
    count = sum(map(len, task.prompts.values()))
    classes = "".join(
        f"<dt>{html.escape(label)}</dt>{''.join(f'<dd>{html.escape(text)}</dd>' for text in texts)}"
        for label, texts in task.prompts.items()
    )
    summary = f"{count} prompts of {len(task.prompts)} classes, ensemble {task.ensemble}"
    return f"<details><summary>{html.escape(summary)}</summary><dl>{classes}</dl></details>"


def _shaded(count: int, share: float) -> str:
    ink = "#fff" if share > 0.55 else "#1d2733"
    return f'<td style="background:rgba(31,111,178,{share:.2f});color:{ink}">{count}</td>'


def _examples(examples: Sequence[Example], opened: dict[str, ShardSet]) -> str:
    figures: list[str] = []
    for example in examples:
        if example.shards not in opened:
            opened[example.shards] = ShardSet.open(example.shards)
        data = base64.b64encode(_thumbnail(opened[example.shards].read(example.index))).decode("ascii")
        verdict = "right" if example.right else "wrong"
        first, *others = [f"{html.escape(answer.text)} ({answer.score:.2f})" for answer in example.answers]
        then = "".join(f'<div class="note">then {other}</div>' for other in others)
        figures.append(
            f'<figure><img alt="{html.escape(example.truth)}" src="data:image/jpeg;base64,{data}">'
            f'<figcaption><span class="{verdict}">{verdict}: {first}</span>{then}'
            f"<div>truth: {html.escape(example.truth)}</div></figcaption></figure>"
        )
    return f'<div class="examples">{"".join(figures)}</div>'


def _thumbnail(sample: Sample) -> bytes:
    """The image as a JPEG of at most 320 pixels: originals of megabytes would make the report too large to open."""
    from PIL import Image

    pixels = decode_image(sample.image, source=sample.key)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    file = BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


__all__ = ["html_table", "write_document", "write_report"]
