# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""MegaVit for Hugging Face Transformers. Importing this package registers MegaVit with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .configuration_megavit import MegaVitConfig
from .modeling_megavit import MegaVitForImageClassification, MegaVitModel, MegaVitPreTrainedModel


AutoConfig.register("megavit", MegaVitConfig, exist_ok=True)
AutoModel.register(MegaVitConfig, MegaVitModel, exist_ok=True)
AutoModelForImageClassification.register(MegaVitConfig, MegaVitForImageClassification, exist_ok=True)

__all__ = [
    "MegaVitConfig",
    "MegaVitForImageClassification",
    "MegaVitModel",
    "MegaVitPreTrainedModel",
]
