# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""
What the converters share: key tables, checkpoints that are read tensor by tensor, and the run from one to the other.

A table is a list of `Row`s. In the names, `{layer}` stands for a number and `{param}` for `weight` or `bias`; `{rest}` for
anything; all else is literal, and a row matches whole names. Each name of the checkpoint belongs to exactly one row, and each name of the
model is filled exactly once; otherwise nothing is written, and the error lists what is left over on both sides.

A checkpoint is safetensors, or a file that `torch.load(weights_only=True)` or `numpy.load(allow_pickle=False)` reads:
nothing in it is executed. Tensors pass through one at a time, and a shard of the result is never larger than the largest
file of the source, so that the peak memory is about that of one shard.
"""

import argparse
import contextlib
import inspect
import json
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict

import modeling_megavit
from modeling_megavit import MegaVitConfig, MegaVitForImageClassification, MegaVitModel


PLACEHOLDERS = {"layer": r"\d+", "param": "weight|bias", "rest": ".+"}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")
TOLERANCE = 1e-5


def keep(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Renames only."""
    return tensors


def split(*tensors: torch.Tensor, parts: int = 3) -> tuple[torch.Tensor, ...]:
    """Takes a fused projection apart, (parts * size, ...) -> parts times (size, ...)."""
    return tensors[0].chunk(parts)


