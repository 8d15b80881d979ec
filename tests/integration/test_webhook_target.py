"""The webhook: signatures, retries, and what it is told once."""

import base64
from datetime import timedelta
from pathlib import Path

import pytest

from fixtures.models.served import WORKLOAD, Adapters, Receiver, Served, receiving
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.release.targets.webhook import read_secret, signature

pytestmark = pytest.mark.usefixtures("one_thread")

SECRET = b"a secret of many characters"


@pytest.fixture
def served(tmp_path: Path, warehouse: Warehouse, adapters: Adapters) -> Served:
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    target = {"kind": "webhook", "url": "http://127.0.0.1:9/", "secret_file": tmp_path / "secret"}
    return Served(tmp_path, warehouse, adapters, target, keep_seconds=60, drain_seconds=60)


def point_to(served: Served, receiver: Receiver) -> None:
    (target,) = served.settings.serving.targets
    own = served.settings.serving.model_copy(update={"targets": (target.model_copy(update={"url": receiver.url}),)})
    served.settings = served.settings.model_copy(update={"serving": own})
    served.begin()


def test_it_is_told_what_to_load_until_it_acknowledges_and_then_no_more(served: Served) -> None:
    with receiving(SECRET) as receiver:
        point_to(served, receiver)
        receiver.status = 500
        served.promote(served.old)
        for _ in range(3):
            served.reconciler.run()
            served.now += timedelta(minutes=1)
        assert len(receiver.got) == 3
        receiver.status = 204
        served.reconciler.run()
        served.reconciler.run()
        served.begin()  # a restart of the daemon forgets nothing
        served.reconciler.run()
        assert len(receiver.got) == 4
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        assert len({headers["webhook-timestamp"] for headers, _ in receiver.got}) == 4
        _, message = receiver.got[-1]
        assert message["path"] == str(served.old.path.resolve())
        assert {key: message[key] for key in ("action", "workload", "model", "version", "aliases")} == {
            "action": "load",
            "workload": WORKLOAD,
            "model": served.old.name,
            "version": served.old.version,
            "aliases": ["champion"],
        }


def test_a_request_has_the_epoch_of_the_daemon_that_leads(served: Served) -> None:
    with receiving(SECRET) as receiver:
        served.lead = lambda: 7
        point_to(served, receiver)
        served.promote(served.old)
        served.reconciler.run()
        assert [headers["retuned-epoch"] for headers, _ in receiver.got] == ["7"]


def test_each_occasion_has_an_id_of_its_own(served: Served) -> None:
    with receiving(SECRET) as receiver:
        point_to(served, receiver)
        for version in (served.old, served.new, served.old, served.new):
            served.now += timedelta(minutes=10)
            served.promote(version)
            served.reconciler.run()
        ids = [headers["webhook-id"] for headers, _ in receiver.got]
        assert len(ids) == len(set(ids))
        assert receiver.models == {served.old.name: {"previous"}, served.new.name: {"champion"}}


def test_a_request_that_is_not_signed_with_the_secret_is_not_acknowledged(served: Served) -> None:
    with receiving(b"another secret of many characters") as receiver:
        point_to(served, receiver)
        served.promote(served.old)
        served.reconciler.run()
        assert receiver.got == []
        assert served.states() == {served.old.name: "failed"}


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of standard-webhooks/standard-webhooks, spec/standard-webhooks.md."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ("short", "holds 5 bytes"), ("whsec_???", "not base64"), (None, "cannot be read")],
)
def test_a_secret_that_is_none_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "secret").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        read_secret(tmp_path / "secret")


def test_a_secret_is_the_text_or_what_follows_whsec(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    assert read_secret(file) == base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    file.write_bytes(SECRET + b"\n")
    assert read_secret(file) == SECRET
