"""What commands print: JSON, or tables, records and lines as wide as the terminal, in colour where it has colours."""

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from retuned.consumers.common.times import shown
from retuned.daemon.cli.command import LINES

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


def show_rows(
    rows: Iterable[Mapping[str, Any]],
    fields: Sequence[str],
    texts: Sequence[str] = (),
    *,
    as_json: bool = False,
    nothing: str = "",
) -> None:
    """Prints the rows of an answer.

    Args:
        fields: those that people see: columns of a table or, if there are texts, the first line of each row.
        texts: long fields, each on a line of its own.
        as_json: prints all rows with all fields as JSON instead.
        nothing: printed to the standard error if there are no rows.
    """
    rows = list(rows)
    if as_json:
        print_json(rows)
    elif not rows:
        print(nothing, file=sys.stderr)
    elif texts:
        for row in rows[:LINES]:
            lines(["  ".join(filter(None, (value_of(field, row.get(field)) for field in fields)))])
            for field in texts:
                if row.get(field):
                    lines([f"    {_title(field):10}  {one_line(value_of(field, row[field]))}"])
    else:
        columns = [
            f"{'>' if any(type(row[field]) in (int, float) for row in rows) else ''}{_title(field).upper()}"
            for field in fields
        ]
        show([table(columns, [[value_of(field, row[field]) for field in fields] for row in rows[:LINES]], most=1)])
    if len(rows) > LINES and not as_json:
        print(f"and {len(rows) - LINES} more; --json has them all")


def show_record(record: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Prints one object: a line for each field that has a value, and for each item of a list."""
    if as_json:
        print_json(record)
    else:
        show([facts(_fields(record), style="")])


def print_json(answer: Any) -> None:
    """Prints an answer as it is."""
    print(json.dumps(answer, indent=2))


def _fields(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field, value in record.items():
        values = value if isinstance(value, list) and any(isinstance(item, Mapping) for item in value) else [value]
        name = _title(field)
        for item in values:
            if text := value_of(field, item):
                yield name, text
                name = ""


def value_of(field: str, value: Any) -> str:
    """Returns the value of a field for people; empty if there is none."""
    match value:
        case None | "":
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
        case int():
            return f"{value:,}"
        case str() if field.endswith("_at") or field in ("since", "timestamp"):
            return shown(value)
        case str():
            return printable(value)
        case Mapping():
            return ", ".join(f"{_title(key)} {text}" for key, item in value.items() if (text := value_of(key, item)))
        case _:
            return ", ".join(islice((value_of(field, item) for item in value), LINES))


def _title(field: str) -> str:
    return field.replace("_", " ")


def one_line(text: str | None) -> str:
    """Returns a text on one line of a terminal, whatever it holds."""
    return textwrap.shorten(printable(text or ""), 160, placeholder=" …")


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
