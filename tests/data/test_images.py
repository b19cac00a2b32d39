"""All kinds of images are read, and broken ones are reported by name."""

import contextlib
import os
import pickle
import struct
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, features

from sp_fast.data import images
from sp_fast.data.formats.builder import read_map
from sp_fast.data.images import (
    BrokenImageError,
    BrokenImages,
    image_size,
    list_images,
    read_for_size,
    read_image,
    read_labelled,
)


@pytest.fixture
def pixels():
    """A smooth RGB image [24, 40, 3] without symmetry, which JPEG keeps nearly unchanged."""
    y, x = np.mgrid[0:24, 0:40]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 3], axis=2).astype(np.uint8)


def save(pixels, path, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_rgb_png_is_read_exactly(pixels, tmp_path):
    image = read_image(save(pixels, tmp_path / "a.png"))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)
    assert image_size(tmp_path / "a.png") == (24, 40)
    image[0, 0] = 0  # the array is writable


def test_grayscale_is_repeated_over_channels(pixels, tmp_path):
    image = read_image(save(pixels[..., 0], tmp_path / "a.png"))
    np.testing.assert_array_equal(image, np.repeat(pixels[..., :1], 3, axis=2))


def test_sixteen_bit_is_scaled_to_the_same_brightness(pixels, tmp_path):
    image = read_image(save(pixels[..., 0].astype(np.uint16) * 257, tmp_path / "a.png"))
    np.testing.assert_array_equal(image, np.repeat(pixels[..., :1], 3, axis=2))


def test_alpha_is_dropped(pixels, tmp_path):
    alpha = np.full((24, 40, 1), 10, np.uint8)
    np.testing.assert_array_equal(
        read_image(save(np.concatenate([pixels, alpha], axis=2), tmp_path / "a.png")), pixels
    )


def test_palette_becomes_rgb(tmp_path):
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 1), 1)
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.shape == (2, 4, 3)
    assert read[0, 0].tolist() == [10, 20, 30]
    assert read[1, 3].tolist() == [200, 100, 50]