def join(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Undoes `split`."""
    return (torch.cat(tensors),)


def flatten_patches(weight: torch.Tensor) -> tuple[torch.Tensor]:
    """Turns the kernel of a convolution into a projection of patches, (out, channels, y, x) -> (out, y * x * channels)."""
    return (weight.permute(0, 2, 3, 1).flatten(1),)


def unflatten_patches(weight: torch.Tensor, patch_size: Sequence[int]) -> tuple[torch.Tensor]:
    """Undoes `flatten_patches`."""
    return (weight.unflatten(1, (*patch_size, -1)).permute(0, 3, 1, 2),)


class Row:
    """
    One line of a key table.

    Args:
        sources (`str` or `tuple[str, ...]`):
            Names in the checkpoint. Several are read together; none means that `convert` is given the shape of the target.
        targets (`str` or `tuple[str, ...]`):
            Names in the model. None means that the sources are left out.
        convert (`Callable`):
            Takes the sources' tensors as arguments and returns the targets' in a tuple.
        revert (`Callable`, *optional*):
            The way back. A row without it is passed over there, as one is that only reads an older spelling.
    """

    def __init__(self, sources, targets, convert: Callable = keep, revert: Callable | None = None):
        self.sources = (sources,) if isinstance(sources, str) else tuple(sources)
        self.targets = (targets,) if isinstance(targets, str) else tuple(targets)
        self.convert, self.revert = convert, keep if convert is keep else revert

    def reversed(self) -> "Row":
        """Returns the row that leads back."""
        return Row(self.targets, self.sources, self.revert, self.convert)


def compile_name(name: str) -> re.Pattern:
    """Returns the pattern of the whole name."""
    return re.compile(
        re.sub(r"\\{(\w+)\\}", lambda found: f"(?P<{found[1]}>{PLACEHOLDERS[found[1]]})", re.escape(name))
    )


@dataclass
class Step:
    """A row with its placeholders filled in."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    convert: Callable


def plan(rows: Sequence[Row], names: Sequence[str], expected: dict[str, torch.Tensor] | None) -> list[Step]:
    """
    Applies a key table.

    Args:
        rows (`Sequence[Row]`): The table.
        names (`Sequence[str]`): All names of the checkpoint.
        expected (`dict[str, torch.Tensor]`, *optional*): All names of the model with tensors of their shapes; without them,
            what is filled is not checked.

    Returns:
        `list[Step]`: in the order of the checkpoint.

    Raises:
        `ValueError`: unless each name of the checkpoint matches one row, and each name of the model is filled once.
    """
    patterns = [(row, compile_name(source)) for row in rows for source in row.sources]
    groups: dict[tuple, dict] = {}
    strange, incomplete = [], []
    for name in names:
        found = [(row, match) for row, pattern in patterns if (match := pattern.fullmatch(name))]
        if len(found) == 1:
            (row, match) = found[0]
            groups.setdefault((row, *match.groupdict().items()), match.groupdict())
        else:
            strange.append(name)
    steps, available = [], set(names)
    for (row, *_), values in groups.items():
        sources = tuple(source.format(**values) for source in row.sources)
        incomplete += [source for source in sources if source not in available]
        steps.append(Step(sources, tuple(target.format(**values) for target in row.targets), row.convert))
    filled = Counter(target for step in steps for target in step.targets)
    for row in rows:
        if not row.sources and expected is not None:
            targets = [name for name in expected if compile_name(row.targets[0]).fullmatch(name) and not filled[name]]
            steps += [
                Step((), (name,), lambda name=name, row=row: row.convert(expected[name].shape)) for name in targets
            ]
            filled.update(targets)
    problems = {
        "unknown in the checkpoint": strange,
        "missing in the checkpoint": incomplete,
        "left empty in the model": [name for name in expected or () if not filled[name]],
        "unknown in the model": [name for name in filled if expected is not None and name not in expected],
        "filled twice in the model": [name for name, count in filled.items() if count > 1],
    }
    if any(problems.values()):
        raise ValueError(
            "The checkpoint doesn't fit the key table: "
            + "; ".join(f"{what}: {shorten(names)}" for what, names in problems.items() if names)
        )
    return steps


def shorten(names: Sequence[str], most: int = 8) -> str:
    """Lists names, the first ones at least."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def run_on_meta(
    steps: Sequence[Step], shapes: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns what the steps give on tensors without data, and raises a `ValueError` for the first wrong shape."""
    converted = {}
    for step in steps:
        sources = [shapes[name] for name in step.sources]
        given = ", ".join(f"{name} {tuple(shapes[name].shape)}" for name in step.sources)
        try:
            outputs = step.convert(*sources)
        except (RuntimeError, IndexError, ValueError) as error:
            raise ValueError(f"The checkpoint has a wrong shape for {shorten(step.targets)}, got {given}.") from error
        for name, tensor in zip(step.targets, outputs, strict=bool(step.targets)):
            if tensor.shape != expected[name].shape:
                raise ValueError(
                    f"The checkpoint has a wrong shape for {name}: expected {tuple(expected[name].shape)}, got "
                    f"{tuple(tensor.shape)} from {given}."
                )
            converted[name] = tensor
    return converted


class Checkpoint:
    """
    A checkpoint on disk, whose tensors are read one by one.

    Args:
        path (`str` or `Path`): A file, a folder, or the id of a model on the Hub.

    Raises:
        `FileNotFoundError`: if there is no such file, folder or model, or if a shard is missing.
        `ValueError`: if a file is damaged, or holds anything but tensors.
    """

    def __init__(self, path: str | Path):
        self.name = str(path)
        path = find_checkpoint(path)
        self.folder = path if path.is_dir() else path.parent
        self.files = find_weights(path) if path.is_dir() else [path]
        self.shapes: dict[str, torch.Tensor] = {}
        self.places: dict[str, tuple[Path, str]] = {}
        for file in self.files:
            for name, tensor in read_shapes(file).items():
                # What DistributedDataParallel and torch.compile put in front
                short = re.sub(r"^(module\.|_orig_mod\.)+", "", name)
                if short in self.shapes:
                    raise ValueError(f"The checkpoint has {short} twice, the second time in {file.name}.")
                self.shapes[short], self.places[short] = tensor, (file, name)

    def read(self, name: str) -> torch.Tensor:
        """Returns one tensor."""
        return read_tensor(*self.places[name])

    def read_json(self, name: str) -> dict:
        """Returns the contents of a JSON file beside the weights, nothing if there is none."""
        file = self.folder / name
        if not file.is_file():
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} must be JSON: {error}.") from error

    def layers(self, prefix: str) -> int:
        """Returns the number of different numbers that follow `prefix` in the names."""
        found = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in self.shapes)
        return len({match[1] for match in found if match})


def find_checkpoint(path: str | Path) -> Path:
    """Returns a file or a folder, downloaded from the Hub if it is not a local one."""
    local = Path(path).expanduser()
    if local.exists():
        return local
    try:
        patterns = ["*.json", "*.safetensors"]
        if not any(file.endswith(".safetensors") for file in HfApi().list_repo_files(str(path))):
            patterns = ["*.json", "*.bin", "*.npz"]
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(f"There is no file, folder or model on the Hub named {path}.") from error


