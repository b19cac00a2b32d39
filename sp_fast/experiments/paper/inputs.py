"""The files of the data root, and how to get each."""

from __future__ import annotations

from sp_fast.weights.published import PUBLISHED

UNLABELLED = "unlabeled2017"
INITIALISED = ("imagenet", "densecl", "swav", "moco_v2")
_COCO = "http://images.cocodataset.org"
_LABELS = f"unpack {_COCO}/annotations/annotations_trainval2017.zip"
_SPLIT = (
    "sp-fast data coco-split annotations/instances_train2017.json --list COCO_supervision.txt "
    "--share {0} --out annotations/instances_train2017.{0}.json"
)
_CITYSCAPES = "leftImg8bit_trainvaltest.zip of https://www.cityscapes-dataset.com (needs an account)"
_CITYSCAPES_LABELS = (
    "gtFine_trainvaltest.zip from the same place, then sp-fast data cityscapes cityscapes "
    "--out cityscapes/annotations"
)
_CTW1500 = "images of https://github.com/Yuliang-Liu/Curve-Text-Detector"
_CTW1500_LABELS = (
    "sp-fast data ctw1500 ctw1500/imgs/{0} LABELS --out ctw1500/instances_{0}.json, with the labels of the "
    "same place"
)
_RESULTS = "results of {} on val2017 in COCO's format, of boxes or masks"


def _published(name: str) -> str:
    found = PUBLISHED[name]
    return f"{found.what}: {found.address}" + (f" ({found.checksum})" if found.checksum else "")


_HOW = {
    **{name: f"unpack {_COCO}/zips/{name}.zip" for name in (UNLABELLED, "train2017", "val2017")},
    **{f"annotations/instances_{name}.json": _LABELS for name in ("train2017", "val2017")},
    **{f"annotations/instances_train2017.{share}.json": _SPLIT.format(share) for share in (5, 10)},
    **{f"cityscapes/leftImg8bit/{part}": _CITYSCAPES for part in ("train", "val")},
    **{
        f"cityscapes/annotations/instancesonly_filtered_gtFine_{part}.json": _CITYSCAPES_LABELS
        for part in ("train", "val")
    },
    **{f"ctw1500/imgs/{part}": _CTW1500 for part in ("training", "test")},
    **{f"ctw1500/instances_{part}.json": _CTW1500_LABELS.format(part) for part in ("training", "test")},
    "weights/imagenet_mobilenet_v2.pth": _published("mobilenet_v2"),
    **{f"weights/{name}_r50.pth": _published(name) for name in INITIALISED},
    "weights/knet_r50_coco.pth": "checkpoint of a K-Net trained on train2017 by sp-fast train",
    "freesolo.json": "sp-fast data masks FILE --images unlabeled2017 --leave-out-missing "
    "--out freesolo.json, with the masks of https://github.com/NVlabs/FreeSOLO",
    "detreg_regions.json": "sp-fast region-boxes unlabeled2017 --out detreg_regions.json",
    "results/freesolo.json": _RESULTS.format("FreeSOLO"),
    "results/up_detr.json": _RESULTS.format("UP-DETR"),
    "results/detreg.json": _RESULTS.format("DETReg"),
}


def inputs(data_root: str, backbone: str) -> dict[str, str]:
    """All files of a data root, with weights of ResNet-50 and of `backbone` -> how to get each."""
    unknown = f"weights of {backbone}, if there are any; else leave the row out with --rows"
    own = {f"weights/{name}_{backbone}.pth": unknown for name in INITIALISED}
    return {f"{data_root}/{name}": how for name, how in {**own, **_HOW}.items()}
