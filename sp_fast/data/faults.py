"""What can be wrong with a data set: every kind of fault, how grave it is and how to mend it."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's controls, formats, surrogates and line breaks
ERROR, WARNING, NOTE = "error", "warning", "note"


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        severity: "error" (training refuses the file, or would learn something wrong), "warning" (training
            goes on, without the object if it has no mask), or "note" (worth knowing, nothing to mend).
        title: what it is, in a few words.
        mend: what to do about it.
    """

    severity: str
    title: str
    mend: str


KINDS = {
    "format": Kind(ERROR, "not a COCO-format file", "export the labels in COCO's format"),
    "key": Kind(ERROR, "keys missing", "add the key"),
    "type": Kind(ERROR, "values of a wrong type", "correct the value"),
    "id": Kind(ERROR, "ids used twice", "give each entry an id of its own"),
    "mixed ids": Kind(ERROR, "ids of mixed types", "make all ids whole numbers"),
    "class name": Kind(
        ERROR, "classes of the same name", "merge or rename these categories, or train with --class-agnostic"
    ),
    "reference": Kind(ERROR, "unknown images or categories", "add the entry, or remove the annotation"),
    "number": Kind(ERROR, "numbers not finite or too large", "export again, or remove the annotation"),
    "polygon": Kind(ERROR, "malformed polygons", "write polygons as [[x0, y0, x1, y1, ...], ...] in pixels"),
    "point pairs": Kind(ERROR, "polygons as pairs of points", "flatten them to [[x0, y0, x1, y1, ...]]"),
    "normalised": Kind(ERROR, "coordinates in 0..1", "multiply x by the image's width, y by its height"),
    "run lengths": Kind(ERROR, "damaged run lengths", "export the mask again"),
    "xyxy": Kind(ERROR, "boxes as corners", "write bbox as [x, y, width, height], or leave it out"),
    "image size": Kind(ERROR, "sizes that are not the file's", "label the image as it is, or correct it"),
    "swapped size": Kind(ERROR, "height and width swapped", "swap them; check that masks fit the image"),
    "missing image": Kind(ERROR, "images missing", "add the file, or remove its entry"),
    "broken image": Kind(ERROR, "images that cannot be read", "replace the file, or remove its entry"),
    "outside folder": Kind(
        ERROR, "files outside the image folder", "use paths inside the folder, or give one that holds all"
    ),
    "listed twice": Kind(ERROR, "files listed twice", "merge the two entries"),
    "leak": Kind(ERROR, "same image in both sets", "remove it from one of the sets"),
    "EXIF": Kind(
        WARNING,
        "labels in stored pixels",
        "none needed: the EXIF orientation is then ignored in training; propose with --ignore-exif",
    ),
    "points": Kind(WARNING, "polygons of fewer than three points", "remove them; they cover nothing"),
    "empty": Kind(WARNING, "empty masks", "remove the annotation; it is left out of training"),
    "outside": Kind(WARNING, "objects outside their image", "check which image they belong to"),
    "partly outside": Kind(WARNING, "objects partly outside their image", "clip them to the image"),
    "box": Kind(WARNING, "boxes that do not fit their mask", "leave bbox out: it is then computed"),
    "area": Kind(WARNING, "areas that do not fit their mask", "leave area out: it is then computed"),
    "object twice": Kind(WARNING, "the same object twice", "remove one of the two"),
    "same image": Kind(WARNING, "same image under two names", "remove one of the two"),
    "other classes": Kind(WARNING, "classes of one set only", "use the same categories in both files"),
    "unlisted": Kind(NOTE, "images without an entry", "not used for training with labels"),
    "no objects": Kind(NOTE, "images without objects", "kept as background"),
    "unused class": Kind(NOTE, "classes without objects", "they cannot be learnt"),
    "category ids": Kind(NOTE, "category ids from 0 or with gaps", "fine: classes are numbered by id"),
    "both kinds": Kind(NOTE, "polygons and run lengths in one file", "fine: both are read"),
}


@dataclass(frozen=True)
class Fault:
    """One fault of a data set.

    Attributes:
        kind: key of KINDS.
        where: the entry, such as "annotation 5 (a.jpg)".
        field: key of the entry; empty if the fault is of the whole entry.
        expected: what the value should be; empty for notes.
        got: what it is.
        part: "images", "annotations" or "categories"; empty for faults of the file.
        position: index of the entry in its part, or None.
        image: id of the image, or None.
    """

    kind: str
    where: str
    field: str
    expected: str
    got: str
    part: str = ""
    position: int | None = None
    image: Any = None

    @property
    def severity(self) -> str:
        """How grave it is: error, warning or note."""
        return KINDS[self.kind].severity

    @property
    def mend(self) -> str:
        """How to mend it."""
        return KINDS[self.kind].mend

    def __str__(self) -> str:
        of = f"{self.where}: " if self.where else ""
        field = f"{self.field}: " if self.field else ""
        text = f"{of}{field}expected {self.expected}, got {self.got}" if self.expected else of + self.got
        return printable(text)


def note(kind: str, got: str, names: Sequence[str] = ()) -> Fault:
    """A note about the file, with the first few of `names`."""
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return Fault(kind, "", "", "", f"{got}: {some}" if some else got)


class _Short(reprlib.Repr):
    def repr_float(self, value: float, level: int) -> str:
        return f"{value:.6g}"


_short = _Short()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxtuple = _short.maxdict = 6
_short.maxlevel = 3


def short(value: Any) -> str:
    """The value as text of limited length."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def counted(number: int, name: str) -> str:
    """A number of things as text, such as "1 image" or "2 images"."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def printable(text: object) -> str:
    """The text with control characters escaped; names may have line breaks and codes of the terminal."""
    return "".join(repr(one)[1:-1] if unicodedata.category(one) in _ESCAPED else one for one in str(text))
