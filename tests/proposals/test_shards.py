"""Several processes that propose one folder: they end with the bytes of one process, whatever happens."""

import errno
import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sp_fast.data.images import TooManyBrokenError
from sp_fast.locks import turn_in
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.records import ImageRecord, RecordFile
from sp_fast.proposals.run import ProposeSummary, propose_folder
from sp_fast.proposals.shards import Shard
from sp_fast.proposals.store import ProposalStore, seeds_path
from tests.proposals.conftest import draw_scene

PROPOSER = SaliencyProposer(
    build_backbone("random"), grid=(3, 3), center=True, similarity="cosine", threshold=0.7
)
IMAGES = 21  # with one that is broken


def run(folder: Path, out: Path, *shard: int, **options: Any) -> ProposeSummary:
    return propose_folder(
        folder, out, PROPOSER, **{"size": None, "batch_size": 2, "shard": shard or (1, 1), **options}
    )


def both_files(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), seeds_path(out).read_bytes()


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Any:
    """Blocks of four images, so that every shard gets several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sp_fast.proposals.run._BATCHES_OF_BLOCK", 2)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number in range(IMAGES - 1):
        draw_scene(root / f"{number:03d}.png", *[(64, 48), (48, 64), (56, 56)][number % 3], seed=number)
    (root / "005b.png").touch()
    return root


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    out = tmp_path_factory.mktemp("whole") / "masks.json"
    assert run(folder, out).images == IMAGES - 1
    return both_files(out)


class Stopped(RuntimeError):
    """Stands for an interruption."""


def interrupt(folder: Path, out: Path, *shard: int, after: int) -> None:
    def progress(done: int, total: int) -> None:
        if done >= after:
            raise Stopped

    with pytest.raises(Stopped):
        run(folder, out, *shard, progress=progress)


@pytest.mark.parametrize("total", [1, 3, 7, 40])
def test_shards_are_disjoint_and_complete(total: int) -> None:
    parts = [Shard(number, total).part(21, 4) for number in range(1, total + 1)]
    assert sorted(index for part in parts for index in part) == list(range(21))
    assert max(map(len, parts)) - min(map(len, parts)) <= 4


def test_the_last_shard_merges(folder: Path, whole: tuple[bytes, bytes], tmp_path: Path) -> None:
    out, calls = tmp_path / "masks.json", []
    first = run(folder, out, 3, 3, progress=lambda *call: calls.append(call))
    assert (calls[0], calls[-1]) == ((0, 5), (5, 5))
    assert (first.merged, first.missing, first.images, len(first.broken)) == (False, [1, 2], 5, 0)
    second = run(folder, out, 2, 3)
    assert (second.merged, second.missing, second.images, len(second.broken)) == (False, [1], 7, 1)
    again = run(folder, out, 2, 3)
    assert (again.missing, again.resumed, again.masks) == ([1], 7, second.masks)
    assert [*tmp_path.iterdir()] == [tmp_path / "masks.json.partial"]
    last = run(folder, out, 1, 3)
    assert (last.merged, last.missing, last.images, len(last.broken)) == (True, [], IMAGES - 1, 1)
    assert both_files(out) == whole
    assert not out.with_name("masks.json.partial").exists()


def test_a_run_continues_with_another_number_of_shards(
    folder: Path, whole: tuple[bytes, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "masks.json"
    interrupt(folder, out, 1, 3, after=2)
    done = run(folder, out, 2, 3)
    interrupt(folder, out, 1, 2, after=0)
    run(folder, out, 2, 2)
    last = run(folder, out)
    assert last.resumed >= 2 + done.images
    assert both_files(out) == whole


def test_records_of_unknown_options_are_not_taken_over(tmp_path: Path) -> None:
    partial = tmp_path / "masks.json.partial"
    partial.mkdir()
    old = RecordFile(partial / "records.sqlite")  # as earlier versions named it
    old.append([ImageRecord(0, 1, 1, [])])
    old.close()
    store = ProposalStore(tmp_path / "masks.json", [("a.png", 1)], {"exif": "apply"}, 2)
    assert (store.done, store.todo()) == (set(), [0])
    store.discard()


def stores(out: Path) -> list[ProposalStore]:
    """Two shards of one image each, whose record is there."""
    images = [("a.png", 1), ("b.png", 1)]
    made = []
    for index in range(2):
        store = ProposalStore(out, images, {"exif": "apply"}, 2, shard=Shard(index + 1, 2))
        mask = {"counts": "0", "area": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
        store.append([ImageRecord(index, 1, 1, [mask], np.full((1, 2), index, np.float16))])
        made.append(store)
    return made


def two_in_turn(out: Path) -> tuple[bytes, bytes]:
    first, second = stores(out)
    assert (first.finish({}), second.finish({})) == (1, 2)
    return both_files(out)


def test_two_shards_that_finish_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = two_in_turn(tmp_path / "expected" / "masks.json")
    first, second = stores(tmp_path / "masks.json")

    def late(partial: Path) -> Any:
        """The second finishes when the first is complete and waits for its turn."""
        monkeypatch.undo()
        second.finish({})
        return turn_in(partial)

    monkeypatch.setattr("sp_fast.proposals.store.turn_in", late)
    first.finish({})
    assert [(one.merged, one.missing) for one in (first, second)] == [(False, []), (True, [])]
    assert both_files(first.out) == expected
    assert not first.partial.exists()


@pytest.mark.filterwarnings("ignore:the file system of")
def test_two_shards_that_merge_at_once_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    expected = two_in_turn(tmp_path / "expected" / "masks.json")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="has no locks: take care not to start the same twice"):
        first, second = stores(tmp_path / "masks.json")
    write = first._write

    def late(skipped: dict[str, str]) -> int:
        second.finish({})
        return write(skipped)

    monkeypatch.setattr(first, "_write", late)
    second._records.finish(second._finished)  # complete, and about to merge
    second._records = None
    first.finish({})
    assert second.merged
    assert both_files(first.out) == expected
    assert not first.partial.exists()


def test_a_shard_with_other_options(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    run(folder, out, 1, 2)
    with pytest.raises(ValueError, match=r"size: None before, \[32, 32\] now.* or delete this folder to"):
        run(folder, out, 2, 2, size=32)


def test_the_same_shard_or_another_number_while_one_is_running(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    other, store = stores(out)
    other.close()
    images = [("a.png", 1), ("b.png", 1)]
    for shard in (Shard(2, 2), Shard(1, 3), Shard(1, 1)):
        with pytest.raises(BlockingIOError, match=r"another process is writing .*\(shard 2/2\); wait for it"):
            ProposalStore(out, images, {"exif": "apply"}, 2, shard=shard)
    store.close()


def test_too_many_broken_images_of_all_shards(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(18):
        draw_scene(images / f"{number:02d}.png", 48, 48, seed=number)
    for name in ("00b.png", "04b.png"):  # in the first block and in the second
        (images / name).touch()
    out = tmp_path / "out" / "masks.json"
    assert len(run(images, out, 2, 2).broken) == 1
    with pytest.raises(TooManyBrokenError, match=r"2 of 20 images could not be read: 0.b.png"):
        run(images, out, 1, 2)
    assert list(out.parent.iterdir()) == []


def test_a_shard_that_starts_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "masks.json"

    def late(partial: Path) -> Any:
        """The file is there when it is this shard's turn."""
        out.write_text("merged")
        return turn_in(partial)

    monkeypatch.setattr("sp_fast.proposals.store.turn_in", late)
    with pytest.raises(FileExistsError, match=r"masks.json already exists"):
        stores(out)
    assert list(tmp_path.iterdir()) == [out]
