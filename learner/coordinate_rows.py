"""First values of the coordinate tokens in a checkpoint that lacks them: its weight files with longer tables.

Loads no model: a table's rows are data, whatever is computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protocol.errors import ConfigError
from protocol.vocab import NUM_BINS


def extend_file(
    source: Path, target: Path, tables: Sequence[str], digits: Sequence[int], first: int, rows: int
) -> None:
    """Writes a weight file anew with longer tables; all of it is in memory.

    Args:
        tables: names of the tensors to extend.
        digits: ids of the tokens 0..9.
        first: id of the first new token; rows from there on hold nothing yet.
        rows: of the new table.

    Raises:
        ConfigError: `source` is cut short.
        OSError: `target` cannot be written, as safetensors says by a class of its own.
    """
    try:
        with safe_open(source, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(f"{source}: cannot be read ({error}); download the file again") from error
    for name in tables:
        tensors[name] = _extended(tensors[name], digits, first, rows)
    try:
        save_file(tensors, target, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{target}: {error}") from error


def _extended(table: Tensor, digits: Sequence[int], first: int, rows: int) -> Tensor:
    """[rows, H] the rows of known tokens as they are, those of the new ones, and the mean as padding."""
    mean = table[:first].mean(0, dtype=torch.float32)
    new = coordinate_rows(table[list(digits)].float(), mean)
    padding = mean.expand(rows - first - len(new), -1)
    return torch.cat([table[:first], new.to(table.dtype), padding.to(table.dtype)])


def coordinate_rows(digits: Tensor, mean: Tensor) -> Tensor:
    """[1001, H] fp32 first rows of the wildcard and the bins, from those of the digits 0..9 [10, H] and the mean [H].

    Bin k starts at the mean plus the way from the mean digit to the point k/999 of the straight path 0, 1, ..., 9: near
    bins are near each other and no two are equal. About the mean, because the head gives such a row about the mean
    logit, so the model writes what it wrote before; rows of zeros may take all probability, copies of digits that of
    digits (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). The wildcard, which nothing writes, is the mean.
    """
    place = torch.arange(NUM_BINS) * 9 / (NUM_BINS - 1)
    low = place.long().clamp(max=8)
    share = (place - low)[:, None]
    path = digits[low] * (1 - share) + digits[low + 1] * share
    return torch.cat([mean[None], mean + path - digits.mean(0)])
