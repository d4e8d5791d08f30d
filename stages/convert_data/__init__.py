"""Turn legacy training rows into neutral conversations that any chat template can write.

Calls in any known dialect become structured tool calls, tool results become tool turns, and with
the fix `tools` every row gets the tool definitions that evaluation shows as well.

Reads: a folder with `train.jsonl`, `valid.jsonl` and, if there is one, `test.jsonl`; rows are
`{"text": ChatML}` or `{"messages": [...]}`.
Writes: the same files with rows `{"messages", "tools"}` in OpenAI shape (without the fix `json`:
the legacy text as it is), `rejected.jsonl` with line numbers and reasons, `card.json`, `card.md`,
`manifest.json`.
"""
