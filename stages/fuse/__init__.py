"""Fuse the adapter into the base model, with the right stop tokens.

The base is dequantized first: on a packed 4-bit base the adapter's small changes would be rounded
away. With the fix `eos` the fused model stops at what ends an assistant's turn in training, in
`config.json`, `generation_config.json` and the tokenizer alike; without it, at the base's id alone.

Reads: the output of train and the base model.
Writes: a model folder in 16 bits with its tokenizer and chat template, `manifest.json`.
"""
