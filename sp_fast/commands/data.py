"""`sp-fast data`: the paper's data sets as COCO-format annotation files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

SPLIT_EXAMPLES = """
\b
Examples:
  10 % of the images, and the others for evaluation:
    sp-fast data coco-split annotations/instances_train2017.json \\
      --share 10 --out annotations/train2017.10.json \\
      --rest annotations/train2017.90.json
  FreeSOLO's 10 %, from Unbiased Teacher's COCO_supervision.txt:
    sp-fast data coco-split annotations/instances_train2017.json \\
      --list COCO_supervision.txt --share 10 \\
      --out annotations/instances_train2017_sup10_seed1_labeled.json
  The images of another annotation file:
    sp-fast data coco-split annotations/instances_train2017.json \\
      --list instances_train2017.1@10.json --out train2017.10.json
"""
CITYSCAPES_EXAMPLES = """
\b
Examples:
  sp-fast data cityscapes data/cityscapes --out data/cityscapes/annotations
  sp-fast data cityscapes data/cityscapes --out annotations --split val
"""
CTW1500_EXAMPLES = """
\b
Examples:
  sp-fast data ctw1500 ctw1500/imgs/training ctw1500/annotations/training \\
    --out ctw1500/instances_training.json
  sp-fast data ctw1500 ctw1500/imgs/test ctw1500/annotations/test \\
    --out ctw1500/instances_test.json
"""
MASKS_EXAMPLES = """
\b
Examples:
  FreeSOLO's masks of two folders:
    sp-fast data masks freesolo.json --images data/coco/train2017 \\
      --images data/coco/unlabeled2017 --out freesolo_masks.json
  Only those of one folder:
    sp-fast data masks freesolo.json --images data/coco/unlabeled2017 \\
      --leave-out-missing --out freesolo_unlabeled.json
  Results of a CutLER model, which name images by id:
    sp-fast data masks coco_instances_results.json --min-score 0.3 --top 20 \\
      --of annotations/image_info_unlabeled2017.json \\
      --images data/coco/unlabeled2017 --out cutler_masks.json
  Box-shaped masks of a detector's results:
    sp-fast data masks boxes.json --boxes \\
      --of annotations/image_info_unlabeled2017.json --out box_masks.json
  Pre-training:
    sp-fast train CONFIG --images data/coco \\
      --annotations freesolo_masks.json --cfg-options model.source=import
"""
FOLDERS_EXAMPLES = """
\b
Example:
  sp-fast data folders freesolo.json --folder data/coco/train2017 \\
    --folder data/coco/unlabeled2017 --out train2017_unlabeled2017.json
"""
STORE_EXAMPLES = """
\b
Example:
  sp-fast data store masks.json --images photos
"""

Out = Annotated[Path, typer.Option(help="Annotation file to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]

app = typer.Typer(
    help="Prepare the paper's data sets: parts of COCO, Cityscapes, CTW1500, masks of other methods.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("coco-split", epilog=SPLIT_EXAMPLES)
def coco_split(
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="COCO-format file.")],
    out: Out,
    share: Annotated[float | None, typer.Option(help="Percentage of the images, such as 5 or 10.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed, or number of the fold.")] = 1,
    recipe: Annotated[
        Literal["hash", "mmdet", "detreg"],
        typer.Option(
            help="How to draw images: by a hash of their ids, like mmdet and STAC, or like DETReg (seed 42)."
        ),
    ] = "hash",
    list_file: Annotated[
        Path | None,
        typer.Option(
            "--list",
            help="List to use instead: COCO_supervision.txt, a COCO-format file, or ids or file names.",
        ),
    ] = None,
    positions: Annotated[
        Literal["file", "detectron2"],
        typer.Option(
            help="What COCO_supervision.txt counts: images in the file's order, like FreeSOLO; or those with "
            "objects, by id, like Unbiased Teacher."
        ),
    ] = "file",
    rest: Annotated[Path | None, typer.Option(help="Annotation file to write for all other images.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a part of a COCO-format file, and the ids of its images (OUT with the suffix .ids.txt)."""
    from sp_fast.data import splits
    from sp_fast.data.coco import load_coco
    from sp_fast.data.prepared import check_outputs, summary, write_checked
    from sp_fast.files import sha256

    if share is None and list_file is None:
        raise typer.BadParameter("pass a percentage, or --list FILE", param_hint="--share")
    ids_file = out.with_suffix(".ids.txt")
    check_outputs([out, ids_file, *([rest] if rest else [])], overwrite=overwrite)
    coco = load_coco(annotations)
    about: dict[str, object] = {"of": annotations.name, "share": share, "seed": seed}
    if list_file is not None:
        chosen = splits.read_list(list_file, coco, share=share, seed=seed, positions=positions)
        about |= {"list": list_file.name, "list_sha256": sha256(list_file), "positions": positions}
    else:
        assert share is not None
        chosen = splits.draw(coco["images"], share, seed, recipe)
        about |= {"recipe": recipe}
    digest = splits.write_ids(chosen, ids_file)
    parts = {out: chosen}
    if rest is not None:
        parts[rest] = {image["id"] for image in coco["images"]} - chosen
    for path, ids in parts.items():
        own = splits.part(coco, ids, {**about, "ids_sha256": digest, "rest": path == rest})
        write_checked(own, path)
        typer.echo(f"{path}: {summary(own)}\n")
    typer.echo(f"Ids: {ids_file} ({len(chosen)} of {len(coco['images'])} images), SHA-256 {digest}")


