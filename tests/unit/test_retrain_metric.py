"""The metrics, each by answers that people would call right or wrong, and which one `auto` chooses."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.servers.judges import Server, answers, serving
from retuned.consumers.common.tool_calls import written
from retuned.consumers.errors import ConfigurationError
from retuned.retrain.decision.evaluation import BASE, CANDIDATE, LOGGED
from retuned.retrain.decision.measures import measured, with_agreement
from retuned.retrain.scoring.code import Code
from retuned.retrain.scoring.json_fields import Json, inferred_schema
from retuned.retrain.scoring.judge import Judge
from retuned.retrain.scoring.label import Label, as_figures, confusion, in_figures, learned_labels, macro_f1, mistaken
from retuned.retrain.scoring.metric import Metric, choose, restored
from retuned.retrain.scoring.text import Text, rouge_l
from retuned.retrain.scoring.tool_calls import ToolCalls
from retuned.retrain.settings import MetricSettings, Settings

ROW: dict[str, Any] = {"messages": "[]", "context": None}


def value(metric: Metric, answer: str, approved: str, **example: Any) -> float | None:
    return metric.score(answer, approved, ROW | example).value


# Labels


def test_a_label_is_right_by_its_whole_text() -> None:
    metric = Label(["negative", "very negative", "card_arrival"])
    assert value(metric, " Negative. ", "negative") == 1.0
    assert metric.score("very negative", "negative", ROW) == metric.score("Very Negative", "negative", ROW)
    wrong = metric.score("very negative", "negative", ROW)
    assert (wrong.value, wrong.label, wrong.detail) == (0.0, "very negative", "very negative in place of negative")
    chatty = metric.score("It is negative", "negative", ROW)
    assert (chatty.value, chatty.label) == (0.0, None)
    assert value(metric, "card arrival", "card_arrival") == 0.0
    assert value(metric, "negative", "neutral") is None
    assert metric.groups("Card_Arrival") == ["label:card_arrival"]
    assert not metric.same("reverted card payment", "pending card payment")


@pytest.mark.parametrize(
    ("answer", "approved"),
    [
        ("配送。", "配送"),
        ("iade", "İade"),
        ("「返金」", "返金"),
        ("¿Envío?", "envío"),
        ("Straße", "STRASSE"),
        ("ｒｅｆｕｎｄ", "refund"),
    ],
)
def test_a_label_in_another_spelling_of_its_language_is_the_label(answer: str, approved: str) -> None:
    assert value(Label([approved, "other"]), answer, approved) == 1.0


@pytest.mark.parametrize(("answer", "approved"), [("C", "C#"), ("5", "5%"), ("1", "-1"), ("C", "C++")])
def test_a_sign_that_belongs_to_a_label_is_kept(answer: str, approved: str) -> None:
    assert value(Label([approved, answer]), answer, approved) == 0.0


def test_labels_are_learned_in_their_most_frequent_spelling() -> None:
    assert learned_labels(["Refund", "refund", "Refund", "shipping.", "shipping."]) == ["Refund", "shipping."]


def test_confusion_and_macro_f1_by_hand() -> None:
    table = confusion([("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", None), ("c", "a")])
    assert table["a"] == {"a": 2, "b": 1}
    assert table["b"] == {"b": 1, None: 1}
    # a: 2·2 / (3 + 3), b: 2·1 / (2 + 2), c: 0
    assert macro_f1(table) == pytest.approx((4 / 6 + 2 / 4 + 0) / 3)
    assert mistaken(table)[0] == ("c", 1, 0, "1 a")


def test_no_label_is_not_the_label_other() -> None:
    table = confusion([("other", None), ("other", None), ("other", "other"), ("a", "other"), ("a", None)])
    assert table["other"] == {"other": 1, None: 2}
    # a: 0, other: 2·1 / (3 + 2)
    assert macro_f1(table) == pytest.approx((0 + 2 / 5) / 2)
    assert in_figures(as_figures(table)) == table
    assert as_figures(table)["confusion[other][]"] == 2
    assert mistaken(table) == [("a", 2, 0, "1 other, 1 (no label)"), ("other", 3, 1, "2 (no label)")]
    assert in_figures({"confusion[a][b][c]": 2.0, "macro_f1_candidate": 1.0}) == {"a": {"b][c": 2}}


# JSON

BOOKINGS = [
    json.dumps({"people": str(n), "time": f"{n}:30", "name": name}) for n, name in enumerate(["Li", "Okafor"] * 8)
]


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text[:-1],
        lambda text: " ".join(json.loads(text).values()),
        lambda text: str(json.loads(text)),
        lambda text: f"Here: {text}",
        lambda _: "{}",
        lambda text: json.dumps(json.loads(text) | {"colour": "red"}),
    ],
)
def test_what_a_program_cannot_read_is_invalid(broken: Callable[[str], str]) -> None:
    metric = Json(inferred_schema(BOOKINGS))
    score = metric.score(broken(BOOKINGS[0]), BOOKINGS[0], ROW)
    assert score.valid is False
    assert score.value is not None
    assert score.value < 1
    assert metric.score(BOOKINGS[0], BOOKINGS[0], ROW).valid is True


def test_a_document_is_scored_by_its_fields_and_says_which_differ() -> None:
    metric = Json(inferred_schema(BOOKINGS))
    rotated = json.dumps({"people": "0:30", "time": "Li", "name": "0"})
    assert value(metric, rotated, BOOKINGS[0]) == 0.0
    one = metric.score(BOOKINGS[0].replace("Li", "Lee"), BOOKINGS[0], ROW)
    assert one.value == pytest.approx(2 / 3)
    assert one.detail == "differs in name"
    assert value(metric, BOOKINGS[0], "a table for two") is None
    assert metric.groups(BOOKINGS[0]) == ["field:name", "field:people", "field:time"]
    assert metric.same(json.dumps(json.loads(BOOKINGS[0]), indent=2), BOOKINGS[0])


def test_a_configured_schema_decides_what_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}))
    metric = choose(Settings(metric=MetricSettings(name="json", json_schema=file)), []).metric
    assert metric.score('{"n": 1, "m": 2}', '{"n": 1}', ROW).valid is True
    wrong = metric.score('{"n": "1"}', '{"n": 1}', ROW)
    assert wrong.valid is False
    assert "integer" in wrong.detail
    file.write_text("{")
    with pytest.raises(ConfigurationError, match=r"metric\.json_schema"):
        choose(Settings(metric=MetricSettings(name="json", json_schema=file)), [])


# Calls of tools


def calling(*calls: tuple[str, dict[str, Any]], words: str = "") -> str:
    return written(words, [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls])


WEATHER, TIME = ("weather", {"city": "Oslo", "days": 2}), ("time", {"zone": "UTC"})


def test_calls_are_compared_by_name_and_arguments_in_any_order() -> None:
    metric = ToolCalls()
    both = calling(WEATHER, TIME)
    assert value(metric, calling(TIME, WEATHER, words="Let me look."), both) == 1.0
    assert metric.same(calling(TIME, WEATHER), both)
    assert value(metric, calling(WEATHER), both) == pytest.approx(2 / 3)
    # Of name, city and days one differs.
    assert value(metric, calling(("weather", {"city": "Oslo", "days": 3})), calling(WEATHER)) == pytest.approx(2 / 3)
    assert value(metric, calling(TIME), calling(WEATHER)) == 0.0
    assert value(metric, "It rains.", calling(WEATHER)) == 0.0
    assert value(metric, calling(WEATHER), "Which city?") == 0.0
    assert value(metric, "Which city?", "Which city?") == 1.0
    assert metric.groups(both) == ["tool:time", "tool:weather"]
    assert metric.groups("Which city?") == ["tool:none"]


def test_calls_that_cannot_be_made_are_invalid() -> None:
    metric, tools = ToolCalls(), json.dumps([{"type": "function", "function": {"name": "weather"}}])
    assert metric.score(calling(WEATHER)[:-3], calling(WEATHER), ROW).valid is False
    assert metric.score(calling(WEATHER), calling(WEATHER), ROW | {"tools": tools}).valid is True
    invented = metric.score(calling(TIME), calling(WEATHER), ROW | {"tools": tools})
    assert (invented.value, invented.valid, invented.detail) == (0.0, False, "no such tool: time")


# Text


def test_wording_is_scored_in_any_language_and_numbers_are_no_wording() -> None:
    assert rouge_l("the cat sat", "the cat lay") == pytest.approx(2 / 3)
    assert rouge_l("sat cat the", "the cat sat") == pytest.approx(1 / 3)
    assert rouge_l("明天下雨", "明天下雪") == pytest.approx(3 / 4)
    metric = Text()
    german = "Sie haben 30 Tage Zeit für die Rückgabe."
    good = value(metric, "Für die Rückgabe haben Sie 30 Tage Zeit.", german)
    assert good is not None
    assert 0.4 < good < 1
    assert value(metric, german.replace("30", "14"), german) == 0.0
    assert metric.same("Sie haben 30 Tage Zeit.", "sie haben 30 Tage Zeit")
    assert not metric.same("Der Artikel kann in 30 Tagen zurück.", "Der Artikel kann nicht in 30 Tagen zurück.")


def test_embeddings_count_half_where_a_model_is_configured(tmp_path: Path) -> None:
    transformers = pytest.importorskip("sentence_transformers")
    model = tiny_embeddings(transformers, tmp_path / "model")
    metric = choose(Settings(metric=MetricSettings(name="text", embedding_model=model)), []).metric
    same, other = metric.score("a dog", "a dog", ROW), metric.score("the sofa", "a dog", ROW)
    assert same.value == pytest.approx(1.0)
    assert other.value is not None
    assert 0.0 < other.value < 0.5
    assert other.detail.startswith("ROUGE-L 0.00, embeddings 0.")
    with pytest.raises(ConfigurationError, match=r"metric\.embedding_model"):
        Text(tmp_path)


def tiny_embeddings(transformers: Any, folder: Path) -> Path:
    """A sentence-transformers model of some words with random weights."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = folder.with_name("vocab.txt")
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "sofa"]))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=9, max_position_embeddings=32, **shape)).save_pretrained(folder / "bert")
    BertTokenizerFast(str(words)).save_pretrained(folder / "bert")
    layer = Transformer(str(folder / "bert"))
    transformers.SentenceTransformer(modules=[layer, Pooling(16)]).save(str(folder))
    return folder


