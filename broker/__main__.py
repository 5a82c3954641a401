"""`python -m broker`: the same as the command `broker`."""

from broker.cli import main

main()
