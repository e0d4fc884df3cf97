"""The HTML around numbers and pictures: one file, nothing from the network, every string escaped."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.files import write_text

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
$script</body>
</html>
""")

NONE = "–"
"""Stands where there is no value."""


class Html(str):
    """Text that is HTML already; everything else is escaped by :func:`text`."""


def text(value: Any) -> Html:
    """The value as HTML text: numbers shortened, None as a dash, strings escaped."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html(NONE)
    if isinstance(value, float):
        return Html(f"{value:.4g}")
    if isinstance(value, (list, tuple)):
        return Html(", ".join(text(one) for one in value))
    return Html(escape(str(value)))


def element(tag: str, content: Any = "", **attributes: str) -> Html:
    """``<tag class="...">content</tag>``; an attribute that is a Python word takes a trailing underscore.

    Other underscores become hyphens: ``aria_label``.
    """
    return Html(f"<{tag}{_given(attributes)}>{text(content)}</{tag}>")


def void(tag: str, **attributes: str) -> Html:
    """An element that has no content: ``<img src="..." alt="...">``."""
    return Html(f"<{tag}{_given(attributes)}>")


def _given(attributes: Mapping[str, str]) -> str:
    there = {name: value for name, value in attributes.items() if value or name == "value"}  # an empty choice is one
    return "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in there.items())


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


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[Any]],
    caption: str = "",
    attributes: Sequence[Mapping[str, str]] = (),
    id_: str = "",
) -> Html:
    """A table whose first column names the rows; attributes, if given, are those of the headers, one by one."""
    given = attributes or [{}] * len(headers)
    titles = zip(headers, given, strict=True)
    head = element("tr", join(element("th", name, scope="col", **more) for name, more in titles))
    body = []
    for name, *cells in rows:
        first = element("th", name, scope="row")
        body.append(element("tr", join([first, *(element("td", cell) for cell in cells)])))
    title = [element("caption", caption)] if caption else []
    inner = join([*title, element("thead", head), element("tbody", join(body))])
    return element("div", element("table", inner, id_=id_), class_="scroll")


def options_table(options: Mapping[str, Any], caption: str) -> Html:
    """Options and versions as a table, behind one click."""
    flat = {name: value for name, value in options.items() if not isinstance(value, Mapping)}
    inner = table(["option", "value"], flat.items())
    versions = options.get("versions")
    if isinstance(versions, Mapping):
        inner = join([inner, table(["software", "version"], versions.items())])
    return details(caption, inner) if options else Html("")


def details(summary: str, *parts: Any) -> Html:
    """Parts behind one click."""
    return element("details", join([element("summary", summary), *parts]))


def figure(png: bytes, alt: str, caption: Any = "", class_: str = "", url: str = "") -> Html:
    """A picture with the words for those who do not see it; inside the page, or read from ``url`` as it is reached.

    The page knows its width and height, so that nothing jumps when it comes late.
    """
    width, height = struct.unpack(">II", png[16:24])
    source = url or f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    loading = "lazy" if url else ""
    image = void("img", src=source, alt=alt, width=str(width), height=str(height), loading=loading)
    parts = [image, element("figcaption", caption)] if caption else [image]
    return element("figure", join(parts), class_=class_)


def png_of_figure(drawing: Figure) -> bytes:
    """A matplotlib figure as PNG; no pyplot, so nothing global."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def png_of_array(picture: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """A picture as PNG, first row on top.

    Args:
        picture: ``[height, width]`` gray or ``[height, width, 3]``, uint8.
        palette: ``[256, 3]`` uint8, the colors if ``picture`` holds indices.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    if palette is not None:
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=4)  # a third faster than 6 and 1 % larger
    return buffer.getvalue()


def write_page(path: Path, title: str, body: Iterable[Any], extra: str = "") -> Path:
    """Write the page, whole or not at all, and return its path.

    Args:
        path: the file to write.
        title: of the page.
        body: its parts.
        extra: a page with its own style and script has them in ``<extra>.css`` and ``<extra>.js`` of this room.
    """
    style = _own("style.css") + (_own(f"{extra}.css") if extra else "")
    script = f"<script>\n{_own(f'{extra}.js')}</script>\n" if extra else ""
    write_text(_PAGE.substitute(title=escape(title), style=style, body=join(body), script=script), path)
    return path


def _own(name: str) -> str:
    return files("mmfusion.report").joinpath(name).read_text(encoding="utf-8")
