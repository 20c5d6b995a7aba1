"""Every way to name a backbone gives the network that is meant, to the bit, or says why not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch

from lobule.errors import ModelError
from lobule.models.backbones import load_backbone
from lobule.models.bundle import load_model, save_model
from lobule.models.sources import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"

CARD = "---\nlicense: apache-2.0\n---\n# A network\n"


def images(px):
    return torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(1))


def same_features(backbone, network, px):
    with torch.inference_mode():
        return torch.equal(backbone.network(images(px)), network(images(px)))


def edit(path, **changes):
    """Change keys of a JSON file; None takes one out."""
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


# ---- a repository of the hub


def test_a_repository_in_the_cache_gives_the_published_features_to_the_bit(publish, offline_hub):
    made = publish("test_resnet", card=CARD, config={"mean": [0.7, 0.6, 0.5]})
    offline_hub("org/name", made.folder)
    backbone = load_backbone("hf-hub:org/name")
    assert same_features(backbone, made.network, 96)
    assert backbone.name == "test_resnet"
    assert backbone.weights == f"hf-hub:org/name@{COMMIT}"
    assert backbone.license == "apache-2.0"
    assert backbone.mean == (0.7, 0.6, 0.5)
    # all that timm writes today, without its classes
    assert backbone.arguments == {"in_chans": 3, "global_pool": "avg"}


def test_arguments_that_build_the_network_come_with_it(publish, offline_hub):
    arguments = {"init_values": 1e-5, "dynamic_img_size": True}
    made = publish("test_vit", card=CARD, **arguments)
    edit(made.folder / "config.json", model_args=arguments)
    offline_hub("org/vit", made.folder, revision="v2")
    backbone = load_backbone("hf-hub:org/vit@v2")
    assert same_features(backbone, made.network, 160)
    assert backbone.arguments == arguments
    assert backbone.weights == f"hf-hub:org/vit@{COMMIT} (v2)"
    # it takes multiples of its patch, which photographs are not; so whole images of its own size
    assert backbone.fixed_size_px == 160


def test_a_commit_is_a_revision_and_not_told_twice(publish, offline_hub):
    offline_hub("org/name", publish("test_resnet", card=CARD).folder)
    source = resolve(f"hf-hub:org/name@{COMMIT}")
    assert source.origin == f"hf-hub:org/name@{COMMIT}"


def test_a_repository_is_read_offline_as_a_user_sets_it(publish, offline_hub, tmp_path):
    made = publish("test_resnet", card=CARD)
    offline_hub("org/name", made.folder)
    code = (
        "import sys, torch; from lobule.models.backbones import load_backbone; "
        "x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)); "
        "torch.save(load_backbone('hf-hub:org/name').network(x), sys.argv[1])"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out.pt")], env=environment, check=True
    )
    with torch.inference_mode():
        expected = made.network(images(96))
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)


def test_a_repository_with_a_pickle_alone_is_refused(publish, offline_hub):
    made = publish("test_resnet", card=CARD)
    (made.folder / "model.safetensors").unlink()
    torch.save(made.network.state_dict(), made.folder / "pytorch_model.bin")
    offline_hub("org/old", made.folder)
    with pytest.raises(ModelError) as caught:
        load_backbone("hf-hub:org/old")
    assert caught.value.exit_code == 4
    assert caught.value.what == (
        f"hf-hub:org/old@{COMMIT} has no model.safetensors but pytorch_model.bin"
    )
    assert caught.value.fix.startswith("other formats can run code when they are read;")
    # the fix it names works: the network of the repository with converted weights
    converted = made.folder.parent / "weights.safetensors"
    safetensors.torch.save_file(made.network.state_dict(), converted)
    backbone = load_backbone("hf-hub:org/old", weights=converted)
    assert same_features(backbone, made.network, 96)


def test_a_repository_that_is_not_in_the_cache_is_a_model_error_offline(offline_hub):
    with pytest.raises(
        ModelError, match=r"cannot fetch org/none: .*HF_HUB_OFFLINE is set"
    ) as caught:
        load_backbone("hf-hub:org/none")
    assert caught.value.exit_code == 4
    assert "--weights FILE.safetensors" in caught.value.fix


def test_weights_that_timm_publishes_are_taken_as_safetensors_from_the_cache(publish, offline_hub):
    made = publish("test_resnet")
    for other in ("config.json", "README.md"):
        (made.folder / other).unlink(missing_ok=True)
    offline_hub("timm/test_resnet.r160_in1k", made.folder)
    for spec in ("test_resnet", "test_resnet.r160_in1k"):
        backbone = load_backbone(spec)
        assert same_features(backbone, made.network, 96)
        assert backbone.name == "test_resnet"
        assert backbone.weights == f"hf-hub:timm/test_resnet.r160_in1k@{COMMIT}"
        assert backbone.license == "apache-2.0"


def test_a_damaged_file_of_timm_is_named(publish, offline_hub):
    made = publish("test_resnet")
    (made.folder / "model.safetensors").write_bytes(b"short")
    offline_hub("timm/test_resnet.r160_in1k", made.folder)
    with pytest.raises(ModelError, match=r"cannot read the weights .*model\.safetensors"):
        load_backbone("test_resnet")


@pytest.mark.parametrize("name", ["test_coatnet", "gcvit_tiny"])
def test_networks_without_published_safetensors_need_weights_of_the_user(name):
    with pytest.raises(ModelError, match=f"timm publishes no weights of {name} as safetensors"):
        load_backbone(name)


def test_a_tag_brings_the_scaling_of_its_weights():
    assert load_backbone("vit_tiny_patch16_224.augreg_in21k", weights="none").mean == (0.5,) * 3
    record = timm.get_pretrained_cfg("mobilenetv3_large_100.miil_in21k")
    assert tuple(record.mean) == (0.0,) * 3, "timm has changed: take another example"
    tagged = load_backbone("mobilenetv3_large_100.miil_in21k", weights="none")
    assert (tagged.name, tagged.mean) == ("mobilenetv3_large_100", (0.0,) * 3)
    assert load_backbone("mobilenetv3_large_100", weights="none").mean == (0.485, 0.456, 0.406)


# ---- a folder or a file


def test_a_folder_gives_the_features_that_were_published(publish):
    made = publish("test_resnet", card=CARD, config={"interpolation": "bilinear"})
    backbone = load_backbone(str(made.folder))
    assert same_features(backbone, made.network, 96)
    assert (backbone.weights, backbone.interpolation) == ("folder published", "bilinear")


def test_the_size_of_a_network_of_one_size_is_that_of_its_makers(publish):
    made = publish("test_vit2", img_size=96, config={"input_size": [3, 96, 96]})
    edit(made.folder / "config.json", model_args=None)
    backbone = load_backbone(str(made.folder))
    assert same_features(backbone, made.network, 96)
    assert (backbone.fixed_size_px, backbone.arguments) == (96, {"img_size": [96, 96]})


def test_an_older_config_of_one_level_is_read(publish):
    made = publish("test_resnet")
    config = made.folder / "config.json"
    record = json.loads(config.read_text())
    config.write_text(
        json.dumps(record["pretrained_cfg"] | {"architecture": "test_resnet", "std": [0.1] * 3})
    )
    backbone = load_backbone(str(made.folder))
    assert same_features(backbone, made.network, 96)
    assert backbone.std == (0.1,) * 3


def test_a_file_is_read_by_the_config_beside_it(publish):
    made = publish("test_vit", init_values=1e-5)
    backbone = load_backbone(str(made.folder / "model.safetensors"))
    assert same_features(backbone, made.network, 160)
    assert backbone.weights == "file model.safetensors"


def test_a_file_can_say_its_architecture_itself(publish, tmp_path):
    made = publish("test_resnet")
    file = tmp_path / "own.safetensors"
    safetensors.torch.save_file(
        made.network.state_dict(), file, metadata={"architecture": "test_resnet"}
    )
    # the config.json of another architecture belongs to another file
    publish("test_vit", name="other").folder.joinpath("config.json").rename(
        tmp_path / "config.json"
    )
    backbone = load_backbone(str(file))
    assert same_features(backbone, made.network, 96)
    assert backbone.license == "as stated by whoever made the file"


def test_a_file_that_says_nothing_has_to_be_named(publish, tmp_path):
    file = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(publish("test_resnet").network.state_dict(), file)
    with pytest.raises(ModelError, match="does not say which network it belongs to") as caught:
        load_backbone(str(file))
    assert caught.value.fix == f"name it: --backbone NAME --weights {file}"


def test_a_file_of_an_unknown_architecture_suggests_the_nearest(tmp_path):
    file = tmp_path / "odd.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, metadata={"architecture": "resnet5o"})
    with pytest.raises(ModelError, match="no backbone is called 'resnet5o'"):
        load_backbone(str(file))


def test_a_name_of_timm_is_no_folder_unless_it_is_written_as_one(publish, tmp_path, monkeypatch):
    made = publish("test_resnet", name="test_vit")
    monkeypatch.chdir(tmp_path)
    assert resolve("test_vit", tensors=False).name == "test_vit"
    assert load_backbone("./test_vit").name == "test_resnet"
    assert made.folder.name == "test_vit"


# ---- a model of ours


@pytest.fixture
def run_folder(finished_run):
    return finished_run.folder


def test_the_model_of_a_run_is_a_backbone(run_folder, caplog):
    original = load_model(run_folder / "model")
    with caplog.at_level(logging.WARNING):
        backbone = load_backbone(str(run_folder / "model"))
    assert backbone.weights_sha256 == original.backbone.weights_sha256
    assert (backbone.mean, backbone.license) == ((0.5,) * 3, "apache-2.0")
    assert backbone.weights == f"model {original.id}, {original.backbone.weights}"
    assert caplog.text == "", "its network is as published: nothing was tuned"


def test_a_backbone_that_was_tuned_warns_of_the_patients_it_has_seen(run_folder, tmp_path, caplog):
    save_model(load_model(run_folder / "model"), tmp_path / "model")
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    record["training"]["tuning"] = {"epochs": 3}
    (tmp_path / "model" / "model.json").write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING):
        load_backbone(str(tmp_path / "model"))
    n = record["training"]["n_images"]
    assert (
        f"was tuned on {n} images: on the same patients it seems better than it is" in caplog.text
    )


def test_a_run_folder_points_at_its_model(run_folder):
    with pytest.raises(ModelError, match=r"has no config\.json") as caught:
        load_backbone(str(run_folder))
    assert caught.value.fix.endswith(f"--backbone {run_folder / 'model'}")


def test_a_model_whose_weights_were_changed_is_no_backbone(run_folder, tmp_path):
    save_model(load_model(run_folder / "model"), tmp_path / "model")
    edit(tmp_path / "model" / "model.json", weights_sha256="0" * 64)
    with pytest.raises(ModelError, match=r"is not the file that model\.json describes"):
        load_backbone(str(tmp_path / "model"))


def test_a_model_record_without_its_backbone_is_refused(run_folder, tmp_path):
    save_model(load_model(run_folder / "model"), tmp_path / "model")
    edit(tmp_path / "model" / "model.json", backbone=None)
    with pytest.raises(ModelError, match="is not a complete model: KeyError 'backbone'"):
        load_backbone(str(tmp_path / "model"))


# ---- what is none


@pytest.mark.parametrize(
    ("spec", "what", "fix"),
    [
        (
            "densenet21.tv_in1k",
            "no backbone is called 'densenet21.tv_in1k'",
            "the nearest timm names: densenet201, densenet121, densenet169",
        ),
        (
            "densenet201.tv",
            "timm has no weights of densenet201 with the tag 'tv'",
            "it has: tv_in1k",
        ),
        ("resnet50.", "no backbone is called 'resnet50.'", "the nearest timm names: resnet50, "),
        ("0000000", "no backbone is called '0000000'", "names are timm's; the offline default is "),
        (
            "org/name",
            "there is no file or folder org/name",
            "for the repository of that name on the hub: --backbone hf-hub:org/name",
        ),
        (
            "./org/name",
            "there is no file or folder ./org/name",
            "check the path; a repository of the hub is written hf-hub:ORG/NAME",
        ),
        (
            "nets/mine.safetensors",
            "there is no file or folder nets/mine.safetensors",
            "check the path; a repository of the hub is written hf-hub:ORG/NAME",
        ),
        (
            "densenet201.safetensors",
            "there is no file or folder densenet201.safetensors",
            "check the path; a repository of the hub is written hf-hub:ORG/NAME",
        ),
        (
            "hf-hub:",
            "'' is not the name of a repository: ",
            "write hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION",
        ),
    ],
)
def test_what_names_nothing_is_told_with_what_could_be_meant(spec, what, fix, offline_hub):
    with pytest.raises(ModelError) as caught:
        load_backbone(spec)
    assert caught.value.exit_code == 4
    assert caught.value.what.startswith(what)
    assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize(
    ("spoil", "what", "fix"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "folder published has no config.json, which names the architecture",
            "name the network yourself: --backbone NAME --weights FILE.safetensors",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "folder published has no model.safetensors",
            "other formats can run code",
        ),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "cannot read {folder}/config.json: Expecting property name",
            "fetch or copy it again",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'),
            "{folder}/config.json names no architecture of timm",
            "models of other libraries (transformers, for one)",
        ),
        (
            lambda folder: edit(folder / "config.json", architecture="resnet_of_2031"),
            "{folder}/config.json names 'resnet_of_2031', which timm " + timm.__version__,
            "a newer timm may have it",
        ),
        (
            lambda folder: edit(folder / "config.json", model_args=[1]),
            "{folder}/config.json has model_args something else, where object must stand",
            "mend it in a copy of the folder",
        ),
        (
            lambda folder: edit(folder / "config.json", pretrained_cfg={"std": [0.2, 0.2, 0]}),
            "{folder}/config.json has std [0.2, 0.2, 0], where three numbers over 0 must stand",
            "mend it in a copy of the folder",
        ),
        (
            lambda folder: edit(folder / "config.json", pretrained_cfg={"input_size": [4, 9, 9]}),
            "{folder}/config.json has input_size [4, 9, 9], where 3, height and width must stand",
            "mend it in a copy of the folder",
        ),
        (
            lambda folder: edit(folder / "config.json", model_args={"in_chans": 4}),
            "{folder}/config.json has in_chans 4, where 3 must stand",
            "mend it in a copy of the folder",
        ),
        (
            lambda folder: edit(folder / "config.json", model_args={"no_such": 1}),
            "timm " + timm.__version__ + " cannot build test_resnet with {{'no_such': 1}}: ",
            "these arguments come with the weights",
        ),
        (
            lambda folder: edit(folder / "config.json", model_args={"checkpoint_path": "x.pth"}),
            "the arguments of test_resnet hold checkpoint_path, which would load weights",
            "take them out of model_args",
        ),
        (
            lambda folder: edit(folder / "config.json", model_args={"global_pool": ""}),
            "test_resnet gives no feature vector for an image, but an array of shape (96, 5, 5)",
            "set global_pool in model_args",
        ),
        (
            lambda folder: edit(folder / "config.json", model_args={"features_only": True}),
            "test_resnet gives no feature vector for an image",
            "set global_pool in model_args",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_says_what_is_wrong_in_it(publish, spoil, what, fix):
    folder = publish("test_resnet").folder
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        load_backbone(str(folder))
    assert caught.value.what.startswith(what.format(folder=folder))
    assert caught.value.fix.startswith(fix)


def test_classes_in_the_arguments_are_left_out(publish):
    made = publish("test_resnet")
    edit(made.folder / "config.json", model_args={"num_classes": 5})
    assert same_features(load_backbone(str(made.folder)), made.network, 96)


def test_weights_of_a_network_with_more_parts_are_not_half_loaded(publish):
    made = publish("test_vit", init_values=1e-5)
    with pytest.raises(ModelError, match=r"it has no tensor 'blocks\.0\.ls1\.gamma'") as caught:
        load_backbone("test_vit", weights=made.folder / "model.safetensors")
    assert "a folder whose config.json has them as model_args" in caught.value.fix


# ---- licences


@pytest.mark.parametrize(
    ("card", "stated", "license"),
    [
        (None, None, "not stated"),
        (None, "mit", "mit"),
        (CARD, None, "apache-2.0"),
        (CARD, "apache-2.0", "apache-2.0"),
        ("---\nlicense: cc-by-nc-4.0\n---\n", "apache-2.0", "apache-2.0 / cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: Own-Terms\n---\n", None, "own-terms"),
        ("---\nlicense: other\n---\n", None, "other"),
        ("---\nlicense: [mit, unknown]\n---\n", None, "mit"),
        (
            "---\nlicense: cc-by-nc-nd-4.0\nextra_gated_prompt: Say who you are\n---\n",
            "cc-by-nc-nd-4.0",
            "cc-by-nc-nd-4.0 (gated)",
        ),
        ("---\nextra_gated_fields:\n  Name: text\n---\n", None, "not stated (gated)"),
        ("# no front matter\nlicense: mit\n", None, "not stated"),
        ('---\nlicense: "a\\nb"\n---\n', None, "a\\nb"),
    ],
)
def test_the_licence_is_that_of_config_and_card(publish, card, stated, license):
    made = publish("test_resnet", card=card)
    config = made.folder / "config.json"
    pretrained = json.loads(config.read_text())["pretrained_cfg"] | {"license": stated}
    edit(config, pretrained_cfg=pretrained)
    assert resolve(str(made.folder)).license == license


def test_a_network_that_cannot_take_its_own_size_is_refused(publish):
    made = publish("test_vit2", img_size=96)
    # 100 holds 6 patches of 16 as 96 does, so that the weights fit, but no whole number of them
    arguments = {"img_size": 100, "dynamic_img_size": True}
    edit(made.folder / "config.json", model_args=arguments)
    told = r"test_vit2 cannot take an image of its own size, \[3, 100, 100\]: Input height \(100\)"
    with pytest.raises(ModelError, match=told):
        load_backbone(str(made.folder))


@pytest.mark.parametrize("card", ["---\n[: broken\n---\n", "---\n- a list\n---\n"])
def test_a_card_that_cannot_be_read_is_told_and_states_nothing(publish, card, caplog):
    made = publish("test_resnet", card=card, config={"license": "mit"})
    with caplog.at_level(logging.WARNING, logger="lobule.models.layout"):
        assert resolve(str(made.folder)).license == "mit"
    assert f"cannot read the licence in {made.folder / 'README.md'}" in caplog.text


def test_terms_are_told_once_when_weights_are_loaded(publish, caplog):
    made = publish(
        "test_resnet", card="---\nlicense: cc-by-nc-4.0\n---\n", config={"license": None}
    )
    with caplog.at_level(logging.WARNING):
        load_backbone(str(made.folder))
    assert [r.getMessage() for r in caplog.records] == [
        "The backbone's weights (licence: cc-by-nc-4.0) may not be used commercially; this may "
        "hold for a model made with them too."
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_backbone(str(made.folder), weights="none")
        load_backbone()
    assert caplog.text == ""