# Judge


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


def judging(server: Server, cache: Path | None = None) -> Judge:
    return Judge("It is polite.", server.settings(), cache=cache)


def agrees(shown: str) -> str:
    """An honest judge: answers with the same words mean the same."""
    one, other = (answer.casefold().strip(".!") for answer in answers(shown))
    return json.dumps({"same": "yes" if one == other else "no"})


def test_a_judge_is_asked_in_both_orders_and_never_twice(server: Server, tmp_path: Path) -> None:
    server.reply = agrees
    metric = judging(server, tmp_path / "judged.jsonl")
    assert value(metric, "Please WAIT! ", "Please wait, please") == 0.0
    assert value(metric, "I am here", "I am over here") == 0.0
    assert value(metric, "Same.", "Same.") == 1.0
    assert [answers(one["messages"][-1]["content"]) for one in server.asked[:2]] == [
        ("Please wait, please", "Please WAIT! "),
        ("Please WAIT! ", "Please wait, please"),
    ]
    assert len(server.asked) == 4
    assert "It is polite." in server.asked[0]["messages"][0]["content"]
    assert server.asked[0]["response_format"]["type"] == "json_schema"
    again = judging(server, tmp_path / "judged.jsonl")
    assert (value(again, "I am here", "I am over here"), len(server.asked)) == (0.0, 4)
    assert "here" not in (tmp_path / "judged.jsonl").read_text().casefold()