def find_weights(folder: Path) -> list[Path]:
    """Returns the files with the weights of a checkpoint in a folder."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(f"The checkpoint {folder} lacks the shards {shorten(missing)}.")
            return [folder / name for name in names]
        if (folder / name).is_file():
            return [folder / name]
    files = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES]
    if len(files) != 1:
        raise FileNotFoundError(
            f"The checkpoint {folder} must have {' or '.join(WEIGHTS)}, whole or in shards, or one file with weights, got "
            f"{shorten([file.name for file in files]) or 'none'}."
        )
    return files


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Says which file is damaged, whatever its reader says."""
    try:
        yield
    except UnpicklingError as error:
        raise ValueError(f"{file} must hold tensors only, but would have to run code of its own to load.") from error
    except (SafetensorError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is damaged, or not a checkpoint: {str(error).splitlines()[0]}") from error


def load_file(file: Path, device: str) -> dict[str, torch.Tensor]:
    """Loads a PyTorch or safetensors file with transformers' own function, which maps it into memory where it can."""
    state_dict = load_state_dict(file, map_location=device)
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict, dict) and isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError("it holds something else than named tensors")
    return state_dict


def read_shapes(file: Path) -> dict[str, torch.Tensor]:
    """Returns the names in a file with tensors on the meta device."""
    with reading(file):
        if file.suffix != ".npz":
            return load_file(file, "meta")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: to_tensor(arrays[name]).to("meta") for name in arrays.files}


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """Reads one tensor. The file is opened each time, so that no more than this tensor stays in memory."""
    with reading(file):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_tensor(name)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return to_tensor(arrays[name])
        return load_file(file, "cpu")[name]


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Makes a tensor of numpy's array, which has no bfloat16: JAX saves it as two bytes of anything."""
    return (
        torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        if array.dtype.kind == "V"
        else torch.from_numpy(array)
    )


def write_weights(checkpoint: Checkpoint, steps: Sequence[Step], converted: dict[str, torch.Tensor], folder: Path):
    """
    Converts tensor by tensor and writes safetensors, in shards if the source has more than one file.

    Args:
        checkpoint (`Checkpoint`): The source.
        steps (`Sequence[Step]`): What `plan` returns.
        converted (`dict[str, torch.Tensor]`): What `run_on_meta` returns.
        folder (`Path`): Where to.
    """
    largest = max(file.stat().st_size for file in checkpoint.files)
    shards = split_state_dict_into_shards_factory(
        converted,
        get_storage_size=lambda tensor: tensor.numel() * tensor.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=largest,
    )
    waiting, written = {}, Counter()
    for step in track(steps, description="Converting", transient=True):
        tensors = step.convert(*(checkpoint.read(name) for name in step.sources))
        # A copy, because parts of one tensor would keep the whole in memory
        waiting.update(
            (name, tensor.clone(memory_format=torch.contiguous_format)) for name, tensor in zip(step.targets, tensors)
        )
        del tensors
        for file in {shards.tensor_to_filename[name] for name in step.targets}:
            written[file] += sum(name in shards.filename_to_tensors[file] for name in step.targets)
            if written[file] == len(shards.filename_to_tensors[file]):
                shard = {name: waiting.pop(name) for name in shards.filename_to_tensors[file]}
                save_file(shard, folder / file, metadata={"format": "pt"})
                del shard
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@dataclass
class Source:
    """
    What a converter finds out about a checkpoint.

    Args:
        config (`MegaVitConfig`): Of the model that it becomes.
        rows (`list[Row]`): The key table. The names of the model are those of `MegaVitModel` and `classifier`.
        has_classifier (`bool`): Whether it becomes a `MegaVitForImageClassification`, not a `MegaVitModel`.
        processor (`dict`): Arguments of the image processor, over what the configuration gives.
        reference (`Callable`, *optional*):
            Builds the source's own model, and returns what computes from images (batch, channels, height, width) the outputs
            that must be equal, by name. `None` where its code isn't installed.
        sizes (`list[tuple[int, int]]`): Heights and widths that the source's own model takes, for the comparison.
    """

    config: MegaVitConfig
    rows: list[Row]
    has_classifier: bool
    processor: dict = field(default_factory=dict)
    reference: Callable[[], Callable[[torch.Tensor], dict[str, torch.Tensor]]] | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def expected(self) -> dict[str, torch.Tensor]:
        """Returns all names of the model, as the table has them, with tensors on the meta device."""
        with torch.device("meta"):
            model = (MegaVitForImageClassification if self.has_classifier else MegaVitModel)(self.config)
        return {name.removeprefix("megavit."): tensor for name, tensor in model.state_dict().items()}


