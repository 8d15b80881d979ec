"""What commands print for people: tables and lines as wide as the terminal, in colour where it has colours."""

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH = 120
"""Of what is piped, unless the environment variable COLUMNS is set."""
SECONDS = 2.0
"""Between two looks with --watch."""
LONGEST = 40
"""Of a column that is not the last one."""
Cell = str | tuple[str, str]
"""A text, or a text and its style."""


def console(stream: IO[str] | None = None) -> "Console":
    """Of the standard output, or of another stream."""
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], most: int | None = None) -> "RenderableType":
    """Columns side by side, without a frame.

    Args:
        columns: their headings; one that starts with > is aligned right. A column without content is left out.
        rows: a text for each column, or a text and its style.
        most: lines of a text in the last column, which is wrapped; None: as many as it takes.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    found = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    *kept, last = [place for place in range(len(columns)) if any(row[place][0] for row in found)]
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    room = console().width
    for place in kept:
        name = columns[place].removeprefix(">")
        width = min(max(cell_len(name), *(cell_len(printable(row[place][0])) for row in found)), LONGEST)
        room -= width + 2
        justify: Any = "right" if columns[place].startswith(">") else "left"
        made.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", max_width=width, min_width=width)
    made.add_column(columns[last].removeprefix(">"), overflow="fold")
    for row in found:
        cells = [Text(printable(row[place][0]), row[place][1]) for place in kept]
        made.add_row(*cells, Text(_cut(printable(row[last][0]), room, most), row[last][1]))
    return made


def facts(lines: Iterable[tuple[str, str]], most: int | None = None, style: str = "bold") -> "RenderableType":
    """A name, in a style, and a text in each line; a text has at most so many lines of the terminal."""
    from rich.table import Table
    from rich.text import Text

    found = list(lines)
    width = max((len(name) for name, _ in found), default=0)
    room = console().width - width - 2
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True, style=style, min_width=width)
    made.add_column(overflow="fold")
    for name, content in found:
        made.add_row(Text(name), Text(_cut(printable(content), room, most)))
    return made


def _cut(content: str, room: int, most: int | None) -> str:
    """The text, cut behind a word so that it takes so many lines of a width."""
    if most is None:
        return content
    lines = textwrap.wrap(content, max(room, 10), break_long_words=True)
    if len(lines) <= most:
        return content
    return " ".join([*lines[: most - 1], f"{textwrap.shorten(lines[most - 1], max(room, 10) - 2, placeholder='')} …"])


def text(line: str, style: str = "") -> "RenderableType":
    """A line, which is wrapped."""
    from rich.text import Text

    return Text(printable(line), style)


def printable(content: str) -> str:
    """On one line, without control characters: what users write may hold some that move a terminal's cursor."""
    return "".join(one if one.isprintable() else " " for one in content)


def lines(found: Iterable[str]) -> None:
    """Print lines, each as `printable`."""
    for one in found:
        print(printable(one))


def show(parts: Iterable["RenderableType"]) -> None:
    """Print what was made."""
    screen = console()
    with screen.capture() as captured:
        for part in parts:
            screen.print(part)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def repeat(look: Callable[[], Iterable["RenderableType"]], *, watch: bool) -> None:
    """Show what `look` makes; with `watch` again and again until Ctrl-C, in its place on a terminal."""
    if not watch or not sys.stdout.isatty():
        show(look())
        while watch:
            time.sleep(SECONDS)
            print()
            show(look())
        return
    from rich.console import Group
    from rich.live import Live

    with Live(Group(*look()), console=console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(SECONDS)
            live.update(Group(*look()), refresh=True)
