"""What a job says that stops because it rejects too much: what the letters have in common, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from broker.config import Config, kafka_options
from broker.deadletter import Rejected, Selection, read_letters
from broker.errors import KafkaError
from broker.letter_report import in_common
from broker.rejections import Excess


def tell(config: Config, source: str, batch: int, excess: Excess) -> str:
    """The message. Reads the dead letters since the oldest batch that counts."""
    since = datetime.fromtimestamp(excess.since_ms / 1000, UTC)
    try:
        common = in_common(_letters(config, source, excess, since))
    except KafkaError as error:
        common = [f"(the dead letters can't be read: {error})"]
    # Rounded up: batches that are planned from then on count.
    now = datetime.fromtimestamp(datetime.now(UTC).timestamp() // 1 + 1, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    begin = (
        f"source {source!r}, batch {batch}: {excess.words}. The job stopped rather than reject on; what is committed "
        "is accounted for, the rest waits on the source. Dead letters of this source since "
        f"{since.isoformat(timespec='seconds').replace('+00:00', 'Z')}:"
    )
    end = (
        f"See `broker dead-letters list --config {config.file}`. To go on, once the cause is gone or as it is: set "
        f'count_from = "{now}" in [limits], or a higher limit, and start the job again. What can be read by then, '
        "`broker dead-letters replay` puts back"
    )
    return "\n  ".join([begin, *common, end])


def _letters(config: Config, source: str, excess: Excess, since: datetime) -> Iterator[Rejected]:
    found = read_letters(kafka_options(config), config.output.dead_letters, Selection(source, since=since))
    if excess.place is None:
        return found
    topic, partition = excess.place
    return (letter for letter in found if letter.text("alert").startswith(f"{source}:{topic}:{partition}:"))
