"""A GPU that also serves, on doubles: `torch.cuda` with figures of its own, and a server with vLLM's routes."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon.operations import command
from fixtures.daemon.run_queues import RunQueue
from fixtures.feedback.teaching import Teacher
from fixtures.kafka.brokers import until
from fixtures.servers.http import Quiet, listening
from retuned.consumers.errors import Cancelled, RetunedError, StandsBy
from retuned.retrain.settings import Settings, TrainSettings
from retuned.retrain.training import gpu, shared_gpu

GIB = 2**30


class Server:
    """What vLLM has of a GPU, and whether it sleeps."""

    def __init__(self, share: float = 0.6, offers_sleep: bool = True, wakes: bool = True) -> None:
        self.share, self.offers_sleep, self.wakes = share, offers_sleep, wakes
        self.asleep, self.asked = False, list[str]()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self.answer(200, f'vllm:cache_config_info{{gpu_memory_utilization="{server.share}"}} 1.0'.encode())
                elif self.path == "/is_sleeping" and server.offers_sleep:
                    self.answer(200, f'{{"is_sleeping": {str(server.asleep).lower()}}}'.encode())
                else:
                    self.answer(404, b'{"detail": "Not Found"}')

            def do_POST(self) -> None:
                server.asked.append(self.path)
                if not server.offers_sleep:
                    self.answer(404, b'{"detail": "Not Found"}')
                elif self.path == "/wake_up" and not server.wakes:
                    self.answer(500, b"out of memory")
                else:
                    server.asleep = self.path == "/sleep?level=1"
                    self.answer(200, b"")

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 GiB, as nvidia-smi reports it."""
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "81920\n"))


@contextmanager
def served(server: Server, **train: Any) -> Iterator[Settings]:
    with listening(server.handler()) as url:
        yield Settings(train=TrainSettings(gpu_servers=(f"{url}/v1",), **train))


@pytest.mark.usefixtures("one_gpu")
def test_a_training_takes_what_the_server_leaves() -> None:
    with served(Server(0.6)) as settings, shared_gpu.shared(settings) as budget:
        assert budget == 32 * GIB
    with served(Server(0.6), gpu_memory_bytes=20 * GIB) as settings, shared_gpu.shared(settings) as budget:
        assert budget == 20 * GIB
    with shared_gpu.shared(Settings()) as budget:
        assert budget is None


@pytest.mark.full
@pytest.mark.usefixtures("one_gpu")
def test_a_training_that_would_keep_the_server_from_starting_again_is_refused() -> None:
    text = (
        r"a GPU has 80.0 GiB, of which http://\S+ needs 72.0 GiB when it starts .* a training takes 16.0 GiB: .*"
        r"Lower train.gpu_memory_bytes .* set train.gpu_servers_sleep"
    )
    with (
        served(Server(0.9), gpu_memory_bytes=16 * GIB) as settings,
        pytest.raises(RetunedError, match=text),
        shared_gpu.shared(settings),
    ):
        pass
    away = Settings(train=TrainSettings(gpu_servers=("http://127.0.0.1:9",)))
    with (
        pytest.raises(RetunedError, match=r"train.gpu_servers: http://127.0.0.1:9 does not answer .* remove it"),
        shared_gpu.shared(away),
    ):
        pass


@pytest.mark.usefixtures("one_gpu")
def test_the_server_sleeps_while_the_work_runs_whatever_comes_of_it() -> None:
    server = Server(0.9)
    with served(server, gpu_servers_sleep=True) as settings:
        with shared_gpu.shared(settings) as budget:
            assert (server.asleep, budget) == (True, None)
        assert not server.asleep
        with pytest.raises(Cancelled), shared_gpu.shared(settings):
            raise Cancelled("stopped")
        assert not server.asleep
        assert server.asked == ["/sleep?level=1", "/wake_up"] * 2


