# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Parameter groups of vision transformers, and a cooldown for any of transformers' schedules."""

import re
from functools import partial

from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    head_weight_decay: float | None = None,
    layer_decay: float = 1.0,
) -> list[dict]:
    """
    Sorts the trainable parameters of a MegaVit classifier into the groups of a torch optimizer.

    As in big_vision (`wd_mults`), weight decay is for kernels only: norms, biases, layer scales, position embeddings
    and learned tokens get none. The learning rate is multiplied by `layer_decay` once per layer below the head: the
    patch embedding is the lowest, and what follows the encoder belongs to the head (BEiT, MAE).

    Args:
        model (`nn.Module`): A `MegaVitForImageClassification`, wrapped or not.
        learning_rate (`float`): The learning rate of the head.
        weight_decay (`float`): Of all kernels but the classifier's.
        head_weight_decay (`float`, *optional*): Of the classifier's kernel; None means `weight_decay`.
        layer_decay (`float`, *optional*, defaults to 1.0): Factor per layer.

    Returns:
        `list[dict]`: groups with `params`, `lr` and `weight_decay`, from the head down.
    """
    head_weight_decay = weight_decay if head_weight_decay is None else head_weight_decay
    kernels = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    top = 1 + max((_depth(name, 0) for name, _ in model.named_parameters()), default=0)
    groups = {}
    for name, parameter in parameters.items():
        depth = _depth(name, top)
        decay = 0.0
        if name in kernels:
            decay = head_weight_decay if name.endswith("classifier.weight") else weight_decay
        groups.setdefault((depth, decay), []).append(parameter)
    return [
        {"params": params, "lr": learning_rate * layer_decay ** (top - depth), "weight_decay": decay}
        for (depth, decay), params in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]


def _depth(name: str, top: int) -> int:
    """Returns 0 for the embeddings, N + 1 for layer N and `top` for the rest."""
    if match := re.search(r"encoder\.layers\.(\d+)\.", name):
        return int(match[1]) + 1
    return 0 if "embeddings." in name else top


def add_cooldown(scheduler: LambdaLR, num_training_steps: int, cooldown_steps: int) -> None:
    """
    Brings the learning rate of `scheduler` linearly to 0 over its last steps.

    transformers' "inverse_sqrt" with a cooldown is big_vision's "rsqrt" schedule with `shift` 0 (utils.py, commit
    0127fb6), the one of ViT-22B: `lr / sqrt(1 + (step - warmup) / timescale)` times the warm-up and the cooldown.

    Raises:
        `ValueError`: if the schedule isn't a function of the step alone, or is shorter than its cooldown.
    """
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(f"`cooldown_steps` needs a schedule that depends on the step alone, got {scheduler}.")
    if cooldown_steps > num_training_steps:
        raise ValueError(
            f"`cooldown_steps` must be at most {num_training_steps}, the steps of the run, got {cooldown_steps}."
        )
    scheduler.lr_lambdas = [
        partial(_cooled_down, schedule=schedule, num_training_steps=num_training_steps, cooldown_steps=cooldown_steps)
        for schedule in scheduler.lr_lambdas
    ]


def _cooled_down(step: int, schedule, num_training_steps: int, cooldown_steps: int) -> float:
    """Returns the factor of `schedule` at `step`, times that of the cooldown."""
    return schedule(step) * min(1.0, max(0, num_training_steps - step) / cooldown_steps)
