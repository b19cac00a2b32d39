"""`--max-megapixels`, which several commands have."""

from typing import Annotated

import typer


def _set(limit: float | None) -> None:
    from sp_fast.data.images import set_max_megapixels

    if limit is not None:
        set_max_megapixels(limit)


MaxMegapixels = Annotated[
    float | None,
    typer.Option(callback=_set, metavar="N", help="Largest image to read, in megapixels [179]."),
]
