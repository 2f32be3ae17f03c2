"""What `events.jsonl` tells of a run, however many lines it has: what happened to it, and who was busy when."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.timeline import Span

AGAIN = ("resume", "restart")
OF_THE_RUN = (*AGAIN, "end")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSpan:
    """One bar of the timeline."""

    lane: str
    """`driver`, `actor-0`, `rank-0`, ..."""
    name: str
    span: Span


class RunEvents:
    """What is kept of the lines; the rest is forgotten as it is read."""

    def __init__(self, keep_s: float) -> None:
        """`keep_s`: spans that ended so many seconds before the newest are dropped, all but the last of each lane."""
        self._keep_s = keep_s
        self._spans: deque[LaneSpan] = deque()
        self._dropped: dict[str, LaneSpan] = {}
        """The last of each lane: a lane that went silent is still one."""
        self._since = 0.0
        self.of_the_run: list[dict[str, Any]] = []
        """Resumes, restarts and ends."""
        self.last: dict[str, Any] | None = None
        self.phase: dict[str, Any] | None = None
        """The last one."""
        self.began: float | None = None
        """Unix seconds at which the loop first waited for rollouts since its last start; None: it has not yet."""

    def append(self, event: dict[str, Any]) -> None:
        """Takes a line in."""
        self.last = event
        if event["kind"] == "phase":
            self.phase = event
        elif event["kind"] in OF_THE_RUN:
            self.of_the_run.append(event)
        if event["kind"] in AGAIN:
            self._since, self.began = event["time"], None
        for each in _spans(event):
            if self.began is None and each.name == "rollout" and each.span.start >= self._since:
                self.began = each.span.start
            self._spans.append(each)
            while self._spans[0].span.end < each.span.end - self._keep_s:
                old = self._spans.popleft()
                self._dropped[old.lane] = old

    @property
    def spans(self) -> list[LaneSpan]:
        """In the order of their starts."""
        return sorted([*self._dropped.values(), *self._spans], key=lambda each: each.span)


def _spans(event: Mapping[str, Any]) -> Iterator[LaneSpan]:
    """The loop's and the actors' own spans; others follow from what the loop said of a step, or of a publish."""
    if event["kind"] == "span":
        yield LaneSpan(lane=event["lane"], name=event["name"], span=Span(event["start"], event["end"]))
    elif event["kind"] == "optimizer_step":
        start = event["time"] - event["seconds"]
        for rank, busy in enumerate(event["busy_s"]):
            yield LaneSpan(lane=f"rank-{rank}", name="train", span=Span(start, start + busy))
    elif event["kind"] == "publish" and "seconds" in event:  # not in runs of before; rank 0 merges and hands over
        start = event["time"] - event["seconds"]
        yield LaneSpan(lane="rank-0", name="sync", span=Span(start, start + event["learner_s"]))
        for engine in event["engines"]:
            span = Span(engine["ended"] - engine["seconds"], engine["ended"])
            yield LaneSpan(lane=engine["name"], name="sync", span=span)
