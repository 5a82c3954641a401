"""Errors that reach a user. Each says what is wrong, the value, what is allowed, where it came from and what to do.

BrokerError (exit 3: a stream or a file failed)
├── KafkaError       a broker, topic or login
├── LedgerError      the books do not balance
├── RejectionError   too much is rejected
├── ArchiveError     a file or folder of alerts
└── UsageError (exit 2: wrong usage or configuration)
    ├── ConfigError  a setting
    ├── ModelError   a model folder
    ├── SchemaError  a writer or output schema
    └── JavaError    Java missing or too old
"""


class BrokerError(Exception):
    """A stream or a file failed: the command ends with exit code 3."""

    exit_code = 3


class KafkaError(BrokerError):
    """A Kafka broker can't be reached, a topic is missing or a login is refused."""


class LedgerError(BrokerError):
    """Alerts in and verdicts out differ."""


class RejectionError(BrokerError):
    """More alerts were rejected than [limits] allows."""


class ArchiveError(BrokerError):
    """A file or folder of alerts can't be read."""


class UsageError(BrokerError):
    """Wrong usage or configuration: the command ends with exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is missing, misspelt or out of range."""


class ModelError(UsageError):
    """A model folder is incomplete, or its parts contradict each other."""


class SchemaError(UsageError):
    """A schema is unknown or can't be used."""


class JavaError(UsageError):
    """Java is missing or too old."""
