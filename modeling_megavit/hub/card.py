# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""The model card: what the Hub shows of a model, written from its configuration and from what is known about its making."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import AutoConfig

from ..configuration_megavit import MegaVitConfig


# What the snippets begin with
IMPORT = "import modeling_megavit  # registers MegaVit with transformers: pip install megavit"
ARCHITECTURE = (
    "layer_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "norm_type",
    "qk_norm",
    "image_size",
    "patch_size",
    "num_channels",
    "position_embedding_type",
    "pooling_type",
    "problem_type",
)
CITATION = """@inproceedings{dehghani2023scaling,
  title = {Scaling Vision Transformers to 22 Billion Parameters},
  author = {Dehghani, Mostafa and others},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}
@inproceedings{dehghani2023patch,
  title = {Patch n' Pack: {NaViT}, a Vision Transformer for any Aspect Ratio and Resolution},
  author = {Dehghani, Mostafa and others},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}
}"""


@dataclass
class CardFacts:
    """
    What is known about the making of a model; a section of the card that would be empty is left out.

    Args:
        base_model (`str`, *optional*): The Hub id of the checkpoint that it comes from.
        license (`str`, *optional*): Its licence, by the Hub's names.
        dataset (`str`, *optional*): What it was trained on: a Hub id, or a name.
        dataset_on_hub (`bool`, *optional*, defaults to `False`): Whether `dataset` is a Hub id.
        metrics (`dict[str, float]`, *optional*): `eval_accuracy`, `eval_loss` and others, of held-out images.
        num_images (`tuple[int, int]`, *optional*): Images of training and evaluation.
        recipe (`str`, *optional*): The recipe of `megavit train`, as YAML.
        hardware (`str`, *optional*): What it was trained on and for how long.
        origin (`str`, *optional*): A sentence on where it comes from, if not from training.
        sections (`dict[str, str]`, *optional*): Further sections, by their titles.
        pictures (`dict[str, str]`, *optional*): File names of pictures of the results, by their descriptions.
        examples (`dict[str, str]`, *optional*): File names or URLs of images for the widget, by their titles.
    """

    base_model: str | None = None
    license: str | None = None
    dataset: str | None = None
    dataset_on_hub: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    num_images: tuple[int, int] | None = None
    recipe: str | None = None
    hardware: str | None = None
    origin: str | None = None
    sections: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def metadata(name: str, is_classifier: bool, facts: CardFacts) -> ModelCardData:
    """Returns what the Hub reads of a card."""
    results = None
    if facts.dataset and "eval_accuracy" in facts.metrics:
        result = EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=facts.dataset,
            dataset_name=facts.dataset,
            dataset_split="test",
            metric_type="accuracy",
            metric_name="Accuracy",
            metric_value=round(facts.metrics["eval_accuracy"], 4),
        )
        results = [result]
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="image-classification" if is_classifier else "image-feature-extraction",
        license=facts.license,
        tags=["megavit", "vision"],
        base_model=facts.base_model,
        datasets=[facts.dataset] if facts.dataset_on_hub else None,
        metrics=["accuracy"] if results else None,
        eval_results=results,
        widget=[{"src": src, "example_title": title} for title, src in facts.examples.items()] or None,
    )


def usage(name: str, config: MegaVitConfig, is_classifier: bool) -> str:
    """Returns three snippets that run one after the other."""
    mode = "RGB" if config.num_channels == 3 else "L"
    photo = f'Image.effect_noise((320, 240), 64).convert("{mode}")  # yours: Image.open("photo.png")'
    task = "image-classification" if is_classifier else "image-feature-extraction"
    auto = "AutoModelForImageClassification" if is_classifier else "AutoModel"
    result = "logits.softmax(-1).topk(2)" if is_classifier else "pooler_output.shape"
    multiple = " x ".join(map(str, config.patch_size))
    # Pipelines make RGB of every image.
    imports, call = "", ""
    if config.num_channels == 3:
        imports = "\nfrom transformers import pipeline"
        call = f'\nprint(pipeline("{task}", model=model_id)(photo)[:2])'
    return f"""```python
{IMPORT}
from PIL import Image{imports}

model_id = "{name}"  # the folder, or the id on the Hub
photo = {photo}{call}
```

Step by step:

```python
import torch
from transformers import AutoImageProcessor, {auto}

processor = AutoImageProcessor.from_pretrained(model_id)
model = {auto}.from_pretrained(model_id).eval()
with torch.inference_mode():
    print(model(**processor(photo, return_tensors="pt")).{result})
```

Images of any sizes at once, here of whole patches of {multiple} pixels, without padding:

```python
images = [torch.rand({config.num_channels}, {config.patch_size[0]} * rows, {config.patch_size[1]} * columns) for rows, columns in ((2, 3), (4, 2))]
with torch.inference_mode():
    print(model(images).{"logits" if is_classifier else "pooler_output"}.shape)
```"""


