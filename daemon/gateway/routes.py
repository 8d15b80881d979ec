"""The routes that the gateway follows: the daemon's, kept on disk for when it is away."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import RetunedError
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.retrain.release.assignment import Route, base_only

log = logging.getLogger(__name__)

FILE = "routes.json"


class _Answer(msgspec.Struct, frozen=True):
    workloads: dict[str, Route]


class Routes:
    """Of each workload, what answers it.

    Attributes:
        read_at: when the daemon last answered, Unix time; None: it has not yet.
        problem: why it did not when it was asked last.
    """

    def __init__(self, settings: GatewaySettings, ask: Callable[[], Any]) -> None:
        """`ask` returns what the daemon answers at /api/v1/routes, and raises a RetunedError where it does not."""
        self._ask, self._file = ask, settings.buffer / FILE
        self._configured = {workload: base_only(workload) for workload in settings.workloads}
        self._known: dict[str, Route] = {}
        self._written = b""
        self.read_at: float | None = None
        self.problem: str | None = None
        try:
            self._written = self._file.read_bytes()
            self._known = msgspec.json.decode(self._written, type=_Answer).workloads
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: cannot be used, the daemon is asked: %s", self._file, error)

    def of(self, workload: str) -> Route | None:
        """The route of a workload; None: there is no such workload."""
        return self._known.get(workload) or self._configured.get(workload)

    def workloads(self) -> list[str]:
        """The workloads that may be asked for."""
        return sorted({*self._known, *self._configured})

    async def follow(self, seconds: float) -> None:
        """Ask the daemon again and again."""
        while True:
            await self.refresh()
            await asyncio.sleep(seconds)

    async def refresh(self) -> None:
        """Ask the daemon once. While it is away, what it answered last holds."""
        try:
            answer = await asyncio.to_thread(self._ask)
            known = msgspec.convert(answer, _Answer).workloads
            content = msgspec.json.encode(answer)
            if content != self._written:
                await asyncio.to_thread(_write, self._file, content)
                self._written = content
                log.info("routes: %s", "; ".join(_text(name, route) for name, route in known.items()) or "none yet")
            self._known, self.read_at = known, time.time()
            problem = None
        except msgspec.ValidationError as error:
            problem = f"its routes are not understood ({error}); is it of another version?"
        except OSError as error:
            problem = f"{self._file} cannot be written ({error.strerror})"
        except RetunedError as error:
            problem = str(error)
        except Exception as error:  # the daemon would not be asked again
            log.exception("routes")
            problem = f"{type(error).__name__}: {error}"
        if problem and problem != self.problem:
            log.warning("routes: those that are known hold; the daemon was asked in vain: %s", problem)
        self.problem = problem


def _write(file: Path, content: bytes) -> None:
    with replaced(file) as aside:
        aside.write_bytes(content)


def _text(workload: str, route: Route) -> str:
    return f"{workload}: {', '.join(f'{arm.model} {arm.share:.2%}' for arm in route.arms)}"
