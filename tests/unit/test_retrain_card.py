from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.release.card import NAME, Record, Score, render, without_header, write
from retuned.retrain.release.licence import licence_of

MANIFEST: dict[str, Any] = {
    "version": "3f2a91c0",
    "workload": "support.refunds",
    "created_at": "2026-11-24T09:30:00Z",
    "base_model": "/models/smol: 2",
    "base_hash": "00ff",
    "parent_version": "77ab01de",
    "dataset_version": "d1",
    "run_id": "r1",
    "code_version": "0.1.0",
    "settings": {"train": {"rank": 32}},
    "cost": {"train_seconds": 61.2, "evaluate_seconds": 40.0},
}
DATASET = {"train": 100, "holdout": 40, "replay": 30, "card": {"left_out": {"superseded": 3, "x": 0}}}


def scores(model: str, right: int, split: str = "holdout") -> list[Score]:
    return [Score(model, split, f"{split}{n}", float(n < right)) for n in range(40)]


def record(**more: Any) -> Record:
    return Record(Path("/models/support.refunds/3f2a91c0"), MANIFEST, **more)


FULL = record(
    licence="apache-2.0",
    rank=24,  # of its parent
    dataset=DATASET,
    sources=[{"source": "corrections (expert)", "rows": 90}, {"source": "demonstrations", "rows": 60}],
    people={"people": 12, "largest_share": 0.25},
    run={"reasons": ["drift | twice"], "train_seconds": 70.0, "evaluate_seconds": 30.0},
    decision={"outcome": True, "reasons": ["A gain of +0.500.", "Within the limit."]},
    scores=[
        *scores("base", 0),
        *scores("logged", 5),
        *scores("77ab01de", 10),
        *scores("3f2a91c0", 30),
        *scores("77ab01de", 20, "regression"),
    ],
)


def header(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_the_header_is_hugging_faces() -> None:
    assert header(render(FULL)) == {
        "library_name": "peft",
        "base_model": "/models/smol: 2",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "retuned"],
    }


def test_the_header_can_be_left_out() -> None:
    text = without_header(render(FULL))
    assert text.startswith("# support.refunds@3f2a91c0\n")
    assert render(FULL).endswith(text)
    assert without_header(text) == text


def test_it_says_in_one_line_what_a_manager_asks() -> None:
    assert (
        "**The gate passed it.** Score on questions that nothing was trained on: this version 0.750, its "
        "parent 77ab01de 0.250, what production had answered 0.125, the base model 0.000."
    ) in render(FULL)
    refused = Record(**{**vars(FULL), "decision": {"outcome": False, "reasons": []}})
    assert "**The gate refused it.**" in render(refused)
    figures = {"passed[gain]": 1.0, "not_measured[regression]": 1.0, "not_measured[traffic]": 1.0}
    unmeasured = Record(**{**vars(FULL), "decision": FULL.decision | {"figures": figures}})  # type: ignore[operator]
    assert "**The gate passed it.** Not measured: regression, traffic. Score on questions" in render(unmeasured)


def test_figures_have_intervals_against_base_and_parent() -> None:
    lines = [line for line in render(FULL).splitlines() if line.startswith("| new questions")]
    assert lines[0] == "| new questions | this version | 40 | 0.750 |  |"
    assert lines[1].startswith("| new questions | its parent 77ab01de | 40 | 0.250 | +0.500 (+0.2")
    assert lines[2].startswith("| new questions | what production had answered | 40 | 0.125 | +0.625 (+0.4")
    assert lines[3].startswith("| new questions | the base model | 40 | 0.000 | +0.750 (+0.5")
    assert "- Within the limit.\n" in render(FULL)


def test_one_quantity_has_one_form() -> None:
    """The gate writes scores as 0.750 and gains as +0.500; so does the card."""
    good = render(FULL).split("## How good it is")[1].split("The gate's reasons")[0]
    assert "%" not in good.replace("95%", "")


def test_what_it_was_judged_on_is_no_part_of_what_it_learned_from() -> None:
    learned = render(FULL).split("## What it learned from")[1].split("## Where")[0]
    table, _, rest = learned.strip().partition("\n\n")
    assert "40" not in table
    assert rest.startswith("It was evaluated on 40 other examples, on which nothing was trained.")


def test_it_says_what_the_workload_is_for_where_that_is_configured() -> None:
    assert "objective" not in render(FULL)
    manifest = MANIFEST | {"objective": "Answers questions on refunds."}
    assert "\n\nIts objective: Answers questions on refunds.\n\n" in render(Record(Path("/models/x"), manifest))