def training_section(facts: CardFacts) -> str | None:
    """Returns what is known of the training."""
    text = []
    if facts.dataset and facts.num_images:
        link = f"[{facts.dataset}](https://huggingface.co/datasets/{facts.dataset})"
        data = link if facts.dataset_on_hub else f"`{facts.dataset}`"
        text.append(
            f"{facts.num_images[0]:,} images of {data}; results are those of {facts.num_images[1]:,} held-out ones."
        )
    if facts.hardware:
        text.append(f"Trained on {facts.hardware}. Energy and emissions were not measured.")
    if facts.recipe:
        recipe = f"`megavit train recipe.yaml` with this recipe trains the model again:\n\n```yaml\n{facts.recipe.strip()}\n```"
        text.append(recipe)
    return "\n\n".join(text) or None


def limits(config: MegaVitConfig, is_classifier: bool) -> str:
    """Returns what the model can't do, as far as its configuration tells."""
    lines = []
    if is_classifier and config.problem_type != "multi_label_classification":
        lines.append(
            f"It puts every image into one of its {config.num_labels} classes, also one that belongs to none."
        )
    if config.position_embedding_type == "factorized" and config.position_coordinates == "absolute":
        lines.append(
            f"Images may have at most {config.grid_size[0]} rows and {config.grid_size[1]} columns of patches."
        )
    else:
        lines.append(
            f"Accuracy was looked at for images like those of training ({config.image_size[0]} x {config.image_size[1]} "
            "pixels); others run, but nobody has measured how well."
        )
    lines.append("It learned what its data shows, biases included, and must not be used to decide about people.")
    return "\n".join(f"- {line}" for line in lines)


def model_card(
    name: str, config: MegaVitConfig, num_parameters: int, facts: CardFacts | None = None, is_classifier: bool = True
) -> ModelCard:
    """
    Writes the card of a model.

    Args:
        name (`str`): Name of the model, or its id on the Hub.
        config (`MegaVitConfig`): Its configuration.
        num_parameters (`int`): Number of its parameters.
        facts (`CardFacts`, *optional*): What is known about its making.
        is_classifier (`bool`, *optional*, defaults to `True`): Whether it has a classifier.

    Returns:
        `ModelCard`: saved and validated by its own methods.
    """
    facts = facts or CardFacts()
    labels = list(config.id2label.values())
    classes = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    what = f"image classifier with {num_parameters:,} parameters and {config.num_labels} classes: {classes}"
    if not is_classifier:
        what = f"encoder of images with {num_parameters:,} parameters"
    metrics = [(key.removeprefix("eval_"), f"{value:.4f}") for key, value in facts.metrics.items()]
    pictures = "\n\n".join(f"![{title}]({file})" for title, file in facts.pictures.items())
    sections = {
        "Use": usage(name, config, is_classifier),
        "Results": "\n\n".join(filter(None, [metrics and table(("metric", "held out"), metrics), pictures])),
        "Data and training": training_section(facts),
        **facts.sections,
        "Architecture": table(("field", "value"), [(field, getattr(config, field)) for field in ARCHITECTURE]),
        "Limits": limits(config, is_classifier),
        "Citation": f"```bibtex\n{CITATION}\n```",
    }
    text = "\n\n".join(f"## {title}\n\n{section}" for title, section in sections.items() if section)
    block = "ViT-22B's block" if config.layer_type == "parallel" else f"the block `{config.layer_type}`"
    intro = f"A MegaVit {what}. It has {block}. {facts.origin or ''}".strip()
    head = metadata(name, is_classifier, facts).to_yaml()
    return ModelCard(f"---\n{head}\n---\n\n# {name}\n\n{intro}\n\n{text}\n")


def model_card_for(folder: str | Path) -> ModelCard:
    """
    Writes the card of a folder of which nothing else is known.

    Args:
        folder (`str` or `Path`): With config.json and safetensors.
    """
    folder = Path(folder)
    config, num_parameters, names = AutoConfig.from_pretrained(folder), 0, set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names |= set(tensors.keys())
            num_parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    return model_card(folder.resolve().name, config, num_parameters, is_classifier="classifier.weight" in names)
