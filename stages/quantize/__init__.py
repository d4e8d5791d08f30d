"""Quantize the fused model: 6 bits with the fix `six_bit`, 5 without.

`--bits` says another number with the fix, `--legacy-bits` without it.

Reads: the output of fuse, and the base model where it is on this machine.
Writes: a quantized model folder with its tokenizer, `manifest.json`, which says what rounding has left of
the adapter's change of the weights.
"""
