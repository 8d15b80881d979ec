"""A key is for the server that is configured, and for none that it leads to."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydantic import SecretStr

from fixtures.servers.http import Quiet, listening
from retuned.consumers.common.chat import ChatFailed, reply
from retuned.retrain.openai_api import Client
from retuned.retrain.settings import EvaluateSettings


@contextmanager
def leading_on() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that leads every request elsewhere, once: its address, and paths and keys of what was asked."""
    asked: list[tuple[str, str | None]] = []

    class Handler(Quiet):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            if self.path != "/elsewhere":
                self.do_POST()
                return
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    with listening(Handler) as address:
        yield f"{address}/v1", asked


def test_a_servers_key_stays_with_the_server() -> None:
    with leading_on() as (url, asked):
        client = Client(url, "evaluate.url", "secret", 5.0, "start it", pauses=())
        client.get("models")
    assert asked == [("/v1/models", "Bearer secret"), ("/elsewhere", None)]


def test_a_judges_key_stays_with_the_judge() -> None:
    with leading_on() as (url, asked):
        settings = EvaluateSettings(judge_url=url, judge_model="double", judge_key=SecretStr("secret"))
        with suppress(ChatFailed):
            reply([{"role": "user", "content": "Which?"}], settings)
    assert asked == [("/v1/chat/completions", "Bearer secret"), ("/elsewhere", None)]
