"""Defines an operation: its names, its request, the role it requires, and the function that performs it.

This module imports little, because the command line imports every operation to print its help. The functions of
operations import what they need when called.
"""

import inspect
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from retuned.consumers.common.text import without
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.audit import Entry
from retuned.daemon.roles import Role, may

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local
    from retuned.daemon.settings import Settings

SECONDS = 30.0
STREAM_SECONDS = 600.0
"""For streams, whose content is selected before the first row is sent."""
LONG_SECONDS = 3_600.0
"""For operations that compare windows or judge answers before they return."""
API = "/api/v1"
SUBJECTS = ("id", "version", "account", "what")
"""The fields that name what a request is about."""
LONGEST_QUOTED = 40
"""Characters of a wrong value that an error quotes."""


class InvalidRequest(RetunedError):
    """A request has an unknown field, or a field with an unexpected value."""


class NotFound(RetunedError):
    """There is no object with the name or the id in the request."""


class Forbidden(RetunedError):
    """Who asks is bound to other workloads."""


class Request(BaseModel):
    """The parameters of an operation. Fields in the path are texts; others are the query of a GET or a JSON body."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


@dataclass(frozen=True)
class Caller:
    """The caller of an operation.

    Attributes:
        name: the principal's name; None: no principals are configured.
        is_local: a command that opened the warehouse itself, as a known user of the operating system.
        workloads: the names and globs of the workloads that the principal is bound to; None: all.
        conversations: whether it may read texts of conversations, as far as its role may.
        role: the principal's role; None: no principals are configured.
        request_id: the id of its request in the audit.
        on_check: called with each workload that `check` is asked about, before that may raise.
    """

    name: str | None = None
    is_local: bool = False
    workloads: tuple[str, ...] | None = None
    conversations: bool = True
    role: Role | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    on_check: Callable[[str], None] = field(default=lambda _: None, repr=False, compare=False)

    def may_see(self, workload: str) -> bool:
        """Whether it may ask about a workload."""
        return self.workloads is None or any(fnmatchcase(workload, one) for one in self.workloads)

    def check(self, workload: str) -> None:
        """Raises Forbidden where it may not ask about a workload, which the audit's entry of the request names."""
        self.on_check(workload)
        if not self.may_see(workload):
            raise Forbidden(f"this is of another workload; {self.name} is bound to {', '.join(self.workloads or ())}")

    def author(self, user: str | None) -> str | None:
        """Returns the author to record: the principal, else the user in the request, marked if unverified."""
        return self.name or (f"{user} (without a token)" if user and not self.is_local else user)


@dataclass(frozen=True)
class Packed:
    """A body that is not JSON.

    Attributes:
        field: the field of the request that the body fills.
        pack: returns the body of a request.
        unpack: returns the field's value from the path fields and the body; raises ValueError.
        most_bytes: returns the limit of the body.
    """

    field: str
    media_type: str
    pack: Callable[[Any], bytes]
    unpack: Callable[[Mapping[str, str], bytes], Any]
    most_bytes: "Callable[[Settings], int]"


@dataclass(frozen=True)
class Author:
    """Annotates the field that names who decides, where no principals are configured."""


@dataclass(frozen=True)
class Content:
    """Annotates a field that holds text of a conversation: the audit keeps its length alone."""


@dataclass(frozen=True)
class Person:
    """Annotates a field that holds a user, by id or pseudonym: the audit keeps the pseudonym."""


@dataclass(frozen=True)
class Placeholder:
    """Annotates a field with the placeholder of its value in the command line's help. DIR: a path, made absolute."""

    name: str


Q = TypeVar("Q", bound=Request)
R = TypeVar("R")


