"""Proposals for a folder: output files, bad images, interruption and resuming."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from safetensors import safe_open
from safetensors.torch import load_file

from sp_fast.data.coco import load_coco
from sp_fast.data.images import TooManyBrokenError, read_image
from sp_fast.data.store import can_store, open_store
from sp_fast.ops.mask_runs import image_masks
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.refinement import distinct, image_segments, refined_saliency
from sp_fast.proposals.run import ProposeSummary, describe, propose_folder
from sp_fast.proposals.store import ProposalStore, seeds_path

WRITTEN = [*(["masks.arrow"] if can_store() else []), "masks.json", "masks.seeds.safetensors"]


def proposer(**options: Any) -> SaliencyProposer:
    options = {"grid": (5, 5), "center": True, "similarity": "cosine", "threshold": 0.7} | options
    return SaliencyProposer(build_backbone("random"), **options)


def run(folder: Path, out: Path, **options: Any) -> ProposeSummary:
    return propose_folder(
        folder, out, options.pop("proposer", None) or proposer(), **{"size": None, **options}
    )


def load(path: Path) -> COCO:
    with redirect_stdout(io.StringIO()):
        return COCO(str(path))


def both_files(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), seeds_path(out).read_bytes()


def test_json_and_seeds(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "masks.json"
    summary = run(folder, out)
    coco = load(out)
    seeds = load_file(seeds_path(out))["seeds"]
    with safe_open(seeds_path(out), framework="pt") as file:
        named = file.metadata()["seeds_sha256"]
    assert coco.dataset["info"]["seeds_sha256"] == named == sha256(seeds.numpy().tobytes()).hexdigest()
    assert (summary.images, summary.masks, summary.resumed) == (12, len(coco.anns), 0)
    assert summary.masks > 24
    assert seeds.dtype == torch.float16
    assert seeds.shape == (summary.masks, 64)
    assert coco.loadCats(1) == [{"id": 1, "name": "object"}]
    assert [image["id"] for image in coco.dataset["images"]] == list(range(1, 13))
    assert coco.imgs[11]["file_name"] == "more/010.png"
    for row, annotation in enumerate(coco.dataset["annotations"]):
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])
        assert isinstance(annotation["segmentation"]["counts"], str)
        assert annotation["area"] == mask.sum() > 0
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert annotation["bbox"] == tight
        assert (annotation["id"], annotation["seed_row"], annotation["iscrowd"]) == (row + 1, row, 0)
    load_coco(out, folder)
    assert sorted(path.name for path in out.parent.iterdir()) == WRITTEN


def test_store_holds_what_the_json_file_does(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "masks.json"
    run(folder, out)
    coco, store = load_coco(out), open_store(out)
    assert store is not None
    assert store.images_checked
    assert (store.info, store.categories) == (coco["info"], coco["categories"])
    entries = [store.entry(row) for row in range(len(store))]
    assert [image for image, _ in entries] == coco["images"]
    for one in coco["annotations"]:
        del one["score"]
    assert [one for _, annotations in entries for one in annotations] == coco["annotations"]


def test_a_store_that_cannot_be_written_does_not_lose_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("masks.arrow: cannot be written")

    monkeypatch.setattr("sp_fast.data.store.can_store", lambda: True)
    monkeypatch.setattr("sp_fast.data.store.write_store", fails)
    with pytest.warns(UserWarning, match=r"masks\.arrow: cannot be written"):
        assert run(folder, tmp_path / "masks.json").merged
    assert len(load_coco(tmp_path / "masks.json", folder)["images"]) == 12
    assert {path.name for path in tmp_path.glob("masks*")} == {"masks.json", "masks.seeds.safetensors"}


@pytest.mark.parametrize(
    ("options", "spares"),
    [
        ({}, 20),
        ({"refine": "segments"}, 25),
        ({"preset": "multiscale", "sizes": (64, 128), "threshold": (0.5, 0.7)}, 50),
    ],
)
def test_masks_and_seeds_match_the_proposer(options: dict, spares: int, folder: Path, tmp_path: Path) -> None:
    out, wanted = tmp_path / "masks.json", proposer(**options).options
    run(folder, out, batch_size=4, proposer=proposer(**options))
    model = proposer(**options, max_masks=spares)
    coco, seeds = load(out), load_file(seeds_path(out))["seeds"]
    for image in (coco.imgs[2], coco.imgs[7]):
        pixels = torch.from_numpy(read_image(folder / image["file_name"])).permute(2, 0, 1)
        proposals, saliency, _ = model.with_saliency([pixels])
        count = int(proposals.count[0])
        size = image["height"], image["width"]
        saliency, threshold = saliency[0, :count], proposals.threshold[0, :count]
        rows = torch.arange(count)
        if options:
            saliency = refined_saliency(saliency, threshold, image_segments(pixels))
            rows = distinct(saliency, threshold, wanted.iou_threshold, wanted.max_masks)
        expected = image_masks(saliency, size, threshold)
        # A mask of a few cells can vanish in so small an image.
        kept = [k for k in rows.tolist() if expected[k].any()]
        annotations = coco.imgToAnns[image["id"]]
        assert annotations
        for k, annotation in zip(kept, annotations, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), expected[k].numpy())
            assert annotation["score"] == pytest.approx(float(proposals.score[0, k]), abs=1e-5)
            torch.testing.assert_close(
                seeds[annotation["seed_row"]].float(), proposals.seeds[0, k], atol=5e-3, rtol=1e-3
            )


def test_size(folder: Path, tmp_path: Path) -> None:
    """Images are resized for the network, but masks keep the size of the image."""
    seen: list[tuple[int, int]] = []
    model = proposer()
    features = model.backbone.features
    model.backbone.features = lambda images: [
        seen.extend((i.shape[1], i.shape[2]) for i in images),
        features(images),
    ][1]
    run(folder, tmp_path / "a.json", proposer=model, size=48)
    assert {max(size) for size in seen} == {48}
    seen.clear()
    run(folder, tmp_path / "b.json", proposer=model, size=(100, 32))
    assert {min(size) for size in seen} == {32}
    for name in ("a.json", "b.json"):
        sizes = [(i["width"], i["height"]) for i in load(tmp_path / name).dataset["images"][:4]]
        assert sizes == [(96, 64), (64, 96), (80, 72), (72, 88)]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batches_do_not_change_the_masks(batch_size: int, folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "a.json", batch_size=3, workers=1)
    run(folder, tmp_path / "b.json", batch_size=batch_size, workers=3)
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert [a["segmentation"] for a in first["annotations"]] == [
        a["segmentation"] for a in second["annotations"]
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.proposals.test_run import run
from sp_fast.proposals.store import ProposalStore

appended = 0
write = ProposalStore.append

def append(self, records):
    global appended
    appended += 1
    if appended < 3:
        return write(self, records)
    # Like a kill in the middle of a write: the first rows of a batch are on disk.
    database = self._records._connection
    database.execute("PRAGMA cache_size = 1")
    for index in range(7, 10):
        database.execute("INSERT INTO images VALUES (?, 1, 1, ?, ?)", (index, "0" * 100_000, b"xyz"))
    os.kill(os.getpid(), signal.SIGKILL)

ProposalStore.append = append
run(Path(sys.argv[1]), Path(sys.argv[2]), batch_size=2)
"""