@app.command("cityscapes", epilog=CITYSCAPES_EXAMPLES)
def cityscapes(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with leftImg8bit and gtFine.")],
    out: Annotated[Path, typer.Option(help="Folder for the annotation files.", show_default=False)],
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split: train, val or test; repeatable [train and val]."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert Cityscapes' instance labels (gtFine, 16-bit instanceIds) like mmdet's converter.

    Writes instancesonly_filtered_gtFine_SPLIT.json; the images are those of ROOT/leftImg8bit/SPLIT.
    """
    from sp_fast.data.cityscapes import convert_cityscapes, file_name
    from sp_fast.data.prepared import check_outputs, summary, write_checked
    from sp_fast.progress import RunProgress

    wanted = split or ["train", "val"]
    check_outputs([out / file_name(one) for one in wanted], overwrite=overwrite)
    for one in wanted:
        with RunProgress("images") as progress:
            coco = convert_cityscapes(root, one, progress)
        write_checked(coco, out / file_name(one))
        typer.echo(f"{out / file_name(one)}: {summary(coco)}\n")


@app.command("ctw1500", epilog=CTW1500_EXAMPLES)
def ctw1500(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Folder of label files, XML or TXT.")],
    out: Out,
    illegible: Annotated[
        Literal["keep", "ignore"],
        typer.Option(help="Text marked ###: an object like others, or ignored (a crowd)."),
    ] = "keep",
    overwrite: Overwrite = False,
) -> None:
    """Convert CTW1500's labels of curved text: XML, TXT with texts, or the older TXT of 32 numbers.

    The labels refer to the pixels as stored, so the EXIF orientation of the images is ignored.
    """
    from sp_fast.data.ctw1500 import convert_ctw1500
    from sp_fast.data.prepared import check_outputs, summary, write_checked

    check_outputs([out], overwrite=overwrite)
    coco = convert_ctw1500(images, labels, illegible=illegible)
    write_checked(coco, out)
    typer.echo(f"{out}: {summary(coco)}")
    empty = sum(1 for one in coco["annotations"] if not one["area"])
    if empty:
        typer.echo(f"{empty} objects have no pixel inside their image; training leaves them out.")


@app.command("masks", epilog=MASKS_EXAMPLES)
def masks(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="COCO-format file, or list in COCO's results format.")
    ],
    out: Out,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of the images, to check their sizes; repeatable.", show_default=False),
    ] = None,
    of: Annotated[
        Path | None, typer.Option(help="For a list of results: annotation file with their images.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest score of a mask.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Largest number of masks per image, best scores first.")
    ] = None,
    leave_out_missing: Annotated[
        bool, typer.Option("--leave-out-missing", help="Leave out images that are in none of --images.")
    ] = False,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Make box-shaped masks, from the masks or 'bbox' (x, y, w, h).")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn masks of FreeSOLO, CutLER or other methods into pseudo masks for pre-training.

    Boxes and areas are computed from the masks; empty masks are left out.
    """
    from sp_fast.data.imported import import_masks
    from sp_fast.data.prepared import check_outputs, summary, write_checked
    from sp_fast.progress import RunProgress

    if leave_out_missing and not images:
        raise ValueError("--leave-out-missing: expected the folders of the images in --images, got none")
    check_outputs([out], overwrite=overwrite)
    with RunProgress("images") as progress:
        found = import_masks(
            file,
            images=images or (),
            of=of,
            min_score=min_score,
            top=top,
            boxes=boxes,
            leave_out_missing=leave_out_missing,
            progress=progress,
        )
    write_checked(found.coco, out)
    typer.echo(f"{out}: {summary(found.coco)}")
    for note in found.notes:
        typer.echo(f"{note}.")
    typer.echo(f"Use it with --images {found.root}" if found.root else "The images' sizes were not checked.")


@app.command("folders", epilog=FOLDERS_EXAMPLES)
def folders(
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="COCO-format file.")],
    folder: Annotated[list[Path], typer.Option(help="Folder of images; repeatable.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Adapt an annotation file to images in several folders, for use with one --images.

    File names become relative to the common parent folder.
    """
    from sp_fast.data.coco import load_coco
    from sp_fast.data.folders import place_in_folders
    from sp_fast.data.prepared import check_outputs, summary, write_checked

    check_outputs([out], overwrite=overwrite)
    coco = load_coco(annotations)
    root = place_in_folders(coco, folder)
    write_checked(coco, out)
    typer.echo(f"{out}: {summary(coco)}\nUse it with --images {root}")


@app.command("store", epilog=STORE_EXAMPLES)
def store(
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="COCO-format file.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images: check their sizes now, not each time training starts."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a copy of a COCO-format file as Apache Arrow, beside it, which training opens at once.

    All processes share its memory. sp-fast propose writes it too.
    """
    from sp_fast.data.check import errors_before_training
    from sp_fast.data.coco import load_coco
    from sp_fast.data.prepared import check_outputs
    from sp_fast.data.store import in_order, store_path, write_store
    from sp_fast.progress import RunProgress

    out = store_path(annotations)
    check_outputs([out], overwrite=overwrite)
    coco = load_coco(annotations)
    if images is not None:
        errors_before_training((annotations, coco), images)
    ordered, total = in_order(coco), len(coco["images"])
    with RunProgress("images") as progress:
        shown = lambda done: progress(done, total)
        write_store(
            out, annotations, coco, coco["images"], ordered, images_checked=images is not None, progress=shown
        )
    typer.echo(f"{out}: {total} images, {len(ordered)} masks")
