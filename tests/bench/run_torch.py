"""The side of the training benchmark that is torch with peft: `TASK`. Its figures are the last line."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stages.core.blas import count_cpus
from stages.core.platform import peak_memory_gb
from stages.core.records import read_record
from tests.bench.task import Figures, Task

BETAS, EPS = (0.9, 0.999), 1e-8  # MLX's, and torch's own


def run_torch(task: Task) -> Figures:
    """The same steps with the usual means of torch: padded rows, labels of -100, AdamW."""
    torch.set_num_threads(count_cpus())
    model = load_peft(task)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=BETAS, eps=EPS, weight_decay=0.0)
    losses, started = [], time.perf_counter()
    for number, rows in enumerate(task.order):
        tokens, labels = pad_rows(task, rows)
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        step_as_mlx(optimizer, task.rates[number], number + 1)
        losses.append(loss.item())
    return Figures(
        losses=losses,
        tokens=sum(len(task.rows[row].tokens) for rows in task.order for row in rows),
        seconds=time.perf_counter() - started,
        peak_gb=peak_memory_gb(),
    )


def load_peft(task: Task) -> Any:
    """The model with a LoRA of the same shape, scale and values."""
    setup = task.setup
    weights = load_file(task.adapter)
    model: Any = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    count = model.config.num_hidden_layers
    config = LoraConfig(
        r=setup.rank,
        lora_alpha=setup.scale * setup.rank,  # peft divides by the rank
        target_modules=sorted({name.split(".")[-2] for name in weights}),
        layers_to_transform=list(range(count - setup.num_layers, count)),
    )
    model = get_peft_model(model, config)
    named = {_peft_name(name): array.T for name, array in weights.items()}
    left = model.load_state_dict(named, strict=False).unexpected_keys
    if left or sum(parameter.requires_grad for parameter in model.parameters()) != len(named):
        raise SystemExit(f"peft has another LoRA: {left[:3]}")
    return model.train()


def _peft_name(name: str) -> str:
    layer, _, side = name.rpartition(".")
    return f"base_model.model.{layer}.lora_{side[-1].upper()}.default.weight"


def pad_rows(task: Task, rows: list[int]) -> tuple[Any, Any]:
    """Tokens and labels (B, T), padded to the longest row."""
    length = max(len(task.rows[row].tokens) for row in rows)
    tokens, labels = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -100)
    for index, row in enumerate(rows):
        own = torch.tensor(task.rows[row].tokens)
        tokens[index, : len(own)] = own
        labels[index, : len(own)] = torch.where(torch.tensor(task.rows[row].supervised), own, -100)
    return tokens, labels


def step_as_mlx(optimizer: Any, rate: float, step: int) -> None:
    """An update without Adam's bias correction, which MLX leaves out: rate and epsilon undo torch's."""
    first, second = (1 - beta**step for beta in BETAS)
    optimizer.param_groups[0].update(lr=rate * first / second**0.5, eps=EPS / second**0.5)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    print(run_torch(read_record(Path(sys.argv[1]), Task)).model_dump_json())
