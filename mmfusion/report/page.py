"""The HTML around numbers and pictures: one file, nothing from the network, every string escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.io import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


class Html(str):
    """Text that is HTML already; everything else is escaped by :func:`text`."""


def text(value: Any) -> Html:
    """The value as HTML text: numbers shortened, None as a dash, strings escaped."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("–")
    if isinstance(value, float):
        return Html(f"{value:.4g}")
    if isinstance(value, (list, tuple)):
        return Html(", ".join(text(one) for one in value))
    return Html(escape(str(value)))


def element(tag: str, content: Any = "", **attributes: str) -> Html:
    """``<tag class="...">content</tag>``; an attribute that is a Python word takes a trailing underscore."""
    given = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items() if value)
    return Html(f"<{tag}{given}>{text(content)}</{tag}>")


def join(parts: Iterable[Any]) -> Html:
    """Parts one after another, each on a line of its own."""
    return Html("\n".join(text(part) for part in parts))


def section(title: str, *parts: Any) -> Html:
    """A heading and what stands below it; empty if there is nothing."""
    return join([element("h2", title), *parts]) if any(parts) else Html("")


def badge(status: str) -> Html:
    """The status as a word on its color: failed, doubtful or ok."""
    return element("span", status, class_=f"badge {status}")


def bullets(items: Sequence[Any], class_: str = "") -> Html:
    """A list; empty without items."""
    inner = join(element("li", item) for item in items)
    return element("ul", inner, class_=class_) if items else Html("")


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> Html:
    """A table whose first column names the rows."""
    head = element("tr", join(element("th", name, scope="col") for name in headers))
    body = []
    for name, *cells in rows:
        first = element("th", name, scope="row")
        body.append(element("tr", join([first, *(element("td", cell) for cell in cells)])))
    title = [element("caption", caption)] if caption else []
    inner = join([*title, element("thead", head), element("tbody", join(body))])
    return element("div", element("table", inner), class_="scroll")


def options_table(options: Mapping[str, Any], caption: str) -> Html:
    """Options and versions as a table, behind one click."""
    flat = {name: value for name, value in options.items() if not isinstance(value, Mapping)}
    inner = table(["option", "value"], flat.items())
    versions = options.get("versions")
    if isinstance(versions, Mapping):
        inner = join([inner, table(["software", "version"], versions.items())])
    return element("details", join([element("summary", caption), inner])) if options else Html("")


def figure(png: bytes, alt: str, caption: Any = "", class_: str = "") -> Html:
    """A picture inside the page, with the words for those who do not see it."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    image = Html(f'<img src="{source}" alt="{escape(alt)}">')
    parts = [image, element("figcaption", caption)] if caption else [image]
    return element("figure", join(parts), class_=class_)


def png_of_figure(drawing: Figure) -> bytes:
    """A matplotlib figure as PNG; no pyplot, so nothing global."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def png_of_array(picture: np.ndarray) -> bytes:
    """A picture ``[height, width]`` or ``[height, width, 3]``, uint8, first row on top, as PNG."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    rgb = picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)
    imsave(buffer, np.ascontiguousarray(rgb), format="png", origin="upper")
    return buffer.getvalue()


def write_page(path: Path, title: str, body: Iterable[Any]) -> Path:
    """Write the page, whole or not at all, and return its path."""
    style = files("mmfusion.report").joinpath("style.css").read_text(encoding="utf-8")
    content = _PAGE.substitute(title=escape(title), style=style, body=join(body))
    write_text(content, path)
    return path
