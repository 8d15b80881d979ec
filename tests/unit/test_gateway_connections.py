"""Limits of connections and of open files."""

import asyncio
import resource

import pytest
from multidict import CIMultiDict

from fixtures.daemon.gateways import model_server, no_more_files
from retuned.consumers.errors import ConfigurationError
from retuned.daemon.gateway.connections import most_connections
from retuned.daemon.gateway.errors import Refused
from retuned.daemon.gateway.servers.client import Client, Sends
from retuned.daemon.gateway_settings import GatewaySettings


@pytest.mark.parametrize(
    ("files", "expected"), [(resource.RLIM_INFINITY, 4_096), (1_048_576, 4_096), (1_024, 320), (128, 21)]
)
def test_every_connection_has_the_files_that_it_needs(files: int, expected: int) -> None:
    assert most_connections(GatewaySettings(), files) == expected


def test_a_limit_of_open_files_that_is_too_low_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"open files is 64; the gateway needs 115: raise `ulimit -n`"):
        most_connections(GatewaySettings(), 64)


def test_a_process_that_is_out_of_files_refuses_the_request_and_blames_no_server() -> None:
    async def ask(url: str) -> int:
        client = Client()
        try:
            with no_more_files(), pytest.raises(Refused) as refused:
                await client.post(url, b"{}", CIMultiDict(), Sends(), 5.0, once=False)
        finally:
            await client.close()
        assert refused.value.code == "busy"
        return refused.value.status

    with model_server("base") as server:
        assert asyncio.run(ask(f"{server.url}/chat/completions")) == 503
        assert not server.requests
