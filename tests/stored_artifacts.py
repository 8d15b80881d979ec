"""Machines of a cluster that share a storage, each with a warehouse and folders of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traffic import new_warehouse

from retuned.consumers.cluster.artifacts import PREFIX, StoredArtifacts
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.warehouse.artifacts import Kind

TABLES = ("artifacts", "models", "datasets", "aliases", "drift_checks")


class Machine:
    """One of them. Rows come to another one by `follow`, as the control tables of a cluster do."""

    def __init__(self, folder: Path, objects: Objects, epoch: int = 1) -> None:
        folder.mkdir()
        self.folder, self.objects, self.epoch = folder, objects, epoch
        self.models, self.reports = folder / "models", folder / "reports"
        self.warehouse = new_warehouse(folder)
        self.start()

    def start(self) -> None:
        """As its process does."""
        folders: dict[Kind, Path] = {"version": self.models, "dataset": self.models, "report": self.reports}
        self.artifacts = StoredArtifacts(self.warehouse, self.objects, folders, lambda: self.epoch)
        self.warehouse.artifacts = self.artifacts

    def put(self, kind: Kind, path: Path) -> None:
        """Put and recorded, as with the row that names it."""
        kept = self.artifacts.put(kind, path)
        with self.warehouse.transaction() as cursor:
            kept(cursor)

    def remove(self, kind: Kind, *paths: Path) -> None:
        with self.warehouse.transaction() as cursor:
            self.artifacts.remove(cursor, kind, paths)

    def follow(self, leader: "Machine") -> bool:
        with self.warehouse.transaction() as cursor:
            for table in TABLES:
                cursor.execute(f"DELETE FROM {table}")
                for row in leader.warehouse.rows(f"FROM {table}"):
                    names = ", ".join(f'"{name}"' for name in row)
                    marks = ", ".join("?" for _ in row)
                    cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))
        return self.artifacts.follow()

    def rows(self) -> list[dict[str, Any]]:
        return self.warehouse.rows("SELECT * FROM artifacts ORDER BY created_at, id")


def keys(objects: Objects) -> list[str]:
    """Those of all artifacts in a storage."""
    return sorted(key for page in objects.list(PREFIX) for key in page)


def write(path: Path, **files: bytes) -> Path:
    """A folder with these files, whose names are without their suffix."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.bin").write_bytes(content)
    return path


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """A storage at a folder that does not answer meanwhile."""
    aside = folder.with_name(f"{folder.name}.away")
    folder.rename(aside)
    folder.write_text("")
    yield
    folder.unlink()
    aside.rename(folder)
