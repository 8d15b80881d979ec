"""Processes that do nothing but lead a cluster, one at a time, and act: the one that leads is killed, frozen or cut off
from PostgreSQL, again and again.

Each act is a request with the epoch of who makes it, every 20 ms while that one leads. None of an epoch may arrive once
one of a later epoch has.
"""

import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.cluster.servers import Postgres
from fixtures.kafka.brokers import Proxy, until
from fixtures.servers.http import Quiet, listening
from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.leadership import ANSWER_SECONDS, Leadership
from retuned.consumers.cluster.postgres import Postgres as PostgresConnection
from retuned.consumers.errors import LeadershipLost, RetunedError
from retuned.consumers.settings import StoreSettings, WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.retrain.openai_api import EPOCH, Client

ACT_SECONDS = 0.02
ENDS = 10
"""Exit status of one that saw that another one leads."""


def work(url: str, receiver: str, warehouse: str) -> int:
    """The process: leads, or stands by."""
    settings, stop, ended = StoreSettings(postgres_url=url), threading.Event(), list[BaseException]()  # type: ignore[arg-type]
    opened = open_warehouse(WarehouseSettings(path=Path(warehouse)))
    control = Control(PostgresConnection(settings), opened)
    leadership = Leadership(
        PostgresConnection(settings, answer_seconds=ANSWER_SECONDS), control, warehouse, "*", lambda: 0, lambda: None
    )
    client = Client(receiver, "test", None, 5.0, "", pauses=(), lead=leadership.check)

    def lead() -> None:
        try:
            leadership.run(stop)
        except BaseException as error:  # noqa: BLE001
            ended.append(error)

    threading.Thread(target=lead, daemon=True).start()
    while not ended:
        with suppress(RetunedError):
            client.request("", b"{}")
        time.sleep(ACT_SECONDS)
    return ENDS if isinstance(ended[0], LeadershipLost) else 1


class Process:
    """One of them, and its way to PostgreSQL."""

    def __init__(self, folder: Path, name: str, postgres: Postgres, url: str, receiver: str) -> None:
        self.way = Proxy(postgres.port)
        through = url.replace(f":{postgres.port}/", f":{self.way.port}/")
        self._command = [sys.executable, __file__, through, receiver, str(folder / f"{name}.duckdb")]
        self.log = folder / f"{name}.log"
        self.launch()

    def launch(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def end(self) -> None:
        self.way.passes.set()
        self.way.close()
        self.process.kill()
        self.process.wait()


def killed(leader: Process) -> Callable[[], None]:
    leader.process.kill()
    return lambda: None


def frozen(leader: Process) -> Callable[[], None]:
    leader.process.send_signal(signal.SIGSTOP)
    return lambda: leader.process.send_signal(signal.SIGCONT)


def cut_off(leader: Process) -> Callable[[], None]:
    """Its connections end, and new ones are refused."""
    leader.way.refuses = True
    leader.way.cut()
    return lambda: setattr(leader.way, "refuses", False)


def unheard(leader: Process) -> Callable[[], None]:
    """Nothing comes through, and connections stay open."""
    leader.way.passes.clear()
    return leader.way.passes.set


FAULTS = {"killed": killed, "frozen": frozen, "cut off": cut_off, "unheard": unheard}


def survive(postgres: Postgres, folder: Path, times: int, name: str = "leases") -> dict[str, float]:
    """So many of each fault. Returns, by fault, the median and the longest of the seconds without an act; how many acts
    of two leaders there were, and for how many seconds at most, which are to be 0."""
    seen: list[tuple[float, int]] = []
    took: dict[str, list[float]] = {fault: [] for fault in FAULTS}
    last = [(0, 0.0)]
    late: list[tuple[str, float]] = []
    fault = ""

    class Handler(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            epoch, at = int(self.headers[EPOCH]), time.monotonic()
            if epoch > last[0][0]:
                last[0] = (epoch, at)
            elif epoch < last[0][0]:
                late.append((fault, at - last[0][1]))
            seen.append((at, epoch))
            self.send_response(204)
            self.end_headers()

    with ExitStack() as stack:
        receiver, url = stack.enter_context(listening(Handler)), postgres.create(name)
        with closing(PostgresConnection(StoreSettings(postgres_url=url))) as made:  # type: ignore[arg-type]
            made.rows("leader")  # which makes the schema
        processes = [Process(folder, f"{name}-{number}", postgres, url, receiver) for number in range(2)]
        for process in processes:
            stack.callback(process.end)
        for turn in range(times * len(FAULTS)):
            fault = list(FAULTS)[turn % len(FAULTS)]
            leader = _leader(processes, url)
            before, began = last[0][0], time.monotonic()
            heal = FAULTS[fault](leader)
            until(lambda before=before: last[0][0] > before, 60)
            earlier = [at for at, epoch in seen if epoch == before]
            took[fault].append(last[0][1] - max(earlier, default=began))
            heal()
            status = leader.process.wait(60)
            assert status == (-signal.SIGKILL if fault == "killed" else ENDS), leader.log.read_text()[-2000:]
            time.sleep(0.2)
            leader.launch()
    overlap = max((seconds for _, seconds in late), default=0.0)
    print(f"acts of two leaders: {late}", flush=True)
    found = {"acts": float(len(seen)), "acts of two leaders": float(len(late)), "overlap seconds": overlap}
    for fault, seconds in took.items():
        found[f"{fault}: median seconds"] = round(statistics.median(seconds), 2)
        found[f"{fault}: longest seconds"] = round(max(seconds), 2)
    return found


def _leader(processes: list[Process], url: str) -> Process:
    """The one that leads, once both take part."""
    found: list[Process] = []

    def look() -> bool:
        with closing(PostgresConnection(StoreSettings(postgres_url=url))) as connection:  # type: ignore[arg-type]
            rows = connection.rows("daemons", {"instance": ""})
        alive = [(name, leads) for name, leads, seconds, _ in rows if seconds < 2]
        found[:] = [one for one in processes for name, leads in alive if leads and name in one._command]
        return len({name for name, _ in alive}) == len(processes) and len(found) == 1

    until(look, 120)
    return found[0]


if __name__ == "__main__":
    sys.exit(work(*sys.argv[1:]))
