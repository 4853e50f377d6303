# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Augmentation of whole batches with kornia, which needs no torchvision and runs on the device of the model."""

import torch
from kornia import augmentation as K
from kornia.augmentation.auto import RandAugment
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


class _Clip(nn.Module):
    """Clips pixels to [0, 1]."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.clamp(0, 1)
