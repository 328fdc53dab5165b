"""`compare.html`: one file that holds table, curves and pictures, readable on a phone too."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from t2i.evaluation.compare.images import ORIGINALS, Sheet
from t2i.evaluation.compare.runs import Run
from t2i.evaluation.compare.scores import Column, footnotes, html_rows
from t2i.viz.html import document
from t2i.viz.plots import COLOURS, COSTS, Line, by_metric, sheet

SMALL = 128  # pixels: smaller pictures are enlarged by whole pixels, unsmoothed
LINE_DASHES = ("", "7 3", "2 2", "7 3 2 3")  # as `plots.DASHES`

_STYLE = """
body { max-width: 76rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; border-bottom: 1px solid #eee; margin-bottom: 1rem; }
.wide table { margin: 0; }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: #fff; z-index: 1;
  box-shadow: 1px 0 0 #e8e8e8; }
td { white-space: nowrap; }
thead th { font-weight: 600; font-size: .88rem; line-height: 1.25; }
svg.line { width: 1.7rem; height: .7rem; margin-right: .45rem; vertical-align: baseline; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; position: sticky; top: 0; background: #fffffff2;
  padding: .5rem 0; z-index: 2; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .8rem; }
.charts img { width: 100%; border: 0; }
table.sheet td, table.sheet th { text-align: center; vertical-align: top; padding: .3rem .4rem; border: 0; }
table.sheet th:first-child, table.sheet td:first-child { text-align: left; vertical-align: middle; font-weight: 400;
  font-size: .85rem; line-height: 1.3; width: 11rem; min-width: 8rem; white-space: normal; }
table.sheet img { display: block; width: 8rem; margin: 0 auto; border-radius: 2px; }
table.sheet img.small { image-rendering: pixelated; }
table.sheet .under { font-size: .8rem; color: #666; font-variant-numeric: tabular-nums; }
ul.notes { padding-left: 1.2rem; } ul.notes li { margin: .2rem 0; }
.footnotes { font-size: .88rem; color: #444; overflow-wrap: anywhere; }
details > summary { cursor: pointer; padding: .3rem 0; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; font-size: 15px; } h1 { font-size: 1.4rem; }
  th, td { padding: .25rem .5rem; } table.sheet img { width: 5.5rem; }
  table.sheet th:first-child, table.sheet td:first-child { min-width: 6rem; width: 6rem; font-size: .78rem; }
}
"""


def swatch(k: int) -> str:
    """The k-th run's line as an inline picture."""
    dash = LINE_DASHES[k // len(COLOURS) % len(LINE_DASHES)]
    return (f'<svg class=line viewBox="0 0 24 8" aria-hidden="true"><line x1="0" y1="4" x2="24" y2="4" stroke-width="3"'
            f' stroke="{COLOURS[k % len(COLOURS)]}" stroke-dasharray="{dash}"/></svg>')


def _png(data: bytes, alt: str, small: bool = False) -> str:
    held = base64.b64encode(data).decode()
    kind = " class=small" if small else ""
    return f'<img{kind} loading=lazy alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{held}">'


def picture(image: np.ndarray, alt: str) -> str:
    held = io.BytesIO()
    Image.fromarray(image).save(held, format="PNG", optimize=True)
    return _png(held.getvalue(), alt, max(image.shape[:2]) < SMALL)


def shared(runs: Sequence[Run]) -> list[str]:
    """The metrics that at least two runs have, validation's first, the total loss first of each."""
    names = list(dict.fromkeys(name for run in runs for name in run.series if name not in COSTS))
    both = [name for name in names if sum(name in run.series for run in runs) > 1]
    ordered = [name for group in by_metric(both).values() for name in group]
    return sorted(ordered, key=lambda name: not name.startswith("val/"))


def curves(runs: Sequence[Run]) -> dict[str, bytes]:
    """A PNG a shared metric, a line a run; a run's colour is its place among the runs."""
    made = {}
    for name in shared(runs):
        lines = [Line(run.label, *run.series[name], k, k // len(COLOURS))
                 for k, run in enumerate(runs) if name in run.series]
        made[name] = sheet({name: lines}, width=3.3, height=2.3, legend=False, dpi=130)
    return made


def _charts(charts: Mapping[str, bytes], runs: Sequence[Run]) -> list[str]:
    if not charts:
        return []
    legend = "".join(f"<span>{swatch(k)}{html.escape(run.label)}</span>" for k, run in enumerate(runs))
    parts = ["<h2>Curves</h2>", f"<div class=legend>{legend}</div>"]
    if len({run.kind for run in runs}) > 1:
        parts.append("<p class=quiet>Where the runs are of different kinds, a metric of one name may measure different"
                     " things: a prior's loss says nothing beside a tokenizer's.</p>")
    validated = {name: data for name, data in charts.items() if name.startswith("val/")}
    others = {name: data for name, data in charts.items() if name not in validated}
    grids = ["<div class=charts>" + "".join(_png(data, name) for name, data in some.items()) + "</div>"
             for some in (validated, others)]
    if validated:
        parts.append(grids[0])
    if others and validated:
        parts.append(f"<details><summary>Training: {len(others)} more</summary>{grids[1]}</details>")
    elif others:
        parts.append(grids[1])
    return parts


def _sheet(made: Sheet, runs: Sequence[Run]) -> str:
    place = {run.label: k for k, run in enumerate(runs)}
    heads = ""
    for label, (_, under) in made.columns.items():
        mark = swatch(place[label]) if label in place else ""
        mean = mean_of(under)
        extra = f"<div class=under>{mean}</div>" if mean else ""
        heads += f"<th>{mark}{html.escape(label)}{extra}</th>"
    lines = []
    for i, text in enumerate(made.texts):
        cells = ""
        for label, (images, under) in made.columns.items():
            line = f"<div class=under>{html.escape(under[i])}</div>" if under[i] and label != ORIGINALS else ""
            cells += f"<td>{picture(images[i], f'{label}: {text}')}{line}</td>"
        lines.append(f"<tr><td>{html.escape(text)}</td>{cells}</tr>")
    notes = " ".join(html.escape(note) for note in made.notes)
    return (f"<h2>{html.escape(made.title)}</h2><p class=quiet>{notes}</p><div class=wide><table class=sheet>"
            f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>")


def mean_of(under: Sequence[str]) -> str:
    values = [float(line.removesuffix(" dB")) for line in under if line.endswith(" dB")]
    return f"mean {sum(values) / len(values):.1f} dB" if values else ""


def _more(rest: Mapping[str, Sequence[str]], runs: Sequence[Run]) -> list[str]:
    if not rest:
        return []
    heads = "".join(f"<th>{swatch(k)}{html.escape(run.label)}</th>" for k, run in enumerate(runs))
    lines = "".join(f"<tr><td>{html.escape(key)}</td>" + "".join(f"<td>{html.escape(v)}</td>" for v in values) + "</tr>"
                    for key, values in rest.items())
    return [f"<details><summary>{len(rest)} more settings that differ</summary><div class=wide><table><thead><tr>"
            f"<th>setting</th>{heads}</tr></thead><tbody>{lines}</tbody></table></div></details>"]


def page(
    runs: Sequence[Run], made: Sequence[Column], rest: Mapping[str, Sequence[str]], charts: Mapping[str, bytes],
    drawn: Sequence[Sheet], notes: Sequence[str], commands: Sequence[str], facts: Sequence[str], date: str,
) -> str:
    """The whole page.

    Args:
        made, rest: columns of the table, and the settings that are not among them.
        charts: metric -> PNG.
        notes: what a reader must know before the numbers.
        commands, facts: how to do it again, and on what it was done.
    """
    labels = [run.label for run in runs]
    swatches = [swatch(k) for k in range(len(runs))]
    title = f"{len(runs)} runs side by side"
    parts = [f"<h1>{title}</h1>", f"<p class=quiet>{date} · {html.escape(', '.join(labels))}</p>"]
    if notes:
        parts.append("<ul class=notes>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>")
    parts += [f"<div class=wide>{html_rows(labels, made, swatches)}</div>"]
    if footnotes(made):
        parts.append("<div class=footnotes>" + "".join(
            f"<p><sup>{k}</sup> {html.escape(name)}: {html.escape(note)}</p>"
            for k, (name, note) in enumerate(footnotes(made), 1)) + "</div>")
    scored = ("Scores are those of evaluation.json, with their intervals; bold is better than all others beyond them."
              if any(run.evaluation for run in runs) else "No run has an evaluation.json: evaluate.py measures scores.")
    parts.append("<p class=quiet>Settings that differ, what the run cost, and the metrics of its last validation up to"
                 f" the checkpoint's step, each on its own validation split. {scored}</p>")
    parts += [*_more(rest, runs), *(_sheet(one, runs) for one in drawn), *_charts(charts, runs)]
    parts += ["<h2>Again</h2>", "<pre>" + "\n".join(html.escape(line) for line in commands) + "</pre>",
              "<p class=quiet>" + "<br>".join(html.escape(fact) for fact in facts) + "</p>"]
    return document(title, "\n".join(parts), _STYLE)