def nearby_sizes(image_size: Sequence[int], patch_size: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the native size, a larger and wider one, and a smaller and higher one, (height, width) each."""
    (rows, columns), (height, width) = (
        [size // patch for size, patch in zip(image_size, patch_size)],
        patch_size,
    )
    grids = [(rows, columns), (rows + 1, columns * 3 // 2 + 1), (rows, max(1, columns * 2 // 3))]
    return [(y * height, x * width) for y, x in grids]


@torch.no_grad()
def compare(model: PreTrainedModel, source: Source) -> list[tuple[str, str, float]]:
    """
    Runs drawn images through both models, in float32.

    Args:
        model (`PreTrainedModel`): The converted one, in float32.
        source (`Source`): Has the other.

    Returns:
        `list[tuple[str, str, float]]`: size of the images, name of the output, and the largest difference in parts of the
        output's largest number.

    Raises:
        `ValueError`: if it is more than `TOLERANCE`.
    """
    reference = source.reference()
    generator = torch.Generator().manual_seed(0)
    figures = []
    for height, width in source.sizes:
        images = torch.randn(2, model.config.num_channels, height, width, generator=generator)
        outputs = model.eval()(images)
        for name, wanted in reference(images).items():
            difference = ((outputs[name] - wanted).abs().max() / wanted.abs().max()).item()
            figures.append((f"{height} x {width}", name, difference))
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"The converted model's {name} must equal the source's to {TOLERANCE:g}, but differs by {difference:.1e} "
                    f"for images of {height} x {width}."
                )
    return figures


def model_card(
    name: str, checkpoint: str, command: str, figures: Sequence[tuple[str, str, float]] | None
) -> ModelCard:
    """Returns the card of a converted model, with what the comparison found."""
    is_repository = not Path(checkpoint).expanduser().exists()
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["megavit", "vision"],
        base_model=checkpoint if is_repository else None,
    )
    origin = f"[{checkpoint}](https://huggingface.co/{checkpoint})" if is_repository else f"`{Path(checkpoint).name}`"
    lines = ["| images | output | largest difference, relative |", "| --- | --- | --- |"]
    lines += [f"| {size} | {output} | {difference:.1e} |" for size, output, difference in figures or ()]
    parity = "\n".join(lines) if figures else "It was not compared with the source's own model."
    text = (
        f"---\n{metadata.to_yaml()}\n---\n\n# {name}\n\nA MegaVit, converted from {origin} with `{command}`.\n\n"
        f"## Compared with the source's own model\n\nIn float32, on drawn images.\n\n{parity}\n"
    )
    return ModelCard(text)


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Gives a folder to write to, which becomes `out` when all went well and is gone otherwise."""
    out = Path(out).expanduser()
    if out.exists():
        raise FileExistsError(f"The output folder must not exist yet, got {out}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def convert_checkpoint(
    describe: Callable[..., Source],
    checkpoint: str | Path,
    out: str | Path,
    settings: dict | None = None,
    verify: bool = True,
    push: str | None = None,
) -> list[tuple[str, str, float]] | None:
    """
    Converts a checkpoint to a folder that `from_pretrained` loads.

    Args:
        describe (`Callable`): A converter's own: takes a `Checkpoint` and `settings`, returns a `Source`.
        checkpoint (`str` or `Path`): A file, a folder, or the id of a model on the Hub.
        out (`str` or `Path`): The folder to make.
        settings (`dict`, *optional*): What the checkpoint itself doesn't tell; what a converter takes is in its docstring.
        verify (`bool`, *optional*, defaults to `True`): Whether to compare with the source's own model.
        push (`str`, *optional*): A repository on the Hub to create and upload to.

    Returns:
        `list[tuple[str, str, float]]`: what `compare` found, `None` if there was nothing to compare with.

    Raises:
        `FileExistsError`: if `out` exists.
        `ValueError`: if the checkpoint is not one of this source, or the converted model computes something else.
    """
    with new_folder(out) as folder:
        opened = Checkpoint(checkpoint)
        try:
            arguments = inspect.signature(describe).bind(opened, **(settings or {}))
        except TypeError as error:
            raise ValueError(f"The settings must be those of this source, got {settings}: {error}.") from error
        source = describe(*arguments.args, **arguments.kwargs)
        expected = source.expected()
        steps = plan(source.rows, list(opened.shapes), expected)
        converted = run_on_meta(steps, opened.shapes, expected)
        source.config.dtype = converted["embeddings.patch_embeddings.projection.weight"].dtype
        if source.has_classifier:
            steps = [
                Step(step.sources, tuple(add_prefix(name) for name in step.targets), step.convert) for step in steps
            ]
            converted = {add_prefix(name): tensor for name, tensor in converted.items()}
        write_weights(opened, steps, converted, folder)
        model_class = MegaVitForImageClassification if source.has_classifier else MegaVitModel
        source.config.architectures = [model_class.__name__]
        source.config.save_pretrained(folder)
        modeling_megavit.MegaVitImageProcessorPil.from_config(source.config, **source.processor).save_pretrained(
            folder
        )
        figures = None
        if verify and source.reference is not None:
            figures = compare(model_class.from_pretrained(folder, dtype=torch.float32), source)
        command = f"megavit convert {describe.__module__.rpartition('.')[2].split('_to_')[0].removeprefix('convert_')}"
        model_card(Path(out).name, opened.name, command, figures).save(folder / "README.md")
    if push is not None:
        HfApi().create_repo(push, exist_ok=True)
        HfApi().upload_folder(repo_id=push, folder_path=out, commit_message=f"Convert {opened.name}")
    return figures


def load_megavit(checkpoint: Checkpoint) -> tuple[MegaVitConfig, dict]:
    """
    Returns the configuration of a MegaVit classifier and the settings of its image processor.

    Raises:
        `ValueError`: if it is something else.
    """
    config = AutoConfig.from_pretrained(checkpoint.folder)
    if config.model_type != MegaVitConfig.model_type or "classifier.weight" not in checkpoint.shapes:
        raise ValueError(f"The model must be a MegaVitForImageClassification, got {checkpoint.name}.")
    processor = modeling_megavit.MegaVitImageProcessorPil.from_pretrained(checkpoint.folder).to_dict()
    names = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor")
    names += ("do_normalize", "image_mean", "image_std", "do_convert_rgb")
    return config, {name: processor[name] for name in names}


def check_settings(config: MegaVitConfig, target: str, **needed):
    """Raises a `ValueError` that names the first setting for which another architecture has nothing."""
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"This model can't become {target}: `{name}` must be {value!r} for it, got {getattr(config, name)!r}."
            )


