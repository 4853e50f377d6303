# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""
Augmentation with kornia, which needs no torchvision: of whole batches on the device of the model, or, for packed images
of any size, of each image by itself.
"""

import math

import numpy as np
import torch
from kornia import augmentation as K
from kornia.augmentation.auto import RandAugment
from PIL import Image, ImageOps
from torch import nn

from .recipe import RecipeArguments


def build_augmentation(
    recipe: RecipeArguments, size: tuple[int, int], mean: list[float] | None, std: list[float] | None
) -> nn.Module:
    """
    Builds what a training batch goes through before the model.

    Args:
        recipe (`RecipeArguments`): Read for `crop_scale`, `flip` and `rand_augment`.
        size (`tuple[int, int]`): Height and width of what comes out, in pixels.
        mean, std (`list[float]`, *optional*): Normalisation of each channel, None for none.

    Returns:
        `nn.Module`: maps (batch, channels, height, width) in [0, 1] to (batch, channels, *size), normalised. Crops
        and flips are drawn for each image; the operations of RandAugment for the batch, with a sign for each
        image. All randomness comes from torch's global generator.
    """
    steps = []
    if recipe.crop_scale:
        steps.append(K.RandomResizedCrop(tuple(size), scale=tuple(recipe.crop_scale), resample="bicubic"))
    if recipe.flip:
        steps.append(K.RandomHorizontalFlip(p=recipe.flip))
    if recipe.rand_augment:
        steps.append(RandAugment(*recipe.rand_augment))
    steps.append(_Clip())  # bicubic filters and sharpening leave [0, 1]
    if mean is not None:
        steps.append(K.Normalize(torch.tensor(mean), torch.tensor(std)))
    return nn.Sequential(*steps)


class ImageAugmentation:
    """
    What an image of any size goes through before it is resized and packed; `augment` of a `MegaVitPackingCollator`.

    Args:
        recipe (`RecipeArguments`): Read for `crop_scale`, `flip` and `rand_augment`.
    """

    def __init__(self, recipe: RecipeArguments):
        self.crop_scale, self.flip = recipe.crop_scale, recipe.flip
        self.operations = RandAugment(*recipe.rand_augment) if recipe.rand_augment else None

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns a part of `image`, flipped or not, changed by the operations of RandAugment."""
        if self.crop_scale:
            image = image.crop(_draw_box(image.size, self.crop_scale, rng))
        if rng.random() < self.flip:
            image = ImageOps.mirror(image)
        if self.operations is None:
            return image
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")) / np.float32(255)).permute(2, 0, 1)[None]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            pixels = self.operations(pixels)[0].clamp(0, 1)
        changed = Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
        return changed.convert("L") if image.mode == "L" else changed


def _draw_box(size: tuple[int, int], scale: list[float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a part of an image (width, height) as kornia's RandomResizedCrop does: left, top, right and bottom."""
    area = size[0] * size[1] * rng.uniform(*scale)
    # The proportions are those of the image, changed by 3:4 to 4:3.
    ratio = size[0] / size[1] * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = min(max(1, round(math.sqrt(area * ratio))), size[0])
    height = min(max(1, round(math.sqrt(area / ratio))), size[1])
    left, top = rng.integers(size[0] - width + 1), rng.integers(size[1] - height + 1)
    return int(left), int(top), int(left) + width, int(top) + height


class _Clip(nn.Module):
    """Clips pixels to [0, 1]."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.clamp(0, 1)
