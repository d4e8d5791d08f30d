"""The shipped corpus: its counts, its form, its code, its answers, and that nothing leaks.

The rows are read here with a reader of the test's own, so that the builder is not its own judge.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from rapidfuzz import fuzz, process

from stages.core.errors import StageError
from stages.core.suite import load_suite
from stages.core.tools import FUNCTIONS

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "datasets" / "corpus"
BUILD = ROOT / "datasets" / "build"
SYSTEM = "You are a coding assistant for Python projects."
TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>", re.DOTALL)
XML = re.compile(
    r"<tool_call><function=execute_code>(\n?)<parameter=code>\n(.*?)\n</parameter>(\n?)</function></tool_call>",
    re.DOTALL,
)
BARE = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
RESPONSE = re.compile(r"<tool_response>\n(.*)\n</tool_response>", re.DOTALL)
PATH = re.compile(r"[\w.*-]*/[\w./*-]*|\b[\w-]+\.(?:py|md|toml|txt|ini|json|csv|yml)\b")


@dataclass(frozen=True)
class Row:
    """One row: its turns, the code of its calls by dialect, what the tools answered."""

    text: str
    turns: tuple[tuple[str, str], ...]

    @property
    def system(self) -> str | None:
        return self.turns[0][1] if self.turns[0][0] == "system" else None

    @property
    def query(self) -> str:
        return next(content for role, content in self.turns if role == "user")

    @property
    def replies(self) -> list[str]:
        return [content for role, content in self.turns if role == "assistant"]

    @property
    def xml(self) -> list[str]:
        return [found.group(2) for reply in self.replies for found in XML.finditer(reply)]

    @property
    def bare(self) -> list[str]:
        return [found.group(1) for reply in self.replies for found in BARE.finditer(reply)]

    @property
    def codes(self) -> list[str]:
        return self.xml + self.bare

    @property
    def responses(self) -> list[str]:
        return [found.group(1) for _, content in self.turns if (found := RESPONSE.fullmatch(content))]


@cache
def read_split(split: str) -> tuple[Row, ...]:
    lines = (CORPUS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line) for line in lines]
    assert all(set(row) == {"text"} for row in texts)
    return tuple(Row(row["text"], tuple(TURN.findall(row["text"]))) for row in texts)


def read_all() -> list[Row]:
    return [row for split in ("train", "valid", "test") for row in read_split(split)]


def calls_of(code: str) -> list[ast.Call]:
    """The calls of Code Mode functions in a piece of code, in order."""
    return [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
    ]


def function_counts(rows: tuple[Row, ...]) -> Counter[str]:
    names = [call.func.id for row in rows for code in row.codes for call in calls_of(code)]  # type: ignore[attr-defined]
    return Counter(names)


def arguments_of(call: ast.Call) -> list[str]:
    return [ast.literal_eval(argument) for argument in call.args]


def normalise(query: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", query.lower()).split())


def mask(query: str) -> str:
    """The wording without its paths."""
    return normalise(PATH.sub("pathword", query))


# --- counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "rows", "xml", "bare", "responses", "without_system", "inline"),
    [("train", 685, 419, 62, 398, 80, 27), ("valid", 85, 51, 9, 46, 10, 5), ("test", 87, 58, 9, 50, 10, 8)],
)
def test_counts(
    split: str, rows: int, xml: int, bare: int, responses: int, without_system: int, inline: int
) -> None:
    found = read_split(split)
    assert len(found) == rows
    assert sum(len(row.xml) for row in found) == xml
    assert sum(len(row.bare) for row in found) == bare
    assert sum("<tool_response>" in row.text for row in found) == responses
    assert sum(row.system is None for row in found) == without_system
    assert sum("execute_code><parameter" in row.text for row in found) == inline


def test_the_flaws_of_the_legacy_data_are_there() -> None:
    train = read_split("train")
    bare = [row for row in train if row.bare]
    assert all(row.system is None and not row.responses and not row.xml for row in bare)
    assert sum(len(row.xml) == 2 for row in train) == 4
    systems = Counter(row.system for row in train)
    assert systems[SYSTEM] == 599
    assert len(systems) == 3  # the usual text, none, and one other
    assert min(systems.values()) == 6


def test_functions_are_in_balance() -> None:
    counts = function_counts(read_split("train"))
    assert set(counts) == set(FUNCTIONS)
    assert min(counts.values()) >= 0.1 * counts.total()
    for split in ("valid", "test"):
        assert set(function_counts(read_split(split))) == set(FUNCTIONS)


def test_card_has_the_counts_of_the_functions() -> None:
    counts = [function_counts(read_split(split)) for split in ("train", "valid", "test")]
    card = (CORPUS / "README.md").read_text(encoding="utf-8")
    for name in FUNCTIONS:
        assert f"| {name} | {' | '.join(str(count[name]) for count in counts)} |" in card


def test_enough_direct_answers() -> None:
    direct = [row for row in read_split("train") if not row.codes]
    assert len(direct) == 208
    assert len({row.replies[-1] for row in direct}) >= 180
    assert sum(bool(re.search(r"pytest|ruff|lint|type check|test|file", row.query)) for row in direct) >= 40


# --- form -------------------------------------------------------------------------------------------


def test_rows_are_whole_chatml() -> None:
    for row in read_all():
        again = "\n".join(f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in row.turns)
        assert again == row.text
        roles = [role for role, _ in row.turns if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(content.strip() == content and content for _, content in row.turns)


def test_every_tag_belongs_to_a_call() -> None:
    for row in read_all():
        for reply in row.replies:
            rest = BARE.sub("", XML.sub("", reply))
            assert not re.search("tool_call|<function|<parameter", rest), reply
        assert len(row.responses) == row.text.count("<tool_response>")
        assert len(row.responses) in (0, len(row.xml))
        if row.responses:
            assert not XML.search(row.replies[-1])


def test_xml_layouts_are_not_mixed_in_one_call() -> None:
    for row in read_all():
        for reply in row.replies:
            assert all(found.group(1) == found.group(3) for found in XML.finditer(reply))


# --- code -------------------------------------------------------------------------------------------


def test_code_calls_only_what_exists() -> None:
    for row in read_all():
        for code in row.codes:
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Call):
                    assert isinstance(node.func, ast.Name), code
                    assert node.func.id in {*FUNCTIONS, "print"}, code
            for call in calls_of(code):
                assert not call.keywords
                name = call.func.id  # type: ignore[attr-defined]
                assert len(arguments_of(call)) == len(FUNCTIONS[name].parameters), code
            assert "print(" in code
            assert len(code.splitlines()) <= 5, code


def test_fields_of_results_exist() -> None:
    fields = {
        field
        for function in FUNCTIONS.values()
        if function.result
        for name, info in function.result.model_fields.items()
        for field in [
            name,
            *getattr(next(iter(getattr(info.annotation, "__args__", ())), None), "model_fields", ()),
        ]
    }
    used = {
        node.attr
        for row in read_all()
        for code in row.codes
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
    }
    assert used <= fields
    assert {"error_count", "violation_count", "fixable_count", "passed", "failed"} <= used


def test_paths_are_copied_from_the_query() -> None:
    for row in read_all():
        for code in row.codes:
            for call in calls_of(code):
                for argument in arguments_of(call)[: 1 if call.func.id == "run_command" else 2]:  # type: ignore[attr-defined]
                    if call.func.id == "run_command":  # type: ignore[attr-defined]
                        parts = [part for part in argument.split() if "/" in part or part.endswith(".py")]
                        assert all(part.strip("\"'*") in row.query for part in parts), row.query
                    elif argument == ".":
                        assert not re.search(r"\w/\w", row.query), row.query
                    else:
                        assert argument in row.query, (argument, row.query)


def test_many_paths_and_no_favourites() -> None:
    paths = [
        arguments_of(call)[0]
        for row in read_split("train")
        for code in row.codes
        for call in calls_of(code)
        if call.func.id != "run_command"  # type: ignore[attr-defined]
    ]
    named = Counter(path for path in paths if path != ".")
    assert len(named) >= 200
    assert max(named.values()) <= 20


# --- answers ----------------------------------------------------------------------------------------


def test_answers_say_what_the_tools_said() -> None:
    checked: Counter[str] = Counter()
    for row in read_all():
        if len(row.xml) != 1 or not row.responses:
            continue
        first, answer = row.responses[0].splitlines()[0], row.replies[-1]
        code = row.xml[0]
        if found := re.fullmatch(r"(\d+) (errors|violations)", first):
            number = int(found.group(1))
            assert (
                answer.startswith(f"{number} ")
                if number
                else re.match("No |The type|Ruff finds nothing", answer)
            )
        elif found := re.fullmatch(r"(\d+) passed (\d+) failed", first):
            passed, failed = map(int, found.groups())
            start = f"{failed} of {passed + failed} tests" if failed else rf"(All green: )?{passed} test"
            assert re.match(start, answer), answer
        elif code.startswith("print(write_file("):
            path, content = arguments_of(calls_of(code)[0])
            assert first == f"Wrote {len(content)} characters to {path}"
            assert path in answer
        elif code.startswith("print(read_file("):
            rest = re.search(r"\.\.\. \((\d+) more lines\)$", row.responses[0])
            shown = len(row.responses[0].splitlines()) - bool(rest)
            total = shown + (int(rest.group(1)) if rest else 0)
            assert f"{total} lines" in answer, answer
        else:
            continue
        checked[code.split("(")[0]] += 1
    assert sum(checked.values()) >= 350


def test_responses_are_the_same_on_every_machine() -> None:
    for row in read_all():
        for response in row.responses:
            assert len(response.splitlines()) <= 9
            assert not re.search(
                r"0x[0-9a-f]{6}|\d+\.\d+ ?s\b|/tmp|/home|/root|\\\\|No such file|Traceback", response
            ), response


# --- leakage ----------------------------------------------------------------------------------------


def test_no_query_is_used_twice() -> None:
    queries = [normalise(row.query) for row in read_all()]
    assert len(queries) == 857
    assert [query for query, times in Counter(queries).items() if times > 1] == []


def said_in(suite: str) -> list[str]:
    """Every turn of the user's in a suite."""
    turns = [turn for query in load_suite(suite).queries for turn in query.turns]
    return [turn["content"] for turn in turns if turn["role"] == "user"]


