"""The audit over real converted data, real tokenizers and tiny models: what it finds and what it passes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlx.core import save_safetensors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stages.audit.__main__ import main
from stages.audit.registry import CHECKS
from stages.audit.stage import REPORT, audit
from stages.audit.vectors import compare_vectors
from stages.convert_data.stage import CORPUS, convert_data
from stages.core.artifact import require_artifact
from stages.core.cli import TO_MAKE, Options
from stages.core.compute import load_arrays
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FIXES, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.records import AuditReport, Finding, read_record
from stages.core.suite import load_suite
from stages.core.tokenizer import load_tokenizer, template_hash
from tests.models import END_OF_TEXT, IM_END, BuiltOnce, build_qwen_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FAIR_RETEST_SHARED") or ROOT.parent / "shared")
PUNIE = SHARED / "data" / "punie" / "phase24_merged"
needs_punie = pytest.mark.skipif(not PUNIE.is_dir(), reason="the shared training set is not here")

Edit = Callable[[list[dict[str, Any]]], Iterable[dict[str, Any]]]
FIRST = {"train": 60, "valid": 12}  # rows of the corpus in the small data set


class Bench:
    """Runs convert_data and audit for models and arms below one folder."""

    def __init__(self, root: Path, built: BuiltOnce) -> None:
        self.root, self.built, self._next = root, built, 0
        self.small = root / "small"
        self.small.mkdir()
        for split, count in FIRST.items():
            lines = (CORPUS / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
            (self.small / f"{split}.jsonl").write_text("".join(lines[:count]), "utf-8")

    def options(self, model: Path, fixes: FixSet, data: Path | None = None, **overrides: Any) -> Options:
        """Options of an audit over freshly converted data."""
        self._next += 1
        place = self.root / f"run{self._next}"
        named = "smol" if (model / "embedded.json").is_file() else str(model)
        preset = load_preset(named, {"source": str(model)} | overrides)
        options = Options(preset, fixes, data=data or self.small, out=place / "rows")
        convert_data(options)
        return replace(options, data=place / "rows", out=place / "audit")

    def report(
        self, model: Path, fixes: FixSet, data: Path | None = None, edit: Edit | None = None, **overrides: Any
    ) -> AuditReport:
        """The audit of one arm; `edit` changes the converted training rows, as a user's hand might."""
        options = self.options(model, fixes, data, **overrides)
        assert options.data is not None
        if edit is not None:
            path = options.data / "train.jsonl"
            rows = edit([json.loads(line) for line in path.read_text("utf-8").splitlines()])
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return read_record(audit(options).folder / REPORT, AuditReport)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, built: BuiltOnce) -> Bench:
    return Bench(tmp_path_factory.mktemp("audit"), built)


@pytest.fixture(autouse=True)
def keep_to_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Logs stay in the test's folder."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))


@pytest.fixture(scope="module")
def full_reports(bench: Bench, embedded_model: Path) -> dict[str, AuditReport]:
    """Both arms of the embedded model over the whole shipped corpus."""
    return {
        arm: bench.report(embedded_model, fixes, CORPUS)
        for arm, fixes in (("fair", FAIR), ("flawed", FLAWED))
    }


def found(report: AuditReport) -> dict[str, Finding]:
    return {finding.check: finding for finding in report.findings}


def critical(report: AuditReport) -> set[str]:
    return {finding.check for finding in report.critical}


def without(fix: str) -> FixSet:
    return tuple(name for name in FAIR if name != fix)


# The embedded model and the shipped corpus


def test_the_fair_arm_has_nothing_to_repair(full_reports: dict[str, AuditReport]) -> None:
    report = full_reports["fair"]
    assert {finding.severity for finding in report.findings} == {"info"}
    assert set(found(report)) == {"own_template_drops_tools", "tags_split"}
    assert report.checks == list(CHECKS)
    assert len(report.checks) == len(set(report.checks)) >= 30


