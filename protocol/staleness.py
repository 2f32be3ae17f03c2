"""How far generation may run ahead of training: one formula, one number (`max_staleness`).

Symbols: B segments make a window; version v is the policy after v trained windows, and 0 is the start checkpoint;
S is `max_staleness`. Everything that was ever requested and not given up is either *accepted* (it has left the actors
and is buffered, planned or trained) or *running* (asked for, not yet answered).

                      admitted so far = accepted + running
    |- window 0 -|- window 1 -|- ... -|- window v -|- ... -|- window v + S -|
                                       ^ next to be trained                 ^ admission stops here
"""

from __future__ import annotations

from .errors import ContractError
from .segments import SegmentMeta


def admissible(*, version: int, max_staleness: int, batch_size: int, accepted: int, running: int) -> int:
    """How many new requests may be admitted now: `(version + S + 1) * B - (accepted + running)`, at least 0.

    `version`: the newest that every live engine serves. The learner may be one ahead, while engines load what it made.

    `admissible(version=3, max_staleness=1, batch_size=32, accepted=96, running=40)` → 24.

    The bound. Claim: a segment trained at version v was begun at version `first_version >= v - S`. Number admitted
    requests 0, 1, 2, ... and let windows take them in that order, also where a later one is answered first. Request i
    is then trained in window i // B at version v = i // B (v windows were trained before). When it was admitted at
    version w, it and the i requests before it were within the limit: `i + 1 <= (w + S + 1) * B`, hence
    `v = i // B <= w + S`, that is `w >= v - S`. Every engine served w by then, so `first_version >= w`, however long
    the engines take to load a version, and whatever is trained meanwhile. With S = 0 a window is complete before its
    successor starts: no request is running when a version is published.

    Order matters: had windows taken whatever is finished, a slow request could miss window after window and come out
    arbitrarily old. `SegmentBuffer.take` keeps the order.

    A request that is given up (quarantined, oversize) leaves the counts; those behind it move up and are trained no
    later than claimed, and its successor is numbered last. A request that is retried elsewhere keeps its number and
    its slot, and can only be begun at a newer version.

    Raises ValueError when a count is negative or batch_size is not positive.
    """
    if batch_size <= 0 or min(version, max_staleness, accepted, running) < 0:
        raise ValueError(
            f"admissible: batch_size must be > 0 and counts >= 0, got batch_size={batch_size}, version={version}, "
            f"max_staleness={max_staleness}, accepted={accepted}, running={running}; the controller keeps these counts"
        )
    return max(0, (version + max_staleness + 1) * batch_size - (accepted + running))


def admission_staleness(max_staleness: int, *, packing_carry: bool) -> int:
    """The `max_staleness` that admission counts with: one less where a segment may be trained one window later, so that
    the bound at training stays `max_staleness` (`protocol.carry` has the proof)."""
    return max_staleness - packing_carry


def check_fresh(meta: SegmentMeta, version: int, max_staleness: int) -> None:
    """Refuse a segment that training at `version` may not see.

    Raises ContractError, with all four numbers, when its first token is older than `version - max_staleness`, when its
    versions are out of order, or when its last token is from a version that is not published yet.
    """
    first, last = meta.first_version, meta.last_version
    if version - max_staleness <= first <= last <= version:
        return
    what = "is too old" if first < version - max_staleness else "carries versions that cannot be"
    raise ContractError(
        f"{meta.key}: segment {what}: first_version={first}, last_version={last}, training at version={version}, "
        f"max_staleness={max_staleness}; expected {version - max_staleness} <= first <= last <= {version}; admission "
        "bounds this, so a slot was released before its segment was trained or an engine served unpublished weights"
    )
