"""`python -m kavier`."""

from kavier.cli.main import main

main()