@dataclass(frozen=True)
class Operation(Generic[Q, R]):
    """An operation of retuned.

    Attributes:
        run: performs the operation and returns a value that can be written as JSON. Raises a RetunedError that states
            the cause and the remedy.
        paths: paths below /api/v1; a request uses the first one whose fields it sets.
        least: the least role that is required.
        by_leader: in a cluster, only the leader performs it, and other daemons forward it.
        seconds: the longest wait for an answer, of clients and of daemons that forward the request.
        refused: the HTTP status of a RetunedError without a status of its own.
        recent_seconds: the age up to which an answer is reused.
        shape: the type of a stream of bytes, as one JSON value; None: not JSON.
        media: returns the media type of the answer.
        is_public: whether the OpenAPI document includes it.
        command: the name on the command line, if the operation is a command by itself.
        prompts: whether its body holds a prompt, and may be as long as a request to the gateway.
        outdates: whether reused answers may be wrong after it.
        reads: what of the warehouse its answer holds that not every principal may read.
        audited: of a POST for labellers or more, whether a request is in the audit. Others only look something up.
        bound: how it is limited for a caller who is bound to workloads. named: the request has to name one of them;
            own: the function limits itself to them; never: it is refused.
    """

    run: "Callable[[Local, Q, Caller], R]"
    method: Literal["GET", "POST"]
    paths: tuple[str, ...]
    least: Role
    by_leader: bool = False
    seconds: float = SECONDS
    refused: int = 409
    recent_seconds: float = 0.0
    shape: Any = None
    media: Callable[[Any], str] = lambda _: "application/json"
    media_types: tuple[str, ...] = ("application/json",)
    packed: Packed | None = None
    is_public: bool = True
    command: str | None = None
    bound: Literal["named", "own", "never"] = "named"
    prompts: bool = False
    outdates: bool = True
    reads: Literal["conversations"] | None = None
    audited: Callable[[Any], bool] = lambda _: True

    def admit(self, request: Q, caller: Caller) -> None:
        """Raises Forbidden where a request reaches beyond the workloads of the caller, or what it may read."""
        if self.reads and not caller.conversations:
            raise Forbidden(f"{self.name}: {caller.name} may not read conversations")
        if caller.workloads is None or self.bound == "own":
            return
        workload = getattr(request, "workload", None)
        if self.bound == "never" or not workload:
            named = "; name one of them" if self.bound == "named" and "workload" in type(request).model_fields else ""
            raise Forbidden(
                f"{self.name}: it reaches beyond {', '.join(caller.workloads)}, which {caller.name} is bound to{named}"
            )
        caller.check(workload)

    def is_recorded(self, request: Q, caller: Caller) -> bool:
        """Whether a request that is carried out is in the audit. One that is refused always is.

        Changes are, and answers that hold conversations, except those of gateways, which fetch the memory every few
        seconds. A gateway has the role gateway, or no principals are configured.
        """
        changes = self.method == "POST" and may(self.least, "labeller") and self.audited(request)
        by_gateway = self.least == "gateway" and caller.role in ("gateway", None) and not caller.is_local
        return changes or (self.reads is not None and not by_gateway)

    def entry(self, request: Q, caller: Caller, actor: str, pseudonym: Callable[[str], str]) -> Entry:
        """Returns the audit's entry of a request, in which users are pseudonyms."""
        elsewhere = {"workload", "reason", *self._marked(Author)} | ({self.packed.field} if self.packed else set())
        given = request.model_dump(mode="json", exclude_defaults=True, exclude=elsewhere)
        texts = self._marked(Content)
        for name, value in given.items():
            if isinstance(value, str) and name in texts:
                given[name] = f"{len(value)} characters"
            elif isinstance(value, dict) or (
                isinstance(value, list) and (name in texts or {*map(type, value)} - {str})
            ):
                given[name] = f"{len(value)} entries"  # messages, tools, passages
        given |= {name: pseudonym(given[name]) for name in self._marked(Person) if given.get(name)}
        subject = next((given.pop(name) for name in SUBJECTS if name in given), None)
        return Entry(
            actor,
            "principal" if caller.name else "local",
            self.name,
            workload=getattr(request, "workload", None) or None,
            subject=subject,
            request_id=caller.request_id,
            reason=getattr(request, "reason", None),
            details=given,
        )

    def author(self, request: Q) -> str | None:
        """Returns the author that a request names; None: it names none."""
        return next((getattr(request, name) for name in self._marked(Author)), None)

    def without_content(self, request: Q, text: str) -> str:
        """Returns a text, an error or a reason, without the conversations and the users that the fields of a request
        hold."""
        values = [getattr(request, name) for mark in (Content, Person) for name in self._marked(mark)]
        return without(text, (value for value in values if isinstance(value, str)))

    def _marked(self, mark: type) -> list[str]:
        """Returns the fields with an annotation of this type."""
        fields = self.request.model_fields.items()
        return [name for name, about in fields if any(isinstance(one, mark) for one in about.metadata)]

    @property
    def name(self) -> str:
        """The unique name."""
        return self.run.__name__

    @property
    def summary(self) -> str:
        """A description in one sentence."""
        return " ".join(inspect.cleandoc(self.run.__doc__ or "").partition("\n\n")[0].split())

    @property
    def description(self) -> str:
        """Further description; may be empty."""
        return " ".join(inspect.cleandoc(self.run.__doc__ or "").partition("\n\n")[2].split())

    @cached_property
    def request(self) -> type[Q]:
        """The class of the operation's requests."""
        request: type[Q] = list(inspect.signature(self.run).parameters.values())[1].annotation
        return request

    @cached_property
    def result(self) -> Any:
        """The type of the operation's result, as JSON."""
        return inspect.signature(self.run).return_annotation

    @cached_property
    def streams(self) -> Literal["items", "bytes"] | None:
        """The kind of pieces in which the result is streamed: items of a JSON array, or bytes; None: it is not."""
        if get_origin(self.result) is not Iterable:
            return None
        return "bytes" if get_args(self.result) == (bytes,) else "items"

    @cached_property
    def path_fields(self) -> frozenset[str]:
        """The fields of the request that are part of any path."""
        return frozenset(name for path in self.paths for name in fields_of(path))

    def parse(self, values: Mapping[str, Any], *, is_text: bool = False) -> Q:
        """Returns the request with these values.

        Args:
            is_text: whether numbers are given as text, as in a query.

        Raises:
            InvalidRequest: the values are invalid; the text names each wrong field.
        """
        try:
            return self.request.model_validate(dict(values), strict=not is_text)
        except ValidationError as error:
            properties = self.request.model_json_schema().get("properties", {})
            fields = ", ".join(name for name in properties if name not in self.path_fields) or "no fields"
            problems = dict.fromkeys(_problem(one, properties, fields) for one in error.errors())
            raise InvalidRequest("; ".join(problems)) from error


