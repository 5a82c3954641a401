"""[limits]: how much may be rejected before the job stops."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(strict=True, gt=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class Limits(BaseModel):
    """Per source: the share of rejections among its last `window_alerts`, and rejections in a row in one partition.

    Sentry's arroyo limits its dead letters by the same two numbers. Both are of whole batches: the window is the newest
    batches that together hold so many alerts, and nothing is said of less than `min_alerts`. What is not counted is in
    `verdict.uncounted`. `count_from`: batches that were planned before that time don't count, which is how to go on
    after a stop without a higher limit.

    The defaults: of the 291 whole sample alerts in examples/alerts one is rejected (hand-made, with its time in
    seconds), so that a fifth is no accident; the window is one visit of LSST. Where a fifth is rejected by chance, 500
    in a row have a probability of 1e-349.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rejected_ratio: Share = 0.2
    max_rejected_run: Count = 500
    window_alerts: Count = 10_000
    min_alerts: Count = 1_000
    count_from: datetime | None = None

    @field_validator("count_from", mode="before")
    @classmethod
    def _time(cls, when: object) -> object:
        if when is None:
            return None
        try:
            found = when if isinstance(when, datetime) else datetime.fromisoformat(str(when))
        except ValueError:
            raise ValueError("needs a time such as 2026-11-20T00:00:00Z") from None
        if found.tzinfo is None:
            raise ValueError("is a time without a zone; add Z for UTC")
        return found

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_alerts > self.window_alerts:
            raise ValueError(f"has min_alerts = {self.min_alerts}, more than window_alerts = {self.window_alerts}")
        return self
