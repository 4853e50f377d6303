# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Asks what masked image modelling teaches: a linear segmentation decoder on its frozen features, and on random ones.

    python benchmarks/masked_pretraining.py --output_dir outputs/masked_pretraining      # about 10 minutes on one core

Pre-trains by the recipe masked_scenes, then trains the decoder of segmentation_scenes on the features of that encoder and
of one that was only initialised, frozen both, at several learning rates, of which the best of each counts. The folders stay: a second call goes on where the first one stopped.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from modeling_megavit.training.train import RESULTS, train


PROBE = ["--freeze_backbone", "true", "--weight_decay", "0", "--max_steps", "400", "--eval_steps", "400"]


def mean_iou(folder: Path) -> float:
    """Returns the mean IoU of a finished run on held-out scenes."""
    return json.loads((folder / RESULTS).read_text(encoding="utf-8"))["eval_mean_iou"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--learning_rate", nargs="+", default=["1e-3", "3e-3", "1e-2"])
    parser.add_argument("--masked_steps", default="2000", help="steps of pre-training")
    args = parser.parse_args()

    pretrained = args.output_dir / "masked"
    train("masked_scenes", ["--output_dir", str(pretrained), "--max_steps", args.masked_steps])
    table = Table(
        "frozen encoder", *(f"lr {rate}" for rate in args.learning_rate), title="mean IoU of a linear decoder"
    )
    for name, model in (("masked pre-training", ["--model", str(pretrained)]), ("as initialised", [])):
        scores = []
        for rate in args.learning_rate:
            folder = args.output_dir / f"{name.split()[0]}-{rate}"
            options = [*PROBE, *model, "--learning_rate", rate, "--output_dir", str(folder)]
            scores.append(mean_iou(train("segmentation_scenes", options)))
        table.add_row(name, *(f"{score:.3f}" for score in scores))
    Console().print(table)


if __name__ == "__main__":
    main()
