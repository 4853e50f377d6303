# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""A Hub on loopback for every test of this folder, and what is pushed to it."""

import numpy as np
import pytest
from hub_models import VIT, save
from hub_server import Hub
from huggingface_hub import constants
from PIL import Image


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save(folder, **VIT)
    return folder


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def connected(hub, tmp_path, monkeypatch):
    """Has this process know the Hub, with an empty cache and without waiting before it tries again."""
    own = {
        "ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    own |= {"HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}"}
    for name, value in own.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the address that it was made with
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return hub
