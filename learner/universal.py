"""DeepSpeed's universal checkpoint: partitioned state, dealt out anew for another number of ranks.

DeepSpeed writes one file per rank. Its converter joins them to one folder per parameter; a run of another size loads
those. Only rank 0 converts, on one core, into a folder that lives as long as the load.
"""

from __future__ import annotations

import contextlib
import io
import logging
from argparse import Namespace
from pathlib import Path

from deepspeed.checkpoint import ds_to_universal

log = logging.getLogger("rollmatch.learner")


def convert(source: Path, target: Path) -> None:
    """Joins the state of all ranks in `source` (DeepSpeed's `mp_rank_*` and `*_optim_states.pt`) into `target`."""
    progress = io.StringIO()
    with contextlib.redirect_stdout(progress), contextlib.redirect_stderr(progress):
        ds_to_universal.main(
            Namespace(
                input_folder=str(source),
                output_folder=str(target),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
    log.debug("%s", progress.getvalue())