def test_a_server_without_json_schemas_is_asked_for_one_word(server: Server) -> None:
    server.reply = lambda _: 400 if "response_format" in server.asked[-1] else "**Yes**"
    metric = judging(server)
    assert value(metric, "one", "other") == 1.0
    assert value(metric, "two", "other") == 1.0
    assert ["response_format" in one for one in server.asked] == [True, False, False, False, False]


def test_the_odds_of_a_judge_decide_where_the_orders_disagree(server: Server) -> None:
    server.reply = lambda shown: "yes" if answers(shown)[0] == "other" else "no"
    assert value(judging(server), "one", "other") is None
    for first, second, expected in ((3.0, -0.5, 1.0), (0.5, -3.0, 0.0), (0.5, -0.6, None)):
        server.odds = lambda shown, first=first, second=second: first if answers(shown)[0] == "other" else second
        assert value(judging(server), "one", "other") == expected


def test_facts_hand_to_the_judge_what_values_do_not_settle(server: Server) -> None:
    server.reply = lambda _: '{"same": "yes"}'
    metric = choose(Settings(metric=MetricSettings(name="facts"), evaluate=server.settings()), []).metric
    assert value(metric, "You have 14 days.", "You have 30 days.") == 0.0
    assert server.asked == []
    found = metric.score("You can send it back within 30 days.", "Returns are accepted for 30 days.", ROW)
    assert found.value == 1.0
    assert "the judge finds that both mean the same" in found.detail
    assert len(server.asked) == 2
    assert metric.compare("You can send it back within 30 days.", "Returns are accepted for 30 days.") is None
    assert metric.agreement("Within 30 days.", "Returns are accepted for 30 days.", ROW) == 0.0
    assert len(server.asked) == 2


