# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Small untrained classifiers of three libraries, saved as their users save them, and figures computed without the package."""

import timm
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from timm.models import save_for_hf
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from modeling_megavit import MegaVitConfig, MegaVitForImageClassification, MegaVitImageProcessorPil


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NORMALISED = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def save_vit(folder, labels):
    """A stock ViT of transformers."""
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=4, **names(labels))).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}, **NORMALISED).save_pretrained(folder)


def save_timm(folder, labels):
    """A model of timm in timm's own layout, which transformers' TimmWrapper loads."""
    torch.manual_seed(1)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=len(labels), **sizes)
    model.pretrained_cfg |= {"crop_pct": 1.0}
    save_for_hf(model, folder, model_config={"label_names": labels}, safe_serialization=True)


def save_megavit(folder, labels, seed=2, auto=MegaVitForImageClassification, **settings):
    """A MegaVit of any head, with weights large enough for it to have opinions."""
    torch.manual_seed(seed)
    config = MegaVitConfig(**SIZES, image_size=16, patch_size=4, initializer_range=0.5, **names(labels), **settings)
    auto(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    MegaVitImageProcessorPil.from_config(config, size=size, do_center_crop=False).save_pretrained(folder)


SAVE = {"vit": save_vit, "timm": save_timm, "megavit": save_megavit}


def names(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


@torch.inference_mode()
def logits_of(folder, images):
    """What the model says, by transformers alone."""
    config = AutoConfig.from_pretrained(folder)
    (getattr(config, "model_args", None) or {}).pop("num_classes", None)  # see `load_model`
    model = AutoModelForImageClassification.from_pretrained(folder, config=config).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = [processor(image.convert("RGB"), return_tensors="pt")["pixel_values"] for image in images]
    return model(torch.cat(inputs)).logits


def expected(folder, examples: Dataset):
    """Top-1 and top-5 accuracy of scikit-learn."""
    logits, labels = logits_of(folder, examples["image"]).numpy(), examples["label"][:]
    classes = range(logits.shape[1])
    return accuracy_score(labels, logits.argmax(1)), top_k_accuracy_score(labels, logits, k=5, labels=classes)
