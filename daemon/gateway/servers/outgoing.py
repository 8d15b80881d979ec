"""What servers get of an app's request besides its body: an address and headers."""

from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from retuned.daemon.gateway.servers.incumbents import Incumbent
from retuned.daemon.gateway.servers.replica import Replica

HOP = {
    *("connection", "keep-alive", "proxy-authorization", "proxy-authenticate", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
"""Headers that concern one connection alone."""
_OWN = {*HOP, "host", "content-length", "content-encoding", "accept-encoding", "cookie", "expect"}
_KEYS = {"authorization", "api-key", "x-api-key"}
_PLAIN = {
    *("accept", "content-type", "user-agent", "traceparent", "tracestate", "x-request-id"),
    *("anthropic-beta", "anthropic-version", "openai-beta", "openai-organization", "openai-project"),
}
"""Headers that hold no key."""
_PLAIN_PARAMETERS = {"api-version", "beta"}


@dataclass(frozen=True)
class Outgoing:
    """A request of an app, as it is addressed to servers.

    An incumbent gets all headers and the query, because only its provider knows where the app's key stands. A model
    server, and an incumbent for which the gateway has a key, get what is known to hold none.

    Attributes:
        has_client_keys: whether the app's bearer token is a key of this gateway.
        has_incumbent: whether the app's key is that of an incumbent, which no model server may get.
    """

    request: web.BaseRequest
    has_client_keys: bool
    has_incumbent: bool

    def gives_key(self, replica: Replica) -> bool:
        """Whether a server gets the app's key."""
        return not replica.key and (isinstance(replica, Incumbent) or not (self.has_incumbent or self.has_client_keys))

    def url(self, replica: Replica) -> str:
        """Returns the URL of the request at a server."""
        query = self.request.rel_url.raw_query_string
        if not isinstance(replica, Incumbent):
            query = ""
        elif replica.key:
            query = "&".join(part for part in query.split("&") if part.partition("=")[0] in _PLAIN_PARAMETERS)
        return f"{replica.url}{self.request.path.removeprefix('/v1')}{'?' if query else ''}{query}"

    def headers(self, replica: Replica) -> CIMultiDict[str]:
        """Returns the headers of the request to a server, with the server's key where the gateway has one."""
        gives_key = self.gives_key(replica)
        passes = _PLAIN | _KEYS if gives_key else _PLAIN
        dropped = _OWN | {"authorization"} if self.has_client_keys else _OWN
        passed = CIMultiDict(
            (name, value)
            for name, value in self.request.headers.items()
            if (lower := name.lower()) not in dropped
            and not lower.startswith("x-retuned-")
            and (lower in passes or (gives_key and isinstance(replica, Incumbent)))
        )
        passed["Accept-Encoding"] = "identity"  # so that the answer can be recorded
        if replica.key:
            passed["Authorization"] = f"Bearer {replica.key}"
        return passed
