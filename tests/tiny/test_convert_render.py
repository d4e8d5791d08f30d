"""Rows as the target's own chat template writes them, and their tokens: real templates and tokenizers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.convert_data.offers import ConvertContext
from stages.convert_data.rendering import find_target, measure_tokens, write_text
from stages.convert_data.request import Request
from stages.convert_data.rows import convert_row
from stages.convert_data.stage import CORPUS, convert_data
from stages.convert_data.tokens import SAMPLE, count_tokens
from stages.core.chat import Tool, ToolCall
from stages.core.chatml import split_chatml
from stages.core.cli import Options
from stages.core.dialects import parse_reply
from stages.core.embedded import build_embedded_tokenizer
from stages.core.errors import StageError
from stages.core.fixes import FAIR
from stages.core.preset import load_preset
from stages.core.render import encode_text, render_row
from stages.core.tokenizer import load_tokenizer
from tests.models import BuiltOnce, Family
from tests.pipeline import cut_corpus
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
SETUP = load_preset("smol").model
DIALECT = {"qwen2.5": "hermes", "qwen3": "hermes", "qwen3_coder": "qwen3_coder"}
SEARCH = Tool(
    "search",
    "Find products.",
    {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": "integer"},
            "where": {"type": "object"},
        },
    },
)
CALLS = [
    ToolCall("search", {"query": 'tea\n  <b>"x"</b>', "limit": 30}),
    ToolCall("search", {"query": "02134", "where": {"a": [1, None, "é"]}}),
]


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))


def model_folder(tokenizer: Path, folder: Path) -> Path:
    """A model folder that has all but the weights."""
    shutil.copytree(tokenizer, folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return folder


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def spoken_calls(text: str, dialect: str, tools: list[Any]) -> list[ToolCall]:
    turns = [turn.text for turn in split_chatml(text) if turn.role == "assistant"]
    return [call for turn in turns for call in parse_reply(turn, dialect, tools).calls]


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3", "qwen3_coder"])
def test_what_the_template_writes_is_read_as_what_was_meant(
    family: Family, built: BuiltOnce, tmp_path: Path
) -> None:
    own = {
        "messages": [
            {"role": "user", "content": "Tea?"},
            {
                "role": "assistant",
                "content": "Two.",
                "tool_calls": [
                    {"function": {"name": c.name, "arguments": json.dumps(c.arguments)}} for c in CALLS
                ],
            },
            {"role": "tool", "content": "5"},
            {"role": "tool", "content": "6"},
            {"role": "assistant", "content": "Eleven."},
        ],
        "tools": [SEARCH.to_json()],
    }
    lines = [convert_row(own, ConvertContext(SETUP, FAIR, ())).line]
    lines += [convert_row(row, ConvertContext(SETUP, FAIR)).line for row in read_rows(CORPUS / "valid.jsonl")]
    rows = [json.loads(line) for line in lines]
    folder = model_folder(built.tokenizer(family), tmp_path / "model")
    target = find_target(str(folder))
    tokenizer = load_tokenizer(folder, load_preset(str(folder)).model)
    texts = [json.loads(write_text(row, target))["text"] for row in rows]
    assert len(texts) == len(rows) == 86
    for row, text in zip(rows, texts, strict=True):
        assert text == render_row(row, tokenizer)
        wanted = [
            ToolCall(call["function"]["name"], call["function"]["arguments"])
            for message in row["messages"]
            for call in message.get("tool_calls", ())
        ]
        assert spoken_calls(text, DIALECT[family], row["tools"]) == wanted


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3_coder"])
def test_rendered_text_converts_back_to_the_same_row(family: Family, built: BuiltOnce) -> None:
    """Text that a template wrote, tools in its system turn included, is a source like any other."""
    tokenizer = load_tokenizer(built.tokenizer(family))
    for raw in read_rows(CORPUS / "valid.jsonl"):
        row = convert_row(raw, ConvertContext(SETUP, FAIR)).row
        again = convert_row({"text": render_row(row, tokenizer)}, ConvertContext(SETUP, FAIR)).row
        assert again == row


def test_token_statistics_are_those_of_the_rows(built: BuiltOnce, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(built.tokenizer("qwen2.5"))
    context = ConvertContext(SETUP, FAIR)
    lines = [convert_row(row, context).line for row in read_rows(CORPUS / "valid.jsonl")]
    for name, part in (("a", lines[:40]), ("b", lines[40:])):
        (tmp_path / name).write_bytes(b"".join(part))
    stats = count_tokens({"valid": [tmp_path / "a", tmp_path / "b"]}, tokenizer, 400)["valid"]
    lengths = sorted(len(encode_text(render_row(json.loads(line), tokenizer), tokenizer)) for line in lines)
    assert (stats.rows, stats.measured, stats.refused) == (85, 85, 0)
    assert stats.mean == pytest.approx(sum(lengths) / 85, abs=0.05)
    assert (stats.p50, stats.p95, stats.longest) == (lengths[42], lengths[80], lengths[-1])
    assert stats.over == sum(length > 400 for length in lengths)


def test_large_data_is_sampled_evenly(built: BuiltOnce, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(built.tokenizer("qwen2.5"))
    path = tmp_path / "rows"
    path.write_bytes(b"".join(b'{"text": "%s"}\n' % (b"a " * (i % 7)) for i in range(3 * SAMPLE - 5)))
    stats = count_tokens({"train": [path]}, tokenizer, 1000)["train"]
    assert stats.rows == 3 * SAMPLE - 5
    assert SAMPLE - 2 <= stats.measured <= SAMPLE
    assert (stats.longest, stats.over) == (7, 0)


def test_what_is_not_on_this_machine_is_said_and_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"text": "a"}\n')
    said = measure_tokens({"train": [path]}, load_preset("7b"))
    assert (
        said
        == "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit is not in the Hugging Face cache of this machine"
    )
    with pytest.raises(StageError, match=r"no tokenizer that loads|no chat template"):
        write_text({"messages": []}, find_target(str(bare_folder(tmp_path / "bare"))))
    with pytest.raises(StageError, match="unknown model 'gone'"):
        find_target("gone")


def bare_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_template_that_refuses_a_row_is_named(built: BuiltOnce, tmp_path: Path) -> None:
    folder = model_folder(built.tokenizer("qwen2.5"), tmp_path / "model")
    for path in (folder / "tokenizer_config.json", folder / "chat_template.jinja"):
        if path.name.endswith("jinja"):
            path.write_text("{{ raise_exception('two systems') if messages|length > 2 else 'x' }}")
        else:
            config = json.loads(path.read_text("utf-8"))
            config.pop("chat_template", None)
            path.write_text(json.dumps(config))
    data = tmp_path / "data"
    data.mkdir()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for split, counts in (("train", (1, 2)), ("valid", (1,))):
        rows = [json.dumps({"messages": turns * count}) + "\n" for count in counts]
        (data / f"{split}.jsonl").write_text("".join(rows))
    options = Options(load_preset("smol"), ("json",), data=data, out=tmp_path / "out")
    with pytest.raises(StageError, match=r"train\.jsonl, row 2: the chat template of .* two systems"):
        convert_data(options, Request(render=str(folder)))


def test_the_embedded_tokenizer_needs_no_mlx(embedded_model: Path, tmp_path: Path) -> None:
    build_embedded_tokenizer(tmp_path / "alone")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "alone" / name).read_bytes() == (embedded_model / name).read_bytes()
    data = cut_corpus(tmp_path / "data", {"train": (1, 2), "valid": (0,)})
    code = (
        "import sys; sys.modules.update({'mlx': None, 'mlx_lm': None, 'torch': None}); "
        "from stages.convert_data.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--render", "smol"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "out" / "card.json").read_bytes())
    assert card["tokens"]["train"]["measured"] == 2
    assert len(read_rows(tmp_path / "out" / "rendered" / "train.jsonl")) == 2


def test_requests_reach_the_output(built: BuiltOnce, tmp_path: Path) -> None:
    """Given tools, rendered text and removed duplicates in one run."""
    row = {"messages": [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "So."}]}
    more = {"messages": [{"role": "user", "content": "Milk?"}, {"role": "assistant", "content": "No."}]}
    data = tmp_path / "data"
    data.mkdir()
    for name, rows in (("train", [row, more, more, {"bad": 1}]), ("valid", [row])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([SEARCH.to_json()]))
    folder = model_folder(built.tokenizer("qwen2.5"), tmp_path / "model")
    request = Request(tools=tools, render=str(folder), dedup=True)
    options = Options(load_preset(str(folder)), FAIR, data=data, out=tmp_path / "out")
    outcome = convert_data(options, request)
    assert outcome.facts == {
        "train": {"rows": 4, "converted": 3, "rejected": 1, "dropped": 2},
        "valid": {"rows": 1, "converted": 1, "rejected": 0},
    }
    (kept,) = read_rows(tmp_path / "out" / "train.jsonl")
    assert kept["tools"] == [SEARCH.to_json()]
    assert kept["messages"][1]["content"] == "Milk?"
    (rendered,) = read_rows(tmp_path / "out" / "rendered" / "train.jsonl")
    assert '"name": "search"' in rendered["text"]
    assert json.loads((tmp_path / "out" / "tools.json").read_bytes()) == [SEARCH.to_json()]
    assert convert_data(options, request).up_to_date
    with pytest.raises(StageError, match="dedup"):
        convert_data(options, Request(tools=tools, render=str(folder)))
