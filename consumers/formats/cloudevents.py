"""CloudEvents in structured and binary mode, as envelopes around events of any format."""

import base64
import binascii
from typing import Any

import msgspec

from retuned.consumers.formats.events import BadEvent
from retuned.consumers.formats.messages import Plain, without_nothing
from retuned.consumers.kafka.contract import Headers


def is_structured(value: Any) -> bool:
    """Whether a decoded message is an envelope with data."""
    return isinstance(value, dict) and "specversion" in value and bool(value.keys() & {"data", "data_base64"})


def binary_envelope(headers: Headers) -> Plain:
    """Returns the attributes of an event in binary mode: the headers `ce_…`."""
    return {name[3:]: value.decode("utf-8", "replace") for name, value in headers if name.startswith("ce_") and value}


def data(envelope: Plain) -> Any:
    """Returns the decoded data of an envelope in structured mode.

    Raises:
        BadEvent: the data is not JSON.
    """
    if "data_base64" not in envelope:
        content = envelope["data"]
    else:
        try:
            content = base64.b64decode(envelope["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise BadEvent("not_an_event", f"data_base64: {error}") from error
    if not isinstance(content, bytes | str):
        return content
    return decoded(content, "data of the CloudEvent")


def decoded(text: str | bytes, where: str) -> Any:
    """Decodes JSON in an envelope.

    Raises:
        BadEvent: the text is not JSON.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEvent("not_json", f"{where}: {error}") from error


def completed(plain: Plain, envelope: Plain) -> Plain:
    """Fills in missing fields of an event from its envelope."""
    defaults = {"id": envelope.get("id"), "timestamp": envelope.get("time"), "workload": envelope.get("workload")}
    return without_nothing(defaults) | plain
