"""Pieces of the report's page: tables, charts, pictures. All text from an archive is escaped here."""

import base64
import html
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from hpcvision.report.figures import in_rows
from hpcvision.results import Run
from hpcvision.results.places import Images
from hpcvision.verify import Finding

SCROLLED = 'tabindex="0" role="region"'
"""What may be too wide is scrolled by keyboard, too."""
MOST_IMAGES = 64
SMALLEST = 64
"""Pixels of the page that an image has at least."""


def is_number(value: Any) -> bool:
    """True for numbers, False for True."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def cell(value: Any) -> str:
    """A table's cell; numbers keep their full value for sorting."""
    if not is_number(value):
        return f"<td>{html.escape(str(value))}</td>"
    number = float(value)
    if math.isnan(number):
        return '<td class="number" data-value="nan"></td>'
    words = f"{value:,}" if isinstance(value, int) else f"{number:.5g}"
    return f'<td class="number" data-value="{number!r}">{words}</td>'


def table(
    columns: list[str], rows: list[list[Any]], *, table_id: str = "", sortable: bool = False, caption: str = ""
) -> str:
    """A table that scrolls sideways when it is too wide; sortable by the buttons in its head."""
    numeric = [bool(rows) and all(is_number(row[n]) for row in rows) for n in range(len(columns))]
    heads = "".join(
        f'<th scope="col"{" class=number" if number else ""}>'
        + (f'<button type="button">{html.escape(name)}</button>' if sortable else html.escape(name))
        + "</th>"
        for name, number in zip(columns, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    shown = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    attributes = (f' id="{table_id}"' if table_id else "") + (' class="sortable"' if sortable else "")
    label = html.escape(caption or "table")
    return (
        f'<div class="wide" {SCROLLED} aria-label="{label}"><table{attributes}>'
        f"{shown}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, one pair a row."""
    rows = "".join(f'<tr><th scope="row">{html.escape(a)}</th><td>{html.escape(b)}</td></tr>' for a, b in pairs)
    return f'<div class="wide" {SCROLLED} aria-label="facts"><table class="facts"><tbody>{rows}</tbody></table></div>'


def findings(found: Iterable[Finding]) -> str:
    """The certificate, one finding a row."""
    rows = "".join(
        f'<tr><td class="{item.verdict}">{item.verdict}</td><th scope="row">{html.escape(item.subject)}</th>'
        f"<td>{html.escape(item.words)}</td></tr>"
        for item in found
    )
    head = f'<div class="wide" {SCROLLED} aria-label="certificate">'
    return f'{head}<table class="certificate"><tbody>{rows}</tbody></table></div>'


def code(lines: list[str]) -> str:
    """Lines to copy into a shell."""
    return f"<pre {SCROLLED} aria-label='commands'><code>{html.escape(chr(10).join(lines))}</code></pre>"


def safe_json(value: Any) -> str:
    """JSON that cannot end the script element that it is in; what is not finite becomes null."""

    def finite(item: Any) -> Any:
        if isinstance(item, float):
            return item if math.isfinite(item) else None
        if isinstance(item, dict):
            return {key: finite(one) for key, one in item.items()}
        return [finite(one) for one in item] if isinstance(item, list) else item

    return json.dumps(finite(value)).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def chart(title: str, spec: dict[str, Any]) -> str:
    """A chart that the page's script draws; the table of its numbers is the alternative in words.

    spec: {"x": label, "series": [{"name", "x", "y", perhaps "labels"}], perhaps "points", "log", "ticks"}.
    """
    words = "; ".join(in_words(series, spec.get("ticks")) for series in spec["series"])
    label = html.escape(f"{title}. {words}. Arrow keys, Home and End read the points, plus and minus zoom.")
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 520 320" role="application" aria-roledescription="chart" tabindex="0" aria-label="{label}">'
        f'</svg><output aria-live="polite"></output>'
        f'<script type="application/json">{safe_json(spec)}</script></figure>'
    )


def in_words(series: dict[str, Any], ticks: list[str] | None) -> str:
    """`training loss: 200 points, 4.6 at 50 to 1.2 at 10000, from 1.1 to 4.6`; ticks: names of the places."""
    known = [(x, y) for x, y in zip(series["x"], series["y"], strict=True) if y == y]
    if not known:
        return f"{series['name']}: no points"
    (first, at_first), (last, at_last) = known[0], known[-1]
    values, where = [y for _, y in known], [ticks[x] if ticks else f"{x:g}" for x in (first, last)]
    return (
        f"{series['name']}: {len(known)} points, {at_first:.4g} at {where[0]} to {at_last:.4g} at {where[1]}, "
        f"from {min(values):.4g} to {max(values):.4g}"
    )


def png(pixels: NDArray[np.uint8], alternative: str, factor: int = 1) -> str:
    """An image of (H, W, 3) uint8 as a part of the page, shown `factor` times as large."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{factor * pixels.shape[1]}" height="{factor * pixels.shape[0]}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="{html.escape(alternative)}">'


def heat_map(counts: NDArray[np.int64], words: str) -> str:
    """A matrix of counts as a picture, each row divided by its sum."""
    sums = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shades = (255 * colormaps["cividis_r"](counts / sums)[:, :, :3]).round().astype(np.uint8)
    made = png(shades, f"confusion matrix: {words}", -(-400 // len(counts)))
    return f"<figure>{made}<figcaption>{html.escape(words)}</figcaption></figure>"


def picture_parts(run: Run | None, path: Path, room: int) -> tuple[str, int]:
    """(samples, interpolations and strips of a run, bytes that are left); at most 64 images of each set.

    When `room` bytes are not enough for all, what is left out is said.
    """
    made = []
    for kind in ("samples", "interpolations", "strips"):
        for name, images in run.images(kind).items() if run else ():
            pixels, count = sheet(images)
            caption = f"{kind} {name}: {how(images, count)}"
            shown = png(pixels, caption, -(-SMALLEST // images.shape[-2]))
            part = f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"
            if len(part) > room:
                words = f"{kind} {name} would make the page too large; see hpcvision gallery {path}"
                part = f"<p>{html.escape(words)}</p>"
            room -= len(part)
            made.append(part)
    return ("<h3>Images</h3>" + "".join(made) if made else ""), room


def sheet(images: Images) -> tuple[NDArray[np.uint8], int]:
    """Eight single images in a row, or each row of images as one: (pixels, how many are shown)."""
    if len(images.shape) == 4:
        count = min(MOST_IMAGES, len(images))
        rows = in_rows(images[:count])
    else:
        count = max(1, min(len(images), MOST_IMAGES // images.shape[1]))
        rows = images[:count]
    return rows.transpose(0, 2, 1, 3, 4).reshape(rows.shape[0] * rows.shape[2], -1, 3), count


def how(images: Images, count: int) -> str:
    """How they were drawn and chosen, in words."""
    kept = images.attributes
    rule = (
        f"chosen: {kept['rule']}"
        if "rule" in kept
        else "not chosen: consecutive seeds"
        if images.seeds is not None
        else ""
    )
    words = [f"{count} of {len(images)}", rule, str(kept.get("method", ""))]
    words += [f"{kept['sampler']}, {kept['steps']} steps, {kept['weights']} weights"] if "sampler" in kept else []
    return "; ".join(filter(None, words))
