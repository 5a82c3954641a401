"""Texts of failures as Spark and the Kafka clients word them: what kind each is, which line tells, what is advised; and
the budget of restarts on a clock turned by hand."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.supervise import FIRST_WAIT_S, LONGEST_WAIT_S, Budget, Seldom, judge

# What stands around the telling line of a streaming query's failure.
SPARK = """org.apache.spark.sql.streaming.StreamingQueryException: [STREAM_FAILED] Query [id = 4f, runId = 9a] \
terminated with exception: Job aborted due to stage failure: Task 0 in stage 7.0 failed 1 times, most recent failure: \
Lost task 0.0 in stage 7.0 (TID 12) (localhost executor driver): {first}
\tat org.apache.spark.sql.kafka010.KafkaRowWriter.checkForErrors(KafkaWriteTask.scala:150)
\tat java.base/java.lang.Thread.run(Thread.java:840)
Caused by: {cause}
\t... 23 more
"""
PYTHON = """pyspark.errors.exceptions.captured.StreamingQueryException: [STREAM_FAILED] Query terminated with \
exception: Job aborted due to stage failure: org.apache.spark.api.python.PythonException: \
Traceback (most recent call last):
  File "worker.py", line 1, in main
    process()
  File "classify.py", line 1, in classify
{last}