def test_the_flawed_arm_shows_the_published_flaws_with_their_counts(
    full_reports: dict[str, AuditReport],
) -> None:
    report = full_reports["flawed"]
    by_name = found(report)
    assert {finding.flaw for finding in report.findings if finding.flaw} == {1, 2, 3, 4}
    assert critical(report) == {
        "result_tags_as_text", "foreign_dialect", "mixed_dialects", "rows_without_tools",
        "evaluation_without_tools", "parser_differs",
    }  # fmt: skip
    tags, foreign, mixed = (by_name[n] for n in ("result_tags_as_text", "foreign_dialect", "mixed_dialects"))
    assert (tags.flaw, tags.count, tags.total) == (1, 398, 685)
    assert "419 qwen3_coder, 62 bare_python" in foreign.message
    told = by_name["parser_differs"]
    assert told.message.startswith(
        "evaluation reads replies as qwen3_coder, but the chat template writes hermes: right calls to "
    )
    assert told.fix == "evaluate with the fix parser, and convert the data with the fix json"
    assert (mixed.flaw, mixed.count) == (3, 62)
    assert (by_name["rows_without_tools"].count, by_name["rows_without_tools"].total) == (685, 685)
    assert by_name["system_message_varies"].count == by_name["prompts_differ"].count == 86
    assert by_name["untested_bits"].severity == "warning"
    assert by_name["untested_bits"].message.endswith(" a dense model of 0.135 billion parameters")


def test_smollm2_ends_its_turns_where_it_stops(full_reports: dict[str, AuditReport]) -> None:
    for report in full_reports.values():
        assert not [finding for finding in report.findings if finding.place == "config"]


def test_examples_lead_to_the_rows_that_they_speak_of(full_reports: dict[str, AuditReport]) -> None:
    lines = (CORPUS / "train.jsonl").read_text("utf-8").splitlines()
    by_name = found(full_reports["flawed"])
    for example in by_name["result_tags_as_text"].examples:
        name, number, _ = example.split(":", 2)
        assert name == "train.jsonl"
        assert "<tool_response>" in json.loads(lines[int(number) - 1])["text"]
    (listed,) = (e for e in by_name["mixed_dialects"].examples if e.startswith("bare_python: train.jsonl:"))
    for number in listed.removeprefix("bare_python: train.jsonl:").split(", …")[0].split(", "):
        text = json.loads(lines[int(number) - 1])["text"]
        assert "<tool_call>" in text
        assert "<function=" not in text


# Flaw 5, the tiny models with the real Qwen tokenizers


def test_a_base_model_that_stops_elsewhere(bench: Bench, tiny_qwen2: Path) -> None:
    report = bench.report(tiny_qwen2, FLAWED)
    ends = found(report)["stop_token_differs"]
    assert (ends.severity, ends.flaw, ends.count, ends.total) == ("critical", 5, 60, 60)
    assert "151645 <|im_end|>" in ends.message
    assert "151643 <|endoftext|>" in ends.message
    assert len(ends.examples) == 5  # config, generation config, tokenizer, template, last trained token
    assert "last trained token: 151645 <|im_end|>" in ends.examples
    assert {1, 2, 3, 4, 5} == {finding.flaw for finding in report.findings if finding.flaw}
    assert "4 tokens here" in found(report)["result_tags_as_text"].message


def test_the_fix_eos_repairs_it_and_says_so(bench: Bench, tiny_qwen2: Path) -> None:
    report = bench.report(tiny_qwen2, FAIR)
    assert not report.critical
    assert "stop_token_differs" not in found(report)
    told = found(report)["stop_tokens_disagree"]
    assert told.severity == "info"
    assert told.flaw is None
    assert "151645 <|im_end|>, 151643 <|endoftext|>" in told.message


