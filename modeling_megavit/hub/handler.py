# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""What Hugging Face Inference Endpoints call. It travels to the Hub with a classifier, and imports nothing of its package."""

import base64
import binascii
from io import BytesIO
from typing import Any

from PIL import Image
from transformers import pipeline


class EndpointHandler:
    """
    The service of one model.

    Args:
        path (`str`): The folder of the repository.
    """

    def __init__(self, path: str = ""):
        self.classify = pipeline("image-classification", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Classifies an image.

        Args:
            data (`dict`):
                `inputs`: the image as PIL's, as bytes or in base64; never an address or a path, which the service would
                fetch. `parameters`, *optional*: `top_k`, the number of classes, 5 by default.

        Returns:
            `list[dict]`: `label` and `score` of the likeliest classes.

        Raises:
            `ValueError`: if `data` holds anything else.
        """
        parameters = data.get("parameters") or {}
        if unknown := parameters.keys() - {"top_k"}:
            raise ValueError(f"`parameters` must have no more than top_k, got {sorted(unknown)}.")
        top_k = parameters.get("top_k", 5)
        if type(top_k) is not int or top_k < 1:
            raise ValueError(f"`top_k` must be a positive number, got {top_k!r}.")
        return self.classify(open_image(data.get("inputs")), top_k=top_k)


def open_image(inputs: Any) -> Image.Image:
    """Returns an image, or raises a `ValueError` unless it is PIL's, the bytes of a file, or these in base64."""
    if isinstance(inputs, Image.Image):
        return inputs
    try:
        if isinstance(inputs, str):
            inputs = base64.b64decode(inputs.split(",")[-1], validate=True)
        return Image.open(BytesIO(inputs))
    except (binascii.Error, TypeError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"`inputs` must be an image, its bytes or its base64: {error}") from error