def test_agreement_asks_no_judge(server: Server) -> None:
    """Which of two answers that differ is better is asked in pairs: one question, paid for once."""
    example = {"row_id": "r", "messages": json.dumps([{"role": "user", "content": "Hello?"}]), "context": None}
    asked = example | {"completion": ""}
    rows = [
        measured("traffic", asked, model, output)
        for model, output in ((LOGGED, "Hello."), (CANDIDATE, "Good day."), (BASE, "Hm."))
    ]
    found = with_agreement(rows, [asked], judging(server))
    assert [row.agreement for row in found] == [None, 0.0, None]
    alike = with_agreement([rows[0], replace(rows[1], output="Hello.")], [asked], judging(server))
    assert [row.agreement for row in alike] == [None, 1.0]
    assert server.asked == []


def test_a_judge_without_a_verdict_abstains_and_is_given_up(server: Server) -> None:
    server.reply = lambda _: 500
    metric = judging(server)
    scores = [metric.score(f"answer {n}", "approved", ROW) for n in range(12)]
    assert {score.value for score in scores} == {None}
    assert "status 500" in scores[0].detail
    assert "given up" in scores[-1].detail
    assert len(server.asked) == 8


def test_a_judge_needs_an_address() -> None:
    with pytest.raises(ConfigurationError, match=r"evaluate\.judge_url"):
        choose(Settings(metric=MetricSettings(name="judge", criteria="Polite.")), [])


# One's own


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours_metric.py").write_text(
        "def near(answer, approved, example):\n"
        "    if not answer:\n        return None\n"
        "    return (float(answer == approved), f'asked {example[\"topic\"]}') if answer != 'x' else 7\n"
        "def two(answer, approved):\n    return 1\n"
        "def first(answer, approved, example):\n    return float(answer.split()[0] == approved)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    metric = choose(Settings(metric=MetricSettings(name="ours_metric:near")), []).metric
    assert metric.score("a", "a", {"topic": "t"}).detail == "asked t"
    assert value(metric, "", "a") is None
    with pytest.raises(ConfigurationError, match="expected a number from 0 to 1"):
        metric.score("x", "a", {"topic": "t"})
    with pytest.raises(ConfigurationError, match="ours_metric:two cannot be called with answer, approved"):
        choose(Settings(metric=MetricSettings(name="ours_metric:two")), [])
    metric = choose(Settings(metric=MetricSettings(name="ours_metric:first")), []).metric
    with pytest.raises(ConfigurationError, match=r"ours_metric:first failed on an answer of 0 .* row r1 \(IndexError"):
        metric.score("", "a", {"row_id": "r1"})
    sys.modules.pop("ours_metric")
    with pytest.raises(ConfigurationError, match=r"metric\.name: ours_metric:far cannot be imported"):
        choose(Settings(metric=MetricSettings(name="ours_metric:far")), [])
    with pytest.raises(ValueError, match=r"package\.module:function"):
        MetricSettings(name="rouge")


# Auto

INTENTS = ["card_arrival", "wrong_exchange_rate_for_cash_withdrawal", "pending_card_payment", "lost_or_stolen_card"]
LETTER = "Thank you for your letter, which we have read with care. " * 10
GERMAN = [
    "Sie haben 30 Tage Zeit für die Rückgabe.",
    "Die Lieferung dauert drei bis fünf Werktage.",
    "Bitte schreiben Sie an unseren Kundendienst in Berlin.",
    "Ja, der Versand ist ab 60 Euro kostenlos.",
    "Der Umtausch ist 14 Tage lang möglich.",
]


