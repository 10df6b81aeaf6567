"""Figures as files: a picture, or a page that needs no other file."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

from qplan.core.errors import InputError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from qplan.report.measured_axes import Drawn

SUFFIXES = (".png", ".html")


def check_plot(path: Path) -> None:
    """Refuse a file name whose kind of figure is unknown, before any work."""
    if path.suffix.casefold() not in SUFFIXES:
        raise InputError(f"--plot: {path}; expected a name that ends in .png or .html{nearest(path.suffix, SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot: no folder {path.parent}")


def write_figure(path: Path, drawn: Drawn) -> None:
    """Write a figure as a picture or as a page that needs no other file, by the suffix of `path`.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    write_picture(path, drawn.png if path.suffix.casefold() == ".png" else _page(drawn).encode())


def write_picture(path: Path, content: bytes) -> None:
    """Write a picture, or a page, as it is.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"--plot: cannot write {path}: {error.strerror}") from None


def _page(drawn: Drawn) -> str:
    picture = base64.b64encode(drawn.png).decode("ascii")
    title = html.escape(drawn.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<body style="font-family: sans-serif; max-width: 75em; margin: 2em auto">\n<h1>{title}</h1>\n'
        f'<img alt="{title}" style="width: 100%" src="data:image/png;base64,{picture}">\n'
        f"<p>{html.escape(drawn.caption)}</p>\n</body>\n</html>\n"
    )
