"""Opt-in (put this folder on PYTHONPATH): makes PyPI's CUDA-linked torchvision importable next to a CPU-only torch.

torchvision/_C.so cannot load here, so `import torchvision` dies in _meta_registrations on ops that were never
defined. Just before torchvision is first imported, this declares those op names. Transforms, io-less image
processing and models work; ops that need the C++ kernels (nms, roi_align, ...) still raise when called.
Nothing is imported at start-up and no installed file is changed; with a matching build it does nothing.
"""

import importlib.abc
import importlib.machinery
import sys


class _TorchvisionOps(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.origin:
            _declare(spec.origin)
        return spec


def _declare(origin):
    import os
    import re

    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return  # declared already
    here = os.path.dirname(origin)
    try:
        torch.ops.load_library(os.path.join(here, "_C.so"))
        return  # a matching build: leave it alone
    except (ImportError, OSError):
        pass
    with open(os.path.join(here, "_meta_registrations.py"), encoding="utf-8") as f:
        names = re.findall(r'torchvision::(\w+)|register_meta\("(\w+)"', f.read())
    schemas = {a or b: "(Tensor x) -> Tensor" for a, b in names}
    schemas |= {"nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"}
    lib = torch.library.Library("torchvision", "FRAGMENT")
    for op, schema in schemas.items():
        lib.define(op + schema)
    sys.modules[__name__]._lib = lib  # the definitions live as long as this object


sys.meta_path.insert(0, _TorchvisionOps())
