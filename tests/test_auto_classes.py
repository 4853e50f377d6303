# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""MegaVit through transformers' Auto classes and pipelines, in this and in a fresh process. Run: pytest tests/test_auto_classes.py"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from head_models import AUTO, NATIVE, PIPELINES, save, write_source
from load_worker import fingerprint
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_megavit import (
    MegaVitBackbone,
    MegaVitConfig,
    MegaVitForImageClassification,
    MegaVitImageProcessorPil,
    MegaVitModel,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved classifier of three classes with its image processor."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    labels = {0: "cat", 1: "dog", 2: "bird"}
    names = {name: index for index, name in labels.items()}
    config = MegaVitConfig.from_preset("megavit-test", id2label=labels, label2id=names, initializer_range=0.5)
    MegaVitForImageClassification(config).save_pretrained(folder)
    MegaVitImageProcessorPil.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos():
    """Three photos of different sizes."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    return [Image.fromarray(pixels), Image.fromarray(pixels[:50]), Image.fromarray(pixels[:, :64])]


def test_the_auto_classes_give_megavit(folder):
    assert isinstance(AutoConfig.from_pretrained(folder), MegaVitConfig)
    assert isinstance(AutoModel.from_pretrained(folder), MegaVitModel)
    assert isinstance(AutoModelForImageClassification.from_pretrained(folder), MegaVitForImageClassification)
    assert isinstance(AutoImageProcessor.from_pretrained(folder, backend="pil"), MegaVitImageProcessorPil)
    assert isinstance(AutoModel.from_config(MegaVitConfig.from_preset("megavit-test")), MegaVitModel)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_image_classification_pipeline_runs(folder, photos, batch_size):
    classify = pipeline("image-classification", model=str(folder), batch_size=batch_size)
    results = classify(photos, top_k=3)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    for photo, result in zip(photos, results):
        inputs = classify.image_processor(photo, return_tensors="pt")
        expected = model(**inputs).logits.softmax(-1)[0]
        for entry in result:
            assert entry["score"] == pytest.approx(expected[model.config.label2id[entry["label"]]].item(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_feature_extraction_pipeline_gives_pooled_features(folder, photos, batch_size):
    extract = pipeline("image-feature-extraction", model=str(folder), batch_size=batch_size)
    features = extract(photos, pool=True, return_tensors=True)
    model = AutoModel.from_pretrained(folder).eval()
    for photo, feature in zip(photos, features):
        expected = model(**extract.image_processor(photo, return_tensors="pt")).pooler_output
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


def test_the_plain_trainer_trains_and_evaluates(folder, tmp_path):
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
    args = TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to="none",
    )
    model = AutoModelForImageClassification.from_pretrained(folder)
    trainer = Trainer(
        model, args, train_dataset=data, eval_dataset=data, compute_metrics=lambda p: {"n": len(p.predictions)}
    )
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_n"] == 8


def test_a_fresh_process_needs_only_the_import(folder, photos, tmp_path):
    photos[0].save(tmp_path / "photo.png")
    code = (
        "import modeling_megavit\nfrom transformers import pipeline\n"
        f"print(pipeline('image-classification', model={str(folder)!r})({str(tmp_path / 'photo.png')!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "'label': 'cat'" in result.stdout


def test_the_library_works_without_torchvision(folder, tmp_path):
    """In an interpreter that can't import torchvision, everything loads, and the processor is the PIL one."""
    code = (
        "import sys\nsys.modules['torchvision'] = None\n"
        "import transformers.utils.import_utils as utils\nutils.is_torchvision_available = lambda: False\n"
        "import modeling_megavit\nfrom transformers import AutoImageProcessor, AutoModelForImageClassification\n"
        f"AutoModelForImageClassification.from_pretrained({str(folder)!r})\n"
        f"print(type(AutoImageProcessor.from_pretrained({str(folder)!r})).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stdout.strip() == "MegaVitImageProcessorPil", result.stderr


def load_in_a_fresh_process(folder, **what):
    """Runs `load_worker.py` beside the saved models."""
    command = [sys.executable, str(Path(__file__).with_name("load_worker.py")), json.dumps(what)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_one_repos_weights_load_under_every_auto_class_in_a_fresh_process(tmp_path):
    """Of a folder, that is, but for AutoBackbone: transformers 5.23 has it take any folder for a model of timm."""
    loads, expected = [], []
    for saved, own in AUTO.values():
        source = save(saved, tmp_path / saved)
        for auto, (name, parts) in AUTO.items():
            if auto == "AutoBackbone":
                continue
            loads.append((saved, auto))
            missing = sorted(parts - own - ({"embeddings"} if saved == name else set()))
            found = {"class": name, "from": "modeling_megavit", "missing": missing}
            expected.append(found | {"fingerprint": fingerprint(source)})
    assert load_in_a_fresh_process(tmp_path, loads=loads)["loads"] == expected


@pytest.mark.parametrize("saved", [name for name, _ in AUTO.values()])
def test_every_heads_weights_load_into_a_backbone(saved, tmp_path):
    source = save(saved, tmp_path)
    backbone, info = MegaVitBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert fingerprint(backbone) == fingerprint(source)
    assert isinstance(AutoBackbone.from_config(backbone.config), MegaVitBackbone)


def test_every_pipeline_runs_in_a_fresh_process(tmp_path):
    """On images of one size, and on images that keep theirs; the frames of a clip have one size."""
    pipelines, expected = [], []
    for task, (name, answer) in PIPELINES.items():
        is_clip = task == "video-classification"
        if is_clip and importlib.util.find_spec("av") is None:
            continue
        for settings in ({},) if is_clip else ({}, NATIVE):
            folder = f"{task}{len(settings)}"
            save(name, tmp_path / folder, **settings)
            pipelines.append((folder, task, write_source(task, tmp_path)))
            expected.append([answer] * 3)
    assert load_in_a_fresh_process(tmp_path, loads=[], pipelines=pipelines)["runs"] == expected
