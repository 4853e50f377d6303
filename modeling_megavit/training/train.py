# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""The body of `megavit train`: from a recipe to a folder with a trained classifier and its report."""

import json
import math
import os
import shutil
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
import yaml
from accelerate import ParallelismConfig
from transformers import AutoImageProcessor, EvalPrediction, TrainingArguments, set_seed
from transformers.distributed import DistributedConfig
from transformers.trainer_utils import enable_full_determinism, get_last_checkpoint

from .. import presets
from ..configuration_megavit import MegaVitConfig
from ..hub.card import CardFacts, model_card
from ..hub.push import push
from ..image_processing_pil_megavit import MegaVitImageProcessorPil
from ..modeling_megavit import MegaVitForImageClassification
from ..packing import MegaVitPackingCollator, PackedDataset, SideLengths, TokenDropout
from . import report
from .augmentation import ImageAugmentation, build_augmentation
from .checkpoint import load_config
from .data import ImageData, ToModelInputs, load_data
from .mixing import Mixing, MixingCollator
from .progressive import GrowingSideLengths, ProgressiveResolution
from .recipe import RecipeArguments, read_recipe
from .stability import AttentionStatistics
from .trainer import MegaVitTrainer, last_complete_checkpoint


RECIPE = "recipe.yaml"
RESULTS = "all_results.json"


def train(recipe: str, options: list[str] | None = None) -> Path:
    """
    Trains a classifier, or goes on where the same command was interrupted, or does nothing if it had finished.

    Args:
        recipe (`str`): As of [`read_recipe`].
        options (`list[str]`, *optional*): As of [`read_recipe`].

    Returns:
        `Path`: the output folder: weights, config.json, preprocessor_config.json, metrics, curves.png,
        confusion_matrix.png (unless images have several labels), README.md and recipe.yaml.

    Raises:
        `ValueError`: if the recipe is wrong, doesn't fit its data, or the folder holds something else.
        `FileNotFoundError`: if the recipe, the checkpoint or the data doesn't exist.
    """
    recipe_arguments, args, given = read_recipe(recipe, options)
    output_dir = Path(args.output_dir)
    with args.main_process_first(local=False):
        _refuse_another_run(output_dir, given)
        if (output_dir / RESULTS).exists():
            if args.should_log:
                print(f"{output_dir} is finished: nothing to do.")
            return output_dir
        # Without the optimizer, only starting again gives the same weights.
        last = None if args.save_only_model else last_complete_checkpoint(args.output_dir)
    checkpoint = args.resume_from_checkpoint or last
    if checkpoint and args.should_log:
        print(f"Resuming from {checkpoint}.")

    data = load_data(recipe_arguments)
    trainer = build_trainer(recipe_arguments, args, data)
    if trainer.is_world_process_zero():
        _write_recipe(output_dir, given)
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    _finish(trainer, data, metrics, output_dir)
    trainer.accelerator.wait_for_everyone()
    return output_dir


def build_trainer(recipe: RecipeArguments, args: TrainingArguments, data: ImageData) -> MegaVitTrainer:
    """Returns the trainer of a recipe, with the model, the image processor and the data in place."""
    if recipe.cpu_threads:
        torch.set_num_threads(recipe.cpu_threads)
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    model, processor = _load_model(recipe, data)
    model = _in_shards(model, args)
    if recipe.freeze_backbone:
        model.base_model.requires_grad_(False)
    args.remove_unused_columns = False  # it would take the images from the transform
    args.dataloader_pin_memory &= torch.accelerator.is_available()  # torch warns otherwise
    build_inputs = _native_inputs if recipe.resolution == "native" else _fixed_inputs
    inputs = build_inputs(recipe, args, data, processor, model.config.problem_type == "multi_label_classification")
    trainer = MegaVitTrainer(
        recipe, model=model, args=args, processing_class=processor, compute_metrics=_compute_metrics, **inputs
    )
    if recipe.log_attention:
        trainer.add_callback(AttentionStatistics(trainer))
    return trainer


def _in_shards(model: MegaVitForImageClassification, args: TrainingArguments) -> MegaVitForImageClassification:
    """Returns the model as the launch file's `parallelism_config` cuts it, if that asks for tensor parallelism."""
    sizes = ParallelismConfig()  # of the environment, where `accelerate launch` leaves them
    if sizes.tp_size == 1:
        return model  # accelerate does the rest
    parallel = DistributedConfig(
        tp_size=sizes.tp_size,
        fsdp_size=sizes.dp_shard_size,
        dp_replicate_size=sizes.dp_replicate_size,
        fsdp_mixed_precision=args.bf16,
    )
    return type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), distributed_config=parallel
    )


