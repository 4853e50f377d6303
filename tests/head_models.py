# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Small models with every head, saved with what their pipelines need, and what these say of a photo or a clip."""

import numpy as np
import pytest
import torch
from PIL import Image

import modeling_megavit as megavit


# The Auto classes, with the class that each gives and the parts of it that other heads' weights lack
AUTO = {
    "AutoBackbone": ("MegaVitBackbone", set()),
    "AutoModel": ("MegaVitModel", {"pooler"}),
    "AutoModelForDepthEstimation": ("MegaVitForDepthEstimation", {"depth_decoder"}),
    "AutoModelForImageClassification": ("MegaVitForImageClassification", {"pooler", "classifier"}),
    "AutoModelForMaskedImageModeling": ("MegaVitForMaskedImageModeling", {"embeddings", "pixel_decoder"}),
    "AutoModelForSemanticSegmentation": ("MegaVitForSemanticSegmentation", {"semantic_decoder"}),
    "AutoModelForVideoClassification": (
        "MegaVitForVideoClassification", {"pooler", "temporal_encoder", "video_classifier"},
    ),
}  # fmt: skip
NAMES = ["sky", "road", "tree"]
PHOTO = np.random.default_rng(0).integers(0, 256, (50, 150, 3), dtype=np.uint8)
FIXED, NATIVE = {"do_center_crop": False, "size": {"height": 32, "width": 64}}, {"max_num_patches": 32}
# Tasks with a head that a pipeline takes for them, and its answer to the photo or clip
PIPELINES = {
    "image-segmentation": ("MegaVitForSemanticSegmentation", [["road", [150, 50]]]),
    "depth-estimation": ("MegaVitForDepthEstimation", [[150, 50], [50, 150]]),
    "image-feature-extraction": ("MegaVitForMaskedImageModeling", [1, 32, 32]),
    "video-classification": ("MegaVitForVideoClassification", ["road", "sky", "tree"]),
}


def save(name, folder, **settings):
    """Saves a model with its image processor, of which `settings` are, and returns it."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {label: index for index, label in enumerate(NAMES)}}
    config = megavit.MegaVitConfig.from_preset("megavit-test", num_frames=4, num_temporal_layers=1, **labels)
    model = getattr(megavit, name)(config)
    for decoder in ("semantic_decoder", "video_classifier"):
        if hasattr(model, decoder):  # the same scores whatever it sees
            torch.nn.init.zeros_(getattr(model, decoder).weight)
            getattr(model, decoder).bias.data[:] = torch.tensor([1.0, 2.0, 0.0])
    model.save_pretrained(folder)
    settings = {"do_stack_frames": name == "MegaVitForVideoClassification", **(settings or FIXED)}
    megavit.MegaVitImageProcessorPil.from_config(config, **settings).save_pretrained(folder)
    return model


def write_source(task, folder):
    """Writes the photo, or a clip of 6 frames, and returns its path."""
    if task != "video-classification":
        Image.fromarray(PHOTO).save(folder / "photo.png")
        return str(folder / "photo.png")
    av = pytest.importorskip("av")  # with which the pipeline reads it
    with av.open(str(folder / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=8, width=150, height=50, pix_fmt="yuv420p")
        for shift in range(6):
            frame = av.VideoFrame.from_ndarray(np.roll(PHOTO, shift, axis=1), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return str(folder / "clip.mp4")
