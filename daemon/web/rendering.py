"""What the pages of the console have in common: operations asked by a browser, templates, the menu, headers, forms."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from jinja2 import Environment, PackageLoader, pass_context
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from retuned.daemon.console import chart
from retuned.daemon.operations import console
from retuned.daemon.operations.operation import API, InvalidRequest, Operation, Q, R
from retuned.daemon.roles import Role, may
from retuned.daemon.web.api import MOST_BODY_BYTES, Api, body_of, caller_of

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; worker-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
)
# With no-referrer a form would be sent with the origin null, which is refused as that of another site.
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
MENU: tuple[tuple[str, str, Role], ...] = (
    ("Overview", "/", "viewer"),
    ("Teach", "/teach", "labeller"),
    ("Answers", "/answers", "operator"),
    ("System", "/system", "viewer"),
)
TEXTS = ("/teach", "/answers")
"""Entries of the menu for who may read conversations."""


class Rendering:
    """Makes pages of templates and of what operations return."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def _overview(self, request: Request) -> dict[str, Any]:
        """The latest snapshot, as far as who asks may see it."""
        return console.kept_to(caller_of(request), await self._api.recent(console.overview))

    async def _ask(self, request: Request, operation: Operation[Q, R], **values: Any) -> R:
        """The result of an operation with these values; raises an HTTPException, as `Api.answer` does."""
        return await self._api.perform(operation, parsed(operation, values), request)

    async def _page(self, request: Request, template: str, code: int = 200, /, **shown: Any) -> Response:
        found = await self._overview(request)
        waiting = sum(one.facts.labels for one in found["workloads"])
        given = frame(request, {"/teach": shown.pop("waiting", waiting)}) | {
            "as_of": found["as_of"],
            "ingestion": found["ingestion"],
        }
        page = await run_in_threadpool(_templates().get_template(template).render, **given | shown)
        return HTMLResponse(page, code, HEADERS)

    def _bare(self, template: str, code: int, /, **shown: Any) -> Response:
        """A page without a figure of the warehouse, and without the menu unless `shown` has one."""
        return HTMLResponse(_templates().get_template(template).render({"menu": ()} | shown), code, HEADERS)


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("retuned.daemon.console"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.globals |= {"y": chart.y, "lines": chart.lines, "columns": chart.columns, "marks": chart.marks}
    made.filters |= {"when": when, "sentence": sentence, "urlencode": _encoded}
    return made


def _encoded(value: Any) -> str:
    """Encodes a part of an address, of which a slash is no separator, or the fields of a query."""
    return urlencode(value) if isinstance(value, Mapping) else quote(str(value), safe="")


def parsed(operation: Operation[Q, Any], values: Mapping[str, Any], *, is_text: bool = False) -> Q:
    """The request of an operation, as `Operation.parse`; HTTPException 400: the values are invalid."""
    try:
        return operation.parse(values, is_text=is_text)
    except InvalidRequest as error:
        raise HTTPException(400, str(error)) from error


def frame(request: Request, counts: dict[str, int]) -> dict[str, Any]:
    """What surrounds each page: the menu of what the principal may do, with these counts."""
    caller = caller_of(request)
    bound, reads = caller.workloads is not None, caller.conversations
    menu = [
        (text, path, counts.get(path))
        for text, path, least in MENU
        if may_do(request, least) and not (bound and path == "/system") and (reads or path not in TEXTS)
    ]
    return {
        "menu": menu,
        "may": lambda least: may_do(request, least),
        "bound": bound,
        "reads": reads,
        "who": getattr(request.state, "principal", None),
        "in_session": getattr(request.state, "in_session", False),
        "problem": None,
        "done": None,
    }


@pass_context
def when(page: Mapping[str, Any], time: datetime | str | None) -> str:
    """A time in UTC, naive or ISO 8601, as all pages show it; of another year than that of the page with the year."""
    if not time:
        return "never"
    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    form = "%-d %b %H:%M" if moment.year == page["as_of"].year else "%-d %b %Y %H:%M"
    return Markup('<time datetime="{}Z" title="{} UTC">{}</time>').format(
        moment.replace(tzinfo=None).isoformat(), moment.strftime("%A, %-d %B %Y, %H:%M:%S"), moment.strftime(form)
    )


def sentence(text: str) -> str:
    """A text as a sentence: with a capital, unless it begins with the name of a key, and a full stop."""
    text = text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,]", text) else text
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def is_browser(request: Request) -> bool:
    """Whether a browser asks for a page, or sends the form of one."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(API)


def may_do(request: Request, least: Role) -> bool:
    """Whether who asks has a role; everybody has, where no principals are configured."""
    return may(getattr(request.state, "role", "admin"), least)


async def form_of(request: Request, instead: str) -> dict[str, str]:
    """The fields of a form of a page by name; see `fields_of`."""
    return dict(await fields_of(request, instead))


async def fields_of(request: Request, instead: str) -> list[tuple[str, str]]:
    """What a form of a page holds; HTTPException 415: it is none, and programs have a route of their own.

    Browsers end the lines of a text by CR and LF; here LF ends them, as in what was shown.
    """
    if request.headers.get("content-type") != "application/x-www-form-urlencoded":
        raise HTTPException(415, f"send the form of this page; programs send JSON to {instead}")
    body = await body_of(request, MOST_BODY_BYTES, "a body", "reasons and answers are short")
    fields = parse_qsl(body.decode(errors="replace"), keep_blank_values=True)
    return [(name, value.replace("\r\n", "\n")) for name, value in fields]
