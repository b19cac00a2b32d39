"""Settings that are chosen from the data and the device."""

import dataclasses

import pytest
import torch

from sp_fast.data.coco import save_coco
from sp_fast.experiments.fit_data import FitData
from sp_fast.experiments.pace import SHARE, fit_into
from sp_fast.experiments.settings import GIVEN, choose
from sp_fast.proposals.networks import layers

pytest.importorskip("mmdet")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(layers("mobilenet_v2").state_dict(), path)
    return str(path)


def data(folder, side, objects, object_side, count=4) -> FitData:
    """Square images, each with the same number of square objects."""
    box = [0, 0, object_side, 0, object_side, object_side, 0, object_side]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": side, "width": side} for i in range(count)],
        "annotations": [
            {"id": i, "image_id": i // objects, "category_id": 1, "segmentation": [box]}
            for i in range(count * objects)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    save_coco(coco, folder / "labels.json")
    path = str(folder / "labels.json")
    return FitData("images", path, "images", path, "images", path, 100, count, count, False)


def chosen(found, weights, *, gpu=False, **given):
    return {one.name: one for one in choose(found, weights, given, gpu=gpu)}


def test_many_small_objects_get_more_kernels_and_larger_images(tmp_path, weights):
    few = chosen(data(tmp_path, 256, 2, 100), weights)
    many = chosen(data(tmp_path, 256, 90, 16), weights)
    assert (few["size"].value, few["kernels"].value) == (256, 40)
    assert many["size"].value == 384
    assert many["kernels"].value > 90
    assert "90 objects" in many["kernels"].reason
    assert "16" in many["size"].reason
    assert many["masks"].value == many["kernels"].value // 2
    assert (few["batch_size"].value, many["batch_size"].value) == (4, 2)


def test_given_settings_are_kept_and_said(tmp_path, weights):
    found = chosen(data(tmp_path, 256, 2, 100), weights, kernels=64, size=96, finetune_steps=7)
    assert [found[name].value for name in ("kernels", "size", "finetune_steps", "masks")] == [64, 96, 7, 32]
    assert [found[name].reason for name in ("kernels", "size", "finetune_steps")] == [GIVEN] * 3
    assert chosen(data(tmp_path, 256, 2, 100), weights, kernels=1)["masks"].value == 1


def test_a_gpu_gets_a_larger_model_images_and_more_steps(tmp_path, weights):
    found = data(tmp_path, 2000, 2, 300)
    cpu, gpu = chosen(found, weights), chosen(found, weights, gpu=True)
    assert (cpu["model"].value, gpu["model"].value) == ("knet_mobilenet_v2_64", "knet_mobilenet_v2")
    assert (cpu["size"].value, gpu["size"].value) == (384, [1333, 800])
    assert (cpu["amp"].value, gpu["amp"].value) == (False, True)
    assert gpu["finetune_steps"].value > cpu["finetune_steps"].value


def test_maps_are_kept_only_where_they_are_used_again(tmp_path, weights):
    found = data(tmp_path, 256, 2, 100)
    assert chosen(found, weights)["finetune_cache"].value == "features"
    assert chosen(found, weights, finetune_steps=1)["finetune_cache"].value == "ram"
    assert chosen(found, weights, model="knet_mobilenet_v2")["finetune_cache"].value == "ram"
    huge = dataclasses.replace(found, images_count=10**9)
    assert chosen(huge, weights)["pretrain_cache"].value is None


def test_models_and_weights_have_to_fit(tmp_path, weights):
    found = data(tmp_path, 256, 2, 100)
    with pytest.raises(ValueError, match=r"--model: expected one of knet_mobilenet_v2_64, .*, got 'yolo'"):
        choose(found, weights, {"model": "yolo"}, gpu=False)
    with pytest.raises(
        ValueError, match="--weights: the model knet_r50 needs weights of resnet50, got those"
    ):
        choose(found, weights, {"model": "knet_r50"}, gpu=False)


def test_steps_fit_into_the_time(tmp_path, weights):
    choices = choose(data(tmp_path, 256, 2, 100), weights, {}, gpu=False)
    found = {one.name: one for one in fit_into(choices, 10, 0.5, chains=2, jobs=2)}
    total = found["pretrain_steps"].value + found["finetune_steps"].value
    assert total * 0.5 == pytest.approx(10 * 60 * SHARE, rel=0.01)
    assert "--minutes 10" in found["finetune_steps"].reason
    twice = {one.name: one for one in fit_into(choices, 10, 0.5, chains=4, jobs=2)}
    assert twice["finetune_steps"].value == pytest.approx(found["finetune_steps"].value / 2, rel=0.01)
    assert twice["kernels"] == found["kernels"]


def test_given_steps_are_not_changed_for_the_time(tmp_path, weights):
    choices = choose(data(tmp_path, 256, 2, 100), weights, {"finetune_steps": 300}, gpu=False)
    found = {one.name: one for one in fit_into(choices, 10, 0.5, chains=1, jobs=2)}
    assert (found["finetune_steps"].value, found["finetune_steps"].reason) == (300, GIVEN)
    assert found["pretrain_steps"].value == pytest.approx(10 * 60 * SHARE / 0.5 - 300, rel=0.01)
