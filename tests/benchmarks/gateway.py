"""The gateway against LiteLLM's proxy and against no proxy: added latency, rate, memory; and Kafka away for an hour.

The hour is one of traffic: as many requests as come in it at ten a second, as fast as they go. `gateway_away_lost` are
answers that Kafka does not have once it is back, `gateway_away_hours` how long `gateway.buffer_bytes` lasts by default
at that rate. Another gateway may keep a megabyte: `gateway_full_dropped` of its 2,000 answers are dropped and counted,
`gateway_full_lost` are neither counted nor in Kafka, and all of them reach the app.

All three stand before the same server, in this one run and in turns. LiteLLM's proxy is that of RETUNED_LITELLM, or of
build/litellm, which is made where it is missing.
"""

import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import uvloop
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.daemon.gateways import Gateway, published
from fixtures.kafka.brokers import free_port, run_tansu, until
from retuned.daemon.gateway_settings import GatewaySettings

LITELLM = "litellm[proxy]==1.108.7"
FOLDER = Path(__file__).parents[2] / "build" / "litellm"
KEY = f"sk-{secrets.token_hex(32)}"  # LiteLLM's proxy does not start without one
ROUNDS, ALONE_SECONDS, CLIENTS, TOGETHER_SECONDS = 6, 3.0, 8, 4.0
WARM_REQUESTS = 50
AWAY_REQUESTS, A_SECOND = 36_000, 10
FULL_REQUESTS, FULL_BYTES = 2_000, 1_000_000
MESSAGES = [
    {"role": "system", "content": "You answer the customers of a shop in one or two short sentences. " * 8},
    {"role": "user", "content": "How long do I have to return a parcel that has been opened?"},
]


