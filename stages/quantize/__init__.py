"""Quantize the fused model: 6 bits with the fix `six_bit`, 5 without.

`--bits` says another number with the fix, `--legacy-bits` without it.

Reads: the output of fuse.
Writes: a quantized model folder with its tokenizer, `manifest.json`.
"""
