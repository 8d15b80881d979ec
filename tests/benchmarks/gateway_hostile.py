"""The gateway among clients that waste its time, and before servers that fail, beside a quiet run.

Eight apps ask as fast as they are answered, each scene a gateway of its own. Of each: `…_failed`, requests that were
not answered with 200; `…_p99_ratio`, the 99th percentile beside the quiet run; `…_lost`, events of answers that an app
has whole, and Kafka does not have.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway import process

from fixtures.daemon.gateways import Gateway, published
from fixtures.kafka.brokers import Broker, free_port, run_tansu, until

APPS, SECONDS = 8, 5.0
FILES = 512
"""The gateway may open so many files, and so has 149 connections for the apps and the attackers."""
Attack = Callable[[int, bytes], Coroutine[None, None, None]]
BODY = json.dumps({"model": "support", "messages": [{"role": "user", "content": "How long do I have?"}]}).encode()
STREAM = json.dumps({"model": "support", "messages": [], "stream": True}).encode()


def request(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%s" % (size, body)


class Found:
    """What apps saw: seconds and interactions of answers, and requests that got none."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.shown: set[str] = set()
        self.failed = 0


async def app(port: int, found: Found) -> None:
    """Ask again and again; a connection that was closed is made anew, as clients do."""
    end, asked, connection = time.perf_counter() + SECONDS, request(BODY), None
    while (began := time.perf_counter()) < end:
        try:
            if connection is None:
                connection = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = connection
            writer.write(asked)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            await reader.readexactly(int(headers["content-length"]))
            if head.startswith("http/1.1 200"):
                found.took.append(time.perf_counter() - began)
                found.shown.add(headers["x-retuned-interaction"])
            else:
                found.failed += 1
                await asyncio.sleep(0.01)
        except (OSError, asyncio.IncompleteReadError):
            found.failed, connection = found.failed + 1, None
    if connection is not None:
        connection[1].close()


async def slow_sender(port: int, sent: bytes) -> None:
    """Send a beginning, then a byte a second; when the connection is closed, begin anew."""
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            while not writer.is_closing():
                await asyncio.sleep(1)
                writer.write(b"x")
                await writer.drain()
        await asyncio.sleep(0.2)


async def stalled_reader(port: int, sent: bytes) -> None:
    """Ask for a long stream and take nothing of it."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(sent)
            while not writer.is_closing():
                await asyncio.sleep(1)
                writer.write(b" ")  # fails once the gateway has closed it
                await writer.drain()
            del reader
        await asyncio.sleep(0.2)


@asynccontextmanager
async def attacked(count: int, attack: Attack, port: int, sent: bytes) -> AsyncIterator[None]:
    """Clients that waste the time of a gateway."""
    tasks = [asyncio.ensure_future(attack(port, sent)) for _ in range(count)]
    await asyncio.sleep(2)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def apps(port: int, attack: tuple[int, Attack, bytes] | None) -> Found:
    """What eight apps see, beside so many attackers that send this."""
    found = Found()
    async with AsyncExitStack() as around:
        if attack:
            count, how, sent = attack
            await around.enter_async_context(attacked(count, how, port, sent))
        await asyncio.gather(*(app(port, found) for _ in range(APPS)))
    return found


def scene(
    folder: Path, broker: Broker, name: str, upstreams: list[int], attack: tuple[int, Attack, bytes] | None = None
) -> dict[str, float]:
    """The figures of one gateway."""
    (folder / name).mkdir()
    own = {"workloads": ["support"], "client_seconds": 4.0}
    urls = [f"http://127.0.0.1:{port}/v1" for port in upstreams]
    with ExitStack() as stack:
        gateway = Gateway(folder / name, broker.bootstrap_servers, urls, files=FILES, gateway=own)
        stack.callback(gateway.end)
        gateway.start()
        found = uvloop.run(apps(gateway.port, attack))
        until(lambda: gateway.metric("in_flight") == 1 and gateway.metric("buffered_bytes") == 0, 120)
        sent = int(gateway.metric("published_total", kind="interactions") or 0)
        kept = {event["id"] for event in published(broker, gateway.topics["interactions"], least=sent)}
    return {
        f"hostile_{name}_answered": float(len(found.took)),
        f"hostile_{name}_failed": float(found.failed),
        f"hostile_{name}_p99_ms": statistics.quantiles(found.took, n=100)[98] * 1e3,
        f"hostile_{name}_lost": float(len(found.shown - kept)),
    }


def main() -> dict[str, float]:
    """Takes about a minute and a half on two cores."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, script = Path(name), str(Path(__file__).with_name("fixed_upstream.py"))
        ports = {kind: free_port() for kind in ("one", "two", "fails", "closes")}
        for kind, port in ports.items():
            behaviour = [kind] if kind in ("fails", "closes") else []
            stack.enter_context(process([sys.executable, script, str(port), *behaviour], folder / f"{kind}.log"))
        broker = stack.enter_context(run_tansu(folder))
        sound = [ports["one"], ports["two"]]
        begun = b"POST /v1/chat/completions HTTP/1.1\r\nX: "
        figures = {
            **scene(folder, broker, "quiet", sound),
            **scene(folder, broker, "headers", sound, (600, slow_sender, begun)),
            **scene(folder, broker, "bodies", sound, (600, slow_sender, request(b"{", 500))),
            **scene(folder, broker, "readers", sound, (300, stalled_reader, request(STREAM))),
            **scene(folder, broker, "failing", [*sound, ports["fails"]]),
            **scene(folder, broker, "closing", [*sound, ports["closes"]]),
        }
    quiet = figures["hostile_quiet_p99_ms"]
    ratios = {name.replace("p99_ms", "p99_ratio"): value / quiet for name, value in figures.items() if "p99" in name}
    return figures | ratios


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