class Target:
    """One of the three, its process (None: none is in between), and what was measured of it."""

    def __init__(self, port: int, model: str, process: "subprocess.Popen[bytes] | None") -> None:
        self.port, self.process = port, process
        body = json.dumps({"model": model, "messages": MESSAGES}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.alone: list[float] = []
        self.rates: list[float] = []
        self.answers, self.cpu_seconds = 0, 0.0

    async def ask(self, seconds: float, most: float, took: list[float]) -> None:
        """One client that asks again once it has its answer, for so long or so often."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        end = time.perf_counter() + seconds
        while most > 0 and (began := time.perf_counter()) < end:
            writer.write(self.request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            took.append(time.perf_counter() - began)
            most -= 1
        writer.close()

    async def together(self, clients: int, seconds: float, most: float = float("inf")) -> list[float]:
        """Seconds of each answer to so many clients."""
        took: list[float] = []
        await asyncio.gather(*(self.ask(seconds, most, took) for _ in range(clients)))
        return took

    def cpu(self) -> float:
        """Seconds of processor time of the process and its children so far."""
        return 0.0 if self.process is None else sum(_cpu(pid) for pid in _family(self.process.pid))

    def peak_mb(self) -> float:
        """The most memory that was resident in the process and its children."""
        assert self.process is not None
        return sum(_peak(pid) for pid in _family(self.process.pid)) / 1e6


async def measure(targets: dict[str, Target]) -> None:
    """In turns, so that whatever else the machine does is shared."""
    for target in targets.values():
        await target.together(1, 60.0, WARM_REQUESTS)
    for _ in range(ROUNDS):
        for target in targets.values():
            target.alone += await target.together(1, ALONE_SECONDS)
        for target in targets.values():
            before, began = target.cpu(), time.perf_counter()
            took = await target.together(CLIENTS, TOGETHER_SECONDS)
            target.rates.append(len(took) / (time.perf_counter() - began))
            target.answers += len(took)
            target.cpu_seconds += target.cpu() - before


def main() -> dict[str, float]:
    """Takes about three minutes on two cores, and as long again where LiteLLM has to be installed."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        upstream, proxy = free_port(), free_port()
        script = str(Path(__file__).with_name("fixed_upstream.py"))
        stack.enter_context(process([sys.executable, script, str(upstream)], folder / "upstream.log"))
        until(lambda: _answers(upstream, "/v1/models"))
        broker = stack.enter_context(run_tansu(folder))
        broker.stop()
        own = {"workloads": ["support"]}
        gateway = Gateway(folder, broker.bootstrap_servers, [f"http://127.0.0.1:{upstream}/v1"], gateway=own)
        stack.callback(gateway.end)
        gateway.start()
        asked = Target(gateway.port, "support", gateway.process)
        uvloop.run(asked.together(CLIENTS, 600.0, AWAY_REQUESTS / CLIENTS))
        waited = gateway.metric("buffered_bytes") or 0.0
        broker.start()
        until(lambda: gateway.metric("buffered_bytes") == 0, 120)
        sent = int(gateway.metric("published_total", kind="interactions") or 0)
        kept = {event["id"] for event in published(broker, gateway.topics["interactions"], least=sent)}
        lost = AWAY_REQUESTS - len(kept)
        full = beyond_the_bound(folder / "full", upstream)

        litellm = stack.enter_context(process(litellm_command(folder, upstream, proxy), folder / "litellm.log"))
        until(lambda: litellm.poll() is not None or _answers(proxy, "/health/liveliness"), 180)
        assert litellm.poll() is None, (folder / "litellm.log").read_text()[-2_000:]
        targets = {
            "direct": Target(upstream, "base", None),
            "gateway": asked,
            "litellm": Target(proxy, "support", litellm),
        }
        uvloop.run(measure(targets))
        direct, ours, theirs = (targets[name] for name in ("direct", "gateway", "litellm"))

        def added_ms(target: Target, percent: int) -> float:
            ends = [statistics.quantiles(one.alone, n=100)[percent - 1] for one in (target, direct)]
            return (ends[0] - ends[1]) * 1e3

        found = {
            f"{name}_added_p{percent}_ms": added_ms(target, percent)
            for name, target in (("gateway", ours), ("litellm", theirs))
            for percent in (50, 99)
        }
        for label, target in (("gateway", ours), ("litellm", theirs)):
            found[f"{label}_rps"] = statistics.median(target.rates)
            found[f"{label}_rps_per_core"] = target.answers / target.cpu_seconds
            found[f"{label}_peak_mb"] = target.peak_mb()
        return found | {
            "gateway_rps_ratio_to_litellm": found["gateway_rps"] / found["litellm_rps"],
            "gateway_rps_per_core_ratio_to_litellm": found["gateway_rps_per_core"] / found["litellm_rps_per_core"],
            "gateway_direct_p50_ms": statistics.median(direct.alone) * 1e3,
            "gateway_direct_p99_ms": statistics.quantiles(direct.alone, n=100)[98] * 1e3,
            "gateway_away_buffered_bytes": waited,
            "gateway_away_lost": float(lost),
            "gateway_away_hours": GatewaySettings().buffer_bytes / (waited / AWAY_REQUESTS) / A_SECOND / 3_600,
            **full,
        }


def beyond_the_bound(folder: Path, upstream: int) -> dict[str, float]:
    """What becomes of more answers than may wait for Kafka."""
    folder.mkdir()
    own = {"workloads": ["support"], "buffer_bytes": FULL_BYTES}
    with run_tansu(folder) as broker, ExitStack() as stack:
        broker.stop()
        gateway = Gateway(folder, broker.bootstrap_servers, [f"http://127.0.0.1:{upstream}/v1"], gateway=own)
        stack.callback(gateway.end)
        gateway.start()
        asked = Target(gateway.port, "support", gateway.process)
        took = uvloop.run(asked.together(CLIENTS, 600.0, FULL_REQUESTS / CLIENTS))
        dropped = gateway.metric("dropped_total", kind="interactions", reason="full") or 0.0
        broker.start()
        until(lambda: gateway.metric("buffered_bytes") == 0, 120)
        sent = int(gateway.metric("published_total", kind="interactions") or 0)
        kept = {event["id"] for event in published(broker, gateway.topics["interactions"], least=sent)}
    return {
        "gateway_full_answered": float(len(took)),
        "gateway_full_dropped": dropped,
        "gateway_full_lost": FULL_REQUESTS - dropped - len(kept),
    }


def litellm_command(folder: Path, upstream: int, port: int) -> list[str]:
    """LiteLLM's proxy with one process, before the same server."""
    command = os.environ.get("RETUNED_LITELLM") or str(FOLDER / "bin" / "litellm")
    if not Path(command).exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(FOLDER / "bin" / "pip"), "install", "--quiet", LITELLM], check=True)
    server = {"model": "openai/base", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": [{"model_name": "support", "litellm_params": server}]}))
    return [command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


@contextmanager
def process(command: list[str], log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that is ended with all of its children."""
    environment = os.environ | {
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "DO_NOT_TRACK": "1",
    }
    with log.open("wb") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        yield started
    finally:
        family = _family(started.pid)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        started.wait()


def _answers(port: int, path: str) -> bool:
    with suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).status == 200)
    return False


def _family(pid: int) -> list[int]:
    found = [pid]
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [one for child in tasks.read_text().split() for one in _family(int(child))]
    return found


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1_024


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