def _fixed_inputs(recipe, args, data: ImageData, processor, multi_hot: bool) -> dict:
    """Returns the data sets and the augmentation of images that are brought to one size."""
    crop = [processor.crop_size["height"], processor.crop_size["width"]] if processor.do_center_crop else None
    to_pixels = {"do_normalize": False}
    if recipe.crop_scale and crop:
        # Random crops are cut from all that the centre crop of the evaluation would leave out, too.
        edge = processor.size.get("shortest_edge")
        to_pixels["crop_size"] = {"height": edge, "width": edge} if edge else processor.size
    augmentation = build_augmentation(
        recipe,
        crop or [processor.size["height"], processor.size["width"]],
        processor.image_mean if processor.do_normalize else None,
        processor.image_std,
    )
    return {
        "augmentation": augmentation,
        "train_dataset": data.train.with_transform(ToModelInputs(data, processor, multi_hot, **to_pixels)),
        "eval_dataset": data.evaluation.with_transform(ToModelInputs(data, processor, multi_hot)),
    }


def _native_inputs(recipe, args, data: ImageData, processor, multi_hot: bool) -> dict:
    """Returns the data sets, and the collator that packs them, of images that keep their proportions."""
    args.train_sampling_strategy = "sequential"  # the packs are shuffled already
    collator_class, side_lengths = MegaVitPackingCollator, None
    if recipe.mixup is not None or recipe.cutmix is not None:
        collator_class = partial(MixingCollator, Mixing(recipe.mixup, recipe.cutmix, recipe.mix_probability))
    collator = collator_class(processor, data.image_column, augment=ImageAugmentation(recipe))
    if recipe.progressive_resolution:
        growth = ProgressiveResolution(**recipe.progressive_resolution)
        side_lengths = GrowingSideLengths(*recipe.side_lengths, growth=growth)
    elif recipe.side_lengths:
        side_lengths = SideLengths(*recipe.side_lengths)
    train, evaluation = (
        part.with_transform(ToModelInputs(data, None, multi_hot)) for part in (data.train, data.evaluation)
    )
    packed = PackedDataset(
        train,
        collator,
        recipe.token_budget,
        look_ahead=recipe.look_ahead,
        seed=args.seed,
        side_lengths=side_lengths,
        token_dropout=TokenDropout(**recipe.token_dropout) if recipe.token_dropout else None,
        oversized=recipe.oversized,
    )
    return {"augmentation": None, "train_dataset": packed, "eval_dataset": evaluation, "data_collator": collator}


def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": report.accuracy(prediction.label_ids, prediction.predictions)}


def _load_model(recipe: RecipeArguments, data: ImageData):
    """Returns the model and image processor of a preset, as initialised, or of a checkpoint."""
    names = data.class_names
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    overrides = ({"problem_type": "multi_label_classification"} if data.multi_label else {}) | recipe.config
    num_labels = overrides.pop("num_labels", len(names))
    if num_labels != len(names):
        raise ValueError(
            f"`config.num_labels` must be the number of classes of the data, {len(names)}, got {num_labels}."
        )
    fields_of_config = (
        {field.name for field in fields(MegaVitConfig)} | MegaVitConfig.attribute_map.keys() | {"mlp_ratio"}
    )
    if unknown := overrides.keys() - fields_of_config:
        raise ValueError(f"`config` has no field {', '.join(sorted(unknown))}.")
    if unknown := recipe.image_processor.keys() - MegaVitImageProcessorPil.valid_kwargs.__annotations__.keys():
        raise ValueError(f"`image_processor` has no field {', '.join(sorted(unknown))}.")
    is_native = recipe.resolution == "native"
    if recipe.model in presets.available("models"):
        config = MegaVitConfig.from_preset(recipe.model, **labels, **overrides)
        model = MegaVitForImageClassification(config)
        native = {"max_num_patches": math.prod(config.grid_size)} if is_native else {}
        processor = MegaVitImageProcessorPil.from_config(config, **(native | recipe.image_processor))
    else:
        config = load_config(recipe.model)
        if config.num_labels != num_labels and not recipe.ignore_mismatched_sizes:
            raise ValueError(
                f"`model` has {config.num_labels} classes and the data {num_labels}: set `ignore_mismatched_sizes` to "
                "start a new classifier."
            )
        model = MegaVitForImageClassification.from_pretrained(
            recipe.model, ignore_mismatched_sizes=recipe.ignore_mismatched_sizes, **labels, **overrides
        )
        native = {"size": None, "crop_size": None, "do_center_crop": False, "patch_size": model.config.patch_size}
        native |= {"max_num_patches": math.prod(model.config.grid_size)}
        processor = AutoImageProcessor.from_pretrained(
            recipe.model, backend="pil", **((native if is_native else {}) | recipe.image_processor)
        )
        if processor.max_num_patches is not None and not is_native:
            raise ValueError(f"`resolution` must be native for {recipe.model}, whose image processor is, got 'fixed'.")
    if data.multi_label and model.config.problem_type != "multi_label_classification":
        raise ValueError(
            "`config.problem_type` must be 'multi_label_classification' for images with several labels, got "
            f"{model.config.problem_type!r}."
        )
    return model, processor


