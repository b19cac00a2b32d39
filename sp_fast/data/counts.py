"""What an annotation file contains, in numbers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

# COCO's limits of small and large objects, in pixels.
SMALL, LARGE = 32**2, 96**2


@dataclass
class Counts:
    """What an annotation file contains, without the entries that have errors.

    Attributes:
        images, objects, crowd: numbers; crowd regions are among the objects.
        objects_per_image: one number per image.
        areas: area in pixels of each mask that is not empty.
        classes: name to number of objects, in the order of the category ids.
    """

    images: int = 0
    objects: int = 0
    crowd: int = 0
    objects_per_image: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of small (to 32² pixels), medium (to 96²) and large objects, as in COCO."""
        small = sum(area < SMALL for area in self.areas)
        large = sum(area >= LARGE for area in self.areas)
        return {"small": small, "medium": len(self.areas) - small - large, "large": large}

    def rows(self) -> list[tuple[str, str]]:
        """A name and a text for each line of a table."""
        per_image = self.objects_per_image
        empty = sum(not number for number in per_image)
        rows = [("images", f"{self.images:,}" + (f", {empty:,} without objects" if empty else ""))]
        rows.append(
            ("objects", f"{self.objects:,}" + (f", {self.crowd:,} of them crowds" if self.crowd else ""))
        )
        if per_image:
            middle = statistics.median(per_image)
            rows.append(("objects per image", f"{min(per_image)} to {max(per_image)}, median {middle:g}"))
        sizes = ", ".join(f"{number:,} {name}" for name, number in self.sizes.items())
        others = self.objects - len(self.areas)
        why = f"; {others:,} not measured: image missing or wrong, or mask empty" if others else ""
        rows.append(("sizes", f"{sizes} (32² and 96² pixels){why}"))
        names = sorted(self.classes, key=lambda name: -self.classes[name])
        some = ", ".join(f"{name} {self.classes[name]:,}" for name in names[:6])
        rows.append(("classes", f"{len(names)}: {some}" + (", ..." if len(names) > 6 else "")))
        return rows