@pytest.mark.parametrize(("name", "turns"), [("core20", 20), ("extended", 200), ("situations", 65)])
def test_no_suite_query_is_in_the_corpus(name: str, turns: int) -> None:
    corpus = {normalise(row.query) for row in read_all()}
    said = said_in(name)
    assert len(said) == turns
    assert [text for text in said if normalise(text) in corpus] == []


@pytest.mark.parametrize("name", ["core20", "extended", "situations"])
def test_no_suite_query_is_close_to_the_corpus(name: str) -> None:
    corpus = sorted({mask(row.query) for row in read_all()})
    close = [
        (text, near[0])
        for text in said_in(name)
        if (near := process.extractOne(mask(text), corpus, scorer=fuzz.token_sort_ratio, score_cutoff=85))
    ]
    assert close == []


def test_no_answer_to_a_direct_suite_question_is_a_row() -> None:
    """Direct questions of the suites are other questions, not the corpus's in other words."""
    corpus = sorted({normalise(row.query) for row in read_all() if not row.codes})
    suites = [load_suite(name) for name in ("core20", "extended", "situations")]
    direct = [query.query for suite in suites for query in suite.queries if query.kind == "direct"]
    close = [
        (query, near[0])
        for query in direct
        if (
            near := process.extractOne(
                normalise(query), corpus, scorer=fuzz.token_sort_ratio, score_cutoff=88
            )
        )
    ]
    assert close == []


