"""Shares GPUs between training and vLLM servers: by the memory that a server needs, or by putting it to sleep.

`/metrics` has the share of each GPU that vLLM reserves. `/sleep?level=1` offloads the weights to the machine's memory
and drops the KV cache, and `/wake_up` restores both; they are available with VLLM_SERVER_DEV_MODE=1 and
--enable-sleep-mode.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.common.memory import gibibytes
from retuned.consumers.errors import RetunedError
from retuned.retrain.openai_api import Client, Refused
from retuned.retrain.runners.devices import gpu_memory
from retuned.retrain.settings import Settings, TrainSettings

log = logging.getLogger(__name__)

_SECONDS = 120.0  # for a sleep or a wake-up, which move all weights


@contextmanager
def shared(settings: Settings, lead: Lead = alone) -> Iterator[int | None]:
    """Puts the servers of `train.gpu_servers` to sleep during work on their GPUs, or leaves them room to restart.

    Yields:
        bytes of each GPU that the work may use; None: all that is free.

    Raises:
        RetunedError: a server does not answer, does not sleep, or could not restart beside the work.
    """
    train = settings.train
    if not train.gpu_servers or settings.runner.kind != "local" or not (sizes := gpu_memory(train)):
        yield train.gpu_memory_bytes
        return
    if not train.gpu_servers_sleep:
        yield _left(train, min(sizes))
        return
    with ExitStack() as awake:
        for url in train.gpu_servers:
            # Also where the sleep is only half done, or another daemon leads by now.
            awake.callback(_wake, _client(url, alone))
            _sleep(_client(url, lead))
        yield train.gpu_memory_bytes


def wake(train: TrainSettings, lead: Lead = alone) -> None:
    """Wakes servers that still sleep because a daemon ended before it woke them. Failures are logged."""
    for url in train.gpu_servers if train.gpu_servers_sleep else ():
        client = _client(url, lead, pauses=())
        try:
            if client.get("is_sleeping").get("is_sleeping"):
                _wake(client)
        except RetunedError as error:
            log.warning("train.gpu_servers: cannot determine whether a server sleeps: %s", error)


def _left(train: TrainSettings, total: int) -> int:
    """Returns the bytes of a GPU that its server leaves free."""
    needs = {url: round(_share(_client(url, alone)) * total) for url in train.gpu_servers}
    url = max(needs, key=needs.__getitem__)
    left = total - needs[url]
    budget = train.gpu_memory_bytes or left
    if budget > left or not budget:
        raise RetunedError(
            f"train.gpu_servers: a GPU has {gibibytes(total)}, of which {url} needs {gibibytes(needs[url])} when it "
            f"starts (--gpu-memory-utilization), and a training takes {gibibytes(budget)}: it could not restart "
            "during a training. Lower train.gpu_memory_bytes or the server's share, set train.gpu_servers_sleep, "
            "or name other GPUs in train.devices"
        )
    return budget


def _share(client: Client) -> float:
    match = re.search(r'gpu_memory_utilization="([0-9.]+)"', str(client.get("metrics")))
    if match is None:
        raise RetunedError(
            f"train.gpu_servers: {client.url}/metrics has no gpu_memory_utilization, so the memory that it needs is "
            "unknown; name vLLM servers, or set train.gpu_memory_bytes and remove train.gpu_servers"
        )
    return float(match[1])


def _sleep(client: Client) -> None:
    try:
        client.request("sleep?level=1", {})
    except Refused as error:
        if error.status != 404:
            raise
        raise RetunedError(
            f"{error}; start it with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 in its environment, or unset "
            "train.gpu_servers_sleep"
        ) from error
    log.info("%s sleeps during this training", client.url)


def _wake(client: Client) -> None:
    try:
        client.request("wake_up", {})
        log.info("%s is awake again", client.url)
    except RetunedError as error:  # the work is complete all the same
        log.error("train.gpu_servers: a server still sleeps; POST %s/wake_up wakes it: %s", client.url, error)


def _client(url: str, lead: Lead, pauses: tuple[float, ...] = (1.0, 2.0, 4.0)) -> Client:
    return Client(
        str(url).rstrip("/").removesuffix("/v1"),
        "train.gpu_servers",
        None,
        _SECONDS,
        if_away="start it, or remove it from train.gpu_servers",
        pauses=pauses,
        lead=lead,
    )
