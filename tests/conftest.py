# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Makes PyPI's torchvision importable beside a CPU-only torch, here and in the processes that tests start."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parent / "torchvision_cpu"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

spec = importlib.util.spec_from_file_location("torchvision_cpu", FOLDER / "sitecustomize.py")
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])


@pytest.fixture(scope="module")
def one_thread():
    """The same sums in the same order, here and in processes that have one thread too."""
    import torch  # not above: the operators of torchvision must be declared first, and workers do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
