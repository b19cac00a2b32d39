"""Settings that are chosen from the data and the device."""

import dataclasses

import pytest
import torch

from sp_fast.data.coco import save_coco
from sp_fast.experiments.fit_data import FitData
from sp_fast.experiments.pace import LEAST, SHARE, Budget, Pace, fit_into
from sp_fast.experiments.settings import GIVEN, Choice, choose, shown, with_caches
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


# Ten minutes, one of which is spent. Besides the steps: 30 + 8 seconds for the pseudo labels and, for each
# round of trainings, 2 * 8 to start them and 3 * 20 * 0.2 to evaluate.
BUDGET = Budget(minutes=10, spent=60, proposals=30, evaluated=20, chains=2, jobs=2)
PACE = Pace(step=0.5, evaluated=0.2, start=8)


def fitted(choices, **changed):
    choices, told = fit_into(choices, BUDGET._replace(**changed), PACE)
    return {one.name: one for one in choices}, told


def steps(found):
    return found["pretrain_steps"].value + found["finetune_steps"].value


def test_steps_fit_into_the_time_left(tmp_path, weights):
    choices = choose(data(tmp_path, 256, 2, 100), weights, {}, gpu=False)
    found, told = fitted(choices)
    assert told is None
    assert steps(found) * 0.5 == pytest.approx(SHARE * 540 - 38 - 28, rel=0.01)
    assert found["finetune_steps"].reason == (
        "--minutes 10: 9:00 left, 1:06 of it to make pseudo labels, start and evaluate; 0.50 s per step"
    )
    twice, _ = fitted(choices, chains=4)
    assert 2 * steps(twice) * 0.5 == pytest.approx(SHARE * 540 - 38 - 2 * 28, rel=0.01)
    assert twice["kernels"] == found["kernels"]


def test_given_steps_are_not_changed_for_the_time(tmp_path, weights):
    choices = choose(data(tmp_path, 256, 2, 100), weights, {"finetune_steps": 300}, gpu=False)
    found, told = fitted(choices)
    assert (found["finetune_steps"].value, found["finetune_steps"].reason) == (300, GIVEN)
    assert steps(found) * 0.5 == pytest.approx(SHARE * 540 - 38 - 28, rel=0.01)
    assert told is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        # 590 s are spent, the steps take 0.5 s each and everything else 66 s.
        ({}, "20 steps are the least, about 12 minutes in all; AP will be near 0. Without --minutes, "),
        (
            {"pretrain_steps": 100},
            "20 steps beside the given ones are the least, about 12 minutes in all; AP ",
        ),
        ({"finetune_steps": 300}, "20 steps beside the given ones are the least, about 14 minutes in all"),
        ({"finetune_steps": 300, "pretrain_steps": 100}, "the steps are given, about 15 minutes in all"),
    ],
)
def test_a_time_that_is_too_short_is_told(tmp_path, weights, given, told):
    choices = choose(data(tmp_path, 256, 2, 100), weights, given, gpu=False)
    found, said = fitted(choices, spent=590)
    why = "the fewest allowed; --minutes 10 is too short"
    for name in ("pretrain_steps", "finetune_steps"):
        assert found[name][1:] == ((given[name], GIVEN) if name in given else (LEAST, why))
    assert said.startswith(f"--minutes 10 cannot be met: {told}")
    assert ("AP" in said) == ("finetune_steps" not in given)


def test_caches_follow_from_the_final_steps(tmp_path, weights):
    found = data(tmp_path, 256, 2, 100)
    choices = choose(found, weights, {}, gpu=False)
    before = {one.name: one for one in choices}
    assert "each of 4 images is seen 300 times" in before["finetune_cache"].reason
    after = {one.name: one for one in with_caches(list(fitted(choices, spent=520)[0].values()), found)}
    # Steps of 4 images.
    assert after["finetune_steps"].value == LEAST
    assert f"each of 4 images is seen {LEAST} times" in after["finetune_cache"].reason
    assert (before["pretrain_cache"].value, after["pretrain_cache"].value) == ("features", "ram")
    assert after.keys() == before.keys()


def test_prompts_are_on_unless_told(tmp_path, weights):
    found = data(tmp_path, 256, 2, 100)
    assert chosen(found, weights)["prompts"].value == "cosine"
    assert chosen(found, weights, prompts="none")["prompts"] == ("prompts", "none", GIVEN)


def test_values_are_shown_as_text():
    named = Choice("proposals", {"name": "one, finer", "options": {}}, "best")
    earlier = Choice("proposals", {"options": {}}, "several scales: mean best IoU 0.4")
    assert [shown(one) for one in (named, earlier)] == ["one, finer", "several scales"]
    others = (Choice("model", "knet", ""), Choice("size", [640, 480], ""), Choice("amp", False, ""))
    assert [shown(one) for one in others] == ["knet", "[640, 480]", "false"]