def revert(
    checkpoint: Checkpoint, rows: Sequence[Row], expected: dict[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """
    Applies a key table backwards.

    Args:
        checkpoint (`Checkpoint`): A MegaVit.
        rows (`Sequence[Row]`): The table; its rows without a way back are passed over.
        expected (`dict[str, torch.Tensor]`, *optional*): All names of the other model with tensors of their shapes.

    Returns:
        `dict[str, torch.Tensor]`: the other model's tensors.
    """
    back = [row.reversed() for row in rows if row.revert is not None and row.sources and row.targets]
    full_names = {name.removeprefix("megavit."): name for name in checkpoint.shapes}
    tensors = {}
    for step in plan(back, list(full_names), expected):
        outputs = step.convert(*(checkpoint.read(full_names[name]) for name in step.sources))
        tensors.update((name, tensor.contiguous()) for name, tensor in zip(step.targets, outputs))
    return tensors


def add_prefix(name: str) -> str:
    """Returns the name in the classifier of a name in the table."""
    return name if name.startswith("classifier.") else f"megavit.{name}"


def parse_settings(settings: Sequence[str]) -> dict:
    """Reads what the command line gives as NAME=VALUE, values as JSON where they are."""
    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"A setting must be NAME=VALUE, got {setting!r}.")
        with contextlib.suppress(ValueError):
            value = json.loads(value)
        parsed[name] = value
    return parsed


def print_figures(figures: Sequence[tuple[str, str, float]] | None):
    """Prints what `compare` found as a table."""
    if figures is None:
        print("Not compared with the other model.")
        return
    table = Table("images", "output", "largest difference, relative")
    for size, output, difference in figures:
        table.add_row(size, output, f"{difference:.1e}")
    Console().print(table)


def export_main(export: Callable, documentation: str):
    """The command line of a script that leads away from MegaVit."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or id on the Hub of a MegaVit classifier")
    parser.add_argument("out", help="folder to make")
    parser.add_argument("--no-verify", action="store_true", help="don't compare the two models")
    args = parser.parse_args()
    print_figures(export(args.model, args.out, verify=not args.no_verify))


def main(describe: Callable[..., Source], documentation: str):
    """The command line of a converter that is run as a script."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="file, folder or id on the Hub")
    parser.add_argument("out", help="folder to make")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="what the checkpoint doesn't tell"
    )
    parser.add_argument("--no-verify", action="store_true", help="don't compare with the source's own model")
    parser.add_argument("--push", metavar="REPO", help="also upload to this repository on the Hub")
    args = parser.parse_args()
    settings = parse_settings(args.set)
    figures = convert_checkpoint(describe, args.checkpoint, args.out, settings, not args.no_verify, args.push)
    print_figures(figures)
