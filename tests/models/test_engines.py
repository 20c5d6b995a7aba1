"""Engines: OpenVINO gives what torch gives, or torch is used."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lobule.models import backbones
from lobule.models.backbones import load_backbone
from lobule.models.engines import (
    PROGRAMS,
    NotRunnableError,
    checked,
    convert,
    make_engine,
    onnx_engine,
    openvino_engine,
    torch_engine,
)


@pytest.mark.parametrize("shape", [(4, 3, 97, 64), (4, 3, 64, 97), (1, 3, 33, 47)])
def test_openvino_equals_torch_at_odd_sizes_and_both_ways_round(shape):
    network = load_backbone().network
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    fast, plain = make_engine(network, "openvino").run, make_engine(network, "torch").run
    expected = plain(batch)
    assert np.abs(fast(batch) - expected).max() < 1e-4 * np.abs(expected).max()
    other = batch[::-1].copy()
    assert np.abs(fast(other) - plain(other)).max() < 1e-4 * np.abs(expected).max()


def test_same_batch_gives_the_same_bits():
    run = make_engine(load_backbone().network).run
    batch = np.random.default_rng(1).normal(size=(4, 3, 64, 48)).astype(np.float32)
    assert np.array_equal(run(batch), run(batch))


class _Colours(nn.Module):
    """A network whose answer is known by hand: the mean of each channel."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


SHAPES = [(1, 3, 8, 9), (5, 3, 9, 8), (2, 3, 31, 16)]


def _onnx(network, folder):
    files = {}
    for *_, height, width in SHAPES:
        files[height, width] = folder / f"{height}.onnx"
        torch.onnx.export(network, (torch.zeros(1, 3, height, width),), files[height, width],
                          external_data=False, verbose=False)  # fmt: skip
    return onnx_engine(files, "fp32")


ENGINES = {
    "torch": lambda network, folder: torch_engine(network, "fp32"),
    "torch-bf16": lambda network, folder: torch_engine(network, "bf16"),
    "openvino": lambda network, folder: openvino_engine(lambda s: convert(network, s), "fp32"),
    "openvino-bf16": lambda network, folder: openvino_engine(lambda s: convert(network, s), "bf16"),
    "onnx": _onnx,
}


@pytest.fixture(scope="module", params=ENGINES)
def colours(request, tmp_path_factory):
    with warnings.catch_warnings():
        # torch's exporter warns of its own insides
        warnings.simplefilter("ignore")
        return ENGINES[request.param](_Colours().eval(), tmp_path_factory.mktemp("engine"))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_engine_gives_the_answer_that_is_known(colours, shape):
    batch = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    found = colours.run(batch)
    assert found.dtype == np.float32
    # bfloat16 has 8 bits of mantissa
    assert np.abs(found - batch.mean(axis=(2, 3))).max() < (
        5e-3 if "bf16" in colours.name else 1e-6
    )


def test_every_engine_may_be_called_by_many_threads(colours):
    rng = np.random.default_rng(1)
    batches = [rng.uniform(0, 1, (n, 3, 8, 9)).astype(np.float32) for n in (1, 2, 3, 4) * 5]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(colours.run, batches))
    for batch, features in zip(batches, found, strict=True):
        assert np.abs(features - batch.mean(axis=(2, 3))).max() < 5e-3


def test_every_engine_leaves_its_answers_alone(colours):
    first, second = np.full((2, 1, 3, 8, 9), [[[[[0.25]]]], [[[[0.75]]]]], np.float32)
    found = colours.run(first)
    colours.run(second)
    assert np.allclose(found, 0.25)


def test_onnx_says_why_it_cannot_run_a_network(tmp_path):
    (tmp_path / "network.onnx").write_bytes(b"nothing")
    engine = onnx_engine({(8, 9): tmp_path / "network.onnx"}, "fp32")
    with pytest.raises(NotRunnableError, match=r"ONNX Runtime cannot read network\.onnx"):
        engine.run(np.zeros((1, 3, 8, 9), np.float32))
    with pytest.raises(NotRunnableError, match="for images of 9 x 8 pixels, not 8 x 9"):
        engine.run(np.zeros((1, 3, 9, 8), np.float32))