def test_a_base_model_may_never_have_learned_the_end_of_a_turn(
    bench: Bench, tiny_qwen2: Path, tmp_path: Path
) -> None:
    """The fix eos writes the stop token into the files, and nothing into the model."""
    told = found(bench.report(tiny_qwen2, FAIR))["turn_end_unlearned"]
    assert (told.severity, told.count, told.total) == ("warning", 60, 60)
    assert "no file of the base names 151645 <|im_end|> as an end" in told.message
    shares = re.findall(r"(\d\.\d\d) times as long as the median token's \((\w+)\)", told.message)
    assert [role for _, role in sorted(shares, key=lambda share: share[1])] == ["input", "output"]
    assert all(0.5 < float(share) < 2 for share, _ in shares), "random vectors, all alike"
    model = copy_model(tiny_qwen2, tmp_path / "model")
    assert "could not be measured" in found(bench.report(model, FAIR))["turn_end_unlearned"].message
    write_json(model / "generation_config.json", {"eos_token_id": [IM_END, 151643]})
    assert "turn_end_unlearned" not in found(bench.report(model, FAIR))


def test_an_untrained_vector_is_told_by_its_length(tiny_qwen2: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_qwen2, tmp_path / "model")
    weights = load_arrays(model / "model.safetensors")
    for name in ("model.embed_tokens.scales", "model.embed_tokens.biases"):
        weights[name][IM_END] = weights[name][IM_END] * 0.125
    save_safetensors(str(model / "model.safetensors"), weights)
    before, after = (compare_vectors(folder, IM_END, 151665) for folder in (tiny_qwen2, model))
    assert after["input"] == pytest.approx(before["input"] / 8, rel=0.01)
    assert after["output"] == before["output"]


def test_what_is_no_bug_is_not_reported(bench: Bench, tiny_qwen3_moe: Path) -> None:
    """eos 151645 beside [151645, 151643], a padded vocabulary, no bos; 5 bits of a mixture of experts."""
    for fixes in (FAIR, FLAWED):
        report = bench.report(tiny_qwen3_moe, fixes)
        assert not [finding for finding in report.findings if finding.place == "config"]
        assert "untested_bits" not in found(report)
        assert "tags_split" not in found(report)
        assert "result_tags_as_text" not in found(report)  # one token each in Qwen3
        assert bool(report.critical) == (fixes == FLAWED)


@pytest.mark.parametrize(
    ("fix", "expected"),
    [
        ("json", {"result_tags_as_text", "foreign_dialect", "mixed_dialects", "parser_differs"}),
        ("tools", {"rows_without_tools", "evaluation_without_tools"}),
        ("eos", {"stop_token_differs"}),
        ("parser", {"parser_differs"}),
        ("six_bit", set()),
    ],
)
def test_each_fix_left_out_is_found_alone(
    bench: Bench, tiny_qwen2: Path, fix: str, expected: set[str]
) -> None:
    report = bench.report(tiny_qwen2, without(fix))
    assert critical(report) == expected
    assert ("untested_bits" in found(report)) == (fix == "six_bit")
    if fix == "six_bit":  # nearly all is the two matrices of the vocabulary, 151936 x 64 each
        assert found(report)["untested_bits"].message.endswith(" a dense model of 0.0195 billion parameters")
    if fix in ("json", "parser"):
        verb = {"json": "convert the data", "parser": "evaluate"}[fix]
        assert found(report)["parser_differs"].fix.startswith(f"{verb} with the fix {fix}")
        assert " and " not in found(report)["parser_differs"].fix


def test_every_fix_has_its_case_above() -> None:
    assert set(FIXES) == {"json", "tools", "eos", "parser", "six_bit"}


def test_generation_config_without_eos(bench: Bench, tiny_qwen2: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_qwen2, tmp_path / "model")
    write_json(model / "config.json", {"model_type": "qwen2", "eos_token_id": [IM_END, 151643]})
    write_json(model / "generation_config.json", {"do_sample": True, "max_length": 2048})
    assert found(bench.report(model, without("eos")))["generation_config_without_eos"].severity == "warning"
    assert "generation_config_without_eos" not in found(bench.report(model, FAIR))


def test_a_stop_list_of_which_only_the_first_survives(bench: Bench, tiny_qwen2: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_qwen2, tmp_path / "model")
    write_json(model / "generation_config.json", {"eos_token_id": [151643, IM_END]})
    assert critical(bench.report(model, without("eos"))) == {"stop_token_differs"}
    write_json(model / "generation_config.json", {"eos_token_id": [IM_END, 151643]})
    report = bench.report(model, without("eos"))
    assert not report.critical
    told = found(report)["stop_tokens_disagree"]  # config.json and the tokenizer still say 151643
    assert (told.severity, told.count) == ("warning", 2)


