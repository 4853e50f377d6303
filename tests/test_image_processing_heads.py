# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""What the image processors do for the heads: label maps, clips, post-processing. Run: pytest tests/test_image_processing_heads.py"""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_megavit import (
    MegaVitConfig,
    MegaVitForSemanticSegmentation,
    MegaVitForVideoClassification,
    MegaVitImageProcessor,
    MegaVitImageProcessorPil,
)


def build(head, **kwargs):
    """A head with patches of 8 pixels."""
    torch.manual_seed(0)
    return head(MegaVitConfig.from_preset("megavit-test", **kwargs)).eval()


PROCESSORS = [MegaVitImageProcessorPil, MegaVitImageProcessor]


@pytest.fixture(params=PROCESSORS, ids=["pil", "torchvision"])
def processor_class(request):
    if getattr(request.param, "is_dummy", False):
        pytest.skip("torchvision is not installed")
    return request.param


SQUARES = np.kron(np.array([[0, 1], [2, 300]]), np.ones((20, 30), dtype=np.int64))  # 40 x 60 pixels


@pytest.mark.parametrize("as_image", [False, True])
def test_label_maps_go_the_way_of_their_images_without_mixing_classes(processor_class, as_image):
    processor = processor_class(size={"height": 32, "width": 32}, crop_size={"height": 16, "width": 24})
    label_map = Image.fromarray(SQUARES.astype(np.int32)) if as_image else SQUARES
    photo = np.repeat(SQUARES[..., None] * 50 % 256, 3, axis=2).astype(np.uint8)
    outputs = processor([photo, photo], [label_map, label_map], return_tensors="pt")
    assert outputs["labels"].dtype == torch.long
    assert outputs["labels"].shape == (2, 16, 24)
    expected = np.kron(np.array([[0, 1], [2, 300]]), np.ones((8, 12), dtype=np.int64))
    assert torch.equal(outputs["labels"][1], torch.tensor(expected))


def test_native_label_maps_have_the_size_of_the_patches(processor_class):
    processor = processor_class.from_config(build(MegaVitForSemanticSegmentation).config, max_num_patches=24)
    photos = [np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)]
    outputs = processor(photos, [SQUARES, SQUARES.T], return_tensors="pt")
    assert [tuple(item.shape) for item in outputs["labels"]] == [
        tuple(side * 8 for side in grid) for grid in outputs["spatial_shapes"].tolist()
    ]
    assert outputs["labels"][0].unique().tolist() == [0, 1, 2, 300]
    model = build(MegaVitForSemanticSegmentation, num_labels=301)
    assert model(**outputs).loss.isfinite()


def test_reduced_labels_count_from_what_was_one(processor_class):
    processor = processor_class(do_resize=False, do_center_crop=False, do_reduce_labels=True)
    label_map = np.array([[0, 1], [255, 150]], dtype=np.uint8)
    labels = processor(np.zeros((2, 2, 3), np.uint8), label_map, return_tensors="pt")["labels"]
    assert labels.tolist() == [[[255, 0], [255, 149]]]


def test_label_maps_that_do_not_fit_are_refused(processor_class):
    processor, photo = processor_class(), np.zeros((40, 60, 3), np.uint8)
    with pytest.raises(ValueError, match="`segmentation_maps` must have the sizes of the images"):
        processor(photo, SQUARES.T)
    with pytest.raises(ValueError, match="`segmentation_maps` must have the sizes of the images"):
        processor([photo, photo], SQUARES)
    with pytest.raises(ValueError, match="`segmentation_maps` must hold class indices"):
        processor(photo, Image.fromarray(photo))
    with pytest.raises(ValueError, match="`segmentation_maps` must be integers"):
        processor(photo, SQUARES / 2)


def test_post_processing_resizes_scores_not_classes(processor_class):
    processor = processor_class()
    logits = torch.tensor([[[0.0, 2.0]], [[1.0, 0.0]]])  # 2 classes on a grid of 1 x 2
    outputs = type("Outputs", (), {"logits": logits[None]})()
    assert [item.tolist() for item in processor.post_process_semantic_segmentation(outputs)] == [[[1, 0]]]
    # Bilinearly on 4 pixels: 0, 0.5, 1.5, 2 against 1, 0.75, 0.25, 0
    (resized,) = processor.post_process_semantic_segmentation(outputs, [(1, 4)])
    assert resized.tolist() == [[1, 1, 0, 0]]
    (both,) = processor.post_process_semantic_segmentation(outputs, [(1, 4)], return_segmentation_scores=True)
    assert torch.equal(both.segmentation, resized)
    assert both.segmentation_scores.tolist() == [[[0.0, 0.5, 1.5, 2.0]], [[1.0, 0.75, 0.25, 0.0]]]
    outputs = type("Outputs", (), {"predicted_depth": (torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0]]))})()
    first, second = processor.post_process_depth_estimation(outputs, [(1, 4), (2, 2)])
    assert first["predicted_depth"].tolist() == [[1.0, 1.5, 2.5, 3.0]]
    assert second["predicted_depth"].tolist() == [[5.0, 5.0], [5.0, 5.0]]
    with pytest.raises(ValueError, match="`target_sizes` must be as many as images"):
        processor.post_process_depth_estimation(outputs, [(1, 4)])


def test_a_list_of_frames_is_a_clip(processor_class):
    processor = processor_class(size={"height": 16, "width": 24}, do_center_crop=False, do_stack_frames=True)
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30, 3), dtype=np.uint8)
    expected = processor([frame for clip in clips for frame in clip], do_stack_frames=False, return_tensors="pt")
    expected = expected["pixel_values"].view(2, 3, 3, 16, 24)
    photos = [[Image.fromarray(frame) for frame in clip] for clip in clips]
    for several in (clips, list(clips), photos, [list(clip) for clip in clips]):
        assert torch.equal(processor(several, return_tensors="pt")["pixel_values"], expected)
    for one in (clips[1], photos[1]):
        assert torch.equal(processor(one, return_tensors="pt")["pixel_values"], expected[1:])
    assert processor(clips, return_tensors="np")["pixel_values"].shape == (2, 3, 3, 16, 24)
    lists = processor(photos)["pixel_values"]
    assert torch.equal(torch.stack([torch.as_tensor(np.stack(frames)) for frames in lists]), expected)
    assert build(MegaVitForVideoClassification)(**processor(photos, return_tensors="pt")).logits.shape == (2, 2)


def test_frames_that_make_no_clips_are_refused(processor_class):
    processor, photo = processor_class(do_stack_frames=True), np.zeros((40, 60, 3), np.uint8)
    with pytest.raises(ValueError, match="`images` must be clips, lists of frames"):
        processor(photo)
    with pytest.raises(ValueError, match=r"`images` must be clips of one number of frames .* got \[1, 2\]"):
        processor([[photo, photo], [photo]])
    with pytest.raises(ValueError, match="`segmentation_maps` contradicts `do_stack_frames=True`"):
        processor([photo, photo], [SQUARES, SQUARES])
    with pytest.raises(ValueError, match="`max_num_patches` contradicts `do_stack_frames=True`"):
        processor_class.from_config(
            MegaVitConfig.from_preset("megavit-test"), max_num_patches=24, do_stack_frames=True
        )([photo, photo])
