"""Who may ask over HTTP: named principals, each with a role and with tokens of which only hashes are kept.

The hash is SHA-256, unsalted and fast. That is right for tokens of 256 random bits: nobody can try them all or look
them up in a table, and a slow hash would let anybody keep the daemon busy by sending wrong tokens.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from retuned.consumers.common import yamltext
from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon.http_settings import LEAST_TOKEN, HttpSettings, OidcSettings
from retuned.daemon.roles import ROLES, Role

log = logging.getLogger(__name__)

ROTATION_GRACE = timedelta(hours=24)
"""How long a token stays valid once another one has taken its place."""
PREFIX = "retuned_"
"""Of the tokens made here, so that scanners for secrets and people recognise them."""
HEAD = "# Who may ask retuned over HTTP. Written by `retuned token`; a token itself is stored nowhere.\n"


def _utc(value: Any) -> Any:
    """YAML has dates and times without a zone; they are UTC."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)  # noqa: DTZ001
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
Moment = Annotated[datetime, BeforeValidator(_utc)]


class Identity(BaseModel):
    """Who asks, and what they may.

    Attributes:
        workloads: names and globs of those it may ask about; None: all.
        conversations: whether it may read conversations, as far as its role may.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    role: Role
    workloads: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    conversations: bool = True


class SignedIn(BaseModel):
    """A person whom an OpenID Connect provider signed in, as a session keeps them.

    Attributes:
        groups: the values of the claim of roles that have a role here.
        workloads: the values of the claim of workloads; None: that claim is not read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    groups: tuple[str, ...]
    workloads: tuple[str, ...] | None = None

    def identity(self, settings: OidcSettings) -> Identity | None:
        """Returns what the person may do by the roles of today; None: nothing."""
        roles = [settings.roles[one] for one in self.groups if one in settings.roles]
        if not roles:
            return None
        workloads = None if "*" in (self.workloads or ("*",)) else self.workloads
        return Identity(name=self.name, role=max(roles, key=list(ROLES).index), workloads=workloads)


class Principal(Identity):
    """A token of a principal, as it is kept. While it is rotated, a principal has two.

    Attributes:
        token_sha256: of the token's bytes, in hexadecimal.
        expires_at: the token is unknown from then on; None: never.
    """

    token_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: Moment | None = None
    expires_at: Moment | None = None

    def is_valid(self, now: datetime) -> bool:
        return self.expires_at is None or now < self.expires_at


class Principals:
    """The principals of the configuration: those of its file, and those of `metrics_token` and the like.

    Used by one thread, but for `problem`.
    """

    def __init__(self, settings: HttpSettings) -> None:
        """Reads the file.

        Raises:
            ConfigurationError: the file or a token cannot be used, or other machines could do anything without one.
        """
        known = settings.principals_file or settings.operator_token or settings.operator_token_file or settings.oidc
        if not settings.loopback and not known:
            raise ConfigurationError(
                f"http.host {settings.host}: is reachable from other machines: set http.principals_file (see `retuned "
                "token`), http.operator_token_file or http.oidc, or listen on 127.0.0.1"
            )
        self._file, self._by_provider = settings.principals_file, settings.oidc is not None
        self._configured = tuple(
            Principal(name=role, role=role, token_sha256=_hash(token)) for token, role in settings.tokens().items()
        )
        self._known = self._configured
        self._seen: object = None
        self.on_change: Callable[[], None] = lambda: None
        """Called in the thread that found that the file changed."""
        self.problem: str | None = None
        """Why the file cannot be used, while what it held before is in force."""
        if self._file is not None:
            self._seen = _signature(self._file)
            self._known = _together(self._configured, read(self._file), self._file)

    @property
    def required(self) -> bool:
        """Whether who asks must be known: also when every token of a file was revoked."""
        return self._file is not None or bool(self._configured) or self._by_provider

    def described(self) -> list[dict[str, Any]]:
        """Returns the tokens as JSON has them, with the hash of each."""
        return [one.model_dump(mode="json", exclude_none=True) for one in self._known]

    def find(self, token: str, now: datetime) -> Principal | None:
        """The principal whose token this is; None: it is nobody's, or has expired."""
        self._refresh()
        if len(token) < LEAST_TOKEN:
            return None
        given = _hash(token)
        # All are compared, so that the time tells nothing.
        found = [one for one in self._known if hmac.compare_digest(one.token_sha256, given)]
        return found[0] if found and found[0].is_valid(now) else None

    def named(self, name: str, now: datetime) -> list[Principal]:
        """The valid tokens of a principal."""
        self._refresh()
        return [one for one in self._known if one.name == name and one.is_valid(now)]

    def _refresh(self) -> None:
        """Read the file again if it changed. One that cannot be used changes nothing; the log and `problem` name it."""
        if self._file is None or (signature := _signature(self._file)) == self._seen:
            return
        self._seen = signature
        try:
            self._known = _together(self._configured, read(self._file), self._file)
        except ConfigurationError as error:
            self.problem = f"{error}; what the file held before is in force"
            log.error("%s", self.problem)
        else:
            self.problem = None
            log.info("%s: read again, %d tokens", self._file, len(self._known) - len(self._configured))
            self.on_change()


