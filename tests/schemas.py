"""The schema of each version with rows in every table, as SQL: what the tests of migrations start from.

`python tests/schemas.py` writes the file of the version that pyproject.toml names; those of released versions never
change.
"""

import sys
import tempfile
import tomllib
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

sys.path.insert(0, str(Path(__file__).parent))

from traffic import new_warehouse

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "data" / "schemas"
TABLES = "SELECT table_name, sql FROM duckdb_tables() WHERE NOT temporary ORDER BY table_name"
VIEWS = "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal AND NOT temporary ORDER BY view_name"
Rows = dict[str, list[dict[str, Any]]]


def version() -> str:
    """The version of the tree."""
    project: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["version"]


def fill(connection: duckdb.DuckDBPyConnection) -> None:
    """Two rows in every table but the list of migrations: one with all columns, one with those only that must be."""
    for table, _ in connection.execute(TABLES).fetchall():
        if table == "schema_migrations":
            continue
        columns = connection.execute(
            "SELECT column_name, data_type, is_nullable FROM duckdb_columns() WHERE table_name = $1 "
            "ORDER BY column_index",
            [table],
        ).fetchall()
        for number in (1, 2):
            values = [
                None if nullable and number == 2 else value(name, kind, number) for name, kind, nullable in columns
            ]
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' for _ in values)})", values)


def value(column: str, kind: str, number: int) -> Any:
    """Something that this column could hold, another in each row."""
    made = {
        "VARCHAR": f"{column} {number}, it's “{number}”",
        "VARCHAR[]": [f"{column}{number}"],
        "JSON": f'{{"{column}": [{number}, "it\'s"]}}',
        "TIMESTAMP": datetime(2026, 3, 2, 9, 30, 0, 123_000) + timedelta(days=number),
        "DATE": date(2026, 3, 2) + timedelta(days=number),
        "DOUBLE": number + 0.1,
        "BIGINT": 2**40 + number,
        "UBIGINT": 2**40 + number,
        "INTEGER": number,
        "BOOLEAN": number == 1,
    }
    return made[kind]


def rows(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Every row of every table, in the order in which they were stored."""
    found: Rows = {}
    for table, _ in connection.execute(TABLES).fetchall():
        cursor = connection.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description or []]
        found[table] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return found


def dump(connection: duckdb.DuckDBPyConnection) -> str:
    """The tables, their rows, and the views as SQL."""
    parts, stored = [], rows(connection)
    for table, sql in connection.execute(TABLES).fetchall():
        parts.append(sql)
        parts += [f"INSERT INTO {table} VALUES ({', '.join(map(_literal, row.values()))});" for row in stored[table]]
    views = dict(connection.execute(VIEWS).fetchall())
    while views:  # those first that use none of the others
        first = next(name for name, sql in views.items() if not any(other in sql for other in views if other != name))
        parts.append(views.pop(first))
    return "\n".join(parts) + "\n"


def current() -> str:
    """What the file of the tree's version should hold."""
    with tempfile.TemporaryDirectory() as folder:
        warehouse = new_warehouse(Path(folder))
        warehouse.execute("UPDATE schema_migrations SET applied_at = '2026-03-02 09:00:00'")
        with warehouse.cursor() as cursor:
            fill(cursor)
            text = dump(cursor)
        warehouse.close()
    return text


def _literal(item: Any) -> str:
    if item is None:
        return "NULL"
    if isinstance(item, str | date):
        return "'" + str(item).replace("'", "''") + "'"
    return str(item)


if __name__ == "__main__":
    (FOLDER / f"{version()}.sql").write_text(current(), encoding="utf-8")
