"""`quarantine.jsonl`: requests whose record can never work, with the reason; too many such records end the run.

A record that fails is asked for again in the next epoch: a line each time, and one record of `quarantine.max_records`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter

from actors.outcome import Outcome
from deploy.step_metrics import OVERSIZE
from protocol.config import RunConfig
from protocol.contracts import RequestKey
from protocol.errors import ConfigError, DataFailure

log = logging.getLogger("rollmatch")

ADVICE = {
    "RecordError": "mend the lines that the file names; rollmatch check reads the first 10,000 of a data file",
    "ImageError": "a mount or a folder of images is gone, or images are not what their records say: mend them",
    "PromptTooLongError": "raise custom.extra.rollout_matching.vllm.max_model_len, or make the images smaller",
    OVERSIZE: "raise global_max_length, or lower custom.extra.rollout_matching.max_new_tokens",
    "Placeholder": "the model writes <|image_pad|> into its answers: look at one with rollmatch replay",
    "AnswerError": "parsing or matching failed, a bug of ours: please report it with the actor's log",
    "EngineKilled": "engines die of these records: read the actors' logs in ray_logs, make the images smaller",
}
"""How an `Outcome.failure` may begin, and what to change then; docs/runbook.md has more."""
MOST = 0.5
"""Share from which on a reason is the one to act on."""


class Quarantine:
    """The file, and what it holds so far."""

    def __init__(self, config: RunConfig) -> None:
        """ConfigError where a run that goes on would end at once: it holds more records than its limit."""
        self._limit = config.quarantine.max_records
        self._raises_oversize = config.template.truncation_strategy == "raise"
        self._path = config.run_dir / "quarantine.jsonl"
        self.read()
        if len(self._reasons) > self._limit:
            raise ConfigError(f"quarantine.max_records: {self._too_many()}")

    def read(self) -> None:
        """Takes what the file holds; again where a resume has cut it back."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        found = [json.loads(line) for line in lines]
        self._keys: set[str] = {line["key"] for line in found}
        self._reasons = {RequestKey.parse(line["key"]).record: line["reason"] for line in found}
        """Of each record, its latest."""

    @property
    def num_records(self) -> int:
        """Distinct records that the file holds."""
        return len(self._reasons)

    def add(self, outcome: Outcome) -> bool:
        """Writes the request down, once; whether its record is new.

        Raises DataFailure when there are more than `quarantine.max_records`, or a target is too long and
        `template.truncation_strategy` is `raise`.
        """
        key, reason = str(outcome.key), outcome.failure or ""
        if key in self._keys:
            return False  # it was in flight when the checkpoint was taken that the run continues from
        if self._raises_oversize and reason.startswith(OVERSIZE):  # not written down: a resume asks for it again
            raise DataFailure(f"{key}: {reason}, or write template.truncation_strategy: delete to leave it out")
        is_new = outcome.key.record not in self._reasons
        self._keys.add(key)
        self._reasons[outcome.key.record] = reason
        with self._path.open("a") as lines:
            lines.write(json.dumps({"key": key, "reason": reason}) + "\n")
        log.warning("quarantined %s: %s", key, reason)
        if len(self._reasons) > self._limit:
            raise DataFailure(self._too_many())
        return is_new

    def _too_many(self) -> str:
        counts = Counter(kind_of(reason) for reason in self._reasons.values()).most_common()
        told = ", ".join(f"{count} x {kind}" for kind, count in counts)
        kind, count = counts[0]
        advice = ADVICE.get(kind, "") if count > MOST * len(self._reasons) else ""
        return (
            f"{len(self._reasons)} records are quarantined, quarantine.max_records is {self._limit}: {told}; "
            f"{advice or 'mend the data'}; raise the limit too, since a resume counts on from these "
            f"(each with its reason: {self._path})"
        )


def kind_of(reason: str) -> str:
    """`Oversize: t.jsonl:2: ...` → `Oversize`."""
    return reason.partition(":")[0]
