"""The routes that the gateway follows: the daemon's, kept on disk for when it is away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import aiohttp
import msgspec

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import RetunedError
from retuned.consumers.settings import secret
from retuned.daemon.gateway.errors import why
from retuned.daemon.settings import Settings
from retuned.retrain.release.assignment import Route, base_only

log = logging.getLogger(__name__)

FILE = "routes.json"
ASK_SECONDS = 5.0


class _Answer(msgspec.Struct, frozen=True):
    workloads: dict[str, Route]
    withheld: dict[str, list[str]] = {}


_ANSWER = msgspec.json.Decoder(_Answer)


class Daemon:
    """The daemon, as the gateway asks it."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        """Raises a ConfigurationError when the token cannot be read."""
        own, http = settings.gateway, settings.http
        host = f"[{http.address}]" if ":" in http.address else http.address
        listens = f"{'https' if http.tls_certificate_file else 'http'}://{host}:{http.port}"
        self._url = f"{(own.daemon_url or listens).rstrip('/')}/api/v1/routes"
        token = secret(None, own.daemon_token_file, "gateway.daemon_token_file") or http.token_to_send()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = session

    async def routes(self) -> bytes:
        """Its routes, JSON.

        Raises:
            RetunedError: it does not answer with them.
        """
        timeout = aiohttp.ClientTimeout(ASK_SECONDS)
        try:
            async with self._session.get(self._url, headers=self._headers, timeout=timeout) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RetunedError(f"{self._url} does not answer ({why(error)})") from error
        if answer.status in (401, 403):
            raise RetunedError(f"{self._url} asks for a token of the role metrics: set gateway.daemon_token_file")
        if answer.status != 200:
            raise RetunedError(f"{self._url} answered {answer.status}; is it the daemon, of this version?")
        return body


class Routes:
    """Of each workload, what answers it.

    Attributes:
        problem: why the daemon did not answer when it was asked last; None: it did.
    """

    def __init__(self, folder: Path, configured: Iterable[str], ask: Callable[[], Awaitable[bytes]]) -> None:
        """`folder` keeps what `ask` returned last; `configured` workloads are there before the daemon knows them."""
        self._ask, self._file = ask, folder / FILE
        self._configured = {workload: base_only(workload) for workload in configured}
        self._known: dict[str, Route] = {}
        self._withheld: dict[str, frozenset[str]] = {}
        self._written = b""
        self.problem: str | None = "it was not asked yet"
        try:
            self._written = self._file.read_bytes()
            self._take(self._written)
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

    def withholds(self, url: str, name: str | None) -> bool:
        """Whether a server must not be asked for a model: it has another one under that name, as far as is known."""
        return name in self._withheld.get(_server(url), ())

    def _take(self, content: bytes) -> None:
        answer = _ANSWER.decode(content)
        self._known = answer.workloads
        self._withheld = {_server(url): frozenset(names) for url, names in answer.withheld.items()}

    async def follow(self, seconds: float) -> None:
        """Ask the daemon again and again."""
        while True:
            await self.refresh()
            await asyncio.sleep(seconds)

    async def refresh(self) -> None:
        """Ask the daemon once. While it is away, what it answered last holds."""
        try:
            content = await self._ask()
            self._take(content)
            problem = None
            if content != self._written:
                await asyncio.to_thread(_write, self._file, content)
                self._written = content
                log.info(
                    "routes: %s", "; ".join(_text(name, route) for name, route in self._known.items()) or "none yet"
                )
        except msgspec.DecodeError as error:
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


def _server(url: str) -> str:
    """A model server by its address, with which the daemon's targets have no /v1."""
    return url.rstrip("/").removesuffix("/v1")


def _write(file: Path, content: bytes) -> None:
    with replaced(file) as aside:
        aside.write_bytes(content)


def _text(workload: str, route: Route) -> str:
    return f"{workload}: {', '.join(f'{arm.model} {arm.share:.2%}' for arm in route.arms)}"