def test_what_it_learned_from_where_it_comes_from_and_how_to_load_it() -> None:
    card = render(FULL)
    for line in (
        "| trained on | 100 examples, of which 30 repeat older ones |",
        "| from corrections (expert) | 90 examples |",
        "| people | 12; the one who taught most gave 25.0% of the examples |",
        "| left out | 3 superseded |",
        "| licence of the base model | apache-2.0 |",
        "| began from | version 77ab01de |",
        "| retrained because of | drift \\| twice |",
        "| training took | 70 s |",
        '  --lora-modules support.refunds@3f2a91c0="/models/support.refunds/3f2a91c0"',
    ):
        assert line in card.splitlines()
    assert "--max-lora-rank 32 " in card


def test_the_card_names_the_engine_the_rate_and_the_precision() -> None:
    trained = {"engine": "trl", "engine_reason": "it trains on a GPU", "learning_rate": 0.00026}
    manifest = MANIFEST | {"settings": {"train": {"method": "qlora"}}, "training": trained}
    card = render(Record(Path("/models/support.refunds/3f2a91c0"), manifest))
    assert "| trained by | engine trl, as it trains on a GPU |" in card
    assert "| peak learning rate | 0.00026 |" in card
    assert "| base model in training and evaluation | in 4 bits (NF4) |" in card


def test_an_adapter_on_experts_is_served_by_a_flag_of_vllm() -> None:
    card = render(record(on_experts=True))
    assert " --enable-mixed-moe-lora-format " in card
    assert '"is_3d_lora_weight": true}' in card
    assert "--enable-mixed-moe-lora-format" not in render(FULL)


def test_the_card_names_what_the_adapter_covers() -> None:
    training = {"coverage": 0.9962, "not_covered": ["model.layers.N.mlp.gate.weight"]}
    card = render(Record(Path("/models/support.refunds/3f2a91c0"), MANIFEST | {"training": training}))
    assert "| the adapter covers | 99.6% of the weights in the layers of the language model |" in card
    assert "| not covered | model.layers.N.mlp.gate.weight |" in card
    assert "the adapter covers" not in render(FULL)


def test_examples_that_were_too_long_are_counted() -> None:
    assert "train.max_length" not in render(FULL)
    training = {"rows_cut": 7, "rows_too_long": 3}
    told = "7 examples lost their oldest turns or last passages, 3 were left out"
    assert told in render(replace(FULL, manifest=MANIFEST | {"training": training}))


def test_a_version_that_has_all_weights_says_so_and_is_merged_for_vllm() -> None:
    manifest = MANIFEST | {"settings": {"train": {"rank": 32, "method": "full"}}}
    card = render(Record(Path("/models/support.refunds/3f2a91c0"), manifest))
    assert header(card)["tags"] == ["full", "retuned"]
    assert "All weights of the blocks for the base model" in card
    assert 'model.merge_and_unload().save_pretrained("merged")' in card.splitlines()
    assert "LoRA" not in card
    assert "--enable-lora" not in card


def test_what_is_not_known_yet_is_left_out() -> None:
    card = render(record())
    assert "**Not decided yet.**" in card
    assert header(card)["license"] == "unknown"
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        "## Where it comes from",
        "## How to load it",
        "## What it is not for",
    ]
    assert "| training took | 61 s |" in card
    assert "None" not in card


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, "unknown"),
        ({"README.md": "---\nlicense: cc-by-4.0\n---\n# Model"}, "cc-by-4.0"),
        ({"README.md": "---\n: [\n---\n", "config.json": "{"}, "unknown"),
        ({"README.md": "# Model", "config.json": '{"license": "mit"}'}, "mit"),
        ({"LICENSE": "   Apache License\n   Version 2.0, January 2004"}, "apache-2.0"),
        ({"LICENSE.txt": "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"}, "llama3.1"),
        ({"LICENSE": "Ask Bob."}, "other"),
    ],
)
def test_the_licence_is_read_from_the_base_model(files: dict[str, str], licence: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(tmp_path) == licence


def test_people_are_counted_by_account_also_where_feedback_names_none(tmp_path: Path, warehouse: Warehouse) -> None:
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    for number in range(10):
        rig.send(
            interaction(f"i{number}", user_id=f"user-{number % 4}"),
            feedback(f"f{number}", f"i{number}", name="correction", value="A week."),
        )
    rig.drain()
    warehouse.execute(
        "INSERT INTO dataset_rows BY NAME SELECT 'd1' AS dataset_version, id AS row_id, 'train' AS split, "
        "'' AS prompt_hash, interaction_id, id AS feedback_id FROM feedback"
    )
    warehouse.execute(
        "INSERT INTO datasets BY NAME SELECT 'd1' AS version, 'support.refunds' AS workload, '' AS path, "
        "TIMESTAMP '2026-11-24' AS created_at, 10 AS train, 0 AS holdout, 0 AS replay, '{}' AS card"
    )
    write(warehouse, tmp_path, tmp_path, MANIFEST)
    assert "| people | 4; the one who taught most gave 30.0% of the examples |" in (tmp_path / NAME).read_text()
