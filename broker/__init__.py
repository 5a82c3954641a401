"""t2-broker: alerts of astronomical surveys in, class probabilities out."""

__version__ = "0.1.0"