def test_killed_in_the_middle_of_a_write_ends_with_the_same_files(folder: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole" / "masks.json", tmp_path / "killed" / "masks.json"
    run(folder, whole, batch_size=2)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, folder, out], cwd=root, env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in out.parent.iterdir()] == ["masks.json.partial"]
    assert b"0" * 1000 in (out.parent / "masks.json.partial" / "1-of-1.sqlite-wal").read_bytes()
    calls: list[tuple[int, int]] = []
    summary = run(folder, out, batch_size=2, progress=lambda *call: calls.append(call))
    assert summary.resumed == 4
    assert calls[0] == (4, 12)
    assert calls[-1] == (12, 12)
    assert both_files(out) == both_files(whole)
    assert [path.name for path in sorted(out.parent.iterdir())] == WRITTEN


class Stopped(RuntimeError):
    """Stands for an interruption."""


def interrupt(folder: Path, out: Path, after: int, **options: Any) -> None:
    def progress(done: int, total: int) -> None:
        if done >= after:
            raise Stopped

    with pytest.raises(Stopped):
        run(folder, out, batch_size=2, progress=progress, **options)
    assert not out.exists()


@pytest.mark.parametrize("after", [0, 4, 12])
def test_interrupted_anywhere_ends_with_the_same_files(after: int, folder: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "a" / "masks.json", tmp_path / "b" / "masks.json"
    run(folder, whole, batch_size=2)
    interrupt(folder, out, after)
    run(folder, out, batch_size=2)
    assert both_files(out) == both_files(whole)


def test_interrupted_while_the_final_files_are_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "a" / "masks.json", tmp_path / "b" / "masks.json"
    run(folder, whole)

    def stop(*_: Any) -> int:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(ProposalStore, "_write_json", stop)
        with pytest.raises(Stopped):
            run(folder, out)
    assert not out.exists()
    assert run(folder, out).resumed == 12
    assert both_files(out) == both_files(whole)


def test_resuming_with_other_options_is_an_error(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    interrupt(folder, out, 4)
    with pytest.raises(ValueError, match=r"threshold: 0.7 before, 0.5 now.*--restart"):
        run(folder, out, proposer=proposer(threshold=0.5))
    with pytest.raises(ValueError, match=r"\(size: None before, \[64, 64\] now\)"):
        run(folder, out, size=64)
    other = SaliencyProposer(build_backbone("random", seed=1), **{**vars(proposer().options)})
    with pytest.raises(ValueError, match=r"\(weights: \w{16} before, \w{16} now\)"):
        run(folder, out, proposer=other)
    assert run(folder, out, proposer=other, restart=True).resumed == 0


def test_resuming_a_run_made_before_an_option_was_added(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    interrupt(folder, out, 4)
    manifest = tmp_path / "masks.json.partial" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["options"]["refine"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"\(refine: none before, segments now\)"):
        run(folder, out, proposer=proposer(refine="segments"))
    assert run(folder, out).resumed == 4


def test_resuming_on_a_changed_folder_is_an_error(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    interrupt(folder, out, 4)
    (folder / "003.png").rename(folder / "zzz.png")
    with pytest.raises(ValueError, match=r"images added: zzz.png; images removed: 003.png"):
        run(folder, out)


def test_finished_file_is_kept_unless_overwritten(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    run(folder, out)
    before = both_files(out)
    with pytest.raises(FileExistsError, match="already exists; choose another file, or pass --overwrite"):
        run(folder, out)
    assert both_files(out) == before
    run(folder, out, proposer=proposer(threshold=0.5), overwrite=True)
    assert both_files(out) != before


def test_two_runs_with_the_same_output(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    interrupt(folder, out, 4)
    images = [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in sorted(folder.rglob("*.png"))]
    options = {"size": None, "exif": "apply", **describe(proposer())}
    store = ProposalStore(out, images, options, 64)
    with pytest.raises(BlockingIOError, match="another process is writing"):
        ProposalStore(out, images, options, 64)
    store.close()
    run(folder, out)


def test_damaged_database(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    interrupt(folder, out, 4)
    (tmp_path / "masks.json.partial" / "1-of-1.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(OSError, match=r"1-of-1.sqlite: file is not a database.*delete this file"):
        run(folder, out)
    assert run(folder, out, restart=True).images == 12


def test_no_proposals_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (90, 90, 90)).save(folder / f"{number}.png")
    summary = run(folder, tmp_path / "masks.json")
    assert (summary.images, summary.masks) == (3, 0)
    assert len(load(tmp_path / "masks.json").imgs) == 3
    assert load_file(tmp_path / "masks.seeds.safetensors")["seeds"].shape == (0, 64)


def break_image(source: Path, path: Path, keep: float) -> None:
    data = io.BytesIO()
    Image.open(source).save(data, "JPEG", quality=95)
    path.write_bytes(data.getvalue()[: int(len(data.getvalue()) * keep)])


def test_broken_images_are_skipped_and_reported(folder: Path, tmp_path: Path) -> None:
    for extra in range(30):
        (folder / f"extra{extra:03d}.png").write_bytes((folder / "000.png").read_bytes())
    break_image(folder / "000.png", folder / "truncated.jpg", 0.5)
    (folder / "empty.jpg").symlink_to("gone.jpg")
    out = tmp_path / "masks.json"
    summary = run(folder, out)
    assert summary.images == 42
    assert {path.name for path in summary.broken.reasons} == {"truncated.jpg", "empty.jpg"}
    skipped = json.loads(out.read_text())["info"]["skipped"]
    assert [entry["file_name"] for entry in skipped] == ["empty.jpg", "truncated.jpg"]
    assert skipped[0]["reason"] == "a link to a file that does not exist"
    assert not {"truncated.jpg", "empty.jpg"} & {i["file_name"] for i in load(out).dataset["images"]}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_images_too_thin_for_the_backbone_are_skipped_and_named(
    batch_size: int, folder: Path, tmp_path: Path
) -> None:
    for k in range(30):
        Image.new("RGB", (24, 16)).save(folder / f"small_{k}.png")
    Image.new("RGB", (500, 1)).save(folder / "thin.png")
    summary = run(folder, tmp_path / "masks.json", batch_size=batch_size)
    (name,) = summary.broken.reasons
    assert name == folder / "thin.png"
    assert "fails on 1 x 500 pixels" in summary.broken.reasons[name]
    written = load_coco(tmp_path / "masks.json")
    assert [one["file_name"] for one in written["info"]["skipped"]] == ["thin.png"]
    assert summary.images == len(written["images"]) == len(list(folder.rglob("*.*"))) - 1


def test_a_full_memory_is_not_taken_for_images_that_do_not_fit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    own = proposer()
    monkeypatch.setattr(own.backbone, "features", fails)
    with pytest.raises(torch.OutOfMemoryError):
        run(folder, tmp_path / "masks.json", proposer=own)
    assert (tmp_path / "masks.json.partial").is_dir()


def test_too_many_broken_images_leave_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "empty.jpg").touch()
    out = tmp_path / "out" / "masks.json"
    with pytest.raises(TooManyBrokenError, match=r"1 of 13 images could not be read: .*empty.jpg.*5%"):
        run(folder, out)
    assert list(out.parent.iterdir()) == []


def test_stored_pixels_when_exif_is_ignored(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "000.png") as picture:
        picture.save(folder / "turned.png", exif=exif)
    run(folder, tmp_path / "masks.json", exif="ignore")
    coco = load(tmp_path / "masks.json")
    assert coco.dataset["info"]["exif"] == "ignore"
    upright, turned = (
        next(i for i in coco.dataset["images"] if i["file_name"] == name)
        for name in ("000.png", "turned.png")
    )
    masks = [[a["segmentation"] for a in coco.imgToAnns[image["id"]]] for image in (upright, turned)]
    assert masks[0] == masks[1] != []
    with pytest.raises(ValueError, match="exif: expected 'apply' or 'ignore'"):
        run(folder, tmp_path / "other.json", exif="auto")


def test_images_of_every_kind(folder: Path, tmp_path: Path) -> None:
    picture = Image.open(folder / "000.png")
    picture.convert("L").save(folder / "gray.jpg")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(folder / "turned.jpg", exif=exif)
    out = tmp_path / "masks.json"
    assert not len(run(folder, out).broken)
    coco = load(out)
    sizes = {i["file_name"]: (i["width"], i["height"]) for i in coco.dataset["images"]}
    assert sizes["gray.jpg"] == sizes["cmyk.jpg"] == (96, 64)
    assert sizes["turned.jpg"] == (64, 96)
    turned = next(i["id"] for i in coco.dataset["images"] if i["file_name"] == "turned.jpg")
    assert coco.annToMask(coco.imgToAnns[turned][0]).shape == (96, 64)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: None, FileNotFoundError),
        (lambda path: path.touch(), NotADirectoryError),
        (lambda path: path.mkdir(), ValueError),
    ],
)
def test_bad_folders_leave_nothing(make: Any, kind: type[Exception], tmp_path: Path) -> None:
    make(tmp_path / "images")
    with pytest.raises(kind, match="images"):
        run(tmp_path / "images", tmp_path / "out" / "masks.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: expected"),
        ({"batch_size": 0}, "batch_size: expected an int of at least 1, got 0"),
        ({"workers": 0}, "workers: expected an int of at least 1, got 0"),
        ({"proposer": SaliencyProposer()}, "proposer: needs a backbone"),
        ({"shard": (0, 4)}, "shard: expected a number from 1 to 4, got 0"),
        ({"shard": (5, 4)}, "shard: expected a number from 1 to 4, got 5"),
        ({"shard": (1, 4), "restart": True}, "restart: .*delete .*masks.json.partial instead"),
        ({"name": "masks.txt"}, "out: expected a file name that ends in .json, got .*masks.txt"),
    ],
)
def test_bad_options(options: dict, message: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / options.pop("name", "masks.json")
    with pytest.raises(ValueError, match=message):
        run(folder, out, **options)
    assert list(tmp_path.iterdir()) == [folder]


def test_each_file_has_seeds_of_its_own():
    names = [seeds_path(Path("a", name)).name for name in ("m.json", "m.arrow", "m.txt", "m.2.json")]
    assert names[0] == names[1] == "m.seeds.safetensors"  # of the masks and of their store
    assert len(set(names[1:])) == 3