def test_cmyk_jpeg_keeps_its_colours(pixels, tmp_path):
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "a.jpg", quality=98, subsampling=0)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - pixels).mean() < 4


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, 1)), (8, lambda a: np.rot90(a, -1))],
)
def test_exif_orientation_is_applied(pixels, tmp_path, orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(np.ascontiguousarray(undo(pixels)), tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    image = read_image(path)
    assert image.shape == pixels.shape
    assert image_size(path) == pixels.shape[:2]
    assert np.abs(image.astype(int) - pixels).mean() < 4


def broken(kind, pixels, path):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not an image")
    else:
        save(pixels, path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(
    ("kind", "reason"), [("empty", "empty"), ("text", "not an image"), ("truncated", "truncated")]
)
def test_broken_image_is_reported(pixels, tmp_path, kind, reason, suffix):
    path = broken(kind, pixels, tmp_path / f"bad.{suffix}")
    with pytest.raises(BrokenImageError, match=rf"bad\.{suffix}: .*(?i:{reason})") as caught:
        read_image(path)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.path, copy.reason, str(copy)) == (path, caught.value.reason, str(caught.value))


@pytest.mark.parametrize("read", [read_image, image_size, read_map])
@pytest.mark.parametrize("suffix", ["png", "jp2"])
def test_a_wild_length_in_a_header_takes_no_memory(pixels, tmp_path, suffix, read):
    path = tmp_path / f"wild.{suffix}"
    if suffix == "png":
        save(pixels, path)
        data = path.read_bytes()
        at = data.index(b"IDAT")
        path.write_bytes(data[: at - 4] + (2**31 - 1).to_bytes(4, "big") + data[at:])
    else:
        boxes = [b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 ", b"\x81\0\0\x2djp2h"]
        path.write_bytes(b"".join(boxes))
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_float_pixels_are_refused(tmp_path):
    path = save(np.zeros((3, 3), np.float32), tmp_path / "a.tiff")
    with pytest.raises(BrokenImageError, match="floating-point"):
        read_image(path)


def test_a_link_to_nothing_is_a_broken_image(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    for read in (read_image, image_size):
        with pytest.raises(BrokenImageError, match=r"a\.png: a link to a file that does not exist"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("make", [getattr(os, "mkfifo", None), os.mkdir])
def test_what_is_not_a_file_is_a_broken_image(tmp_path, make):
    if make is None:
        pytest.skip("no pipes in folders here")
    make(tmp_path / "a.png")
    with pytest.raises(BrokenImageError, match="not a file but a folder, a pipe or a device"):
        image_size(tmp_path / "a.png")


def test_exif_that_cannot_be_written_again_is_applied(pixels, tmp_path):
    # Orientation 6, and the camera's maker as a fraction 1/0, not a text.
    entries = struct.pack("<HHHIIHHIIIII", 2, 0x112, 3, 1, 6, 0x10F, 5, 1, 38, 0, 1, 0)
    path = save(pixels, tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + entries)
    assert read_image(path).shape == (40, 24, 3)


def test_missing_file_is_not_a_broken_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.jpg")


def test_list_images_is_sorted_and_recursive_and_skips_other_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ["b.JPG", "a.png", "sub/c.jpeg", "notes.txt", "._a.png", ".cache/d.jpg"]:
        (tmp_path / name).write_bytes(b"x")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == [
        "a.png",
        "b.JPG",
        "sub/c.jpeg",
    ]


def test_images_that_are_left_out_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    (tmp_path / "more").mkdir()
    folder.mkdir()
    for name in ("a.jfif", "b.HEIC", "c.gif", "d.DNG", "e.jxl", ".f.heic", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "more").symlink_to(tmp_path / "more")
    plugins(monkeypatch, pillow_heif=None, pillow_jxl=None)
    said = (
        r"left out 1 linked folder: more; and 3 images in formats that are not read here "
        r"\(\.dng, \.heic, \.jxl; pip install pillow-heif pillow-jxl-plugin\): b\.HEIC, d\.DNG, e\.jxl$"
    )
    with pytest.warns(UserWarning, match=said):
        assert [path.name for path in list_images(folder)] == ["a.jfif", "c.gif"]


def plugins(monkeypatch, **modules):
    """Has Pillow's plug-ins be these modules, or missing where None."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(images, "readable_suffixes", images.readable_suffixes.__wrapped__)


def test_formats_of_an_installed_plug_in_are_read(pixels, tmp_path, monkeypatch):
    registered = []
    heif = SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    plugins(monkeypatch, pillow_heif=heif, pillow_jxl=None)
    save(pixels, tmp_path / "a.png").rename(tmp_path / "a.heic")  # recognised by its content
    assert [path.name for path in list_images(tmp_path)] == ["a.heic"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.heic"), pixels)
    assert len(registered) == 2  # reading alone, as in training, registers it too


@pytest.mark.parametrize(("name", "package"), [("a.HEIC", "pillow-heif"), ("a.jxl", "pillow-jxl-plugin")])
def test_a_format_whose_plug_in_is_missing_is_named(name, package, tmp_path, monkeypatch):
    plugins(monkeypatch, pillow_heif=None, pillow_jxl=None)
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(BrokenImageError, match=f"files need pip install {package}$"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(("suffix", "feature"), [("gif", None), ("avif", "avif"), ("jp2", "jpg_2000")])
def test_formats_that_pillow_may_have(suffix, feature, tmp_path):
    if feature and not features.check(feature):
        pytest.skip(f"this Pillow has no {feature}")
    colour = Image.new("RGB", (40, 24), (255, 0, 0))
    colour.save(tmp_path / f"a.{suffix}")
    assert [path.suffix for path in list_images(tmp_path)] == [f".{suffix}"]
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - [255, 0, 0]).max() < 8


def test_images_over_the_limit_say_how_to_raise_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restored afterwards
    path = tmp_path / "large.png"
    Image.new("L", (2000, 1500)).save(path)
    images.set_max_megapixels(2)
    with pytest.raises(BrokenImageError, match=r"more than 2 megapixels; --max-megapixels raises the limit"):
        image_size(path)
    images.set_max_megapixels(6)
    assert read_image(path).shape == (1500, 2000, 3)
    with pytest.raises(ValueError, match="max_megapixels: expected a number above 0, got 0"):
        images.set_max_megapixels(0)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "CMYK", "I;16"])
def test_large_images_are_converted_in_parts(mode, tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (50, 30, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(values).convert("RGB").convert(mode)
    image.save(tmp_path / "a.tif", compression=None)
    whole = read_image(tmp_path / "a.tif")
    assert len(np.unique(whole)) > 4
    monkeypatch.setattr(images, "_PIXELS_AT_ONCE", 7 * 30)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), whole)


def test_list_images_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(NotADirectoryError, match=r"file\.txt"):
        list_images(tmp_path / "file.txt")
    with pytest.raises(ValueError, match="no images in"):
        list_images(tmp_path)


def test_broken_images_are_counted_once_and_over_five_percent_is_an_error():
    images = BrokenImages()
    assert images.add("a.jpg", "empty")
    assert not images.add(Path("a.jpg"), "empty")
    assert len(images) == 1
    images.check(20)
    with pytest.raises(ValueError, match=r"1 of 19 images could not be read: a\.jpg \(empty\).*More than 5%"):
        images.check(19)
    assert images.report() == "1 image could not be read: a.jpg (empty)"


def test_names_of_broken_images_are_one_line():
    images = BrokenImages()
    images.add("a\nb\x1b[31m.jpg", "empty")
    assert images.report() == r"1 image could not be read: a\nb\x1b[31m.jpg (empty)"
    assert str(BrokenImageError("a\r\nb.jpg", "empty")) == r"a\r\nb.jpg: empty"


def test_broken_images_report_names_the_first_few():
    images = BrokenImages()
    for k in range(7):
        images.add(f"{k}.jpg", "empty")
    assert images.report(1000).startswith("7 of 1000 images could not be read: 0.jpg (empty), ")
    assert images.report(1000).endswith("4.jpg (empty) and 2 more")


def turned(pixels, path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(pixels, path, exif=exif)


def test_tiff_files_are_always_turned(pixels, tmp_path):
    path = turned(pixels, tmp_path / "a.tiff", 6)
    for exif in ("apply", "ignore"):
        assert image_size(path, exif=exif) == read_image(path, exif=exif).shape[:2] == (40, 24)


def test_exif_orientation_can_be_ignored(pixels, tmp_path):
    path = turned(pixels, tmp_path / "a.png", 6)
    np.testing.assert_array_equal(read_image(path, exif="ignore"), pixels)
    assert image_size(path, exif="ignore") == (24, 40)
    assert image_size(path) == read_image(path).shape[:2] == (40, 24)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match="exif: expected 'apply' or 'ignore', got 'auto'"):
            read(path, exif="auto")


@pytest.mark.parametrize("exif", ["auto", "apply", "ignore"])
@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_the_size_of_labels_decides_where_it_can(pixels, tmp_path, exif, size):
    path = turned(pixels, tmp_path / "a.png", 6)
    image, note = read_labelled(path, size, exif)
    fitting = "ignore" if size == (24, 40) else "apply"
    np.testing.assert_array_equal(image, read_image(path, exif=fitting))
    done = {"ignore": "ignored", "apply": "applied"}[fitting]
    if fitting == {"auto": "apply"}.get(exif, exif):
        assert note is None
    else:
        assert f"the labels fit only with EXIF orientation 6 {done}" in note


@pytest.mark.parametrize("orientation", [2, 3, 4, 6])
def test_the_option_decides_where_both_fit(pixels, tmp_path, orientation):
    pixels = pixels[:24, :24] if orientation == 6 else pixels
    path = turned(np.ascontiguousarray(pixels), tmp_path / "a.png", orientation)
    read = {exif: read_labelled(path, pixels.shape[:2], exif) for exif in ("auto", "apply", "ignore")}
    np.testing.assert_array_equal(read["ignore"][0], pixels)
    np.testing.assert_array_equal(read["apply"][0], read_image(path))
    np.testing.assert_array_equal(read["auto"][0], read["apply"][0])
    assert (read["apply"][0] != pixels).any()
    assert read["apply"][1] is read["ignore"][1] is None
    assert f"orientation {orientation} applied or ignored, so it is applied" in read["auto"][1]


def test_labels_without_orientation_or_of_another_size_say_nothing(pixels, tmp_path):
    for orientation, size in [(1, (24, 40)), (0, (24, 40)), (6, (30, 30))]:
        path = turned(pixels, tmp_path / "a.png", orientation)
        image, note = read_labelled(path, size)
        assert note is None
        np.testing.assert_array_equal(image, read_image(path))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 here")
def test_names_that_are_not_utf8_are_left_out_and_named(tmp_path):
    for name in (b"a.png", b"\xff.png", "\u00fc.png".encode(), b"\xe9t\xe9/b.png"):
        path = Path(tmp_path, os.fsdecode(name))
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    with pytest.warns(UserWarning, match=r"left out 1 name not in UTF-8") as said:
        assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "\u00fc.png"]
    assert all(str(one.message).isascii() for one in said)
    assert len(said) == 2


@pytest.mark.parametrize("orientation", [1, 4, 6])
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".jpg", "RGB"), (".jpg", "L"), (".tif", "RGB"), (".tif", "L")]
    + [(".png", mode) for mode in ("RGB", "L", "RGBA", "P", "I;16")],
)
def test_large_images_are_read_small(tmp_path, suffix, mode, orientation):
    rows, columns = np.mgrid[:800, :1200]
    smooth = np.stack([rows / 4, columns / 6, (rows + columns) / 10], axis=-1).astype(np.uint8)
    image = Image.fromarray(smooth)
    if mode == "I;16":
        image = Image.fromarray((rows * 60).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.convert(mode).save(tmp_path / f"a{suffix}", quality=95, exif=exif)
    whole = read_image(tmp_path / f"a{suffix}")
    given, (height, width) = read_for_size(tmp_path / f"a{suffix}", lambda size: (size[0] // 8, size[1] // 8))
    assert (height, width) == whole.shape[:2]
    assert given.shape == (height // 4, width // 4, 3)
    means = whole.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))
    assert np.abs(given - means).max() < 4


def test_large_images_are_decoded_one_after_the_other_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_LARGE", 100 * 100)
    sizes, decoding, most = {"a.png": 200, "b.png": 200, "c.png": 200}, [], []
    for name, side in sizes.items():
        Image.new("RGBA", (side, side), (9, 99, 199, 0)).save(tmp_path / name)
    whole = images._to_rgb

    def slowly(*arguments):
        decoding.append(1)
        most.append(len(decoding))
        time.sleep(0.05)
        try:
            return whole(*arguments)
        finally:
            decoding.pop()

    monkeypatch.setattr(images, "_to_rgb", slowly)
    with ThreadPoolExecutor(3) as pool:
        read = [pool.submit(read_for_size, tmp_path / name, lambda _: (20, 20)) for name in sizes]
        for one in read:
            assert (one.result()[0] == (9, 99, 199)).all()
    assert most == [1, 1, 1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_a_large_image_is_never_a_whole_array(tmp_path, mode):
    side = 4096
    Image.new(mode, (side, side), 3).save(tmp_path / "a.png")
    tracemalloc.start()  # counts NumPy's arrays and Python's bytes; Pillow's own pixels are not among them
    try:
        given, _ = read_for_size(tmp_path / "a.png", lambda _: (256, 256))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert given.shape == (512, 512, 3)
    assert peak < side * side


def test_images_that_are_not_much_larger_are_read_whole(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    height, width = pixels.shape[:2]
    given, size = read_for_size(tmp_path / "a.jpg", lambda size: (size[0] // 2, size[1] // 2))
    assert size == (height, width)
    assert np.array_equal(given, read_image(tmp_path / "a.jpg"))
