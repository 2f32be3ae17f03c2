"""Areas about planning: packing, packing_insert, repeater, buffer, fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from protocol.selection import drain, fifo_pack, select_pack
from tests.protocol.golden.windows import ReuseBuffer, fingerprint, repeat, repeated_length
from tests.protocol.reference import check_insert

Case = Mapping[str, Any]


def _packing(case: Case) -> dict[str, Any]:
    """`best_fit` and `fifo` name one pack, `packs` a drained buffer; ours must reach `min_total` (A7)."""
    lengths, capacity = case["input"]["encoded_lens"], case["input"]["packing_length"]
    expected = case["expected"]
    if "packs" in expected:
        return {"packs": [list(pack) for pack in drain(lengths, capacity)]}
    answer: dict[str, Any] = {
        "best_fit": _selection(lengths, lambda: select_pack(lengths, capacity)),
        "fifo": _selection(lengths, lambda: fifo_pack(lengths, capacity)),
    }
    if "min_total" in expected:
        answer["min_total"] = min(expected["min_total"], answer["best_fit"].get("total", -1))
    return {name: value for name, value in answer.items() if name in expected}


def _selection(lengths: list[int], select: Callable[[], tuple[int, ...]]) -> dict[str, Any]:
    try:
        indices = select()
    except ValueError:
        return {"error": "ValueError"}
    return {"indices": list(indices), "total": sum(lengths[index] for index in indices)}


def _packing_insert(case: Case) -> dict[str, Any]:
    given = case["input"]
    buffered, new = list(given["buffer_lens"]), given["new_lens"]
    try:
        check_insert(
            buffered, new, capacity=given["cfg"]["packing_length"], packing_buffer=given["cfg"]["packing_buffer"]
        )
    except ValueError:
        return {"error": "ValueError", "buffer_after": buffered}
    return {"buffer_after": buffered + list(new)}


def _repeater(case: Case) -> dict[str, Any]:
    given = case["input"]
    items, group, m_steps = given["micro_batches"], given["gas"], given["m_steps"]
    return {
        "sequence": list(repeat(items, group=group, m_steps=m_steps)),
        "length": repeated_length(len(items), group=group, m_steps=m_steps),
    }


def _buffer(case: Case) -> list[dict[str, Any]]:
    given = case["input"]
    buffer: ReuseBuffer[str] = ReuseBuffer(group=given["gas"], m_steps=given["m_steps"])
    plan = given.get("micro_steps_per_global_step") or [[step, given["gas"]] for step in range(given["m_steps"])]
    changed_at = _changed_fingerprint(given.get("fingerprints"))
    turns: list[dict[str, Any]] = []
    for global_step, num_micro in plan:
        for micro in range(num_micro):
            where = {"global_step": global_step, "micro": micro}
            name = f"built@{len(turns) + 1}"  # the reference names a batch by the micro-step that asked for it
            key = "changed" if global_step == changed_at else "same"
            try:
                turn = buffer.turn(global_step, partial(str, name), key=key)
            except RuntimeError:
                turns.append({**where, "error": "RuntimeError"})
                continue
            turns.append(
                {
                    **where,
                    "batch": turn.batch,
                    "reused": turn.reused,
                    "window_step0": turn.window_step0,
                    "completed": turn.completed,
                    "micro_idx_metric": turn.micro,
                }
            )
    return turns


def _changed_fingerprint(description: str | None) -> int | None:
    """The step of `different at global_step 1`."""
    return None if description is None else int(description.rsplit(" ", 1)[1])


def _fingerprint(case: Case) -> str:
    return fingerprint((item.get("base_idx"), item.get("sample_id")) for item in case["input"]["micro_batch"])


AREAS = {
    "packing": _packing,
    "packing_insert": _packing_insert,
    "repeater": _repeater,
    "buffer": _buffer,
    "fingerprint": _fingerprint,
}
