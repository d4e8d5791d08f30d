"""Quantize the fused model: 6 bits with the fix `six_bit`, 5 without; 8 and others by `--bits`.

Reads: the output of fuse.
Writes: a quantized model folder with its tokenizer, `manifest.json`.
"""
