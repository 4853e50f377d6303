# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""The model card says what the Hub reads, and its snippets run. Run: pytest tests/hub/test_card.py"""

import re

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from modeling_megavit import MegaVitConfig, MegaVitForImageClassification, MegaVitImageProcessorPil, MegaVitModel
from modeling_megavit.cli import app
from modeling_megavit.hub.card import CardFacts, model_card, model_card_for


def save(folder, model_class=MegaVitForImageClassification, **fields):
    config = MegaVitConfig.from_preset("megavit-test", num_labels=3, **fields)
    model = model_class(config)
    model.save_pretrained(folder)
    MegaVitImageProcessorPil.from_config(config).save_pretrained(folder)
    return model


def run_snippets(card, folder, monkeypatch):
    """Runs the card's Python beside the model's folder, whose name is the model's."""
    monkeypatch.chdir(folder.parent)
    snippets = re.findall(r"```python\n(.*?)```", card.content, flags=re.DOTALL)
    assert len(snippets) == 3
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)


@pytest.mark.parametrize("model_class", [MegaVitForImageClassification, MegaVitModel])
@pytest.mark.parametrize("fields", [{}, {"num_channels": 1, "position_embedding_type": "factorized"}])
def test_the_card_of_a_bare_folder_runs(model_class, fields, tmp_path, monkeypatch):
    model = save(tmp_path / "model", model_class, **fields)
    card = model_card_for(tmp_path / "model")
    is_classifier = model_class is MegaVitForImageClassification
    assert card.data.pipeline_tag == ("image-classification" if is_classifier else "image-feature-extraction")
    assert card.data.library_name == "transformers"
    assert f"{model.num_parameters():,} parameters" in card.text
    run_snippets(card, tmp_path / "model", monkeypatch)


def test_what_is_known_is_what_the_hub_reads(tmp_path):
    config = MegaVitConfig.from_preset("megavit-test", num_labels=3)
    facts = CardFacts(
        base_model="google/vit-base-patch16-224",
        license="mit",
        dataset="uoft-cs/cifar10",
        dataset_on_hub=True,
        metrics={"eval_accuracy": 0.98765, "eval_loss": 0.1},
        num_images=(1000, 200),
        recipe="model: megavit-test\n",
        hardware="1 x 2 CPU cores in 1.0 minutes",
        pictures={"Curves": "curves.png"},
        examples={"a | cat": "examples/1.png"},
    )
    model_card("me/mine", config, 123, facts).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_value, result.metric_type, result.dataset_type) == (0.9877, "accuracy", "uoft-cs/cifar10")
    head = yaml.safe_load(card.content.split("---")[1])
    assert head["widget"] == [{"src": "examples/1.png", "example_title": "a | cat"}]
    assert (head["license"], head["datasets"], head["base_model"]) == (
        "mit",
        ["uoft-cs/cifar10"],
        "google/vit-base-patch16-224",
    )
    for text in ("1,000 images of [uoft-cs/cifar10]", "2 CPU cores", "![Curves](curves.png)", "dehghani2023patch"):
        assert text in card.text
    assert "## Results" not in model_card("mine", config, 123).text


@pytest.mark.slow
def test_the_card_of_a_run_has_results_and_examples_and_runs(tmp_path, monkeypatch):
    options = ["--max_steps", "2", "--output_dir", str(tmp_path / "digits")]
    assert CliRunner().invoke(app, ["train", "digits", *options]).exit_code == 0
    card = ModelCard.load(tmp_path / "digits" / "README.md")
    head = yaml.safe_load(card.content.split("---")[1])
    assert len(head["widget"]) == 3
    assert all((tmp_path / "digits" / example["src"]).is_file() for example in head["widget"])
    assert all((tmp_path / "digits" / name).is_file() for name in re.findall(r"\((\w+\.png)\)", card.text))
    assert card.data.eval_results[0].dataset_name == "digits"
    run_snippets(card, tmp_path / "digits", monkeypatch)