def _refuse_another_run(output_dir: Path, given: dict) -> None:
    """Raises if `output_dir` holds what isn't from this recipe, unless that run came to nothing."""
    path = output_dir / RECIPE
    if path.is_file():
        mine, theirs = _without_output_dir(given), yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if changed and (get_last_checkpoint(output_dir) or (output_dir / RESULTS).exists()):
            raise ValueError(
                f"`output_dir` {output_dir} holds a run with another {', '.join(changed)}: choose another folder."
            )
    elif output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(f"`output_dir` {output_dir} holds something else than a run of `megavit train`.")


def _write_recipe(output_dir: Path, given: dict) -> None:
    """Says in `output_dir` whose folder it is."""
    unfinished = output_dir.with_name(f".{output_dir.name}.{RECIPE}")
    unfinished.write_text(yaml.safe_dump(_without_output_dir(given), sort_keys=False), encoding="utf-8")
    os.replace(unfinished, output_dir / RECIPE)


def _without_output_dir(given: dict) -> dict:
    """Returns the recipe as the output folder keeps it, which may be moved."""
    return {name: value for name, value in given.items() if name != "output_dir"}


def _card_facts(trainer: MegaVitTrainer, data: ImageData, metrics: dict, folder: Path) -> CardFacts:
    """Returns what the model card says of the run, and saves its example images in `folder`."""
    recipe, device = trainer.recipe, trainer.args.device
    is_local = Path(recipe.dataset).expanduser().exists()
    is_digits = recipe.dataset in ("digits", "digits_native")
    # One's own images are nobody else's business.
    examples = {} if is_local else report.save_examples(data, folder)
    count = torch.get_num_threads()
    name = f"{count} CPU core{'s' * (count > 1)}" if device.type == "cpu" else torch.cuda.get_device_name(device)
    hardware = f"{trainer.args.world_size} x {name}" if trainer.args.world_size > 1 else name
    if "train_runtime" in metrics:
        hardware += f" in {metrics['train_runtime'] / 60:.1f} minutes"
    pictures = {"Loss, accuracy, learning rate and gradient norm": "curves.png"}
    if (folder / "confusion_matrix.png").exists():
        pictures["Confusion matrix"] = "confusion_matrix.png"
    is_on_hub = recipe.model.count("/") == 1 and not Path(recipe.model).exists()
    return CardFacts(
        base_model=recipe.model if is_on_hub else None,
        license=None if is_on_hub else "apache-2.0",
        origin="*A draft by `megavit train`: check the licence, and say what the model is for.*",
        dataset=Path(recipe.dataset).name if is_local else recipe.dataset,
        dataset_on_hub=not is_local and not is_digits,
        metrics={name: metrics[name] for name in ("eval_accuracy", "eval_loss")},
        num_images=(len(data.train), len(data.evaluation)),
        hardware=hardware,
        pictures=pictures,
        examples=examples,
    )


def _finish(trainer: MegaVitTrainer, data: ImageData, metrics: dict, output_dir: Path) -> None:
    """Evaluates the model and fills the output folder, each file whole or not at all and the results last."""
    metrics.pop("total_flos", None)  # Trainer counts a pixel as a token
    prediction = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    metrics |= prediction.metrics
    unfinished = output_dir / ".unfinished"
    if trainer.is_world_process_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
    if trainer.is_fsdp_enabled:
        # Checkpoints may be in shards, the result is one model.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(unfinished), _internal_call=True)  # else it would push what is still without its card
    if not trainer.is_world_process_zero():
        return
    # A pickle; recipe.yaml says the same
    (unfinished / "training_args.bin").unlink()
    report.plot_curves(trainer.state.log_history, unfinished / "curves.png")
    has_matrix = prediction.label_ids.ndim == 1
    if has_matrix:
        predicted = prediction.predictions.argmax(axis=-1)
        report.plot_confusion_matrix(
            prediction.label_ids, predicted, data.class_names, unfinished / "confusion_matrix.png"
        )
    model = trainer.accelerator.unwrap_model(trainer.model)
    facts = _card_facts(trainer, data, metrics, unfinished)
    facts.recipe = (output_dir / RECIPE).read_text(encoding="utf-8")
    card = model_card(output_dir.resolve().name, model.config, model.num_parameters(), facts)
    card.save(unfinished / "README.md")
    trainer.state.save_to_json(str(unfinished / "trainer_state.json"))
    for file in unfinished.iterdir():
        if file.is_dir():  # the examples; a folder can't be replaced
            shutil.rmtree(output_dir / file.name, ignore_errors=True)
        os.replace(file, output_dir / file.name)
    (unfinished / RESULTS).write_text(json.dumps(metrics, indent=4, sort_keys=True), encoding="utf-8")
    os.replace(unfinished / RESULTS, output_dir / RESULTS)
    unfinished.rmdir()
    if trainer.args.push_to_hub:
        args = trainer.args
        push(output_dir, trainer.hub_model_id, revision=args.hub_revision, token=args.hub_token)
