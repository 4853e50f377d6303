# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Hugging Face's own common tests pass on MegaVit, and it skips none that the stock ViT passes. Run: `make test-slow`.

The tests come from the source distribution of transformers (`transformers_suite/harness.py`). They run in a process of
their own, because they need entries in transformers' tables of models (`transformers_suite/suite.py`).
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest


SUITE = Path(__file__).parent / "transformers_suite" / "suite.py"
CONTROLS = {
    "MegaVitModelTest": "ViTModelTest",
    "MegaVitSequentialModelTest": "ViTModelTest",
    "MegaVitFactorizedModelTest": "ViTModelTest",
    "MegaVitSeedModelTest": "ViTModelTest",
    "MegaVitDenseModelTest": "ViTMaskedModelTest",
    "MegaVitBackboneTest": "Dinov2BackboneTest",
    "MegaVitImageProcessingTest": "ViTImageProcessingTest",
}
UNCONTROLLED = {"MegaVitVideoModelTest"}  # transformers has no classifier of clips with these inputs
# What the stock ViT passes and MegaVit cannot, with the reason.
CANNOT_APPLY = {
    "test_reverse_loading_mapping": "ViT's released checkpoints have older weight names, MegaVit's have none",
    "test_can_load_from_already_mapped_keys": "as above",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Runs the suite and returns {class: {test: "passed", or "skipped", "failure" or "error" with its message}}."""
    report = tmp_path_factory.mktemp("transformers_suite") / "report.xml"
    options = [
        "--noconftest",
        "-q",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        f"--junitxml={report}",
    ]
    root = SUITE.parents[2]
    path = os.pathsep.join(filter(None, [str(root), str(SUITE.parent), os.environ.get("PYTHONPATH")]))
    # One thread, as the models are too small for more.
    environment = {"PYTHONPATH": path, "RUN_SLOW": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *options, str(SUITE)]
    run = subprocess.run(command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True)
    output = run.stdout + run.stderr
    assert report.exists(), output
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        # A test with a skipped subtest counts as skipped.
        results = [f"{result.tag}: {result.get('message')}" for result in case if result.get("message") is not None]
        found.setdefault(case.get("classname").rpartition(".")[2], {})[case.get("name")] = (results or ["passed"])[0]
    assert found.keys() == {*CONTROLS, *CONTROLS.values(), *UNCONTROLLED}, output
    for name, tests in found.items():
        print(name, dict(Counter(outcome.partition(":")[0] for outcome in tests.values())))
    return found


@pytest.mark.parametrize("name", [*CONTROLS, *sorted({*CONTROLS.values(), *UNCONTROLLED})])
def test_no_common_test_fails(outcomes, name):
    failed = {
        test: outcome for test, outcome in outcomes[name].items() if not outcome.startswith(("passed", "skipped"))
    }
    assert not failed, "\n".join(f"{test}: {outcome}" for test, outcome in failed.items())


@pytest.mark.parametrize("name", CONTROLS)
def test_what_the_stock_vit_passes_is_not_skipped(outcomes, name):
    control = {test for test, outcome in outcomes[CONTROLS[name]].items() if outcome == "passed"}
    skipped = {test for test in control if outcomes[name].get(test, "skipped").startswith("skipped")}
    assert skipped == CANNOT_APPLY.keys() & control


LEAST = {
    "ViTModelTest": 105,
    "ViTMaskedModelTest": 99,
    "Dinov2BackboneTest": 8,
    "MegaVitVideoModelTest": 100,
    "ViTImageProcessingTest": 19,
}


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_the_control_is_not_hollow(outcomes, name, least):
    """Whatever the stock models skip, nobody asks of MegaVit: without torchvision they pass this many on 5.23."""
    assert sum(outcome == "passed" for outcome in outcomes[name].values()) >= least