@pytest.mark.parametrize(
    ("approved", "name"),
    [
        (INTENTS * 10, "label"),
        ([intent.replace("_", " ").title() for intent in INTENTS] * 10, "label"),
        ([f"T{number}" for number in range(10)] * 6, "label"),
        (["1", "2", "3", "4", "5"] * 8, "label"),
        ([*["true", "false"] * 20, "I do not know what that would be, sorry."], "label"),
        (BOOKINGS, "json"),
        ([calling(WEATHER), "Which city?", calling(TIME)] * 10, "tool_calls"),
        ([f"You can return the {thing} within 30 days." for thing in ("lamp", "sofa", "desk", "bed")] * 5, "facts"),
        (["30 days", "14 days"] * 20, "facts"),
        (GERMAN * 10, "facts"),
        ([f"SELECT name FROM {table} WHERE id = {n}" for n, table in enumerate(INTENTS * 3)], "code"),
        ([f"Our lamps are made to last, and {word} is what people like about them." for word in INTENTS], "none"),
        ([f"{LETTER} It takes {number} days." for number in range(20)], "none"),
        (["Yes, you can bring your own bottle.", "No, you cannot bring your own bottle."] * 3, "none"),
        ([*BOOKINGS, "I could not find a date.", "Which day is meant?"], "json"),
        (["Hvala", "lopata", "stolica", "jabuka i kruška", "prozor"], "exact"),
        ([], "facts"),
    ],
)
def test_auto_chooses_by_the_approved_answers_and_says_why(approved: list[str], name: str) -> None:
    chosen = choose(Settings(), approved)
    assert chosen.metric.name == name
    assert "metric.name: auto" in chosen.reason
    kept = restored(Settings(), json.loads(json.dumps(chosen.as_dict())), [])
    assert (kept.metric.name, kept.reason, kept.metric.learned) == (name, chosen.reason, chosen.metric.learned)


def test_where_nothing_can_judge_it_abstains_and_a_judge_is_taken_if_there_is_one(server: Server) -> None:
    letters = [f"{LETTER} It takes {number} days." for number in range(20)]
    nothing = choose(Settings(), letters)
    assert "set evaluate.judge_url or metric.name" in str(nothing)
    assert value(nothing.metric, letters[0], letters[1]) is None
    assert value(nothing.metric, letters[0], letters[0]) == 1.0
    assert choose(Settings(evaluate=server.settings()), letters).metric.name == "judge"


# Code

SCRIPT = "```js\nif (a === b) {\n  go();\n}\n```"
PYTHON = "```python\ndef f(a):\n    if a:\n        a = a + 1\n    return a\n```"