def test_what_was_found_at_a_size_is_remembered():
    plain = torch_engine(_Colours().eval(), device="cpu")
    wrong = replace(plain, run=lambda batch: plain.run(batch) + 1)
    known = {}

    def difference(a, b):
        return float(np.abs(a - b).max())

    def make(reference):
        return checked(wrong, reference, difference, tolerance=0.1, recall=known.get,
                       note=known.__setitem__)  # fmt: skip

    batch = np.zeros((1, 3, 4, 6), np.float32)
    assert make(lambda: plain).run(batch).max() == 0
    assert known == {(4, 6): False}
    known[4, 6] = True
    assert make(lambda: pytest.fail("asked for the original again")).run(batch).min() == 1


def test_after_many_sizes_torch_takes_the_others_and_one_warning_says_so(caplog):
    plain = torch_engine(_Colours().eval(), device="cpu")
    seen, known = [], {}

    def run(batch):
        seen.append(batch.shape[2:])
        return plain.run(batch)

    engine = checked(
        replace(plain, name="other", run=run, sizes=PROGRAMS), lambda: plain, lambda a, b: 0.0,
        tolerance=0.1, note=known.__setitem__,
    )  # fmt: skip
    shapes = [(8, 8 + i) for i in range(PROGRAMS + 3)]
    for shape in shapes * 2:
        batch = np.random.default_rng(0).uniform(0, 1, (1, 3, *shape)).astype(np.float32)
        assert np.abs(engine.run(batch) - batch.mean(axis=(2, 3))).max() < 1e-6
    assert set(seen) == set(shapes[:PROGRAMS])
    assert len(caplog.records) == 1
    assert f"more than {PROGRAMS} sizes" in caplog.text
    # that it was not asked is nothing to remember
    assert set(known) == set(shapes[:PROGRAMS])


def test_only_an_engine_with_a_program_for_every_size_is_bounded():
    network = _Colours().eval()
    assert openvino_engine(lambda shape: convert(network, shape), "fp32").sizes == PROGRAMS
    rounded, plain = torch_engine(network, "bf16"), torch_engine(network, device="cpu")
    seen = []

    def run(batch):
        seen.append(batch.shape[2:])
        return rounded.run(batch)

    engine = checked(replace(rounded, run=run), lambda: plain, lambda a, b: 0.0, tolerance=0.1)
    shapes = [(8, 8 + i) for i in range(PROGRAMS + 3)]
    for shape in shapes:
        engine.run(np.zeros((1, 3, *shape), np.float32))
    assert set(seen) == set(shapes)


class _Fickle(nn.Module):
    """Takes a branch by its input's sign, which a traced program cannot."""

    def forward(self, x):
        mean = x.mean(dim=(2, 3))
        return mean if x.sum() <= 0 else -mean


def test_a_program_that_disagrees_with_torch_is_not_used(caplog):
    run = make_engine(_Fickle().eval(), "openvino").run
    batch = np.ones((2, 3, 8, 8), np.float32)
    with caplog.at_level(logging.WARNING, logger="lobule.models.engines"):
        first, second = run(batch), run(2 * batch)
    assert np.allclose(first, -1)
    assert np.allclose(second, -2)
    assert "torch is used" in caplog.text


def test_engine_says_its_name():
    network = load_backbone().network
    assert make_engine(network, "openvino").name == "openvino-cpu-fp32"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert make_engine(network, "torch", "bf16").name == f"torch-{device}-bf16"


def test_openvino_is_kept_from_reporting_its_use():
    code = (
        "import sys; from lobule.models.engines import import_openvino; import_openvino(); "
        "print([m for m in sys.modules if m.startswith('openvino_telemetry') and sys.modules[m]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_network_of_one_input_size_runs_at_that_size():
    network = backbones.build("vit_tiny_patch16_224").eval()
    batch = np.random.default_rng(2).normal(size=(1, 3, 224, 224)).astype(np.float32)
    fast, plain = make_engine(network, "openvino").run, make_engine(network, "torch").run
    assert np.abs(fast(batch) - plain(batch)).max() < 1e-3


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "ghostnet_050", "resnet10t"])
def test_width_is_that_of_the_output(name):
    made = backbones.wrap(name, backbones.build(name), source="", license="")
    assert made.network(torch.zeros(1, 3, 64, 64)).shape == (1, made.n_features)
