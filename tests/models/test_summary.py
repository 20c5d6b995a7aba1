"""The summary of a network: its totals are those of the network, its rows add up to them."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import nn

from lobule.errors import ModelError, UsageError
from lobule.models.summary import Row, _rows, _shapes, summarise


@pytest.fixture(scope="module")
def densenet201():
    return summarise("densenet201", input_px=224)


def test_densenet201_with_its_head_has_the_published_number_of_parameters(densenet201):
    assert densenet201.trainable == 18_100_610
    assert densenet201.total == 18_333_506
    # by hand: torchvision's 20,013,928 less its classifier (1,920 x 1,000 + 1,000), and the head:
    # scale and shift of 1,920 features, and 1,920 x 2 + 2
    assert densenet201.trainable == 20_013_928 - 1_921_000 + 2 * 1_920 + 3_842


def test_rows_are_in_the_order_of_execution_with_shapes_of_one_image(densenet201):
    names = [row.name for row in densenet201.rows]
    assert names[:2] == ["backbone.features.conv0", "backbone.features.norm0"]
    assert densenet201.rows[0] == Row("backbone.features.conv0", "Conv2d", (64, 112, 112), 9_408, 0)
    # timm's norm has its activation as a part, and numbers of its own
    assert densenet201.rows[1] == Row(
        "backbone.features.norm0", "BatchNormAct2d", (64, 112, 112), 128, 128
    )
    assert densenet201.rows[-2:] == (
        Row("norm", "BatchNorm1d", (1_920,), 3_840, 3_840),
        Row("linear", "Linear", (2,), 3_842, 0),
    )
    last = next(row for row in densenet201.rows if row.name == "backbone.features.norm5")
    assert last.output_shape == (1_920, 7, 7)


@pytest.mark.parametrize(
    ("spec", "input_px", "n_classes"),
    [
        ("tf_efficientnet_lite0", 97, 3),
        ("test_vit", 160, 2),  # class token and positions belong to the whole
        ("test_convnext", 96, 2),  # scales belong to blocks
        ("eva02_tiny_patch14_224", 224, 2),  # uses the weights of a layer that it never calls
        ("test_resnet", 64, 2),
    ],
)
def test_totals_are_those_of_the_network_and_the_rows_add_up(spec, input_px, n_classes):
    summary = summarise(spec, input_px=input_px, n_classes=n_classes)
    network = timm.create_model(spec, num_classes=0)
    width = network(torch.zeros(1, 3, input_px, input_px)).shape[1]
    parameters = sum(p.numel() for p in network.parameters())
    statistics = sum(
        b.numel() for key, b in network.named_buffers() if key.endswith(("_mean", "_var"))
    )
    assert summary.n_features == width
    assert summary.trainable == parameters + 2 * width + width * n_classes + n_classes
    assert summary.total == summary.trainable + statistics + 2 * width
    assert sum(row.n_parameters for row in summary.rows) == summary.trainable
    assert sum(row.n_statistics for row in summary.rows) == summary.total - summary.trainable
    names = [row.name for row in summary.rows]
    assert len(names) == len(set(names))


def test_tensors_that_are_used_without_their_layer_have_a_row_without_shape():
    rows = {row.name: row for row in summarise("eva02_tiny_patch14_224", input_px=224).rows}
    assert rows["backbone.blocks.0.attn.qkv"].output_shape is None
    assert rows["backbone.blocks.0.attn.qkv"].n_parameters == 3 * 192 * 192


def test_json_holds_all_of_it_in_plain_types(densenet201):
    record = json.loads(json.dumps(densenet201.to_json()))
    assert set(record) == {
        "schema", "backbone", "input_px", "n_classes", "n_features", "rows", "trainable", "total",
    }  # fmt: skip
    assert record["schema"] == "lobule.summary/1"
    assert (record["trainable"], record["total"]) == (18_100_610, 18_333_506)
    assert record["rows"][0] == {
        "name": "backbone.features.conv0",
        "kind": "Conv2d",
        "output_shape": [64, 112, 112],
        "n_parameters": 9_408,
        "n_statistics": 0,
    }


def test_a_repository_is_summed_up_by_its_config_alone(publish, offline_hub):
    made = publish("test_vit", init_values=1e-5)
    (made.folder / "model.safetensors").unlink()
    offline_hub("org/vit", made.folder)
    summary = summarise("hf-hub:org/vit", input_px=160)
    own = sum(p.numel() for p in made.network.parameters())
    assert summary.trainable == own + 2 * 64 + 64 * 2 + 2
    assert summary.backbone == "test_vit"


def test_a_summary_leaves_torchs_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    summarise("test_resnet", input_px=64)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("spec", "input_px", "what", "fix"),
    [
        (
            "test_vit",
            96,
            "test_vit takes images of 160 x 160 px only, not 96 x 96",
            "give --input 160",
        ),
        (
            "densenet121",
            16,
            "densenet121 cannot take images of 16 x 16 px: Given input size: (512x1x1)",
            "it takes 29 x 29 px: --input 29",
        ),
        ("densenet121", 0, "--input must be 1 to 4096 pixels, got 0", None),
        ("densenet121", 5000, "--input must be 1 to 4096 pixels, got 5000", None),
    ],
)
def test_a_size_that_the_network_cannot_take_is_refused_with_one_that_it_takes(
    spec, input_px, what, fix
):
    with pytest.raises(UsageError) as caught:
        summarise(spec, input_px=input_px)
    assert caught.value.exit_code == 2
    assert caught.value.what.startswith(what)
    assert caught.value.fix == fix


def test_the_size_that_is_named_is_the_smallest_that_works():
    assert summarise("densenet121", input_px=29).n_features == 1_024
    with pytest.raises(UsageError, match="densenet121 cannot take images of 28 x 28 px"):
        summarise("densenet121", input_px=28)


def test_above_the_usual_size_the_usual_one_is_named():
    with pytest.raises(UsageError, match="cannot take images of 300 x 300") as caught:
        summarise("halonet26t", input_px=300)
    assert caught.value.fix == "it takes 256 x 256 px: --input 256"


def test_one_class_is_none_to_tell_apart():
    with pytest.raises(UsageError, match="2 classes or more, got 1"):
        summarise("test_resnet", input_px=64, n_classes=1)


def test_a_spec_that_names_nothing_is_a_model_error():
    with pytest.raises(ModelError, match="no backbone is called"):
        summarise("densnet", input_px=224)


def test_a_network_that_does_not_pool_is_a_model_error(publish):
    folder = publish("test_resnet", global_pool="").folder
    with pytest.raises(ModelError, match="gives no feature vector for an image"):
        summarise(str(folder), input_px=96)


class _Tied(nn.Module):
    """One layer is used twice, another shares its weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, images):
        x = images.mean(dim=(1, 2))
        return self.second(self.first(self.first(x)))


def test_a_layer_used_twice_has_one_row_and_a_shared_weight_counts_once():
    network = _Tied()
    assert list(_rows(network, _shapes(network, 5))) == [
        Row("first", "Linear", (5,), 25, 0),
        Row("second", "Linear", (5,), 5, 0),
    ]
