"""Semantic caches and memories of others on the near-miss questions of `memory`: how often they help, and wrongly.

    python tests/benchmarks/run.py memory.anchors

Each runs in an environment of its own, whose Python a variable names; one that is not named is left out. Nothing is
installed here. All have the same vectors (wordllama), the same entries and the first `ASKED` of the same questions;
what differs is how they decide. The answers are the names of intents. `ours_…` is the memory with an error rate of 2%
or 5%.

- RETUNED_GPTCACHE: `gptcache` 0.1.44, with `faiss-cpu` and SQLAlchemy, with its default threshold (0.8) and at 0.95.
- RETUNED_VCACHE: vCache 0.1.0 at commit 5829293, which is not on PyPI: an environment that finds it, with `numpy<2`,
  `faiss-cpu`, SciPy, scikit-learn and statsmodels. The bound of its errors is 2%. It learns online, so all known
  questions of the intents that have entries are asked first, and it keeps those that it wants to. Then it decides, and
  learns nothing more.
- RETUNED_MEM0: `mem0ai` 2.2.1, without its language model (`infer=False`): the first result of a search, with its
  default threshold (0.1) and at 0.8.

`memory_anchor_…` are the figures of `memory`, by system, set and case.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Pairs = list[tuple[str, str]]
PYTHONS = {"gptcache": "RETUNED_GPTCACHE", "vcache": "RETUNED_VCACHE", "mem0": "RETUNED_MEM0"}
BOUND, ASKED = 0.02, 1_000


def main() -> dict[str, float]:
    """Takes some ten minutes on an idle core."""
    import memory

    from retuned.retrain.memory import embed

    embedding = embed.load()
    assert embedding is not None, "the extra memory is not installed"
    figures: dict[str, float] = {}
    for name, known, entries, asked in memory.cases():
        asked = asked[:ASKED]
        for rate in memory.ERROR_RATES:
            found = memory.outcome(memory._helped(known, entries, asked, rate), entries, asked)
            figures |= _named(f"ours_{rate * 100:.0f}", name, found)
        intents = {intent for _, intent in entries}
        job = {"known": [pair for pair in known if pair[1] in intents], "entries": entries, "asked": asked}
        texts = list(dict.fromkeys(text for pairs in job.values() for text, _ in pairs))
        for system, variable in PYTHONS.items():
            if not (python := os.environ.get(variable)):
                continue
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "job.json").write_text(json.dumps(job | {"texts": texts}))
                np.save(Path(folder, "vectors.npy"), embedding(texts))
                subprocess.run([python, __file__, system, folder], check=True, cwd=folder, stdout=sys.stderr)
                helped = json.loads(Path(folder, "helped.json").read_text())
            for label, pairs in helped.items():
                figures |= _named(label, name, memory.outcome([tuple(pair) for pair in pairs], entries, asked))
            print(system, name, {label: len(pairs) for label, pairs in helped.items()}, file=sys.stderr, flush=True)
    return figures


def _named(label: str, name: str, found: dict[str, float]) -> dict[str, float]:
    return {f"{figure.replace('memory', 'memory_anchor', 1)}_{label}_{name}": value for figure, value in found.items()}


class Job:
    """What a system is given: questions with their answers, and their vectors."""

    def __init__(self, folder: Path) -> None:
        job = json.loads((folder / "job.json").read_text())
        self.known, self.entries, self.asked = ([tuple(pair) for pair in job[n]] for n in ("known", "entries", "asked"))
        self.vectors = dict(zip(job["texts"], np.load(folder / "vectors.npy"), strict=True))

    def helped(self, find: Callable[[str], str | None]) -> Pairs:
        return [(answer, intent) for text, intent in self.asked if (answer := find(text)) is not None]


def gptcache(job: Job) -> Iterator[tuple[str, Pairs]]:
    from gptcache import Cache
    from gptcache.adapter.api import get, put
    from gptcache.manager import manager_factory
    from gptcache.processor.pre import get_prompt
    from gptcache.similarity_evaluation import SearchDistanceEvaluation

    (size,) = next(iter(job.vectors.values())).shape
    cache = Cache()
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda text, **_: job.vectors[text],
        data_manager=manager_factory("sqlite,faiss", data_dir="gptcache", vector_params={"dimension": size}),
        similarity_evaluation=SearchDistanceEvaluation(),
    )
    for text, answer in job.entries:
        put(text, answer, cache_obj=cache)
    for threshold in (cache.config.similarity_threshold, 0.95):
        cache.config.similarity_threshold = threshold
        yield f"gptcache_{threshold * 100:.0f}", job.helped(lambda text: get(text, cache_obj=cache))


def vcache(job: Job) -> Iterator[tuple[str, Pairs]]:
    from unittest.mock import MagicMock

    # Clients of models that are not used here.
    for name in (
        "openai", "vllm", "torch", "chromadb", "hnswlib", "langchain", "langchain.schema", "langchain_community",
        "langchain_community.embeddings",
    ):  # fmt: skip
        sys.modules.setdefault(name, MagicMock(Tensor=type("Tensor", (), {})))
    from vcache import VCache, VCacheConfig, VerifiedDecisionPolicy
    from vcache.inference_engine import InferenceEngine
    from vcache.vcache_core.cache.embedding_engine import EmbeddingEngine
    from vcache.vcache_core.cache.embedding_store.vector_db import FAISSVectorDB

    answers = dict(job.known)

    class Model(InferenceEngine):  # type: ignore[misc]
        def create(self, prompt: str, system_prompt: str | None = None) -> str:  # noqa: ARG002
            return answers[prompt]

    class Vectors(EmbeddingEngine):  # type: ignore[misc]
        def get_embedding(self, text: str) -> list[float]:
            return [float(one) for one in job.vectors[text]]

    class AtOnce:
        """Its updates, one after the other."""

        def submit(self, do: Any, *arguments: Any) -> None:
            do(*arguments)

        def shutdown(self, wait: bool = True) -> None:
            pass

    random.seed(1)  # it explores by chance
    policy = VerifiedDecisionPolicy(delta=BOUND)
    config = VCacheConfig(inference_engine=Model(), embedding_engine=Vectors(), vector_db=FAISSVectorDB())
    cache = VCache(config, policy)
    policy.executor.shutdown()
    policy.executor = AtOnce()
    (first, answer), *others = job.known
    policy.cache.add(prompt=first, response=answer, id_set=-1, cost=0.0)
    for text, _ in others:
        cache.infer(text)
        policy.callback_queue.join()

    def find(text: str) -> str | None:
        ((similarity, id),) = policy.cache.get_knn(prompt=text, k=1)
        kept = policy.cache.get_metadata(embedding_id=id)
        action = policy.bayesian.select_action(similarity_score=similarity, metadata=kept)
        return str(kept.response) if action.value == "exploit" else None

    yield f"vcache_{BOUND * 100:.0f}", job.helped(find)
    policy.shutdown()


def mem0(job: Job) -> Iterator[tuple[str, Pairs]]:
    os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": "mem0", "OPENAI_API_KEY": "is not used"}
    from mem0 import Memory

    (size,) = next(iter(job.vectors.values())).shape

    class Vectors:
        config = None

        def embed(self, text: str, memory_action: str | None = None) -> list[float]:  # noqa: ARG002
            return [float(one) for one in job.vectors[text]]

        def embed_batch(self, texts: list[str], memory_action: str | None = None) -> list[list[float]]:  # noqa: ARG002
            return [self.embed(text) for text in texts]

    store = {"provider": "qdrant", "config": {"path": "qdrant", "embedding_model_dims": size}}
    memory = Memory.from_config({"vector_store": store})
    memory.embedding_model = Vectors()
    for text, answer in job.entries:
        memory.add(text, user_id="u", infer=False, metadata={"answer": answer})

    def find(text: str) -> tuple[str, float] | None:
        results = memory.search(text, top_k=1, filters={"user_id": "u"})["results"]
        return (str(results[0]["metadata"]["answer"]), float(results[0]["score"])) if results else None

    found = {text: find(text) for text, _ in job.asked}
    for threshold in (0.1, 0.8):
        above = {text: one[0] for text, one in found.items() if one and one[1] >= threshold}
        yield f"mem0_{threshold * 100:.0f}", job.helped(above.get)


def side(system: str, folder: Path) -> None:
    """Runs in the environment of the system."""
    found = {"gptcache": gptcache, "vcache": vcache, "mem0": mem0}[system](Job(folder))
    (folder / "helped.json").write_text(json.dumps(dict(found)))


if __name__ == "__main__":
    side(sys.argv[1], Path(sys.argv[2]))
