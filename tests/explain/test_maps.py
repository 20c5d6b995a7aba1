"""Heat maps: they add up to the score, turn with the photograph, and refuse what has no places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from lobule.data.images import N_VIEWS, decode, dihedral_view, undo_view
from lobule.errors import ModelError, UsageError
from lobule.explain.maps import Map, explain
from lobule.models.backbones import wrap
from lobule.models.classifier import Heads, LinearHead
from lobule.models.engines import torch_engine
from lobule.training.features import Extractor


@pytest.fixture(scope="module")
def image(tissue):
    return decode(sorted(tissue.images.rglob("*.png"))[0])


def model_of(finished_run, name, pooling="last", classes=("benign", "malignant")):
    """A model of random weights around a network of timm, with a random head."""
    torch.manual_seed(3)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    backbone = wrap(name, network, source="random", license="none", arguments={},
                    config=network.pretrained_cfg, pooling=pooling)  # fmt: skip
    rng = np.random.default_rng(0)
    size = (len(classes), backbone.n_features)
    head = LinearHead(rng.normal(size=size), rng.normal(size=len(classes)))
    heads = Heads(tissue=head, colour=head, prior=np.full(len(classes), 1 / len(classes)))
    info = replace(finished_run.model.info, classes=classes)
    prep = replace(finished_run.model.preprocessing, long_side_px=96)
    return replace(finished_run.model, info=info, preprocessing=prep, heads=heads,
                   network=lambda: backbone)  # fmt: skip


def score(model, image, target, views=N_VIEWS):
    """Logit of the class less the mean of the others', averaged over views, by the engine."""
    extractor = Extractor(torch_engine(model.backbone.module), model.preprocessing, "x", views)
    head = model.heads.tissue
    logits = extractor.of_views(image).astype(float) @ head.weight.T + head.bias
    others = np.arange(logits.shape[1]) != target
    return (logits[:, target] - logits[:, others].mean(axis=1)).mean()


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("test_efficientnet", "last"), ("test_efficientnet", "stages"), ("resnet10t", "last"),
     ("resnet10t", "stages"), ("test_convnext", "stages")],
)  # fmt: skip
@pytest.mark.parametrize("classes", [("benign", "malignant"), ("a", "b", "c")])
def test_cam_and_bias_add_up_to_the_score(finished_run, image, name, pooling, classes):
    model = model_of(finished_run, name, pooling, classes)
    if name == "test_convnext":
        # its features are normalised after the mean, so they are no means over places
        with pytest.raises(ModelError, match="no means over places"):
            explain(model, image, target=1)
        return
    for target in range(len(classes)):
        found = explain(model, image, target=target)
        expected = score(model, image, target)
        assert found.evidence.mean(dtype=float) + found.bias == pytest.approx(expected, abs=1e-3)


def test_cam_of_the_trained_model_adds_up_to_its_log_odds(finished_run, image):
    found = explain(finished_run.model, image, target=1)
    expected = score(finished_run.model, image, 1)
    assert found.evidence.mean(dtype=float) + found.bias == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("view", range(N_VIEWS))
def test_undoing_a_view_brings_every_cell_back(view):
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(undo_view(dihedral_view(grid, view), view), grid)


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_a_turned_photograph_gives_the_turned_map(finished_run, image, method):
    found = explain(finished_run.model, image, target=1, method=method)
    turned = explain(finished_run.model, dihedral_view(image, 2).copy(), target=1, method=method)
    scale = np.abs(found.evidence).max()
    assert np.allclose(dihedral_view(found.evidence, 2), turned.evidence, atol=1e-3 * scale)


def test_grad_cam_is_the_mean_slope_times_the_stage(finished_run, image):
    """Held against slopes taken by differences, of one view."""
    model = model_of(finished_run, "test_efficientnet")
    found = explain(model, image, target=1, method="gradcam", views=1)
    assert found.evidence.min() >= 0
    assert found.evidence.max() > 0
    network = model.backbone.network
    batch = torch.from_numpy(model.preprocessing(image)[None])
    head = model.heads.tissue
    direction = torch.from_numpy(head.weight[1] - head.weight[0]).float()
    with torch.inference_mode():
        _, (stage,) = network.forward_intermediates(batch, indices=[-2])
        kept = stage.clone()
    slopes = []
    for channel in range(kept.shape[1]):
        both = []
        for sign in (1, -1):
            step = torch.zeros(kept.shape[1], 1, 1)
            step[channel] = sign * 1e-2
            # adding the same everywhere moves the score by the sum of all slopes
            hook = network.blocks[-2].register_forward_hook(
                lambda module, given, out, step=step: out + step
            )
            with torch.inference_mode():
                both.append(float((network(batch) @ direction).sum()))
            hook.remove()
        slopes.append((both[0] - both[1]) / 2e-2 / kept[0, 0].numel())
    expected = np.maximum((np.array(slopes)[:, None, None] * kept[0].numpy()).sum(axis=0), 0)
    assert np.corrcoef(expected.ravel(), found.evidence.ravel())[0, 1] > 0.99


def test_a_map_over_a_photograph_keeps_its_extremes_in_their_corner():
    found = Map(np.array([[0, 1], [2, 9]], np.float32), "cam", 1, 0.0)
    over = found.over(40, 20)
    assert over.shape == (20, 40)
    assert over[0, 0] == 0
    assert over[-1, -1] == 9


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"target": 2}, "class 2 of 2"), ({"target": 0, "method": "lime"}, "no method 'lime'"),
     ({"target": 0, "views": 9}, "9 views")],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(finished_run, image, asked, words):
    with pytest.raises(UsageError, match=words):
        explain(finished_run.model, image, **asked)


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_a_network_without_places_is_refused(finished_run, image, method):
    model = model_of(finished_run, "test_vit")
    square = np.ascontiguousarray(image[:64, :64])
    model = replace(
        model, preprocessing=replace(model.preprocessing, long_side_px=160, aspect="square")
    )
    with pytest.raises(ModelError):
        explain(model, square, target=1, method=method)