class Service(Protocol):
    """Performs operations: `Local` in the process that has the warehouse open, `Client` through a running daemon."""

    def ask(self, operation: Operation[Q, R], request: Q) -> R:
        """Returns the result in JSON's types, with times as texts. Raises a RetunedError."""


def operation(
    method: Literal["GET", "POST"], *paths: str, least: Role, **more: Any
) -> "Callable[[Callable[[Local, Q, Caller], R]], Operation[Q, R]]":
    """Decorates the function that performs an operation; `more` are attributes of `Operation`."""
    return lambda run: Operation(run, method, paths, least, **more)


def fields_of(path: str) -> list[str]:
    """Returns the fields in a path."""
    return re.findall(r"{(\w+)}", path)


def _problem(error: Any, properties: dict[str, Any], fields: str) -> str:
    name = str(error["loc"][0]) if error["loc"] else "request"
    if error["type"] == "extra_forbidden":
        return f"{name}: unknown; expected {fields}"
    value = error["input"]  # of a missing field, all that is given
    got = f", got {value!r}" if isinstance(value, str | int | float) and len(str(value)) <= LONGEST_QUOTED else ""
    return f"{name}: expected {_expected(properties.get(name, {}))}{got}"


def _expected(schema: dict[str, Any]) -> str:
    """Returns the values that a JSON Schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(_expected(option) for option in schema["anyOf"] if option.get("type") != "null")
    if choices := schema.get("enum"):
        return " or ".join(choices)
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = f" from {low} to {high}" if high is not None else f" of at least {low}" if low is not None else ""
    if schema.get("pattern") and (examples := schema.get("examples")):
        return f"a text such as {examples[0]}"
    kind = str(schema.get("type", "value"))
    if kind == "array":
        return "a list of objects" if schema.get("items", {}).get("type") == "object" else "a list of texts"
    return {"string": "a text", "integer": "a number", "boolean": "true or false"}.get(kind, f"a {kind}") + bounds
