# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""MegaVit for Hugging Face Transformers. Importing this package registers MegaVit with transformers' Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .configuration_megavit import MegaVitConfig
from .image_processing_megavit import MegaVitImageProcessor
from .image_processing_pil_megavit import MegaVitImageProcessorPil
from .modeling_megavit import (
    MegaVitForImageClassification,
    MegaVitModel,
    MegaVitPacking,
    MegaVitPreTrainedModel,
    build_packing,
    unpack,
)


AutoConfig.register("megavit", MegaVitConfig, exist_ok=True)
AutoModel.register(MegaVitConfig, MegaVitModel, exist_ok=True)
AutoModelForImageClassification.register(MegaVitConfig, MegaVitForImageClassification, exist_ok=True)
AutoImageProcessor.register(
    MegaVitConfig,
    image_processor_classes={"torchvision": MegaVitImageProcessor, "pil": MegaVitImageProcessorPil},
    exist_ok=True,
)

__all__ = [
    "MegaVitConfig",
    "MegaVitForImageClassification",
    "MegaVitImageProcessor",
    "MegaVitImageProcessorPil",
    "MegaVitModel",
    "MegaVitPacking",
    "MegaVitPreTrainedModel",
    "build_packing",
    "unpack",
]
