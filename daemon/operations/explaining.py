"""The operation that explains a version or an answer."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from retuned.daemon.operations.operation import LONG_SECONDS, Caller, Request, operation

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local


class Explain(Request):
    id: Annotated[str, Field(description="the id of an interaction, or a version as it is served (support@3f2a91c0)")]
    rows: Annotated[
        int,
        Field(ge=1, le=5_000, description="of an answer, the most training rows whose gradients are compared with its"),
    ] = 200


@operation(
    "GET",
    "/explain/{id}",
    least="operator",
    seconds=LONG_SECONDS,
    refused=404,
    media=lambda _: "application/jsonl",
    media_types=("application/jsonl",),
    bound="own",
    reads="conversations",
)
def explain(local: "Local", request: Explain, caller: Caller) -> Iterable[bytes]:
    """Explain a version, or an answer by the training rows that weighed most in it.

    The answer is JSON Lines, each with `part`. `version`: its base model, files, datasets with sources and accounts
    (pseudonyms), decisions and evaluations. Of an interaction also `answer`, `progress` while gradients are compared,
    and `row`, the training rows that weighed most, the most influential first. `note` and `problem` state what is
    missing.
    """
    from retuned.daemon.explanation import Explanation
    from retuned.daemon.jsontext import plain

    found = Explanation(local.warehouse, local.settings, request.id)
    caller.check(found.workload)
    parts = found.parts(request.rows, local.jobs.context.stop)
    return (json.dumps(plain(part), ensure_ascii=False).encode() + b"\n" for part in parts)
