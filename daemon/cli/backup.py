"""`retuned backup --verify`, `restore` and `migrate`."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from retuned.consumers.common.extras import needing
from retuned.consumers.common.times import shown
from retuned.consumers.errors import BackupError, ConfigurationError, StoreUnavailable
from retuned.daemon.settings import Settings

if TYPE_CHECKING:
    from retuned.consumers.warehouse.connection import Warehouse


def verify(folder: Path) -> int:
    """Check every file of the backups that are there."""
    from retuned.daemon.backup import manifest

    found = manifest.complete(folder)
    if not found:
        raise BackupError(f"backup {folder}: no backup is there")
    damaged = 0
    for generation in found:
        try:
            problems = list(manifest.verify(generation))
        except BackupError as error:
            problems = [str(error)]
        print(f"{'FAIL' if problems else 'ok':4}  {generation.name}", *problems, sep="\n      ")
        damaged += bool(problems)
    return int(damaged > 0)


def restore(settings: Settings, folder: Path, generation: str | None, *, replace: bool) -> int:
    """Put a backup in place."""
    from retuned.daemon.backup.restore import choose, restore

    now = datetime.now(UTC).replace(tzinfo=None)
    done = restore(settings, choose(folder, generation), replace=replace, now=now)
    print(f"{done.generation.name} is in place, as of {shown(done.manifest.created_at)}")
    warehouse, models = settings.warehouse.path.resolve(), settings.models.directory.resolve()
    print(f"  the warehouse is {warehouse}, the models are in {models}")
    for offset in done.manifest.offsets:
        print(f"  reading goes on at {offset.topic}[{offset.partition}]@{offset.next_offset}")
    if done.missing_key:
        print(f"  the key of pseudonyms is not in it: put it to {done.missing_key} before the daemon starts")
    for path in done.set_aside:
        print(f"  what was there before is {path}")
    return 0


def hand_over(warehouse: "Warehouse", settings: Settings) -> int:
    """Have ingesters begin where a warehouse ends, daemons with its control tables, and the storage have the files that
    they name. Returns how many partitions that are.

    Raises:
        ConfigurationError: the extra is not installed, a setting is missing, ingesters have begun elsewhere, or the
            users of the warehouse are stored under another key than the configured ones.
        StoreUnavailable: the database does not answer. A storage that does not gets the rest once the daemon runs.
    """
    from retuned.consumers.formats.files import TOPIC
    from retuned.consumers.privacy.pseudonyms import load_user_keys
    from retuned.consumers.warehouse.writer import stored_identities, stored_key_ids, stored_offsets
    from retuned.daemon import artifacts

    with needing("cluster", "store"):
        from retuned.consumers.cluster import leadership
        from retuned.consumers.cluster.database import Database
        from retuned.consumers.cluster.postgres import Postgres
    stored_under = stored_key_ids(warehouse)
    keys = load_user_keys(settings.privacy, warehouse.path).ids if stored_under else []
    if stored_under and stored_under.isdisjoint(keys):
        raise ConfigurationError(
            "privacy.user_key: the users of the warehouse are stored under another key: give it to all ingesters and "
            f"daemons (one that retuned made is in {warehouse.path}.key)"
        )
    artifacts.keep(warehouse, settings)
    offsets = stored_offsets(warehouse)  # of files, too: what is imported already is known
    with closing(Database(settings.store)) as database:
        if stored_under:
            database.share_user_keys(keys)
        database.seed(offsets, stored_identities(warehouse))
    try:
        artifacts.settle(warehouse, settings)
    except StoreUnavailable as error:
        print(f"{error}; versions, datasets and reports are put there once the daemon runs")
    with closing(Postgres(settings.store)) as postgres:
        leadership.hand_over(postgres, warehouse)
    return sum(not topic.startswith(TOPIC) for topic, _ in offsets)


def migrate(settings: Settings, *, to_cluster: bool = False) -> int:
    """Bring the schema of the warehouse up to date, and have the ingesters of a cluster begin where it ends."""
    from retuned.consumers.warehouse import schema
    from retuned.consumers.warehouse.opening import attach, open_warehouse

    with closing(attach(settings.warehouse, create=False)) as warehouse:
        before = schema.version(warehouse) if schema.pending(warehouse) else None
    path = settings.warehouse.path
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        done = "is up to date" if before is None else f"migrated from schema {before} to {schema.latest()}"
        print(f"{path}: {done}")
        if to_cluster:
            found = hand_over(warehouse, settings)
            print(f"ingesters begin where it ends, on {found} partitions; set store.kind to cluster")
    return 0
