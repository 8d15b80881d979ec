"""The routes of workloads: fetched from the daemon, and cached on disk in case it is unreachable."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import aiohttp
import msgspec

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import RetunedError
from retuned.consumers.sections import secret
from retuned.daemon.gateway.errors import why
from retuned.daemon.settings import Settings
from retuned.retrain.release.assignment import EVERYWHERE, Route, base_only

log = logging.getLogger(__name__)

FILE = "routes.json"
ASK_SECONDS = 5.0


class _Answer(msgspec.Struct, frozen=True):
    workloads: dict[str, Route]
    withheld: dict[str, list[str]] = {}
    memory: bool = False


_ANSWER = msgspec.json.Decoder(_Answer)


class Daemon:
    """A client of the daemon's API."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        """Raises a ConfigurationError if the token cannot be read."""
        own, http = settings.gateway, settings.http
        host = f"[{http.address}]" if ":" in http.address else http.address
        listens = f"{'https' if http.tls_certificate_file else 'http'}://{host}:{http.port}"
        self._url = f"{(own.daemon_url or listens).rstrip('/')}/api/v1"
        token = secret(None, own.daemon_token_file, "gateway.daemon_token_file") or http.token_to_send()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = session

    async def routes(self) -> bytes:
        """Returns the daemon's routes as JSON.

        Raises:
            RetunedError: the daemon does not return them.
        """
        return await self._get("routes", "metrics")

    async def memory(self, after: int, limit: int) -> bytes:
        """Returns a page of the memory as JSON: the changes after a sequence, at most `limit`.

        Raises:
            RetunedError: the daemon does not return it.
        """
        return await self._get(f"memory/feed?after={after}&limit={limit}", "gateway")

    async def _get(self, path: str, role: str) -> bytes:
        url = f"{self._url}/{path}"
        timeout = aiohttp.ClientTimeout(ASK_SECONDS)
        try:
            async with self._session.get(url, headers=self._headers, timeout=timeout) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RetunedError(f"{url} does not answer ({why(error)})") from error
        if answer.status in (401, 403):
            raise RetunedError(f"{url} requires a token of the role {role}: set gateway.daemon_token_file")
        if answer.status != 200:
            raise RetunedError(f"{url} answered {answer.status}; is it the daemon, of this version?")
        return body


class Routes:
    """The route of each workload.

    Attributes:
        problem: the reason why the last request to the daemon failed; None: it succeeded.
        has_memory: whether any workload uses the memory of corrections.
    """

    def __init__(
        self,
        folder: Path,
        configured: Iterable[str],
        fetch: Callable[[], Awaitable[bytes]],
        servers: Iterable[str] = (),
    ) -> None:
        """
        Args:
            folder: caches the last routes.
            configured: workloads with a route to the base model until the daemon knows them.
            fetch: returns the daemon's routes.
            servers: the addresses of the gateway's model servers.
        """
        self._fetch, self._file = fetch, folder / FILE
        self._configured = {workload: base_only(workload) for workload in configured}
        self._known: dict[str, Route] = {}
        self._servers = {_server(url) for url in servers}
        self._withheld: dict[str, frozenset[str]] = {}
        self._unknown = set[str]()
        self._written = b""
        self.problem: str | None = "not requested yet"
        self.has_memory = False
        try:
            self._written = self._file.read_bytes()
            self._take(self._written)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: cannot be used until the daemon returns its routes: %s", self._file, error)

    def of(self, workload: str) -> Route | None:
        """Returns the route of a workload; None: the workload is unknown."""
        return self._known.get(workload) or self._configured.get(workload)

    def workloads(self) -> list[str]:
        """Returns the known workloads."""
        return sorted({*self._known, *self._configured})

    def withholds(self, url: str, name: str | None) -> bool:
        """Whether a server must not be used for a model, because it may serve another one under that name.

        The daemon may know one of the gateway's servers by another address. So what it withholds from a server that the
        gateway does not know is withheld from all.
        """
        return any(name in self._withheld.get(one, ()) for one in (EVERYWHERE, _server(url)))

    def _take(self, content: bytes) -> None:
        answer = _ANSWER.decode(content)
        self._known, self.has_memory = answer.workloads, answer.memory
        withheld = {EVERYWHERE: frozenset(answer.withheld.get(EVERYWHERE, ()))}
        for url, names in answer.withheld.items():
            if (server := _server(url)) in self._servers:
                withheld[server] = frozenset(names)
            elif rest := frozenset(names) - withheld[EVERYWHERE]:
                withheld[EVERYWHERE] |= rest
                self._warn(url, rest)
        self._withheld = withheld

    def _warn(self, url: str, names: frozenset[str]) -> None:
        """Logs once that the daemon knows a server that the gateway does not know."""
        if url not in self._unknown:
            self._unknown.add(url)
            log.warning(
                "routes: %s must not be requested from %s, which is not in gateway.upstreams: it is requested from no "
                "server; give the server the same address in gateway.upstreams and in the daemon's targets",
                ", ".join(sorted(names)),
                url,
            )

    async def follow(self, seconds: float) -> None:
        """Refreshes the routes at this interval, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(seconds)

    async def refresh(self) -> None:
        """Fetches the daemon's routes once. If that fails, the last ones stay in force."""
        try:
            content = await self._fetch()
            self._take(content)
            problem = None
            if content != self._written:
                await asyncio.to_thread(_write, self._file, content)
                self._written = content
                log.info(
                    "routes: %s", "; ".join(_text(name, route) for name, route in self._known.items()) or "none yet"
                )
        except msgspec.DecodeError as error:
            problem = f"the routes cannot be decoded ({error}); does the daemon have another version?"
        except OSError as error:
            problem = f"{self._file} cannot be written ({error.strerror})"
        except RetunedError as error:
            problem = str(error)
        except Exception as error:  # otherwise the task would end, and routes would never be refreshed
            log.exception("routes")
            problem = f"{type(error).__name__}: {error}"
        if problem and problem != self.problem:
            log.warning("routes: the last ones stay in force: %s", problem)
        self.problem = problem


def _server(url: str) -> str:
    """Returns the address of a model server without /v1, as in the daemon's targets."""
    return url.rstrip("/").removesuffix("/v1")


def _write(file: Path, content: bytes) -> None:
    with replaced(file) as aside:
        aside.write_bytes(content)


def _text(workload: str, route: Route) -> str:
    return f"{workload}: {', '.join(f'{arm.model} {arm.share:.2%}' for arm in route.arms)}"
