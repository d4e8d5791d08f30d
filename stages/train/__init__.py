"""Fine-tune the model on the converted rows: LoRA, DoRA, or all weights of the last layers.

The loss counts every assistant's turn, its calls and its end token, and nothing else. A run that
was stopped goes on from its last checkpoint as if it had never stopped: on a CPU to the same bytes, with
the same number of processes.

`--seeds 0,1,2` trains with each seed, one after the other, each with an output of its own (in
FOLDER/seedN with `--out FOLDER`).

`--ranks N` shares the work between N processes of this machine, `--hosts 10.0.0.1,10.0.0.2` between
machines that mlx.launch reaches over ssh without a password (`--backend ring`, `mpi` or `nccl`); each
needs this project, the same packages, data and model, in the same places. The losses are those of one
process, the adapter's last bits are not. The first machine writes the output.

Reads: the output of convert_data (`train.jsonl`, `valid.jsonl`) and the base model.
Writes: `adapters.safetensors` and `adapter_config.json` in mlx-lm's format, `log.jsonl` with the
losses (of training every 10 steps and at the end, and of every validation), `checkpoints/`,
`manifest.json`. As long as it runs they are in the hidden folder `.NAME.partial` beside the output `NAME`.
"""