\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(PythonRunner.scala:574)
"""


def of_spark(cause: str, first: str = "") -> str:
    return SPARK.format(first=first or cause, cause=cause)


@pytest.mark.parametrize(
    ("text", "words", "advice"),
    [
        (
            of_spark(
                "org.apache.kafka.common.errors.RecordTooLargeException: The message is 1200071 bytes when serialized "
                "which is larger than 1048576, which is the value of the max.request.size configuration."
            ),
            "1200071 bytes",
            "max.message.bytes",
        ),
        (
            of_spark(
                "org.apache.kafka.common.errors.TopicAuthorizationException: Not authorized to access topics: [x]"
            ),
            "topics: [x]",
            "Grant the login",
        ),
        (
            of_spark("org.apache.kafka.common.errors.GroupAuthorizationException: Not authorized to access group: g"),
            "group: g",
            "Grant the login",
        ),
        (
            of_spark("org.apache.kafka.common.errors.TransactionalIdAuthorizationException: Transactional Id denied."),
            "Transactional Id denied",
            "Grant the login",
        ),
        (
            of_spark("org.apache.kafka.common.errors.SaslAuthenticationException: Authentication failed: wrong secret"),
            "wrong secret",
            "Correct the login",
        ),
        (
            of_spark("org.apache.kafka.common.errors.SslAuthenticationException: SSL handshake failed"),
            "SSL handshake failed",
            "Correct the login",
        ),
        (
            "sasl_ssl://k:9093/bootstrap: SASL authentication error: Authentication failed",
            "sasl_ssl",
            "Correct the login",
        ),
        ("topic 'night': Broker: Group authorization failed", "Group", "Grant the login"),
        (
            of_spark("org.apache.kafka.common.errors.InvalidTimestampException: Some records have been rejected"),
            "InvalidTimestampException",
            "Set the clock",
        ),
        (of_spark("java.io.IOException: No space left on device"), "No space left", "Free space"),
        (
            "org.apache.spark.SparkException: Multiple streaming queries are concurrently using file:/c/offsets/7",
            "file:/c/offsets/7",
            "stop that one",
        ),
        (
            "org.apache.spark.SparkException: [CONCURRENT_STREAM_LOG_UPDATE] Concurrent update to the log.",
            "Concurrent update",
            "stop that one",
        ),
        (
            PYTHON.format(last="broker.errors.ModelError: t2b-1: sha256 is 1, not 2"),
            "sha256 is 1, not 2",
            "put it back",
        ),
        (PYTHON.format(last="broker.errors.SchemaError: no field `time`"), "no field `time`", "Install"),
    ],
)
def test_what_no_restart_mends_is_told_with_what_to_do(text: str, words: str, advice: str) -> None:
    fault = judge(text)
    assert fault.kind == "lasting"
    assert words in fault.cause
    assert advice.lower() in fault.advice.lower()
    assert "\n" not in fault.cause
    assert "\tat " not in fault.cause


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed): "
            "Fatal Python error: Segmentation fault\nCurrent thread 0x01 (most recent call first):",
            "crashed",
        ),
        ("org.apache.spark.SparkException: Python worker failed to connect back.", "connect back"),
        (
            PYTHON.format(last="RuntimeError: task 0 of batch 3 runs a second time: the query must start anew"),
            "start anew",
        ),
        ("java.io.EOFException: reading the port number from pyspark.daemon's stdout", "pyspark.daemon"),
    ],
)
def test_a_worker_that_failed_puts_its_alerts_under_suspicion(text: str, words: str) -> None:
    fault = judge(text)
    assert (fault.kind, fault.advice) == ("worker", "")
    assert words in fault.cause


@pytest.mark.parametrize(
    ("last", "words"),
    [("ValueError: cannot reshape array of size 3", "cannot reshape"), ("MemoryError", "PythonException")],
)
def test_so_does_an_error_of_our_function(last: str, words: str) -> None:
    fault = judge(PYTHON.format(last=last))
    assert (fault.kind, fault.advice) == ("raised", "")
    assert words in fault.cause


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            of_spark("org.apache.kafka.common.errors.TimeoutException: Expiring 7 record(s) for x-0:120000 ms"),
            "Expiring 7",
        ),
        (of_spark("org.apache.kafka.common.errors.NotLeaderOrFollowerException: not the leader"), "not the leader"),
        (of_spark("org.apache.kafka.common.errors.DisconnectException: null"), "DisconnectException"),
        (of_spark("java.net.ConnectException: Connection refused", "java.io.IOException: x"), "Connection refused"),
        (of_spark("org.apache.kafka.common.errors.OffsetOutOfRangeException: Fetch position 9"), "Fetch position 9"),
        ("Timed out waiting for a node assignment. Call: describeTopics", "node assignment"),
        ("  \n first words \n second words", "first words"),
        ("", "no reason given"),
        (" \n\t\n", "no reason given"),
    ],
)
def test_anything_else_is_worth_another_try(text: str, words: str) -> None:
    fault = judge(text)
    assert (fault.kind, fault.advice) == ("passing", "")
    assert words in fault.cause
    assert "\tat " not in fault.cause


def test_the_innermost_cause_tells() -> None:
    text = (
        "a.b.Outer: x\nCaused by: java.util.concurrent.ExecutionException: y\n\tat z\n"
        "Caused by: org.apache.kafka.common.errors.TimeoutException: z\n"
    )
    assert judge(text).cause == "Caused by: org.apache.kafka.common.errors.TimeoutException: z"


def test_a_lasting_cause_is_found_among_others() -> None:
    """A task that was cancelled because of it may be told last."""
    text = of_spark("java.io.IOException: No space left on device") + "Caused by: java.lang.InterruptedException: x\n"
    assert judge(text).cause == "Caused by: java.io.IOException: No space left on device"


def test_a_line_of_the_stack_that_names_the_fault_does_not_tell() -> None:
    name = "org.apache.kafka.common.errors.TopicAuthorizationException"
    text = f"a.b.Outer: x\nCaused by: {name}: Not authorized\n\tat {name}.of({name}.java:7)\n"
    assert judge(text).cause == f"Caused by: {name}: Not authorized"


@given(st.text(max_size=600))
def test_any_text_has_a_kind_and_a_cause_of_one_line(text: str) -> None:
    fault = judge(text)
    assert fault.kind in ("worker", "raised", "lasting", "passing")
    assert 0 < len(fault.cause) <= 400
    assert len(fault.cause.splitlines()) == 1
    assert (fault.kind == "lasting") == bool(fault.advice)


def test_a_long_cause_is_cut() -> None:
    assert len(judge("Caused by: x.Exception: " + "y" * 5000).cause) == 400


# --- budgets ------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Turned by hand."""

    now: float = 1e6

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 200), max_size=60), st.integers(0, 6), st.floats(1, 300))
def test_no_window_holds_more_restarts_than_allowed(steps: list[float], restarts: int, window_s: float) -> None:
    clock = Clock()
    budget = Budget(restarts, window_s, clock)
    spent: list[float] = []
    for step in steps:
        clock.now += step
        recent = [time for time in spent if clock.now - time <= window_s]
        wait = budget.spend()
        if len(recent) >= restarts:
            assert wait is None
        else:
            assert wait == min(2 ** len(recent), 60)
            spent.append(clock.now)
    assert restarts or not spent


def test_after_a_quiet_window_the_wait_is_short_again() -> None:
    clock = Clock()
    budget = Budget(10, 600, clock)
    for _ in range(7):
        last = budget.spend()
    assert last == LONGEST_WAIT_S == 60
    clock.now += 600
    assert budget.spend() == 60  # exactly 600 s ago is within the window
    clock.now += 601
    assert budget.spend() == FIRST_WAIT_S == 1
    assert str(budget) == "1 of 10 within 600 s"


@given(st.lists(st.tuples(st.floats(0, 50), st.sampled_from("abc")), max_size=60))
def test_each_key_is_told_at_most_once_in_its_time(steps: list[tuple[float, str]]) -> None:
    clock = Clock()
    may = Seldom(60, clock)
    last: dict[str, float] = {}
    for step, key in steps:
        clock.now += step
        due = key not in last or clock.now - last[key] >= 60
        assert may(key) == due
        if due:
            last[key] = clock.now