@pytest.mark.usefixtures("one_gpu")
def test_a_server_wakes_although_its_daemon_leads_no_more() -> None:
    """The next leader may be on another machine, from which this server cannot be reached."""
    leads = True

    def lead() -> int:
        if not leads:
            raise StandsBy("another daemon leads")
        return 1

    server = Server(0.9)
    with served(server, gpu_servers_sleep=True) as settings, shared_gpu.shared(settings, lead):
        leads = False
    assert not server.asleep


@pytest.mark.full
@pytest.mark.usefixtures("one_gpu")
def test_a_server_that_cannot_sleep_is_named_and_one_that_does_not_wake_costs_no_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with (
        served(Server(offers_sleep=False), gpu_servers_sleep=True) as settings,
        pytest.raises(RetunedError, match=r"404.*--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"),
        shared_gpu.shared(settings),
    ):
        pass
    server = Server(wakes=False)
    with served(server, gpu_servers_sleep=True) as settings:
        with shared_gpu.shared(settings):
            pass
        assert "still sleeps; POST http://" in caplog.text
        server.wakes = True
        shared_gpu.wake(settings.train)
        assert not server.asleep
        count = len(server.asked)
        shared_gpu.wake(settings.train)
        assert len(server.asked) == count


def test_a_server_that_still_sleeps_is_woken_by_the_thread_that_trains_and_by_no_command(
    warehouse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Teacher(warehouse).correct("where is my parcel", "on its way", "here")
    server, queue = Server(wakes=False), RunQueue(warehouse, tmp_path, monkeypatch)
    server.asleep = True
    with listening(server.handler()) as url:
        train = {"gpu_servers": [url], "gpu_servers_sleep": True}
        queue.configure(schedule={"quality_seconds": 0.2}, workloads={"support": {"train": train}})
        command(queue.service, "pause", "support", {})
        command(queue.service, "retrain", "support", {})  # a run may begin while its caller asks the server
        assert server.asked == []
        queue.jobs.context.now = lambda: datetime.now(UTC).replace(tzinfo=None)
        queue.jobs.start()
        queue.jobs.lead()
        try:
            until(lambda: len(server.asked) > 2)
            server.wakes = True
            until(lambda: not server.asleep)
        finally:
            queue.stop.set()
            queue.jobs.shutdown()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU with so many bytes free, one figure after the other."""
    found: dict[str, Any] = {"free": [], "fraction": None}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (found["free"].pop(0), 80 * GIB))
    monkeypatch.setattr(
        "torch.cuda.set_per_process_memory_fraction", lambda fraction: found.__setitem__("fraction", fraction)
    )
    return found


def test_it_waits_until_enough_is_free_and_takes_no_more(cuda: dict[str, Any]) -> None:
    cuda["free"] = [5 * GIB, 10 * GIB, 30 * GIB]
    lines: list[dict[str, Any]] = []
    slept: list[float] = []
    gpu.reserve(20 * GIB, 60.0, lines.append, lambda: False, lambda: 0.0, slept.append)
    assert lines == [{"waits_for_gpu_bytes": 15 * GIB - gpu.CONTEXT_BYTES}]
    assert len(slept) == 2
    assert cuda["fraction"] == pytest.approx((20 * GIB - gpu.CONTEXT_BYTES) / (80 * GIB))


def test_it_waits_no_longer_than_it_may_and_stops_when_it_is_stopped(cuda: dict[str, Any]) -> None:
    now = iter([0.0, 59.0, 60.0])
    cuda["free"] = [5 * GIB] * 9
    with pytest.raises(RetunedError, match=r"GPU 0 has 80.0 GiB, of which 5.0 GiB are free after 60 s .* 19.4 GiB"):
        gpu.reserve(20 * GIB, 60.0, print, lambda: False, lambda: next(now), lambda _: None)
    with pytest.raises(Cancelled):
        gpu.reserve(20 * GIB, 60.0, print, lambda: True, lambda: 0.0, lambda _: None)
    assert cuda["fraction"] is None


def test_without_a_budget_it_takes_what_is_free(cuda: dict[str, Any]) -> None:
    gpu.reserve(None, 60.0, print, lambda: False)
    assert cuda["fraction"] is None
