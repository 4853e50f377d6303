# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""
Compilation layer by layer, and activation checkpointing that keeps the products: the results of a model without, one
compilation for all layers whatever the number of images, and the memory and the arithmetic that they are for.
Run: pytest tests/test_compile_layers.py
"""

import copy
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from test_modeling_megavit import architectures, build, images
from test_packed_inputs import draw, pack
from torch._dynamo import OptimizedModule
from torch._dynamo.testing import CompileCounterWithBackend
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode


LAYERS = 10  # more than the 8 compilations that torch allows of one function
forms = pytest.mark.parametrize("form", ["fixed", "packed"])


def compile_layers(model, backend):
    """Compiles each layer in place, and returns what counts the compilations."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    for layer in model.megavit.encoder.layers:
        layer.compile(fullgraph=True, backend=counter)
    return counter


def batch(model, form, seed=0):
    """Returns the arguments of a model: for each seed another number of images, and other sizes if packed."""
    generator = torch.Generator().manual_seed(seed)
    num_images = 2 + seed % 5
    labels = torch.arange(num_images) % model.config.num_labels
    if form == "fixed":
        return {"pixel_values": images(model, num_images), "labels": labels}
    grids = torch.randint(1, 9, (num_images, 2), generator=generator).tolist()
    return pack(model, draw(model, grids, seed)) | {"labels": labels}


def step(model, arguments):
    """Runs a training step whose random numbers are always the same, and returns the loss and all gradients."""
    torch.manual_seed(0)
    model.zero_grad()
    loss = model(**arguments).loss
    loss.backward()
    return [loss, *(parameter.grad for parameter in model.parameters())]


def assert_equal_steps(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Compilation ---------------------------------------------------------------------------------------------------------


@architectures
@forms
@torch.no_grad()
def test_all_layers_share_one_compilation(fields, form):
    model = build(fields, num_hidden_layers=LAYERS)
    arguments = batch(model, form)
    expected = model(**arguments).logits
    counter = compile_layers(model, "eager")
    for _ in range(2):
        torch.testing.assert_close(model(**arguments).logits, expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@forms
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_equals_eager_and_other_batches_compile_once_more(form, checkpointing):
    model = build(num_hidden_layers=LAYERS).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    expected = [step(model, batch(model, form, seed)) for seed in range(4)]
    counter = compile_layers(model, "aot_eager")
    for seed, theirs in enumerate(expected):
        assert_equal_steps(step(model, batch(model, form, seed)), theirs)
    assert counter.frame_count == 2  # for the first sizes, and for any


@pytest.mark.parametrize(("form", "checkpointing"), [("fixed", False), ("packed", True)])
def test_layers_of_different_drop_rates_share_a_compilation(form, checkpointing):
    model = build(num_hidden_layers=LAYERS, drop_path_rate=0.5).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    expected = [step(model, batch(model, form, seed)) for seed in range(3)]
    counter = compile_layers(model, "aot_eager")
    for seed, theirs in enumerate(expected):
        assert_equal_steps(step(model, batch(model, form, seed)), theirs)
    # For the first sizes: the layer that never drops, the first that does, and all others. For any sizes: the former, others.
    assert counter.frame_count == 5


@forms
def test_accelerates_regional_compilation_equals_eager_and_unwraps_to_the_model(form):
    model = build(num_hidden_layers=LAYERS).train()
    arguments, names = batch(model, form), list(model.state_dict())
    expected = step(model, arguments)
    torch.compiler.reset()
    AcceleratorState._reset_state(reset_partial_state=True)  # else what an earlier test of the process asked for holds
    accelerator = Accelerator(
        cpu=True, dynamo_plugin=TorchDynamoPlugin(backend="aot_eager", use_regional_compilation=True)
    )
    compiled = accelerator.prepare(model)
    assert isinstance(compiled.megavit.encoder.layers[0], OptimizedModule)
    assert_equal_steps(step(compiled, arguments), expected)
    AcceleratorState._reset_state(reset_partial_state=True)
    unwrapped = accelerator.unwrap_model(compiled, keep_torch_compile=False)
    assert unwrapped is model and list(unwrapped.state_dict()) == names


@pytest.mark.slow
@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_compiles_the_layers_of_a_training_step(form, dtype):
    model = build(num_hidden_layers=LAYERS, drop_path_rate=0.1).train().to(dtype)
    arguments = batch(model, form)
    torch.manual_seed(0)
    loss = model(**arguments).loss
    compile_layers(model, "inductor")
    with torch._inductor.config.patch(fallback_random=True):  # the random numbers of a model that isn't compiled
        ours = step(model, arguments)
    torch.testing.assert_close(ours[0], loss, rtol=0.05 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in ours[1:])


# Selective activation checkpointing ----------------------------------------------------------------------------------

PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


class LiveTensors(TorchDispatchMode):
    """Notes what operators return, to say how much of it is still in memory, whoever holds it; parameters don't count."""

    def __init__(self, model):
        super().__init__()
        self.noted = {}
        self.parameters = {StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.noted[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def num_bytes(self):
        return sum(
            size for storage, size in self.noted.items() if not (storage.expired() or storage in self.parameters)
        )


def checkpoint(model, kind):
    """Returns a copy of a model with activation checkpointing of a kind."""
    model = copy.deepcopy(model)
    if kind == "full":
        model.activation_checkpointing_enable()
    if kind == "selective":
        context_fn = partial(create_selective_checkpoint_contexts, PRODUCTS)
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": context_fn})
    return model


def measure(model, arguments):
    """Returns the gradients of a training step, the bytes that it keeps for its backward pass, and its FLOPs."""
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as flops:
        with LiveTensors(model) as live:
            loss = model(**arguments).loss
        num_bytes = live.num_bytes()
        loss.backward()
    return [loss, *(p.grad for p in model.parameters())], num_bytes, flops.get_total_flops()


@forms
def test_selective_checkpointing_keeps_less_and_computes_no_product_again(form):
    model = build(num_hidden_layers=4, drop_path_rate=0.1).train()
    arguments = batch(model, form)
    steps, num_bytes, flops = {}, {}, {}
    for kind in ("none", "selective", "full"):
        steps[kind], num_bytes[kind], flops[kind] = measure(checkpoint(model, kind), arguments)
    for kind in ("selective", "full"):
        assert_equal_steps(steps[kind], steps["none"], tolerance=0)
    assert num_bytes["full"] < num_bytes["selective"] < num_bytes["none"]
    assert flops["none"] == flops["selective"] < flops["full"]