# Results as text: the target's template decides, not the number of tokens


def test_text_that_the_targets_template_itself_writes_is_no_flaw(
    bench: Bench, tiny_qwen2: Path, tmp_path: Path
) -> None:
    rendered = render_corpus(bench, tiny_qwen2, tmp_path)
    tags = found(bench.report(tiny_qwen2, without("json"), rendered))["result_tags_as_text"]
    assert (tags.severity, tags.flaw) == ("info", None)


def test_the_same_text_in_other_bytes_is_one(bench: Bench, tiny_qwen2: Path, tmp_path: Path) -> None:
    rendered = render_corpus(bench, tiny_qwen2, tmp_path)
    for path in rendered.glob("*.jsonl"):
        path.write_text(path.read_text("utf-8").replace(r"<tool_response>\n", "<tool_response>"), "utf-8")
    tags = found(bench.report(tiny_qwen2, without("json"), rendered))["result_tags_as_text"]
    assert (tags.severity, tags.flaw) == ("critical", 1)


def render_corpus(bench: Bench, model: Path, place: Path) -> Path:
    """The small corpus as ChatML text that the model's own template has written."""
    options = bench.options(model, FAIR)
    assert options.data is not None
    tokenizer = load_tokenizer(model)
    folder = place / "rendered"
    folder.mkdir()
    for split in FIRST:
        rows = [
            json.loads(line) for line in (options.data / f"{split}.jsonl").read_text("utf-8").splitlines()
        ]
        texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False).rstrip("\n") for row in rows]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(lines), "utf-8")
    return folder


# Templates


def test_a_template_that_drops_tools(bench: Bench, tiny_llama: Path) -> None:
    report = bench.report(tiny_llama, FAIR)
    dropped = found(report)["template_drops_tools"]
    assert dropped.severity == "critical"
    assert "tool definitions and calls" in dropped.message
    assert found(bench.report(tiny_llama, FLAWED))["template_drops_tools"].severity == "warning"
    assert not critical(bench.report(tiny_llama, FAIR, chat_template="chatml_hermes"))


def test_a_preset_that_names_another_dialect_than_its_template(bench: Bench, coder_model: Path) -> None:
    assert not critical(bench.report(coder_model, FAIR, dialect="qwen3_coder"))
    wrong = bench.report(coder_model, FAIR, dialect="hermes")
    assert critical(wrong) == {"template_dialect_differs", "foreign_dialect", "parser_differs"}
    for check in ("template_dialect_differs", "parser_differs"):
        assert "--dialect qwen3_coder" in found(wrong)[check].fix
        assert "with the fix" not in found(wrong)[check].fix, "both fixes are on"


def test_what_templates_do_to_string_arguments(
    bench: Bench, tiny_qwen2: Path, tiny_qwen3_moe: Path, coder_model: Path
) -> None:
    told = found(bench.report(tiny_qwen2, FAIR))["template_encodes_strings"]
    assert told.severity == "info"
    assert "encoded twice" in told.message
    refusing = bench.report(coder_model, FAIR, dialect="qwen3_coder")
    assert "refused" in found(refusing)["template_encodes_strings"].message
    assert "template_encodes_strings" not in found(bench.report(tiny_qwen3_moe, FAIR))


