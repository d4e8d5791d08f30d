"""Turn legacy training rows into neutral conversations that any chat template can write.

Calls in any known dialect become structured tool calls, tool results become tool turns, and with the fix
`tools` every row gets the tool definitions that evaluation shows as well: its own, those given with
`--tools`, Code Mode's, or what is inferred from the calls.

Reads: a folder with the splits train, valid and, if there is one, test; one file; or a data set of the hub.
JSON lines, JSON arrays (both also as gz or zst) or Parquet; rows are ChatML or Llama-3 text, OpenAI
messages, ShareGPT conversations, prompt and completion, instruction and output, or query and answers.
Writes: `train.jsonl` and the others (in shards where they are long) with rows `{"messages", "tools"}` in
OpenAI shape (without the fix `json`: the legacy text as it is), `rejected.jsonl` with line numbers and
reasons, `duplicates.jsonl` with `--dedup`, `card.json`, `card.md`, `tools.json` where tools were given or
inferred, `tools_review.md` where they were inferred, `rendered/` with `--render`, `manifest.json`.
"""
