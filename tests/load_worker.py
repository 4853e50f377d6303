# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""What tests run in a process of its own: loads models under Auto classes and pipelines, and says what came of it."""

import hashlib
import json
import sys

import numpy as np
import transformers


SUMMARIES = {
    "image-segmentation": lambda answer: [[item["label"], item["mask"].size] for item in answer],
    "depth-estimation": lambda answer: [answer["depth"].size, list(answer["predicted_depth"].shape)],
    "image-feature-extraction": np.shape,
    "video-classification": lambda answer: [item["label"] for item in answer],
}


def fingerprint(model) -> str:
    """Hashes what every head has: the encoder and the embeddings without a mask token."""
    weights = model.base_model.state_dict()
    names = sorted(name for name in weights if not name.startswith("pooler.") and "mask_token" not in name)
    return hashlib.sha256(b"".join(name.encode() + weights[name].numpy().tobytes() for name in names)).hexdigest()


def load(repo: str, auto: str, **kwargs) -> dict:
    """Loads a model, and returns its class, its fingerprint and the parts that are new."""
    model, info = getattr(transformers, auto).from_pretrained(repo, output_loading_info=True, **kwargs)
    missing = sorted({name.removeprefix("megavit.").partition(".")[0] for name in info["missing_keys"]})
    module = type(model).__module__.partition(".")[0]
    return {"class": type(model).__name__, "from": module, "missing": missing, "fingerprint": fingerprint(model)}


def run(repo: str, task: str, source: str, **kwargs) -> list:
    """Runs a pipeline on a file, and on two in a batch."""
    pipeline = transformers.pipeline(task, model=repo, **kwargs)
    answers = [pipeline(source), *pipeline([source] * 2, batch_size=2)]
    return [SUMMARIES[task](answer) for answer in answers]


def main(loads: list, pipelines: list = (), **kwargs) -> None:
    """Prints what came of each, in order."""
    found = {"loads": [load(*item, **kwargs) for item in loads], "runs": [run(*item, **kwargs) for item in pipelines]}
    print(json.dumps(found))


if __name__ == "__main__":
    import modeling_megavit  # noqa: F401

    main(**json.loads(sys.argv[1]))