def test_two_templates_in_one_folder(bench: Bench, tiny_qwen2: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_qwen2, tmp_path / "model")
    own = json.loads((model / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    (model / "chat_template.jinja").write_text(own + "\n", "utf-8")
    assert "templates_differ" not in found(bench.report(model, FAIR))
    (model / "chat_template.jinja").write_text(own.replace("# Tools", "# Functions"), "utf-8")
    assert found(bench.report(model, FAIR))["templates_differ"].severity == "warning"
    assert "templates_differ" not in found(bench.report(model, FAIR, chat_template="chatml_hermes"))


def test_a_template_in_the_jinja_file_alone(bench: Bench, tiny_qwen2: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_qwen2, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    (model / "chat_template.jinja").write_text(settings.pop("chat_template"), "utf-8")
    write_json(model / "tokenizer_config.json", settings)
    assert not bench.report(model, FAIR).critical


def test_a_template_whose_end_mark_is_no_token(bench: Bench, tmp_path: Path) -> None:
    report = bench.report(build_bytes_model(tmp_path / "bytes"), FAIR, chat_template="chatml_hermes")
    split = found(report)["end_mark_split"]
    assert split.severity == "critical"
    assert "10 tokens" in split.message


# Rows that went wrong


def asks(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The row with another question."""
    first = next(m for m in row["messages"] if m["role"] == "user")
    return {**row, "messages": [{**m, "content": text} if m is first else m for m in row["messages"]]}


def with_calls(rows: list[dict[str, Any]], change: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """The rows with every call's function changed in place."""
    for row in rows:
        for message in row["messages"]:
            for call in message.get("tool_calls", ()):
                change(call["function"])
    return rows


def rename(function: dict[str, Any]) -> None:
    function["name"] = "run_python"


def stringify(function: dict[str, Any]) -> None:
    function["arguments"] = json.dumps(function["arguments"])


def drop_answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**rows[0], "messages": rows[0]["messages"][:2]}, *rows[1:]]


@cache
def core_query() -> str:
    return load_suite("core20").queries[0].query


DAMAGES: dict[str, tuple[Edit, dict[str, str]]] = {
    "an evaluation query among the rows": (
        lambda rows: [asks(rows[0], core_query().upper()), *rows[1:]],
        {"queries_in_training": "critical"},
    ),
    "an evaluation query about another path": (
        lambda rows: [asks(rows[0], core_query().replace(".py", "_two.py").rstrip("?.!")), *rows[1:]],
        {"queries_near_training": "warning"},
    ),
    "repeated rows": (lambda rows: [*rows, rows[3], rows[3]], {"duplicate_rows": "warning"}),
    "arguments as JSON strings": (
        lambda rows: with_calls(rows, stringify),
        {"string_arguments": "critical", "calls_changed_by_template": "critical"},
    ),
    "a row without an answer": (drop_answers, {"rows_without_assistant": "critical"}),
    "a row far too long": (
        lambda rows: [asks(rows[0], "very " * 3000), *rows[1:]],
        {"rows_too_long": "warning"},
    ),
    "an answer longer than a reply may be": (
        lambda rows: [*rows, say(rows[0], "so " * 600)],
        {"reply_limit": "warning"},
    ),
    "another system turn in one row": (
        lambda rows: [set_system(rows[0], "You sing."), *rows[1:]],
        {"system_message_varies": "warning", "prompts_differ": "warning"},
    ),
    "another system turn in most rows": (
        lambda rows: [*(set_system(row, "You sing.") for row in rows[:40]), *rows[40:]],
        {"system_message_varies": "warning", "prompts_differ": "critical"},
    ),
    "tools missing in some rows": (
        lambda rows: [{**set_system(row, "You help."), "tools": []} for row in rows[:5]] + rows[5:],
        {"rows_without_tools": "critical", "system_message_varies": "warning", "prompts_differ": "warning"},
    ),
    "calls of a tool that no prompt defines": (
        lambda rows: [*with_calls(rows[:40], rename), *rows[40:]],
        {"undefined_calls": "critical"},
    ),
    "tools as JSON text": (
        lambda rows: [{**rows[0], "tools": json.dumps(rows[0]["tools"])}, *rows[1:]],
        {"template_refuses_rows": "critical"},
    ),
    "a call that is cut off": (
        lambda rows: [*rows, say(rows[0], '<tool_call>\n{"name": "execute_code", "argum')],
        {"malformed_calls": "warning"},
    ),
    "direct answers alone": (
        lambda rows: [row for row in rows if not any("tool_calls" in m for m in row["messages"])],
        {"no_calls_trained": "critical"},
    ),
    "messages that the template refuses": (
        lambda rows: [
            {**rows[0], "messages": [{**m, "content": None} for m in rows[0]["messages"]]},
            *rows[1:],
        ],
        {"template_refuses_rows": "critical", "system_message_varies": "warning"},
    ),
    "texts without an end of turn": (
        lambda rows: [
            {"text": f"<|im_start|>user\nq{i}<|im_end|>\n<|im_start|>assistant\na"} for i in range(60)
        ],
        {
            "unended_turns": "critical",
            "no_calls_trained": "critical",
            "prompts_differ": "critical",
            "rows_without_tools": "critical",
            "system_message_varies": "warning",
        },
    ),
}


def say(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The row's question with another answer."""
    return {**row, "messages": [*row["messages"][:2], {"role": "assistant", "content": text}]}


def set_system(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The row with another system turn."""
    return {**row, "messages": [{"role": "system", "content": text}, *row["messages"][1:]]}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_found(bench: Bench, tiny_qwen2: Path, damage: str) -> None:
    edit, expected = DAMAGES[damage]
    report = bench.report(tiny_qwen2, FAIR, edit=edit, max_seq_length=2048, max_tokens=512)
    told = {f.check: f.severity for f in report.findings if f.severity != "info"}
    assert told.pop("turn_end_unlearned") == "warning", "it is a base model, whatever the rows"
    assert told == expected


def test_the_same_question_in_two_splits(bench: Bench, tiny_qwen2: Path, tmp_path: Path) -> None:
    data = tmp_path / "leaky"
    shutil.copytree(bench.small, data)
    first = (data / "train.jsonl").read_text("utf-8").splitlines(keepends=True)[0]
    with (data / "valid.jsonl").open("a", encoding="utf-8") as file:
        file.write(first)
    leak = found(bench.report(tiny_qwen2, FAIR, data))["shared_questions"]
    assert (leak.severity, leak.count, leak.total) == ("warning", 1, 13)
    assert leak.examples[0].startswith("valid.jsonl:13 = train.jsonl:1: ")


@pytest.mark.parametrize(("broken", "severity"), [(3, "warning"), (15, "warning"), (16, "critical")])
def test_rows_that_did_not_convert(
    bench: Bench, tiny_qwen2: Path, tmp_path: Path, broken: int, severity: str
) -> None:
    """60 rows convert: 15 more are a fifth of the data, 16 are above it."""
    data = tmp_path / "rejected"
    shutil.copytree(bench.small, data)
    with (data / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"question": "?"}\n' * (broken - 1) + "{broken\n")
    report = bench.report(tiny_qwen2, FAIR, data)
    finding = found(report)["rows_rejected"]
    assert (finding.severity, finding.count, finding.total) == (severity, broken, 60 + broken)
    assert f"{broken - 1} of them because: no conversation in its columns" in finding.message
    path = Path(finding.message.rpartition("see ")[2])
    assert len(path.read_text("utf-8").splitlines()) == broken
    assert len(finding.examples) == 2


def test_a_suite_without_tool_queries_wants_no_calls(bench: Bench, tiny_qwen2: Path, tmp_path: Path) -> None:
    query = {"id": "d", "category": "concept", "kind": "direct", "query": "What is a tuple?"}
    suite = tmp_path / "direct.json"
    suite.write_text(json.dumps({"name": "direct", "version": 1, "description": "d", "queries": [query]}))
    edit = DAMAGES["direct answers alone"][0]
    report = bench.report(tiny_qwen2, FAIR, edit=edit, suites=(str(suite),))
    assert "no_calls_trained" not in found(report)


CITIES = ("Oslo", "Paris", "Rome", "Bern", "Wien", "Lima", "Kiew", "Riga")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Weather of a city.", "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}  # fmt: skip


def ask_weather(city: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    """A training row with a tool of its own."""
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
    asked = {"role": "user", "content": f"Is it cold in {city}?"}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"messages": [*before, asked, answer], "tools": [WEATHER]}


def write_weather(folder: Path, system: str | None = None) -> tuple[Path, str]:
    """Training rows with a tool of their own, and a suite with the same tool; both may have a system text."""
    before = [{"role": "system", "content": system}] if system else []
    (folder / "rows").mkdir()
    for split, cities in (("train", CITIES[:6]), ("valid", CITIES[6:])):
        lines = [json.dumps(ask_weather(city, before)) + "\n" for city in cities]
        (folder / "rows" / f"{split}.jsonl").write_text("".join(lines))
    accept = [{"function": "get_weather", "arguments": {"city": {"text": "Graz"}}}]
    query = {"id": "a", "query": "Does it rain in Graz?", "messages": before, "accept": accept}
    suite = folder / "weather.jsonl"
    suite.write_text(json.dumps({"tools": [WEATHER]}) + "\n" + json.dumps(query) + "\n")
    return folder / "rows", str(suite)


@pytest.mark.parametrize("system", [None, "You know the weather."])
def test_data_and_a_suite_with_tools_of_their_own_fit(
    system: str | None, bench: Bench, tiny_qwen2: Path, tmp_path: Path
) -> None:
    rows, suite = write_weather(tmp_path, system)
    report = bench.report(tiny_qwen2, FAIR, rows, suites=(suite,))
    told = {finding.check for finding in report.findings if finding.severity != "info"}
    assert told == {"turn_end_unlearned"}, "that of a base model"


def test_other_tools_in_training_than_in_evaluation(bench: Bench, tiny_qwen2: Path, tmp_path: Path) -> None:
    rows, suite = write_weather(tmp_path)
    finding = found(bench.report(tiny_qwen2, FAIR, rows, suites=("core20",)))["prompts_differ"]
    assert (finding.severity, finding.count) == ("critical", 6)
    assert finding.fix == "evaluate on a suite with the tools of these rows: --suites FILE.jsonl"
    finding = found(bench.report(tiny_qwen2, FAIR, suites=(suite,)))["prompts_differ"]
    assert (finding.severity, finding.count) == ("critical", 60)
    assert finding.fix == "evaluate on a suite of Code Mode as well, such as --suites core20"
    assert "prompts_differ" not in found(bench.report(tiny_qwen2, FAIR, suites=(suite, "core20")))
    missing = found(bench.report(tiny_qwen2, without("tools"), rows, suites=(suite,)))
    assert missing["evaluation_without_tools"].severity == "critical"


def test_a_list_of_rejected_rows_that_is_none(bench: Bench, tiny_qwen2: Path) -> None:
    options = bench.options(tiny_qwen2, FAIR)
    assert options.data is not None
    (options.data / "rejected.jsonl").write_text("[1]\n")
    with pytest.raises(StageError, match=r"rejected\.jsonl is not what convert_data writes"):
        audit(options)


def test_string_arguments_do_less_harm_where_the_template_takes_them(
    bench: Bench, tiny_qwen3_moe: Path
) -> None:
    report = bench.report(tiny_qwen3_moe, FAIR, edit=lambda rows: with_calls(rows, stringify))
    assert found(report)["string_arguments"].severity == "warning"


# The stage


def test_a_second_run_is_up_to_date_and_says_the_same(bench: Bench, tiny_qwen2: Path) -> None:
    options = bench.options(tiny_qwen2, FLAWED)
    first, second = audit(options), audit(options)
    assert (first.up_to_date, second.up_to_date) == (False, True)
    assert first.lines == second.lines
    assert first.facts == second.facts
    manifest = require_artifact(first.folder, "audit", "")
    assert (manifest.seed, manifest.stop_ids) == (None, [END_OF_TEXT])  # the flawed plan's
    assert manifest.template == template_hash(load_tokenizer(tiny_qwen2))
    assert {path.name for path in first.folder.iterdir()} == {"audit.json", "audit.md", "manifest.json"}
    other = replace(options, fixes=("eos",))
    with pytest.raises(StageError, match="was made with fixes="):
        audit(other)


def findings_told(said: str) -> list[str]:
    """The lines of a terminal that tell a finding."""
    lines = [line.strip() for line in said.splitlines()]
    return [line for line in lines if line.startswith(("critical ", "warning ", "info "))]


def test_critical_findings_are_no_error(
    bench: Bench, tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = bench.options(tiny_qwen2, FLAWED)
    arguments = ["--model", str(tiny_qwen2), "--fixes", "flawed", "--data", str(options.data), "--json"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert answer["flaws"] == [1, 2, 3, 4, 5]
    lines = findings_told(output.err)
    severities = [line.split()[0] for line in lines]
    assert severities == sorted(severities, key=["critical", "warning", "info"].index)
    assert severities.count("critical") == len(answer["critical"]) > 0
    assert [". To do: " in line for line in lines] == [severity != "info" for severity in severities]
    assert main([*arguments, "--check"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) | {"seconds": 0} == answer | {"seconds": 0, "up_to_date": True}
    assert findings_told(again.err) == lines


def test_other_suites_are_looked_at_without_force(
    bench: Bench, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An audit takes seconds: a trained arm whose evaluation gets one more suite needs no --force for it."""
    options = bench.options(tiny_qwen2, FAIR)
    place = str(options.output("audit"))
    words = ["--model", str(tiny_qwen2), "--data", str(options.data), "--out", place]
    for suites in ("core20", "core20,situations"):
        asked = [*words, "--suites", suites]
        assert [main([*asked, "--check"]), main(asked), main([*asked, "--check"])] == [TO_MAKE, 0, 0]
        audited = read_record(options.output("audit") / REPORT, AuditReport).suites
        assert audited == {name: load_suite(name).fingerprint for name in suites.split(",")}
    capsys.readouterr()
    assert main([*words, "--suites", "core20", "--max-tokens", "9", "--check"]) == 2
    assert "--force replaces it" in capsys.readouterr().err


def test_no_converted_data(tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tiny_qwen2), "--data", str(tmp_path), "--out", str(tmp_path / "audit")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"audit: {tmp_path} holds files that are not an output of convert_data: give ")
    assert "nox -s convert_data" in error
    assert "\n" not in error


@pytest.mark.parametrize("line", ["{broken", '{"neither": 1}', "[1]"])
def test_a_broken_line_is_named(bench: Bench, tiny_qwen2: Path, line: str) -> None:
    options = bench.options(tiny_qwen2, FAIR)
    assert options.data is not None
    with (options.data / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(StageError, match=r"train\.jsonl:61 is not a converted row"):
        audit(options)


# The real training set of the first experiment


@needs_punie
def test_the_real_set_as_it_was(bench: Bench, tiny_qwen2: Path) -> None:
    report = bench.report(tiny_qwen2, FLAWED, PUNIE)
    by_name = found(report)
    assert {finding.flaw for finding in report.findings if finding.flaw} == {1, 2, 3, 4, 5}
    assert (by_name["result_tags_as_text"].count, by_name["result_tags_as_text"].total) == (398, 685)
    assert "420 qwen3_coder, 62 bare_python" in by_name["foreign_dialect"].message
    assert "3 dialects" in by_name["mixed_dialects"].message
    assert by_name["rows_without_tools"].count == 685
    assert by_name["stop_token_differs"].count == 685


@needs_punie
def test_the_real_set_converted(bench: Bench, tiny_qwen2: Path) -> None:
    report = bench.report(tiny_qwen2, FAIR, PUNIE)
    assert critical(report) == set()
    assert found(report)["shared_questions"].severity == "warning"  # no conversion can part its splits
    assert not [finding for finding in report.findings if finding.flaw]


# Models made for a test


@pytest.fixture(scope="module")
def coder_model(bench: Bench, tiny_qwen3_moe: Path) -> Path:
    """The tiny mixture of experts with the tokenizer and template of Qwen3-Coder."""
    folder = copy_model(tiny_qwen3_moe, bench.root / "coder")
    build_qwen_tokenizer(folder, "qwen3_coder")
    return folder


def copy_model(source: Path, target: Path) -> Path:
    """A model folder without its weights, which the audit does not read."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    return target


def build_bytes_model(folder: Path) -> Path:
    """A model whose tokenizer knows bytes alone."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(folder / "config.json", {"model_type": "llama", "eos_token_id": 0})
    return folder


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), "utf-8")
