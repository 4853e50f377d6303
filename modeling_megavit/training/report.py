# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""What a run leaves beside the weights: curves, a confusion matrix and the draft of a model card."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay
from transformers import PreTrainedConfig

from .recipe import RecipeArguments


def plot_curves(log_history: list[dict], path: Path) -> None:
    """
    Draws loss, accuracy, learning rate and gradient norm over the steps of a run.

    Args:
        log_history (`list[dict]`): `TrainerState.log_history`.
        path (`Path`): The PNG file to write.
    """
    panels = {
        "Loss": ("loss", "eval_loss"),
        "Accuracy": ("eval_accuracy",),
        "Learning rate": ("learning_rate",),
        "Gradient norm": ("grad_norm",),
    }
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels.items()):
        for name in names:
            points = [(log["step"], log[name]) for log in log_history if name in log]
            label = "held out" if name.startswith("eval_") else "training"
            axes.plot(*zip(*points) if points else ([], []), label=label, marker="." if len(points) < 30 else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    figure.savefig(path, dpi=120)


def plot_confusion_matrix(labels: np.ndarray, predictions: np.ndarray, class_names: list[str], path: Path) -> None:
    """
    Draws how often images of each class (rows) were given each class (columns), as a part of the row.

    Args:
        labels, predictions (`np.ndarray`): (images,) class indices.
        class_names (`list[str]`): Names of the classes.
        path (`Path`): The PNG file to write.
    """
    count = len(class_names)
    side = min(4 + count * 0.4, 40)
    figure = Figure(figsize=(side, side), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        labels,
        predictions,
        labels=np.arange(count),
        display_labels=class_names,
        normalize="true",
        include_values=count <= 20,
        values_format=".2f",
        xticks_rotation="vertical",
        cmap="Blues",
        colorbar=False,
        ax=figure.subplots(),
    )
    figure.savefig(path, dpi=120)


def accuracy(labels: np.ndarray, logits: np.ndarray) -> float:
    """
    Returns the part of the images whose highest logit is that of their class, or of one of their classes.

    Args:
        labels (`np.ndarray`): (images,) class indices, or (images, num_labels) zeros and ones.
        logits (`np.ndarray`): (images, num_labels).
    """
    best = logits.argmax(axis=-1)
    hits = best == labels if labels.ndim == 1 else labels[np.arange(len(best)), best] > 0
    return float(hits.mean())


_ARCHITECTURE = (
    "layer_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "norm_type",
    "qk_norm",
    "image_size",
    "patch_size",
    "position_embedding_type",
    "pooling_type",
    "drop_path_rate",
    "problem_type",
)

_CARD = """---
{metadata}
---
# {name}

*A draft, written by `megavit train`: check the licence, and say what the model is for and what it must not be used for.*

A MegaVit image classifier with {num_parameters:,} parameters and {num_labels} classes: {classes}.

## Use

```python
import modeling_megavit  # registers MegaVit with transformers
from transformers import pipeline
print(pipeline("image-classification", model="{name}")("image.png"))
```

## Results

{results}

![Loss, accuracy, learning rate and gradient norm](curves.png)
{confusion_matrix}
## Data and training

{num_train:,} images of {dataset}; the results are those of {num_eval:,} held out images. `megavit train recipe.yaml` with this
recipe trains the model again:

```yaml
{recipe}```

## Architecture

{architecture}
"""


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _metadata(name: str, dataset: str, on_hub: bool, accuracy: float) -> ModelCardData:
    """Returns what the Hub reads of a model card."""
    result = EvalResult(
        task_type="image-classification",
        dataset_type=dataset,
        dataset_name=f"{dataset} of scikit-learn" if dataset == "digits" else dataset,
        metric_type="accuracy",
        metric_value=round(accuracy, 4),
    )
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        tags=["megavit", "vision"],
        datasets=[dataset] if on_hub else None,
        metrics=["accuracy"],
        eval_results=[result],
    )


def model_card(
    name: str,
    config: PreTrainedConfig,
    num_parameters: int,
    recipe: RecipeArguments,
    recipe_text: str,
    sizes: tuple[int, int],
    metrics: dict[str, float],
    has_confusion_matrix: bool,
) -> ModelCard:
    """
    Drafts the model card of a run, with the metadata that the Hub reads.

    Args:
        name (`str`): Name of the model.
        config (`MegaVitConfig`): The trained model's.
        num_parameters (`int`): The trained model's.
        recipe (`RecipeArguments`): Names the data set.
        recipe_text (`str`): The recipe as YAML.
        sizes (`tuple[int, int]`): Number of images for training and for evaluation.
        metrics (`dict[str, float]`): `eval_accuracy` and `eval_loss`.
        has_confusion_matrix (`bool`): Whether confusion_matrix.png exists.

    Returns:
        `ModelCard`: validated and saved by its own methods.
    """
    is_local = Path(recipe.dataset).expanduser().exists()
    dataset = Path(recipe.dataset).name if is_local else recipe.dataset
    metadata = _metadata(name, dataset, not is_local and dataset != "digits", metrics["eval_accuracy"])
    names = list(config.id2label.values())
    text = _CARD.format(
        metadata=metadata.to_yaml(),
        name=name,
        num_parameters=num_parameters,
        num_labels=config.num_labels,
        classes=", ".join(names[:10]) + (", ..." if len(names) > 10 else ""),
        results=table(
            ("metric", "held out"), [(key[5:], f"{metrics[key]:.4f}") for key in ("eval_accuracy", "eval_loss")]
        ),
        confusion_matrix="\n![Confusion matrix](confusion_matrix.png)\n" if has_confusion_matrix else "",
        num_train=sizes[0],
        num_eval=sizes[1],
        dataset=f"`{dataset}`",
        recipe=recipe_text,
        architecture=table(("field", "value"), [(field, getattr(config, field)) for field in _ARCHITECTURE]),
    )
    return ModelCard(text)
