# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Brings transformers' own common tests here: fetched from its source distribution, never copied into this repository.

The source distribution holds `tests/test_*.py` without the subfolders these import. What they need from there is at the
end of this file, as stand-ins of our own: it is the whole of what is not Hugging Face's in these tests.
"""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from huggingface_hub import cached_assets_path
from PIL import Image
from transformers.exporters import DynamoConfig, DynamoExporter
from transformers.models.auto import modeling_auto
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.pipelines import (
    DepthEstimationPipeline,
    ImageClassificationPipeline,
    ImageFeatureExtractionPipeline,
    ImageSegmentationPipeline,
)
from transformers.testing_utils import torch_device


PACKAGE = "transformers_common_tests"  # the name under which the fetched folder is imported


def fetch_tests() -> Path:
    """
    Returns the `tests` folder of the installed transformers' source distribution, which pip downloads once per version.

    Raises:
        `subprocess.CalledProcessError`: when pip cannot download it; these tests do not pass without it.
    """
    version = transformers.__version__
    cache = cached_assets_path("megavit", "transformers-sdist", version)
    tests = cache / "tests"
    if not tests.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            # pip reads a source distribution's metadata even for a download; without build isolation that takes two
            # seconds instead of thirty. The setuptools it then needs comes with torch.
            options = ["--no-deps", "--no-build-isolation", "--no-binary", "transformers", "--dest", scratch]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", *options]
            subprocess.run([*pip, f"transformers=={version}"], check=True)
            (archive,) = Path(scratch).glob("transformers-*.tar.gz")
            with tarfile.open(archive) as sdist:
                members = [member for member in sdist if Path(member.name).parts[1:2] == ("tests",)]
                sdist.extractall(scratch, members, filter="data")
            (extracted,) = Path(scratch).glob("transformers-*/tests")
            extracted.rename(tests)
    return tests


def register(model_type: str, models: dict[str, type], image_processors: dict[str, type]) -> None:
    """
    Enters an out-of-tree model into the tables of class names that the common tests consult, under `MODEL_FOR_...` without
    these words, or "" for the bare model. A class they do not find there gets no labels, no gradient checks and no
    pipeline, without a word.
    """
    for table, model in models.items():
        names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES" if table else "MODEL_MAPPING_NAMES")
        names[model_type] = model.__name__
    IMAGE_PROCESSOR_MAPPING_NAMES[model_type] = {name: cls.__name__ for name, cls in image_processors.items()}
    for cls in image_processors.values():
        setattr(transformers, cls.__name__, cls)  # where the pipeline tests look a processor up


def save_tiny_model(model: transformers.PreTrainedModel, image_processor: transformers.BaseImageProcessor) -> None:
    """Saves a model where the pipeline tests load it from, in place of the Hub's `hf-internal-testing`."""
    name = type(model).__name__
    folder = Path(_tiny_models.name) / model.config.model_type / name
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    pipeline_tests.tiny_model_summary[name] = {
        "tokenizer_classes": [],
        "processor_classes": [type(image_processor).__name__],
    }


# ---------------------------------------------- stand-ins ----------------------------------------------


class GenerationTesterMixin:
    """For `tests/generation/test_utils.py`: models that generate inherit from it, image classifiers must not."""


class ExportTesterMixin:
    """For `tests/exporters/test_export.py`: `torch.export` through transformers' exporter, at another batch size too."""

    def test_exported_program_gives_the_outputs_of_the_model(self):
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config).to(torch_device).eval()
            shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
            exported = DynamoExporter().export(model, dict(inputs), config=DynamoConfig(dynamic_shapes=shapes))
            smaller = {"pixel_values": inputs["pixel_values"][:2]}
            for sample in (inputs, smaller):
                with torch.no_grad():
                    torch.testing.assert_close(exported(**sample)[0], model(**sample)[0], rtol=1e-4, atol=1e-5)


# For `tests/utils/test_configuration_utils.py`: a value other than the default for every field of PreTrainedConfig.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


def _drawn_image(url: str = "") -> str:
    """For `utils/fetch_hub_objects_for_ci.py`: a photograph-sized image drawn here, whatever the address asked for."""
    path = Path(_tiny_models.name) / "image.png"
    if not path.exists():
        horizontal, vertical = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L")
        channels = [band.resize((640, 480)) for band in (horizontal, vertical, Image.radial_gradient("L"))]
        Image.merge("RGB", channels).save(path)
    return str(path)


