"""The double of a provider beside OpenAI's own client, where that is installed: it makes the requests that we make, and
can read what the double answers. `pip install openai` is not needed for anything else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from provider_double import BASE, Provider, serving

from retuned.retrain.openai_api import Client
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import provider as training

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

LINES = [
    json.dumps({"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"{n}"}]})
    for n in range(12)
]
METHOD = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as double:
        yield double


@pytest.fixture
def theirs(provider: Provider) -> Iterator[Any]:
    with openai.OpenAI(api_key=provider.key, base_url=provider.url, max_retries=0) as client:
        yield client


def ours(provider: Provider) -> Client:
    return training.client(TrainSettings(engine="api", api_url=provider.url), provider.key)


def test_both_send_the_same_file_and_the_same_job(provider: Provider, theirs: Any, tmp_path: Path) -> None:
    content = "\n".join(LINES).encode()
    mine = ours(provider).upload("files", {"purpose": "fine-tune"}, "retuned-1-train.jsonl", content)
    (tmp_path / "retuned-1-train.jsonl").write_bytes(content)
    with (tmp_path / "retuned-1-train.jsonl").open("rb") as file:
        their = theirs.files.create(file=file, purpose="fine-tune")
    for key in ("bytes", "filename", "purpose", "status"):
        assert mine[key] == getattr(their, key)
    assert len(set(provider.contents.values())) == 1
    body = {"model": BASE, "training_file": mine["id"], "seed": 0, "method": METHOD, "suffix": "x"}
    ours(provider).request("fine_tuning/jobs", body, repeat=False)
    theirs.fine_tuning.jobs.create(**body)
    first, second = provider.bodies["/v1/fine_tuning/jobs"]
    assert first == second


def test_their_types_read_all_that_the_double_answers(provider: Provider, theirs: Any) -> None:
    file = ours(provider).upload("files", {"purpose": "fine-tune"}, "a.jsonl", "\n".join(LINES).encode())
    body = {"model": BASE, "training_file": file["id"], "seed": 0, "method": METHOD, "suffix": "x"}
    made = theirs.fine_tuning.jobs.create(**body)
    strict(made)
    for _ in provider.states:
        found = theirs.fine_tuning.jobs.retrieve(made.id)
        strict(found)
    assert found.status == "succeeded"
    events = list(theirs.fine_tuning.jobs.list_events(made.id))
    assert [event.type for event in events] == ["message", "metrics"]
    provider.page = 1
    second = theirs.fine_tuning.jobs.create(**body)
    assert [job.id for job in theirs.fine_tuning.jobs.list(limit=1)] == [second.id, made.id]
    strict(theirs.fine_tuning.jobs.cancel(second.id))
    asked = [{"role": "user", "content": "question 7"}]
    answer = theirs.chat.completions.create(model=found.fine_tuned_model, messages=asked, max_tokens=9, temperature=0)
    strict(answer)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    for one in (*events, *theirs.files.list(), *theirs.models.list()):
        strict(one)
    assert theirs.files.delete(file["id"]).deleted


@pytest.mark.parametrize(("route", "status"), [("models", 401), ("fine_tuning/jobs/none", 404)])
def test_their_client_reads_its_errors_as_ours_does(provider: Provider, theirs: Any, route: str, status: int) -> None:
    if status == 401:
        provider.key = "another"
    with pytest.raises(openai.APIStatusError) as theirs_says:
        theirs.get(f"/{route}", cast_to=object)
    with pytest.raises(training.Refused) as ours_says:
        ours(provider) and Client(provider.url, "u", "sk-test", 5, "").get(route)
    assert theirs_says.value.status_code == ours_says.value.status == status
    assert (theirs_says.value.code or "") == ours_says.value.code


def strict(one: Any) -> None:
    """Their types take anything; validated, every field must be of its type."""
    type(one).model_validate(one.to_dict(), strict=False)
    assert not set(one.model_extra or {}) - {"metadata"}, one.model_extra