def read(file: Path) -> tuple[Principal, ...]:
    """What a file holds.

    Raises:
        ConfigurationError: it cannot be read, is no file of principals, or one token is in it twice.
    """
    where = f"http.principals_file {file}"
    try:
        content = yamltext.parse(file.read_bytes(), where)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{where}: is not there; `retuned token NAME --role admin` makes it") from error
    except OSError as error:
        raise ConfigurationError(f"{where}: cannot be read ({error.strerror})") from error
    if not isinstance(content, dict) or content.keys() != {"principals"} or not isinstance(content["principals"], list):
        raise ConfigurationError(f"{where}: expected one list named principals; `retuned token` writes it")
    found = []
    for number, entry in enumerate(content["principals"], 1):
        try:
            found.append(Principal.model_validate(entry))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{where}: entry {number}: {f'{key}: ' if key else ''}{first['msg']}") from error
    return _together((), found, file)


def add(
    file: Path,
    name: str,
    role: Role,
    expires_at: datetime | None,
    now: datetime,
    workloads: tuple[str, ...] | None = None,
    conversations: bool = True,
) -> str:
    """Make a token for a new principal and return it; the file, which is made if need be, keeps its hash.

    Raises:
        RetunedError: the name is taken or is none.
        ConfigurationError: the file cannot be used.
    """
    with _changed(file, now) as principals:
        if any(one.name == name for one in principals):
            raise RetunedError(f"token: {name} has one; `retuned token {name} --rotate` makes another in its place")
        token, made = _make(name, role, workloads, expires_at, now, conversations)
        principals.append(made)
    return token


def rotate(file: Path, name: str, expires_at: datetime | None, now: datetime) -> str:
    """Make another token for a principal and return it; those before it stay valid for `ROTATION_GRACE`.

    Args:
        expires_at: when the new token expires; None: when the one that it replaces would have.

    Raises:
        RetunedError: nobody has that name.
        ConfigurationError: the file cannot be used.
    """
    with _changed(file, now) as principals:
        old = [one for one in principals if one.name == name]
        if not old:
            raise RetunedError(f"token: {file} holds no {name}; give a --role to make one")
        newest, ends = old[-1], now + ROTATION_GRACE
        for one in old:
            shorter = ends if one.expires_at is None else min(one.expires_at, ends)
            principals[principals.index(one)] = one.model_copy(update={"expires_at": shorter})
        until = expires_at or newest.expires_at
        token, made = _make(name, newest.role, newest.workloads, until, now, newest.conversations)
        principals.append(made)
    return token


def revoke(file: Path, name: str, now: datetime) -> None:
    """Take all tokens of a principal away.

    Raises:
        RetunedError: nobody has that name.
        ConfigurationError: the file cannot be used.
    """
    with _changed(file, now) as principals:
        left = [one for one in principals if one.name != name]
        if len(left) == len(principals):
            raise RetunedError(f"token: {file} holds no {name}; `retuned token --list` shows who is in it")
        principals[:] = left


@contextmanager
def _changed(file: Path, now: datetime) -> Iterator[list[Principal]]:
    """What the file holds, to be changed; it is written when the block ends well. What has expired is dropped."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(file.parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigurationError(f"http.principals_file {file}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of two commands at once, the second sees what the first wrote
        principals = [one for one in read(file) if one.is_valid(now)] if file.exists() else []
        yield principals
        _write(file, principals)
    finally:
        os.close(folder)


def _write(file: Path, principals: Iterable[Principal]) -> None:
    content = [one.model_dump(exclude_none=True) for one in principals]
    for one in content:
        one |= {"workloads": list(one["workloads"])} if "workloads" in one else {}  # YAML has no tuples
        if one["conversations"]:
            del one["conversations"]
    text = HEAD + yaml.safe_dump({"principals": content}, sort_keys=False)
    try:
        owner = (file if file.exists() else file.parent).stat()
        with replaced(file) as aside:
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as made:
                made.write(text)
            if os.geteuid() == 0:  # on behalf of the daemon's user, who has the file or its folder
                os.chown(aside, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise ConfigurationError(f"http.principals_file {file}: cannot be written ({error.strerror})") from error


def _make(
    name: str,
    role: Role,
    workloads: tuple[str, ...] | None,
    expires_at: datetime | None,
    now: datetime,
    conversations: bool,
) -> tuple[str, Principal]:
    token = PREFIX + secrets.token_urlsafe(32)
    created = now.replace(microsecond=0)
    try:
        return token, Principal(
            name=name,
            role=role,
            workloads=workloads,
            conversations=conversations,
            token_sha256=_hash(token),
            created_at=created,
            expires_at=expires_at,
        )
    except ValidationError as error:
        raise RetunedError(
            f"token: {name!r} is no name; take letters, digits and . _ @ -, at most 64, a letter or digit first"
        ) from error


def _together(first: Iterable[Principal], more: Iterable[Principal], file: Path) -> tuple[Principal, ...]:
    """All of them; ConfigurationError when two have the same token or one name has two roles."""
    found: dict[str, Principal] = {}
    roles: dict[str, Principal] = {}
    for one in (*first, *more):
        other = found.setdefault(one.token_sha256, one)
        if other is not one:
            raise ConfigurationError(
                f"http.principals_file {file}: {other.name} and {one.name} have the same token; each needs its own"
            )
        same = roles.setdefault(one.name, one)
        if same.role != one.role:
            raise ConfigurationError(
                f"http.principals_file {file}: {one.name} has the roles {same.role} and {one.role}; "
                "give each role a name of its own"
            )
        if (same.workloads, same.conversations) != (one.workloads, one.conversations):
            raise ConfigurationError(
                f"http.principals_file {file}: the tokens of {one.name} name different workloads or rights to read; "
                "give each a name of its own"
            )
    return tuple(found.values())


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def _signature(file: Path) -> object:
    """What changes with the file's content; None: the file is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
