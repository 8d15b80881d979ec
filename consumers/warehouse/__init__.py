"""The DuckDB file: connection, migrations, and writing of events."""