# --- builder ----------------------------------------------------------------------------------------


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The builder's main module under a name of its own; its folder is on the path only here."""
    monkeypatch.syspath_prepend(str(BUILD))
    spec = importlib.util.spec_from_file_location("corpus_builder", BUILD / "__main__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_check_names_the_first_difference(builder: ModuleType, tmp_path: Path) -> None:
    rows = ['{"text": "a"}', '{"text": "b"}', '{"text": "c"}']
    path = tmp_path / "train.jsonl"
    assert builder.first_difference(path, rows) == "is missing"
    builder.write_rows(path, rows)
    assert builder.first_difference(path, rows) is None
    assert (
        builder.first_difference(path, rows[:2]) == 'row 3 differs\n  committed: {"text": "c"}\n  built:     '
    )
    assert "row 2 differs" in builder.first_difference(path, [rows[0], '{"text": "x"}', rows[2]])
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert builder.first_difference(path, rows) == "has 2 line ends, the builder makes 3"
    assert [child.name for child in tmp_path.iterdir()] == ["train.jsonl"]


def test_card_names_the_tools_of_the_plan() -> None:
    plan = tomllib.loads((BUILD / "phrases" / "plan.toml").read_text(encoding="utf-8"))
    card = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert set(plan["tools"]) == {"ruff", "pytest", "ty"}
    assert all(f"{name} {version}" in card for name, version in plan["tools"].items())


def test_another_tool_version_is_refused_in_one_line(builder: ModuleType) -> None:
    with pytest.raises(
        StageError, match=r"^the corpus needs ruff 0\.0\.1, found [\d.]+: install ruff==0\.0\.1$"
    ):
        sys.modules["runners"].check_tools({"ruff": "0.0.1"})
    with pytest.raises(StageError, match="found none"):
        sys.modules["runners"].check_tools({"no-such-tool": "1"})


def test_runners_find_the_planted_faults(builder: ModuleType, tmp_path: Path) -> None:
    scratch, runners = sys.modules["scratch"], sys.modules["runners"]
    layouts = scratch.load_layouts(ROOT / "datasets" / "projects", BUILD / "phrases" / "layouts.toml")
    assert len(layouts) == 42
    (shop,) = [layout for layout in layouts if layout.name == "shop-1"]
    shelf = runners.Workshop(scratch.Scratch(tmp_path).shared(shop, history=False), {})
    types, lint, tests = shelf.typecheck("."), shelf.ruff_check("src/coupon.py"), shelf.pytest_run(".")
    assert [(error.file, error.line) for error in types.errors] == [
        ("src/basket.py", 18),
        ("src/coupon.py", 12),
    ]
    assert (lint.violation_count, lint.violations[0].code, lint.success) == (1, "E711", False)
    assert (tests.passed, tests.failed, tests.skipped) == (5, 2, 0)
    assert shelf.execute("for n in '1234':\n    print('line', n)", 2) == "line 1\nline 2\n... (2 more lines)"
    assert shelf.write_file("notes.md", "hello") == "Wrote 5 characters to notes.md"
    assert shelf.read_file("notes.md") == "hello"


def test_builder_makes_the_committed_corpus() -> None:
    run = subprocess.run(
        [sys.executable, str(BUILD), "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_datasets_folder_does_not_hide_the_library() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
