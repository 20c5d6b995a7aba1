"""Fixtures that every room's tests share: real data where they are, made-up tissue everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item):
    """Skip what needs a CUDA device where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("LOBULE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs; tests that ask for it skip where it is absent."""
    folder = Path(os.environ.get("LOBULE_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "breakhis-100x").is_dir():
        pytest.skip(f"no real photographs at {folder} (set LOBULE_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    """Made-up photographs of 12 patients, without planted faults; do not write into it."""
    from lobule.data.cohort import write_tissue

    folder = tmp_path_factory.mktemp("tissue")
    return write_tissue(
        folder, patients=12, images_per_patient=4, width_px=96, height_px=64, plant=False
    )


@pytest.fixture(scope="session")
def finished_run(tissue, tmp_path_factory):
    """A complete run on the made-up tissue; do not write into it."""
    from lobule.training.recipe import Recipe
    from lobule.workflow import train

    out = tmp_path_factory.mktemp("runs") / "run"
    return train(tissue.images, out, recipe=Recipe(folds=3, long_side_px=96))


@pytest.fixture
def one_thread():
    """Networks this small are only slowed down by a second thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_recipe():
    """A recipe that tunes a network of 0.1 million random weights within seconds."""
    from lobule.training.settings import make_recipe

    return make_recipe("finetune", {
        "backbone": "test_efficientnet", "weights": "none", "epochs": 2, "folds": 2,
        "batch_size": 8, "long_side_px": 64, "lr": 1e-3, "validation": 0.25, "patience": 0,
    })  # fmt: skip


@pytest.fixture(scope="session")
def tuned_run(tissue, tiny_recipe, tmp_path_factory):
    """A complete run that tuned a tiny network; do not write into it."""
    from lobule.training.machine import Machine
    from lobule.workflow import train

    out = tmp_path_factory.mktemp("tuned") / "run"
    # in a named precision, since tests compare others with it to the bit
    return train(tissue.images, out, recipe=tiny_recipe, machine=Machine(precision="fp32"))


@pytest.fixture
def picture(tmp_path) -> Callable[..., Path]:
    """Write a small textured image: picture(name, seed=0, size=(48, 32))."""

    def write(name: str, *, seed: int = 0, size: tuple[int, int] = (48, 32)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        coarse = rng.integers(60, 250, size=(6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    return write


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Make a file system of a size in KiB: small_disk(64)."""
    disk = tmp_path / "disk"

    def mount(kib: int) -> Path:
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here (it takes root)")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def as_ordinary_user() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a process that file permissions bind, also where root runs the tests."""

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                pytest.skip("root ignores file permissions; no setpriv to drop that right")
            rights = "-dac_override,-dac_read_search"
            command = ["setpriv", f"--bounding-set={rights}", "--inh-caps=-all", "--", *command]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run
