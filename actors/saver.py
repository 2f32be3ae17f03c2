"""Checkpoints of the loop: when one is written, and of which moment.

| who waits | for what | who ends the wait |
|---|---|---|
| `Saver.save` | the checkpoint on disk | the learner group, within its `step_timeout_s` |

A checkpoint is of a window's end: what is saved while the next one is under way remembers where that one began.
"""

from __future__ import annotations

import logging

from actors.intake import Intake
from actors.learner_thread import LearnerThread
from actors.loop import Keeper, LoopSettings, LoopState, Observer
from actors.weight_sync import WeightSync
from protocol.errors import Interrupted, LearnerError

log = logging.getLogger("rollmatch.loop")


class Saver:
    """Writes what `Keeper` snapshots, in the learner's thread. The loop's thread calls it."""

    def __init__(
        self,
        settings: LoopSettings,
        intake: Intake,
        sync: WeightSync,
        keeper: Keeper,
        observer: Observer,
        state: LoopState,
        learner_thread: LearnerThread,
        boundary: int,
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._sync = sync
        self._keeper = keeper
        self._observer = observer
        self._state = state
        self._learner_thread = learner_thread
        self._boundary = boundary
        """Where a resume starts; moves between windows only."""
        self._whole_step = state.step
        """What the files and the boundary have got to: the last step of a window."""
        self._saved_step: int | None = None

    def window_ended(self) -> None:
        """The step at hand is the last of its window, and told to the observer."""
        self._boundary, self._whole_step = self._intake.boundary, self._state.step

    def save_if_due(self, *, is_last: bool) -> None:
        """After a window; `is_last`: it was the run's last."""
        if self._keeper.due(self._state.step) or (self._settings.save_last and is_last):
            self.save()

    def save(self) -> None:
        """Writes a checkpoint of this moment, whole also where what an actor answers meanwhile ends the run."""
        self._sync.leave_device()
        self._observer.phase("save", f"the checkpoint of step {self._state.step}")
        write = self._keeper.snapshot(self._state, self._boundary)
        if self._sync.is_leaving():
            path = write()  # answers still come, also of an evaluation that was left, and nobody wants them
        else:
            if not self._settings.takes_turns:
                self._intake.admit()
            path = self._learner_thread(write)
        self._saved_step = self._state.step
        self._observer.event("checkpoint", path=str(path), position=self._boundary)

    def save_before(self, ending: Exception, *, stopped: bool) -> None:
        """The last whole window, where the run ends with `ending`, and the learner can still write it.

        Nothing where it is saved, or a window was left half trained; nor before the first window, unless `stopped`.
        """
        if self._state.step != self._whole_step or self._state.step == self._saved_step:
            return
        if not stopped and not self._state.trained:
            return
        try:
            self.save()
        except (LearnerError, OSError) as error:  # OSError: a full disk
            if isinstance(ending, Interrupted):
                raise
            log.error("no checkpoint of step %d is written: %s", self._state.step, error)
