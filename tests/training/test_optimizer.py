# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Parameter groups and the cooldown, against values worked out by hand."""

import pytest
import torch
from transformers import get_scheduler

from modeling_megavit import MegaVitConfig, MegaVitForImageClassification
from modeling_megavit.training.optimizer import add_cooldown, parameter_groups


@pytest.fixture(params=["parallel", "sequential"])
def model(request):
    config = MegaVitConfig.from_preset(
        "megavit-test", layer_type=request.param, num_register_tokens=2, layer_scale_init_value=0.1
    )
    return MegaVitForImageClassification(config)


def settings(model, **kwargs):
    """Returns the name of each parameter with its (learning rate, weight decay), by way of an optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = torch.optim.AdamW(parameter_groups(model, **kwargs)).param_groups
    return [(names[id(p)], group["lr"], group["weight_decay"]) for group in groups for p in group["params"]]


def test_every_parameter_is_in_exactly_one_group(model):
    names = [name for name, _, _ in settings(model, learning_rate=1.0, weight_decay=0.03)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_kernels_decay_and_nothing_else_does(model):
    decays = {
        name: decay for name, _, decay in settings(model, learning_rate=1, weight_decay=0.03, head_weight_decay=3)
    }
    assert decays.pop("classifier.weight") == 3.0
    for name, decay in decays.items():
        is_kernel = name.endswith("weight") and "norm" not in name
        assert decay == (0.03 if is_kernel else 0.0), name
    assert {decays[f"megavit.{name}"] for name in ("embeddings.register_tokens", "pooler.probe")} == {0.0}


def test_the_learning_rate_falls_by_layer_decay_per_layer(model):
    rates = {name: rate for name, rate, _ in settings(model, learning_rate=8.0, weight_decay=0.1, layer_decay=0.5)}
    for name, rate in rates.items():
        expected = 8.0
        if ".layers.1." in name:
            expected = 4.0
        elif ".layers.0." in name:
            expected = 2.0
        elif ".embeddings." in name:
            expected = 1.0
        assert rate == expected, name


def test_frozen_parameters_are_left_out(model):
    model.base_model.requires_grad_(False)
    names = [name for name, _, _ in settings(model, learning_rate=1.0, weight_decay=0.0)]
    assert sorted(names) == ["classifier.bias", "classifier.weight"]


def rates(name, steps, warmup, total, cooldown, **kwargs):
    """Returns the learning rate at each of `steps` of a schedule that starts from 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, optimizer, warmup, total, kwargs)
    add_cooldown(scheduler, total, cooldown)
    values = []
    for _ in range(total + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [values[step] for step in steps]


def test_reciprocal_square_root_with_cooldown_is_big_visions():
    got = rates("inverse_sqrt", [0, 5, 10, 40, 100, 110, 120], warmup=10, total=120, cooldown=20, timescale=10)
    # 1 / sqrt(1 + (step - 10) / 10), times step / 10 before 10 and (120 - step) / 20 after 100
    assert got == pytest.approx([0, 0.5, 1, 0.5, 10**-0.5, 0.5 * 11**-0.5, 0])


def test_any_schedule_of_the_step_cools_down():
    got = rates("constant_with_warmup", [0, 2, 4, 8, 9, 10], warmup=4, total=10, cooldown=2)
    assert got == pytest.approx([0, 0.5, 1, 1, 0.5, 0])


def test_a_cooldown_longer_than_the_run_raises():
    with pytest.raises(ValueError, match="`cooldown_steps` must be at most 10"):
        rates("constant_with_warmup", [0], warmup=1, total=10, cooldown=11)
