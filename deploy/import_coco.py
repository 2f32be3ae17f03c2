"""`rollmatch import-coco`: COCO or LVIS instance files → training records, a summary table, a contact sheet."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.contact_sheet import check_target, contact_sheet
from deploy.images import Resizer, check_image
from protocol.coco import Effect, ImportOptions, ImportSummary, Rule, ShapeOptions, import_coco
from protocol.errors import ConfigError, RecordError
from protocol.records import RecordFile

MAX_PIXELS = 768 * 32 * 32
"""Largest image that is written, as in the reference data set (SPEC 2.1)."""
_MOST_DESCS = 12
_SUSPICIOUS_SHARE = 0.2
"""Share of boxes that were clipped or dropped from which `bbox` is probably no COCO box."""
_TINY_RULES = (Rule.BOX_DEGENERATE, Rule.BOX_TOO_SMALL, Rule.BOX_FLAT_ON_GRID)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("instances", type=Path, help="COCO or LVIS instance file")
    parser.add_argument("--images", type=Path, required=True, help="folder that its file names count from")
    parser.add_argument("--out", type=Path, required=True, help="JSONL to write; with --split NAME: OUT_NAME.jsonl")
    parser.add_argument(
        "--geometry", choices=("bbox", "poly", "auto"), default="bbox", help="what objects become (default bbox)"
    )
    parser.add_argument("--max-points", type=int, default=20, help="most vertices of a polygon (default 20)")
    parser.add_argument(
        "--main-part", type=float, default=0.9, help="share by which the largest part stands for all (default 0.9)"
    )
    parser.add_argument(
        "--box-fill", type=float, default=0.9, help="auto: share of its box from which a box is taken (default 0.9)"
    )
    parser.add_argument(
        "--min-side", type=float, default=0.0, help="drop boxes with a shorter side, in pixels (default 0)"
    )
    parser.add_argument("--max-objects", type=int, default=100, help="drop images with more objects (default 100)")
    parser.add_argument("--crowds", choices=("drop", "box"), default="drop", help="what iscrowd becomes (default drop)")
    parser.add_argument("--drop-empty", action="store_true", help="drop images without objects")
    parser.add_argument("--split", type=split_shares, default={}, help="train=0.9,val=0.1: one file each, by file name")
    parser.add_argument("--seed", type=int, default=17, help="of the split (default 17)")
    parser.add_argument("--limit", type=int, help="use only the first images")
    parser.add_argument("--write-images", type=Path, help="write resized copies here, sides multiples of 32")
    parser.add_argument("--max-pixels", type=int, help=f"largest copy of --write-images (default {MAX_PIXELS})")
    parser.add_argument("--contact-sheet", type=Path, help="draw some records with their objects into this image")


def run(arguments: argparse.Namespace) -> int:
    """Imports, prints the table and, last, the summary as one JSON line."""
    check_targets(arguments)
    say_size(arguments.instances)
    door = check_image
    if arguments.write_images is not None:
        door = Resizer(arguments.write_images, arguments.images, arguments.max_pixels or MAX_PIXELS)
    summary = import_coco(arguments.instances, arguments.images, arguments.out, options_of(arguments), image_door=door)
    print_summary(summary)
    if (hint := box_hint(summary)) is not None:
        print(f"rollmatch: {hint}", file=sys.stderr)
    if not any(records for records, _ in summary.written.values()):
        is_missing = "; is --images right?" if Rule.IMAGE_MISSING in summary.rules else ""
        raise RecordError(
            f"{arguments.instances}: no image was imported and no file was written, the table says why{is_missing}"
        )
    if arguments.contact_sheet is not None:
        files = [RecordFile(path) for path, (records, _) in summary.written.items() if records]
        contact_sheet(files, arguments.contact_sheet)
    print(json.dumps(as_json(summary)))
    return 0


def check_targets(arguments: argparse.Namespace) -> None:
    """ConfigError for what could not be written, before the import that may take hours."""
    if arguments.out.is_dir():
        raise ConfigError(f"--out: {arguments.out} is a folder; name the JSONL file to write")
    if arguments.write_images is None and arguments.max_pixels is not None:
        raise ConfigError("--max-pixels: only copies of images are resized; name their folder with --write-images too")
    if arguments.write_images is not None and arguments.write_images.is_file():
        raise ConfigError(f"--write-images: {arguments.write_images} is a file; name a folder for the copies")
    check_target(arguments.contact_sheet)


def say_size(instances: Path) -> None:
    """What is read first, since a large file takes a minute, and nothing is to be seen of it meanwhile."""
    with contextlib.suppress(OSError):  # the import says what is wrong with it
        print(f"rollmatch: reading {instances}, {instances.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)


def box_hint(summary: ImportSummary) -> str | None:
    """What to ask where too many boxes do not fit their images: corners x1, y1, x2, y2, or shares of the sides."""
    tiny = sum(summary.rules.get(rule, 0) for rule in _TINY_RULES)
    for num_boxes, total, what in (
        (summary.rules.get(Rule.BOX_CLIPPED, 0), summary.num_objects, "reached over their image's border"),
        (tiny, summary.annotations_read, "were dropped as empty or too small"),
    ):
        if num_boxes > _SUSPICIOUS_SHARE * total:
            return f"{num_boxes} of {total} boxes {what}; is bbox [x, y, width, height] in pixels?"
    return None


def options_of(arguments: argparse.Namespace) -> ImportOptions:
    """Arguments → options; ConfigError for a value out of range."""
    for name, low, high in (
        ("max_points", 3, 10**6),
        ("main_part", 0, 1),
        ("box_fill", 0, 1),
        ("max_objects", 1, 10**9),
        ("max_pixels", 4096, 10**9),
    ):
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: must be in {low}..{high}, got {value}; correct it")
    return ImportOptions(
        shapes=ShapeOptions(
            geometry=arguments.geometry,
            max_points=arguments.max_points,
            main_part=arguments.main_part,
            box_fill=arguments.box_fill,
            min_side=arguments.min_side,
            crowds=arguments.crowds,
        ),
        max_objects=arguments.max_objects,
        drop_empty=arguments.drop_empty,
        splits=arguments.split,
        seed=arguments.seed,
        limit=arguments.limit,
    )


def split_shares(text: str) -> Mapping[str, float]:
    """`train=0.9,val=0.1` → `{"train": 0.9, "val": 0.1}`."""
    shares = {}
    for part in text.split(","):
        name, equals, share = part.partition("=")
        if not equals or not name.strip():
            raise argparse.ArgumentTypeError(f"{text!r} is no split; write train=0.9,val=0.1")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{share!r} is no number; write train=0.9,val=0.1") from None
    return shares


def print_summary(summary: ImportSummary, *, console: Console | None = None) -> None:
    """What came out, what each rule did, and the most frequent descriptions."""
    console = console or Console()
    for table in (written_table(summary), rules_table(summary), descs_table(summary)):
        if table.row_count:
            console.print(table)


def written_table(summary: ImportSummary) -> Table:
    """Files with their records and objects, and the sums that must agree."""
    table = Table(title=Text(f"Import of {summary.source}"))
    table.add_column("")
    table.add_column("images", justify="right")
    table.add_column("objects", justify="right")
    table.add_row("read", str(summary.images_read), str(summary.annotations_read))
    for path, (records, objects) in summary.written.items():
        table.add_row(Text(f"written to {path}"), str(records), str(objects))
    kept = sum(records for records, _ in summary.written.values())
    table.add_row("dropped", str(summary.images_read - kept), str(summary.num_dropped))
    low, mean, high = summary.objects_per_image
    table.add_row("objects per image (least, mean, most)", "", f"{low}, {mean:.1f}, {high}")
    for geometry, count in summary.geometries.items():
        table.add_row(geometry, "", str(count))
    return table


def rules_table(summary: ImportSummary) -> Table:
    """Every rule that applied, with what it means and how often."""
    table = Table(title="Rules that applied")
    for column in ("rule", "effect", "applies to what"):
        table.add_column(column, overflow="fold")
    table.add_column("count", justify="right")
    for effect in Effect:
        for rule, count in summary.rules.items():
            if rule.effect is effect:
                table.add_row(rule, effect, rule.text, str(count))
    return table


def descs_table(summary: ImportSummary) -> Table:
    """The most frequent descriptions; the rest as one line."""
    table = Table(title=f"{len(summary.descs)} descriptions")
    table.add_column("desc")
    table.add_column("objects", justify="right")
    entries = list(summary.descs.items())
    for desc, count in entries[:_MOST_DESCS]:
        table.add_row(Text(desc), str(count))
    if len(entries) > _MOST_DESCS:
        table.add_row(f"{len(entries) - _MOST_DESCS} more", str(sum(count for _, count in entries[_MOST_DESCS:])))
    return table


def as_json(summary: ImportSummary) -> dict[str, object]:
    """The summary without the descriptions."""
    return {
        "images": summary.images_read,
        "annotations": summary.annotations_read,
        "written": {
            path: {"records": records, "objects": objects} for path, (records, objects) in summary.written.items()
        },
        "dropped": summary.num_dropped,
        "rules": {str(rule): count for rule, count in summary.rules.items()},
        "geometries": summary.geometries,
    }
