"""Fine-tune the model with LoRA on the converted rows.

The loss counts every assistant's turn, its calls and its end token, and nothing else. A run that
was stopped goes on from its last checkpoint.

Reads: the output of convert_data (`train.jsonl`, `valid.jsonl`) and the base model.
Writes: `adapters.safetensors` and `adapter_config.json` in mlx-lm's format, `log.jsonl` with the
losses, `checkpoints/`, `manifest.json`.
"""
