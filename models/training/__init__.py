"""Training of the released models: data set, network, loop, export, evaluation. Not part of the wheel."""
