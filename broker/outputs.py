"""The topics that a job writes: there, large enough and allowed at the start; those of nights while it runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from broker import job
from broker.classify import Assignment
from broker.config import Config, Source
from broker.delivery import outlets_of, topics_of
from broker.errors import BrokerError, KafkaError
from broker.ledger_topic import ROWS_KEPT_MS
from broker.leftovers import count_partitions
from broker.outlet_nights import NIGHT, OTHER, among, expand, stands_for
from broker.outlets.nights import coming
from broker.published import publish
from broker.rights import READ, WRITE, check_rights
from broker.supervise import Seldom
from broker.topics import check_topics, list_topics

_log = logging.getLogger(__name__)

AHEAD = 2  # nights after this one whose topics are made
LOOK_EVERY_S = 10.0
_seldom = Seldom(3_600.0)


class Outputs:
    """Topics of one job. limits: largest message of each, bytes; clock: seconds since 1970."""

    def __init__(self, config: Config, options: Mapping[str, str], clock: Callable[[], float] = time.time) -> None:
        self._config, self._options, self._clock = config, options, clock
        self._topics = topics_of(config.outlets, {source.name: source.survey for source in config.sources})
        self._by_night: dict[tuple[str, str], None] = {}  # templates, and whose nights they count
        self._most: dict[str, int] = {}  # bytes that its records may have
        for source in config.sources:
            for outlet in outlets_of(config.outlets, source.name):
                for topic in outlet.topics_of(source.survey).values():
                    if NIGHT in topic:
                        self._by_night[topic, source.survey] = None
                        self._most[topic] = max(self._most.get(topic, 0), job.largest_record(outlet, source))
        self._nights: dict[str, tuple[str, ...]] = {}
        self._counts: dict[str, int] = {}
        self._schema_id: int | None = None
        self._lacking: list[str] = []
        self._answer: Future[None] | None = None
        self._is_news = False
        self._due = 0.0
        self._lock = threading.Lock()
        self.limits: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Classifications, dead letters, and all topics of outlets."""
        output = self._config.output
        return (output.classifications, output.dead_letters, *expand(self._topics, self._nights))

    @property
    def by_night(self) -> set[str]:
        """Surveys that have an outlet with a topic per night."""
        return {survey for _, survey in self._by_night}

    def open(self, read: Iterable[str]) -> None:
        """Make or require them all, and check sizes and rights; of topics to be read, the rights. Raises BrokerError.

        Topics of nights that are missing and not to be made are named in the log: what belongs there goes to the topic
        of the other nights until they are there.
        """
        self._check([*self._config.output.topics, *expand(self._topics, {})])
        rights = {topic: [READ, WRITE] for topic in self.limits}
        rights |= {topic: [READ] for topic in read}
        check_rights(self._options, rights)
        self._schema_id = publish(self._config.output)
        self.refresh()
        self._due, self._is_news = time.monotonic() + LOOK_EVERY_S, False

    def assign(self, source: Source) -> Assignment:
        """What the tasks of a source must know, as of now. Raises ConfigError where a topic takes too little."""
        return job.assign(self._config, source, self.limits, self._counts, self._schema_id, self._nights)

    def look(self, pool: ThreadPoolExecutor) -> bool:
        """Never waits. Whether the nights that have topics have changed since; looks again when it is time."""
        if not self._by_night:
            return False
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer, None
            self._due = time.monotonic() + LOOK_EVERY_S
            try:
                answer.result()
            except BrokerError as error:
                if _seldom("look"):
                    _log.warning("the topics of the coming nights can't be looked after: %s", error)
        if self._answer is None and time.monotonic() >= self._due:
            self._answer = pool.submit(self.refresh)
        is_news, self._is_news = self._is_news, False
        return is_news

    def refresh(self) -> None:
        """Make the topics of this night and the next ones, or tell that they lack; see which nights have topics now.

        Raises KafkaError where Kafka does not answer.
        """
        with self._lock:
            now = self._clock()
            due = dict.fromkeys(t.replace(NIGHT, n) for t, s in self._by_night for n in coming(s, now, AHEAD))
            known = list_topics(self._options)
            known |= self._made([name for name in due if name not in known])
            found = among(self._most, known)
            lost = self._unfit([name for name in expand(self._most, found) if name not in self.limits])
            found = among(self._most, known - lost)
            self._is_news, self._nights = self._is_news or found != self._nights, found
            there = {*self._config.output.topics, *self.names}
            self.limits = {name: limit for name, limit in self.limits.items() if name in there}

    def _made(self, names: list[str]) -> set[str]:
        """Those that could be made now; others are told of once."""
        if not names or (names == self._lacking and not self._config.output.create_topics):
            return set()
        try:
            self._check(names)
        except KafkaError as error:
            if names != self._lacking:
                _log.warning("until they are there, their nights go to the topics of %r nights: %s", OTHER, error)
            self._lacking = names
            return set()
        return set(names)

    def _unfit(self, names: list[str]) -> set[str]:
        """Take topics of nights up; those that can't be used are told of and left out."""
        if not names:
            return set()
        try:
            self._check(names)
            check_rights(self._options, dict.fromkeys(names, (READ, WRITE)))
            for name in names:
                job.check_size(name, self.limits, next(n for t, n in self._most.items() if stands_for(t, name)))
        except BrokerError as error:
            if len(names) > 1:
                return set().union(*(self._unfit([name]) for name in names))
            if _seldom(names[0]):
                _log.warning("topic %r is not used: %s", names[0], error)
            self.limits.pop(names[0], None)
            return set(names)
        return set()

    def _check(self, names: list[str]) -> None:
        """Make or require topics; know their limits and partitions."""
        output = self._config.output
        self.limits |= check_topics(
            self._options,
            names,
            create=output.create_topics,
            partitions=output.partitions,
            max_message_bytes=output.max_message_bytes,
            kept_ms={output.ledger: ROWS_KEPT_MS},
        )
        self._counts |= count_partitions(self._options, [name for name in names if name not in output.topics])
