"""t2-broker: alerts of astronomical surveys in, class probabilities out."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__"]

if TYPE_CHECKING:
    from broker.classifier import Classifier
else:

    def __getattr__(name: str) -> object:
        """The Python API, loaded when it is asked for: `import broker` itself needs Python's library alone."""
        if name == "Classifier":
            from broker.classifier import Classifier

            return Classifier
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
