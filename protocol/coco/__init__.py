"""COCO and LVIS instance files → JSONL records. `importer` drives, `instances` reads part by part (`json_stream`),
`shapes` decides per annotation, `rules` names what is done with everything that is not a plain box, `writer` writes."""

from protocol.coco.importer import ImageFile, ImportOptions, ImportSummary, import_coco
from protocol.coco.rules import Effect, Rule
from protocol.coco.shapes import ShapeOptions

__all__ = ["Effect", "ImageFile", "ImportOptions", "ImportSummary", "Rule", "ShapeOptions", "import_coco"]