@pytest.mark.parametrize(
    ("answer", "approved", "expected"),
    [
        ("select a\nfrom t where x<5;", "SELECT a FROM t WHERE x < 5", 1.0),
        ("SELECT a FROM t WHERE x <> 5", "SELECT a FROM t WHERE x != 5", 1.0),
        ("SELECT a FROM t WHERE x > 5", "SELECT a FROM t WHERE x < 5", 0.0),
        ("SELECT a FROM t WHERE b = 'X'", "SELECT a FROM t WHERE b = 'x'", 0.0),
        ("SELECT b FROM t", "SELECT a FROM t", 0.0),
        ("SELECT u.a FROM t u", "SELECT a FROM t", None),
        (PYTHON.replace("a + 1", "a + 1  # one more"), PYTHON, 1.0),
        (PYTHON.replace("a + 1", "a - 1"), PYTHON, 0.0),
        (PYTHON.replace("    return", "        return"), PYTHON, 0.0),
        (PYTHON.replace("a", "b"), PYTHON, None),
        ("It adds one to the number.", PYTHON, None),
        (SCRIPT.replace("===", "=="), SCRIPT, None),
        (SCRIPT.replace("===", "!=="), SCRIPT, 0.0),
        (SCRIPT.replace("===", "==").replace("js", "php"), SCRIPT.replace("js", "php"), None),
        (SCRIPT.replace("b)", "c)").replace("js", "php"), SCRIPT.replace("js", "php"), 0.0),
        (SCRIPT.replace("js", "php").replace("go", "run").replace("a", "b"), SCRIPT.replace("js", "php"), None),
        ('config["timeout"] = 30', "config['timeout'] = 30", None),
        ("const rows = 1_000_000;", "const rows = 1000000;", None),
        ("const rows = 1_000_000;", "const rows = 100000;", 0.0),
        ('config["timeout"] = 40', "config['timeout'] = 30", 0.0),
        ('```bash\necho "$HOME"\n```', "```bash\necho '$HOME'\n```", None),
    ],
)
def test_code_is_compared_by_its_tokens(answer: str, approved: str, expected: float | None) -> None:
    metric = choose(Settings(metric=MetricSettings(name="code")), []).metric
    assert value(metric, answer, approved) == expected
    assert metric.compare(answer, approved) == (None if expected is None else bool(expected))


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("yaml", "a:\n  b: 1\nc: 2", "a:\n  b: 1\n  c: 2"),
        ("bash", "cd /tmp\nrm -rf x", "cd /tmp rm -rf x"),
        ("sh", "rm -rf $DIR /old", "rm -rf $DIR/old"),
        ("powershell", "ls\nrm a", "ls rm a"),
        ("js", "return\nx", "return x"),
        ("go", "return\nx", "return x"),
        ("ruby", "f a - b", "f a -b"),
        ("css", "p .big {top: 0}", "p.big {top: 0}"),
        ("haskell", "f x = y\n  where y = x\nz = 1", "f x = y\n  where y = x\n        z = 1"),
        ("toml", "[a]\nx=1", "[a] x=1"),
        ("html", "<p>a  b</p>", "<p>a b</p>"),
        ("unheard", "cd /tmp\nrm x;", "cd /tmp rm x;"),
        ("", "cd /tmp\nrm -rf x;", "cd /tmp rm -rf x;"),
    ],
)
def test_white_space_that_may_mean_something_is_not_judged(language: str, one: str, other: str) -> None:
    one, other = (f"```{language}\n{text}\n```" for text in (one, other))
    metric = Code()
    assert value(metric, one, other) is None
    assert metric.compare(one, other) is None
    assert metric.key(one) != metric.key(other)


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("java", "if (a) {\n  b();\n}", "if (a) { b(); } // so"),
        ("c++", "int a = b\n  + c;", "int a=b+c;"),
        ("sql", "select a -- one\nfrom t group  by a", "SELECT a FROM t GROUP BY a;"),
        ("js", "f( a );\n  g()", "f(a);  // twice\n\ng();"),
        ("python", "if a:\n  f(b,\n  c)", "if a:\n    # once\n    f(b,\n      c)"),
        ("bash", "cd /tmp  # there\n\nls", "cd /tmp\nls\n"),
    ],
)
def test_white_space_that_means_nothing_does_not_count(language: str, one: str, other: str) -> None:
    one, other = (f"```{language}\n{text}\n```" for text in (one, other))
    assert value(Code(), one, other) == 1.0
    assert Code().key(one) == Code().key(other)


@pytest.mark.parametrize(
    "text",
    [
        "| Plan | Price |\n|:---|---:|\n| Basic | 5 |\n| Pro | 10 |",
        "Here are our plans:\n\n| Plan | Price |\n|------|-------|\n| Basic | $5 |\n| Pro | $10 |",
        "You need:\n- a passport;\n- a recent photo;\n- proof of address;\n- the fee of 40 euros.",
        "1. Open the app;\n2. Tap Settings;\n3. Choose Delete account;\n4. Confirm.",
        "1. Run `npm install`;\n2. Run `npm start`;\n3. Open http://localhost:3000;",
        "**Free shipping** applies to orders above $50;\n**Express** costs $9.99;\n**Pickup** is free.",
        "> It was shipped on Monday;\n> it arrives on Friday;",
    ],
)
def test_prose_in_markdown_is_no_code(text: str) -> None:
    assert choose(Settings(), [text] * 5).metric.name != "code"


