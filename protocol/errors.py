"""The errors that rollmatch raises on purpose.

    RollmatchError
    ├── ConfigError(ValueError)        a setting is wrong; names the dotted path
    ├── RecordError(ValueError)        a line of a data file is wrong; names file and line
    ├── ContractError(ValueError)      one side handed the other something that breaks contracts.py or segments.py
    │   └── PromptMismatchError        engine and learner disagree about the prompt's token ids
    ├── DataFailure                    the same input fails on every machine: quarantine it, count it, do not retry
    │   ├── ImageError                 the image is missing, unreadable or of another size
    │   └── PromptTooLongError         the prompt alone leaves no room for an answer
    ├── InfrastructureFailure          another machine, or a second try, may succeed: retry elsewhere
    │   ├── EngineError                an engine failed, stalled or answered garbage
    │   ├── LearnerError               a learner rank failed; carries that rank's traceback
    │   │   └── LearnerDeadlineError   a learner rank did not answer in time; also a DeadlineError
    │   ├── SegmentsLost               objects of a window are gone: request their records again
    │   └── DeadlineError              a wait ended without what it waited for
    ├── NonFiniteError                 step after step has no finite loss or gradient: fatal for the run
    ├── SyncError                      an engine does not serve the weights that were published: fatal for that engine
    │   └── NothingChangedError        a publish after an optimizer step changed no tensor: fatal for the run
    └── Interrupted                    somebody asked the run to stop, and it did, between two windows

Every message has three parts: what is wrong with the numbers, whose duty it was, what to change. All classes are
picklable (plain string arguments), because Ray strips the type of what it cannot pickle.
"""

from __future__ import annotations

from collections.abc import Sequence


class RollmatchError(Exception):
    """Root of the tree; never raised itself."""


class ConfigError(RollmatchError, ValueError):
    """A setting, or two settings together, cannot work. The message starts with the dotted path."""


def refuse(problems: Sequence[str], what: str = "things") -> None:
    """ConfigError that lists all of them; returns where there is none."""
    if problems:
        text = "\n".join(problems)
        raise ConfigError(text if len(problems) == 1 else f"{len(problems)} {what} are wrong\n{text}")


class RecordError(RollmatchError, ValueError):
    """A data file's line cannot be a record. The message starts with `file:line:`."""


class ContractError(RollmatchError, ValueError):
    """One side of a process boundary handed over something the contract forbids: a bug of ours, not of the data."""


class PromptMismatchError(ContractError):
    """The engine's prompt ids differ from the learner's: template, image size or processor files drifted apart."""


class DataFailure(RollmatchError):
    """This record fails in the same way everywhere; it goes to the quarantine file."""


class ImageError(DataFailure):
    """The image is missing, cannot be decoded, or has another size than the record says."""


class PromptTooLongError(DataFailure):
    """The prompt's tokens leave no room for an answer within the model's length."""


class InfrastructureFailure(RollmatchError):
    """The machine, not the input, failed: the same work may succeed elsewhere."""


class EngineError(InfrastructureFailure):
    """An inference engine failed, stalled, or answered something that is not a completion."""


class LearnerError(InfrastructureFailure):
    """A learner rank failed; the message holds its rank and traceback."""


class SegmentsLost(InfrastructureFailure):
    """Segments that were to be trained are no longer in the object store; nothing was trained."""

    def __init__(self, message: str, positions: tuple[int, ...] = ()) -> None:
        super().__init__(message, positions)
        self.positions = positions
        """Which of the references that were handed over."""

    def __str__(self) -> str:
        return str(self.args[0])


class DeadlineError(InfrastructureFailure):
    """A wait ran out of time; the message says what it waited for and how long."""


class NonFiniteError(RollmatchError):
    """Steps are skipped again and again for a loss or gradient that is not finite; names the segments of the last."""


class LearnerDeadlineError(LearnerError, DeadlineError):
    """A learner rank did not answer in time; the message says to what and how long."""


class SyncError(RollmatchError):
    """An engine reports another version or checksum than the one published."""


class NothingChangedError(SyncError):
    """An optimizer step ran and yet no published tensor differs from the one before (SPEC A17)."""


class Interrupted(RollmatchError):
    """Somebody asked the run to stop; the loop left between two windows, with a checkpoint."""
