"""Pages of the console as a browser gets them, without the process of a daemon around them."""

import re
from typing import Any, cast

from doors import FakeDaemon
from starlette.testclient import TestClient

from retuned.daemon.operations.local import Local
from retuned.daemon.web.routes import application

HOST = "http://localhost:8321"


def browser(local: Local) -> TestClient:
    """Of one who may do everything."""
    return TestClient(application(local, cast(Any, FakeDaemon()), local.settings), HOST, follow_redirects=False)


def page(local: Local, path: str = "/") -> str:
    """The HTML of a page, as one line."""
    answer = browser(local).get(path)
    assert answer.status_code == 200, answer.text
    return " ".join(answer.text.split())


def text(html: str) -> str:
    """What a person reads of it."""
    return " ".join(re.sub("<[^>]*>", " ", html).split())
