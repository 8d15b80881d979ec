"""What is logged, and how: as text or as JSON, without personal data and keys, whatever an error quotes."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from retuned.consumers.common.logfields import current

if TYPE_CHECKING:
    from retuned.consumers.privacy.redactor import Redactor

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FORMAT, LEVEL = "RETUNED_LOG_FORMAT", "RETUNED_LOG_LEVEL"
"""In the environment of child processes, which log as their parent does."""
_CHATTY = {"apscheduler": logging.ERROR, "uvicorn": logging.ERROR, "kafka": logging.CRITICAL}


class RedactingFormatter(logging.Formatter):
    """Formats records with everything redacted that patterns find: the message with its arguments, and tracebacks.

    IP addresses stay: those in the log are the operator's own. So do names of people, which no pattern finds.
    """

    @cached_property
    def _redactor(self) -> "Redactor":
        from retuned.consumers.privacy.redactor import Redactor  # most children never log a line

        return Redactor(machines=False)

    def redact(self, text: str) -> str:
        """A text as it may be shown; placeholders are numbered within it."""
        return self._redactor.text(text)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = self.redact(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: _ExcInfo) -> str:
        return self.redact(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return self.redact(super().formatStack(stack_info))


class JsonFormatter(RedactingFormatter):
    """The same as one JSON object on one line: time, level, logger, message, what the line is about, and exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.redact(record.getMessage()),
            **current(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(format: str, level: str) -> None:
    """Log to the standard error, here and in child processes. Where somebody else set up logging, theirs stays.

    Args:
        format: text or json.
        level: debug, info, warning or error. From info on, libraries that say much are not heard.
    """
    os.environ |= {FORMAT: format, LEVEL: level}
    root = logging.getLogger()
    own = next((handler for handler in root.handlers if isinstance(handler.formatter, RedactingFormatter)), None)
    if own is None:
        if root.handlers:
            return
        own = logging.StreamHandler(sys.stderr)
        root.addHandler(own)
    own.setFormatter(JsonFormatter() if format == "json" else RedactingFormatter(TEXT))
    root.setLevel(level.upper())
    for name, least in _CHATTY.items():
        # What matters of these comes as our own errors.
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else least)
    logging.captureWarnings(True)


def last_line(text: str) -> None:
    """Print why a program ends: in the form of the log where that is JSON, else as it is, redacted."""
    if os.environ.get(FORMAT) == "json":
        logging.getLogger("retuned").critical("%s", text)
    else:
        print(RedactingFormatter().redact(text), file=sys.stderr)


def configure_child() -> None:
    """In a child process: log as the parent does, or as text where it does not say."""
    configure(os.environ.get(FORMAT, "text"), os.environ.get(LEVEL, "info"))
