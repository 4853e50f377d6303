# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""The wheel: what it carries, and that it works from any folder. Run: pytest tests/test_packaging.py"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from modeling_megavit import presets


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from a copy of the checkout, so that no build folder is left behind."""
    copy, out = tmp_path_factory.mktemp("checkout") / "megavit", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "outputs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    return next(out.glob("megavit-*.whl"))


def test_the_wheel_carries_one_package_with_all_presets_and_recipes(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"modeling_megavit", "megavit"}
    for kind, ending in presets.KINDS.items():
        inside = {name for name in names if name.startswith(f"modeling_megavit/configuration/{kind}/")}
        assert inside == {f"modeling_megavit/configuration/{kind}/{name}{ending}" for name in presets.available(kind)}
    pages = {f"modeling_megavit/{page}" for page in ("hub/static/index.html", "evaluation/static/report.html")}
    assert {"modeling_megavit/training/train.py", *pages} <= set(names)


def test_the_wheel_works_from_any_folder(wheel, tmp_path):
    command = ["pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    code = (
        "import modeling_megavit, modeling_megavit.conversion_scripts\n"
        "print(modeling_megavit.__file__)\n"
        "print(modeling_megavit.MegaVitConfig.from_preset('megavit-22b-14').num_hidden_layers)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    path, layers = result.stdout.split()
    assert Path(path).is_relative_to(tmp_path) and layers == "48"


@pytest.mark.slow
def test_the_wheel_installs_into_an_empty_environment(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / "bin"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([binaries / "pip", "install", "--quiet", *constraints, str(wheel)], check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [binaries / "megavit", "info", "megavit-22b-14"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=env,
    )
    assert "22,203,592,962" in result.stdout


def test_what_travels_to_the_hub_imports_its_siblings_only():
    """The Hub's loader copies flat files, and takes every line that looks like an import for one."""
    files = [path for path in (ROOT / "modeling_megavit").glob("*_megavit.py") if path.stem != "cli"]
    assert len(files) == 4
    for path in files:
        source = path.read_text(encoding="utf-8")
        for module in re.findall(r"^\s*(?:from|import)\s+([\w.]+)", source, flags=re.MULTILINE):
            assert not module.startswith("transformers.models"), f"{path.name}: {module}"
            if module.startswith("."):
                assert (path.parent / f"{module[1:]}.py") in files, f"{path.name}: {module}"