@pytest.mark.parametrize(
    "text",
    [
        "for x in range(3):\n    print(x)",
        "from pathlib import Path\nx = [i for i in y if i]\nprint(sum(x))",
        "if (a is not None) and b in c:\n    raised = True",
        "SELECT a,\n  *\nFROM t -- all of the rows\nWHERE a = 1;",
        "with x as (select 1) select * from x",
        'public static final Map<String, Foo> m = f(1);\nString text = "the one that is sent";',
        '#include <stdio.h>\nint main(void) {\n  long n = 1;  // one is the least\n  printf("%d of the rows", n);\n}',
        "const f = (a) => a + 1;\nconsole.log(`there are ${f(x)} of them`);",
        "func main() {\n\tfmt.Println('hi')\n}",
        "fn main() {\n    let mut x = 5;\n}",
        ".a {\n  color: red;\n  margin: 0 auto;\n}",
        "cat a.txt |\n  sort |\n  uniq -c && ls",
    ],
)
def test_code_is_recognised_without_a_fence(text: str) -> None:
    assert choose(Settings(), [text] * 5).metric.name == "code"


def test_code_without_a_fence_has_the_language_of_the_other_answer() -> None:
    assert value(Code(), "f(a,b);", "```js\nf(a, b)\n```") == 1.0
    assert value(Code(), "```js\nf(a, b)\n```", "f(a,b);") == 1.0


@pytest.mark.parametrize(
    "code",
    [
        'run(\n    """SELECT a FROM t"""\n)',
        'queries = {\n    "all":\n    """SELECT a FROM t"""\n}',
        'rows = run(\n    "all",\n    r"""SELECT a FROM t""",\n)',
        '"""SELECT a FROM t"""',
        '"""SELECT a FROM %s""" % t',
        'def f():\n    """SELECT a FROM %s""".join(t)',
        "# SELECT a FROM t",
    ],
)
def test_strings_of_python_that_are_values_count(code: str) -> None:
    one, other = (f"```python\n{text}\n```" for text in (code, code.replace("a FROM", "b FROM")))
    assert Code().compare(one, other) is not True
    assert Code().key(one) != Code().key(other)
    assert Code().compare(one, one) is True


@pytest.mark.parametrize(
    ("code", "bare"),
    [
        ('"""Adds."""\n\nimport a', "import a"),
        ('def f(a):\n    """Adds."""\n    return a', "def f(a):\n    return a"),
        ('class A:\n    # of two\n    r"""Adds."""  # one\n\n    b: int', "class A:\n    b: int"),
        (
            'async def f(\n    a=":"\n) -> int:\n    """Adds\n    two.\n    """\n    return a',
            'async def f(a=":") -> int:\n  return a',
        ),
    ],
)
def test_docstrings_do_not_count(code: str, bare: str) -> None:
    one, other, bare = (f"```python\n{text}\n```" for text in (code, code.replace("Adds", "Sums"), bare))
    assert Code().compare(one, other) is True
    assert Code().key(one) == Code().key(other) == Code().key(bare)


def test_the_directives_of_a_preprocessor_are_no_comments() -> None:
    assert value(Code(), "```c\n#define N 5\nint a[N];\n```", "```c\n#define N 6\nint a[N];\n```") == 0.0


def test_a_metric_that_is_named_by_now_is_taken_for_older_datasets_too() -> None:
    kept = choose(Settings(), INTENTS * 10).as_dict()
    assert restored(Settings(metric=MetricSettings(name="text")), kept, INTENTS).metric.name == "text"
    labels = restored(Settings(metric=MetricSettings(name="label", labels=("a", "b"))), kept, INTENTS).metric
    assert labels.learned == {"labels": ["a", "b"]}
    assert restored(Settings(), None, BOOKINGS).metric.name == "json"


def test_answers_of_others_add_repetitions_to_labels_and_do_not_choose_the_metric() -> None:
    closed = ["refund", "delivery"] * 10
    assert choose(Settings(), [*closed, "lost_card"]).metric.learned["labels"] == ["delivery", "refund"]
    found = choose(Settings(), [*closed, "lost_card"], ["lost_card", "refund"])
    assert found.metric.learned["labels"] == ["delivery", "lost_card", "refund"]
    open_set = [f"intent_{number}" for number in range(20)]
    assert choose(Settings(), open_set).metric.name == "exact"
    assert choose(Settings(), open_set, open_set * 9).metric.name == "exact"
