"""timm's models come from names, folders and files, with exactly their weights and their own way to prepare images."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_data_config
from torch import nn

from loralight.errors import InputError
from loralight.models.fresh import watching_origins
from loralight.models.trust import trusting
from loralight.tasks.image_classification import backbone
from loralight.tasks.image_classification.backbone import (
    classifiers,
    find_backbone,
    load_backbone,
    save_backbone,
)
from loralight.tasks.image_classification.transforms import evaluation_transform

ARCHITECTURES = ["test_resnet", "test_efficientnet", "test_convnext", "test_nfnet", "test_vit"]


def same(one: nn.Module, other: nn.Module, *, but: set[str] = frozenset()) -> bool:  # type: ignore[assignment]
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours.keys() - but)


def by_timm(folder: str, num_classes: int = 7) -> nn.Module:
    config = json.loads((Path(folder) / "config.json").read_text())
    size = {"img_size": 32} if "vit_" in config["architecture"] or "test_vit" in config["architecture"] else {}
    model: nn.Module = timm.create_model(config["architecture"], num_classes=num_classes, **size)
    model.load_state_dict(load_file(f"{folder}/model.safetensors"))
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_gives_exactly_its_weights(checkpoints: Callable[[str], str], architecture: str) -> None:
    folder = checkpoints(architecture)
    with watching_origins() as origins:
        model = load_backbone(find_backbone(folder), num_labels=7)
    assert same(model, by_timm(folder))
    assert origins.fresh(model) == set()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_number_of_labels_makes_the_classifier_new_and_nothing_else(
    checkpoints: Callable[[str], str], architecture: str
) -> None:
    folder = checkpoints(architecture)
    with watching_origins() as origins:
        model = load_backbone(find_backbone(folder), num_labels=3)
    (head,) = classifiers(model)
    (name,) = [name for name, module in model.named_modules() if module is head]
    assert origins.fresh(model) == {f"{name}.weight", f"{name}.bias"}
    assert same(model, timm.create_model(architecture, num_classes=3), but=set(model.state_dict()))
    assert same(load_backbone(find_backbone(folder), num_labels=3), by_timm(folder), but=origins.fresh(model))
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_a_model_with_two_classifiers_has_a_head_of_two() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, img_size=32)
    assert classifiers(model) == [model.head, model.head_dist]


def test_a_file_of_weights_is_of_the_architecture_that_is_named(tiny_resnet: str) -> None:
    found = find_backbone(f"{tiny_resnet}/model.safetensors", "test_resnet")
    assert same(load_backbone(found, num_labels=7), by_timm(tiny_resnet))
    assert found.preparation() == resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg("test_resnet").to_dict()
    )


def test_weights_without_a_classifier_get_a_new_one(tiny_resnet: str, tmp_path: Path) -> None:
    body = {name: tensor for name, tensor in load_file(f"{tiny_resnet}/model.safetensors").items() if name[:2] != "fc"}
    save_file(body, tmp_path / "body.safetensors")
    with watching_origins() as origins:
        model = load_backbone(find_backbone(str(tmp_path / "body.safetensors"), "test_resnet"), num_labels=7)
    assert origins.fresh(model) == {"fc.weight", "fc.bias"}
    assert same(model, by_timm(tiny_resnet), but={"fc.weight", "fc.bias"})


def test_images_are_prepared_as_the_folder_s_config_says(tiny_resnet: str) -> None:
    assert find_backbone(tiny_resnet).preparation() == {
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.3, 0.2, 0.25),
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    other = find_backbone(tiny_resnet).preparation(image_size=48, crop_pct=1.0)
    assert (other["input_size"], other["crop_pct"]) == ((3, 48, 48), 1.0)


def test_a_folder_that_timm_saved_for_the_hub_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    found = find_backbone(str(tmp_path))
    assert found.preparation() == resolve_data_config({}, model=model)
    assert same(load_backbone(found, num_labels=4), model)


def test_layers_that_share_a_weight_each_have_it_in_the_folder(tmp_path: Path) -> None:
    model, found = timm.create_model("coat_tiny", num_classes=3), find_backbone("coat_tiny")
    save_backbone(model, found, tmp_path, labels=["a", "b", "c"], preparation=found.preparation())
    written = load_backbone(find_backbone(str(tmp_path)), num_labels=3)
    assert same(written, model) and not model._state_dict_hooks


def test_timm_s_own_names_have_timm_s_own_preparation() -> None:
    wanted = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg("resnet50.a1_in1k").to_dict())
    assert find_backbone("resnet50.a1_in1k").preparation() == wanted


def test_a_grey_model_gets_grey_images_and_one_of_many_channels_is_refused(tmp_path: Path) -> None:
    for channels in (1, 12):
        said = {"input_size": (channels, 160, 160)}  # newer ones of timm write it by themselves
        model = timm.create_model("test_resnet", in_chans=channels, pretrained_cfg_overlay=said)
        timm.models.save_for_hf(model, tmp_path / str(channels), safe_serialization=True)
    grey = find_backbone(str(tmp_path / "1"))
    assert grey.preparation()["input_size"] == (1, 160, 160)
    assert load_backbone(grey, num_labels=3).eval()(torch.zeros(1, 1, 160, 160)).shape == (1, 3)
    with pytest.raises(InputError, match=r"^E-MODEL: test_resnet takes images of 12 channels"):
        find_backbone(str(tmp_path / "12")).preparation()


def test_a_vision_transformer_takes_images_of_another_size(checkpoints: Callable[[str], str]) -> None:
    model = load_backbone(find_backbone(checkpoints("test_vit")), num_labels=3, image_size=48)
    assert model.eval()(torch.zeros(1, 3, 48, 48)).shape == (1, 3)


@pytest.mark.parametrize(
    ("architecture", "size", "reason"),
    [("test_vit", 50, r"should be divisible by patch size"), ("test_convnext", 1, "can't be greater than actual")],
)
def test_a_size_that_a_model_cannot_take_is_an_error(
    checkpoints: Callable[[str], str], architecture: str, size: int, reason: str
) -> None:
    with pytest.raises(InputError, match=rf"^E-IMAGE-SIZE: no images of \(3, {size}, {size}\).*{reason}"):
        load_backbone(find_backbone(checkpoints(architecture)), num_labels=3, image_size=size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size=0: give a number of pixels"),
        ({"crop_pct": 1.5}, "crop_pct=1.5: give a share above 0"),
        ({"crop_pct": 0.0}, "crop_pct=0.0: give a share above 0"),
    ],
)
def test_sizes_that_make_no_sense_are_errors(tiny_resnet: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=rf"^E-IMAGE-SIZE: model\.{message}"):
        find_backbone(tiny_resnet).preparation(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("checkpoint", "architecture", "message"),
    [
        ("resnet81", None, r"timm has no model 'resnet81'\. Did you mean 'resnet18'"),
        ("resnet18.imagenet", None, r"cannot be loaded: Invalid pretrained tag \(imagenet\)"),
        ("test_resnet", "resnet18", r"model\.architecture goes with a \.safetensors file; leave it out"),
        ("./nothing", None, "there is no such folder or file"),
        ("other:resnet18", None, "Unknown model source 'other'"),
        ("hf_hub:nobody/nothing", None, "The hub needs network access"),
        ("{folder}", None, "config.json"),
        ("{folder}/nothing.safetensors", "resnet18", "there is no such file"),
        ("{tiny}/model.safetensors", None, r"of which model are these weights\? Set model\.architecture"),
        ("{tiny}/model.safetensors", "restnet18", r"timm has no model 'restnet18'\. Did you mean 'resnet18'"),
        ("{folder}/broken.safetensors", "resnet18", "cannot be loaded"),
    ],
)
def test_what_is_no_model_is_one_clear_error(
    tiny_resnet: str, tmp_path: Path, checkpoint: str, architecture: str | None, message: str
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=rf"^E-MODEL: .*{message}"):
        find_backbone(checkpoint.format(folder=tmp_path, tiny=tiny_resnet), architecture)


def test_weights_of_another_model_are_an_error_though_only_some_tensors_differ(
    tiny_resnet: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_resnet, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    del tensors["layer1.0.conv1.weight"]
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match=r"^E-MODEL: .*Missing key\(s\).*layer1\.0\.conv1\.weight"):
        load_backbone(find_backbone(str(tmp_path / "model")), num_labels=3)


def test_weights_that_the_hub_does_not_give_are_an_error_that_says_so() -> None:
    with pytest.raises(
        InputError, match=r"^E-MODEL: model\.checkpoint=test_resnet: cannot be loaded: .*network access"
    ):
        load_backbone(find_backbone("test_resnet"), num_labels=3)


def test_timm_says_nothing_while_it_loads(tiny_resnet: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        load_backbone(find_backbone(tiny_resnet), num_labels=3)
    assert [record for record in caplog.records if record.name.startswith("timm")] == []


def say(folder: str, target: Path, **changes: Any) -> str:
    """A copy of a model's folder, with other values in its config."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return str(target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "E-MODEL: .*'checkpoint_path' is no argument of a model"),
        ({"model_args": {"pretrained_cfg_overlay": {"file": "evil.pth"}}}, "E-MODEL: .*'pretrained_cfg_overlay' is no"),
        ({"model_args": {"cache_dir": "/tmp/evil"}}, "E-MODEL: .*'cache_dir' is no argument"),
        ({"model_args": {"pretrained_filter_fn": "evil"}}, "E-MODEL: .*'pretrained_filter_fn' is no argument"),
        ({"model_args": {"block_fn": "evil.module"}}, "E-MODEL: "),
        ({"model_args": {"layers": [10**6, 1, 1, 1]}}, "E-MODEL: .*far larger model than its weights"),
        ({"model_args": {"channels": [10**6, 10**6, 10**6, 10**6]}}, "E-MODEL: .*far larger model than its weights"),
        ({"architecture": "vit_7b_patch16_dinov3", "pretrained_cfg": {}}, "E-MODEL: .*far larger model than its"),
        ({"architecture": "os.system"}, "E-MODEL: timm has no model"),
        ({"architecture": ["test_resnet"]}, "E-MODEL: "),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}}, "E-IMAGE-SIZE: .*a side has 1 to 4,096"),
        ({"pretrained_cfg": {"input_size": [3, "a", "b"]}}, "E-IMAGE-SIZE: "),
        ({"pretrained_cfg": {"mean": "x"}}, "E-MODEL: "),
        ({"pretrained_cfg": {"interpolation": "evil"}}, "E-MODEL: "),
        ({"pretrained_cfg": {"classifier": 3}}, "E-"),
    ],
)
def test_what_a_stranger_s_config_says_is_refused_by_name(
    tiny_resnet: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = say(tiny_resnet, tmp_path / "model", **changes)
    with pytest.raises(InputError, match=f"^{message}"):
        found = find_backbone(folder)
        evaluation_transform(found.preparation())
        load_backbone(found, num_labels=7)


def test_where_a_stranger_s_config_says_that_weights_are_is_not_believed(tiny_resnet: str, tmp_path: Path) -> None:
    places = {"url": "https://evil/a.pth", "hf_hub_id": "evil/a", "source": "hf-hub", "file": "/etc/passwd"}
    folder = say(tiny_resnet, tmp_path / "model", pretrained_cfg={**places, "custom_load": True, "num_classes": 10**9})
    assert same(load_backbone(find_backbone(folder), num_labels=7), by_timm(tiny_resnet))


@pytest.mark.parametrize("allowed", [False, True])
def test_of_the_hub_only_safetensors_are_asked_for_unless_a_pickle_is_allowed(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    said = {"hf_hub_id": "a/b", "source": "hf-hub", "custom_load": "hf", "hf_hub_filename": "evil.pkl"}
    monkeypatch.setattr(backbone, "load_model_config_from_hf", lambda name: (dict(said), "test_resnet", {}))
    with trusting(allow_pickle=allowed):
        config = find_backbone("hf_hub:a/b").config
    assert (config.hf_hub_id, config.custom_load) == ("a/b", False)
    assert config.hf_hub_filename == (None if allowed else "model.safetensors")


def test_a_pickle_that_the_user_allows_is_read(tiny_resnet: str, tmp_path: Path) -> None:
    torch.save(load_file(f"{tiny_resnet}/model.safetensors"), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"^E-PICKLE: .*weights\.pth: reading a pickle can do harm"):
        find_backbone(str(tmp_path / "weights.pth"), "test_resnet")
    with trusting(allow_pickle=True):
        found = find_backbone(str(tmp_path / "weights.pth"), "test_resnet")
        assert same(load_backbone(found, num_labels=7), by_timm(tiny_resnet))