class _ImagePipelineTests:
    """For `tests/pipelines/test_pipelines_image_*.py`: what a pipeline is fed and what it must answer."""

    pipeline_class: type
    pipeline_kwargs: dict = {}

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **processors):
        """Returns the pipeline and the examples with which `PipelineTesterMixin` also tests batches."""
        kwargs = {"tokenizer": tokenizer, "image_processor": image_processor, "dtype": dtype, **self.pipeline_kwargs}
        return self.pipeline_class(model=model, **kwargs), [Image.open(_drawn_image()), _drawn_image()]

    def run_pipeline_test(self, pipeline, examples):
        """Every mode an image comes in, one by one and as a list, gives an answer of the right form."""
        modes = [examples[0].convert(mode) for mode in ("RGB", "RGBA", "LA", "L", "P", "CMYK")]
        answers = pipeline([*examples, *modes])
        assert len(answers) == len(examples) + len(modes)
        for answer in (pipeline(examples[0]), *answers):
            self.check(pipeline, answer)
        assert pipeline(examples[0]) == pipeline(examples[1]), "a path and the image it leads to differ"


class ImageClassificationPipelineTests(_ImagePipelineTests):
    """Answers are the `top_k` best classes, best first."""

    pipeline_class = ImageClassificationPipeline
    pipeline_kwargs = {"top_k": 2}

    def check(self, pipeline, answer):
        """Two known labels with falling probabilities."""
        assert [set(item) for item in answer] == [{"label", "score"}] * 2
        assert {item["label"] for item in answer} <= set(pipeline.model.config.label2id)
        assert 1 >= answer[0]["score"] >= answer[1]["score"] > 0


class ImageFeatureExtractionPipelineTests(_ImagePipelineTests):
    """Answers are the last hidden state, as nested lists."""

    pipeline_class = ImageFeatureExtractionPipeline

    def check(self, pipeline, answer):
        """One image, some tokens, the model's width; with `pool=True` one vector."""
        features = torch.tensor(answer)
        assert features.ndim == 3
        assert features.shape[::2] == (1, pipeline.model.config.hidden_size)
        assert features.isfinite().all()


class ImageSegmentationPipelineTests(_ImagePipelineTests):
    """Answers are a mask of the image's size for each class that occurs."""

    pipeline_class = ImageSegmentationPipeline

    def check(self, pipeline, answer):
        """The masks share the image out among known labels."""
        assert {item["label"] for item in answer} <= set(pipeline.model.config.label2id)
        assert all(item["mask"].size == (640, 480) for item in answer)
        assert sum(np.asarray(item["mask"], dtype=int) for item in answer).tolist() == [[255] * 640] * 480


class DepthEstimationPipelineTests(_ImagePipelineTests):
    """Answers are a depth map of the image's size, and a picture of it."""

    pipeline_class = DepthEstimationPipeline

    def check(self, pipeline, answer):
        """Finite depths that differ."""
        assert answer["predicted_depth"].shape == (480, 640)
        assert answer["predicted_depth"].isfinite().all()
        assert answer["depth"].getextrema() == (0, 255)

    def run_pipeline_test(self, pipeline, examples):
        """As for the others, whose answers have no tensors to compare."""
        for answer in pipeline([examples[0].convert(mode) for mode in ("RGB", "RGBA", "LA", "L", "P", "CMYK")]):
            self.check(pipeline, answer)
        image, path = (pipeline(example)["predicted_depth"] for example in examples)
        assert torch.equal(image, path), "a path and the image it leads to differ"


def _stand_in(name: str, **contents) -> types.ModuleType:
    """Makes a module, and the packages above it, importable."""
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules:
        _stand_in(parent).__path__ = []
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(contents)
    return module


_tiny_models = tempfile.TemporaryDirectory(prefix="megavit-tiny-models-")
(Path(_tiny_models.name) / "reports").mkdir()
(Path(_tiny_models.name) / "reports" / "tiny_model_summary.json").write_text(json.dumps({}))
os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = _tiny_models.name

_stand_in(PACKAGE).__path__ = [str(fetch_tests())]
_stand_in(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)
_stand_in(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=ExportTesterMixin)
_stand_in(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)
_stand_in("fetch_hub_objects_for_ci", url_to_local_path=_drawn_image)

# Two suites execute transformers/__init__.py anew from the checkout they expect around them: the installed one serves.
with mock.patch.object(transformers.utils, "direct_transformers_import", return_value=transformers):
    configuration_tests = importlib.import_module(f"{PACKAGE}.test_configuration_common")
    backbone_tests = importlib.import_module(f"{PACKAGE}.test_backbone_common")
    modeling_tests = importlib.import_module(f"{PACKAGE}.test_modeling_common")
    pipeline_tests = importlib.import_module(f"{PACKAGE}.test_pipeline_mixin")
    image_processing_tests = importlib.import_module(f"{PACKAGE}.test_image_processing_common")

for _task, _tests in {
    "image-classification": ImageClassificationPipelineTests,
    "image-feature-extraction": ImageFeatureExtractionPipelineTests,
    "image-segmentation": ImageSegmentationPipelineTests,
    "depth-estimation": DepthEstimationPipelineTests,
}.items():
    pipeline_tests.pipeline_test_mapping[_task]["test"] = f"{__name__}.{_tests.__name__}"
