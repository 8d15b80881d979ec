"""The DuckDB file: connection, migrations, and what is written to it."""
