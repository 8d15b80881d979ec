"""The gateway's wiring: builds and starts its parts in order, and stops them in reverse order."""

import asyncio
import importlib.metadata
import logging
import signal
import sys
from contextlib import AsyncExitStack, suppress

import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.daemon.gateway.connections import Server, bind, most_connections, raise_file_limit
from retuned.daemon.gateway.endpoints import Endpoints
from retuned.daemon.gateway.events.buffer import Buffer
from retuned.daemon.gateway.events.experts import experts
from retuned.daemon.gateway.events.feedback import Feedback, Tokens
from retuned.daemon.gateway.events.publish import Publishing
from retuned.daemon.gateway.memory.feed import Feed
from retuned.daemon.gateway.memory.lookup import Memory
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.proxy import Proxy
from retuned.daemon.gateway.routes import Daemon, Routes
from retuned.daemon.gateway.servers.client import Client
from retuned.daemon.gateway.servers.incumbents import Incumbents
from retuned.daemon.gateway.servers.upstreams import Upstreams
from retuned.daemon.gateway.shadow import Shadow
from retuned.daemon.settings import Settings

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.000_5
"""Python's switch interval. With the default of 5 ms, the publishing thread would add latency to requests."""
FLUSH_SECONDS = 5.0
BACKLOG = 256


def run(settings: Settings) -> int:
    """Serves until a signal arrives.

    Raises:
        ConfigurationError: a setting or a file is missing or wrong.
    """
    if not settings.gateway.upstreams and not Incumbents(settings):
        raise ConfigurationError(
            "gateway.upstreams is not set: name the model servers, each with its url, or set a workload's incumbent"
        )
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))
    return 0


async def _serve(settings: Settings) -> None:
    own = settings.gateway
    most = most_connections(own, raise_file_limit())
    metrics = Metrics(CollectorRegistry())
    metrics.build.labels(importlib.metadata.version("retuned")).set(1)
    metrics.buffer_limit.set(own.buffer_bytes)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        buffer = Buffer(own.buffer, own.buffer_bytes)
        stack.callback(buffer.close)
        publisher = KafkaPublisher(settings.kafka)
        stack.callback(publisher.close)
        publishing = Publishing(buffer, publisher, settings.kafka, metrics)
        client = Client()
        stack.push_async_callback(client.close)
        incumbents = Incumbents(settings)
        daemon = Daemon(settings, client.session)
        servers = [upstream.url for upstream in own.upstreams]
        routes = Routes(own.buffer, [*own.workloads, *incumbents.named], daemon.routes, servers)
        memory = Memory(settings.privacy, metrics)
        stack.callback(memory.close)
        feed = Feed(own.buffer, memory, lambda: routes.has_memory, daemon.memory)
        upstreams = Upstreams(own.upstreams, incumbents, client.session, metrics)
        keys = own.feedback_keys()
        tokens = Tokens(keys, own.feedback_days) if keys else None
        feedback = Feedback(tokens, settings.ingest, own.cors_origins, experts(own)) if tokens else None
        shadow = Shadow(own, client.session, routes, upstreams, buffer, metrics)
        proxy = Proxy(own, client, routes, upstreams, buffer, tokens, metrics, shadow, memory)
        endpoints = Endpoints(proxy, routes, upstreams, buffer, feedback, metrics)
        metrics.buffered_bytes.set_function(lambda: buffer.waiting_bytes)
        metrics.buffered_seconds.set_function(buffer.waiting_seconds)
        metrics.daemon_up.set_function(lambda: routes.problem is None)
        metrics.memory_up.set_function(lambda: feed.problem is None)
        publishing.start()
        stack.push_async_callback(asyncio.to_thread, publishing.stop, FLUSH_SECONDS)
        await asyncio.gather(upstreams.refresh(), routes.refresh())
        for follow in (
            upstreams.follow(own.poll_seconds),
            routes.follow(own.poll_seconds),
            feed.follow(own.memory_poll_seconds),
        ):
            stack.push_async_callback(_cancelled, asyncio.create_task(follow))
        stack.push_async_callback(shadow.stop)
        # The server stops first, so that answers in progress end before the parts that they need.
        server = Server(endpoints, own, most)
        metrics.most_connections.set(most)
        metrics.connections.set_function(lambda: server.count)
        stack.push_async_callback(_cancelled, asyncio.create_task(server.close_late()))
        runner = web.ServerRunner(server, shutdown_timeout=own.drain_seconds, handle_signals=False)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listening = bind(own)
        await web.SockSite(runner, listening, backlog=BACKLOG).start()
        host, port = listening.getsockname()[:2]
        log.info("the gateway listens on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        await stopping.wait()
        endpoints.draining = True
        log.info("stopping: answers under way have %.0f s", own.drain_seconds)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
