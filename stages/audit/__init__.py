"""Look at one arm's whole set-up before hours are spent, and name what is wrong with it.

Every check is one function that looks at the converted data, the tokenizer, the chat template, the
model's config files or the evaluation plan. A critical finding does not stop the run: it makes the
verdict inconclusive, because a set-up with such a flaw measures the flaw.

Reads: the output of convert_data, the base model's config, tokenizer and chat template, the
preset's plan (parser, prompt, suites, bits, stop tokens).
Writes: `audit.json` (every finding with its count, examples and what to do; every check that ran),
`audit.md`, `manifest.json`.
"""
