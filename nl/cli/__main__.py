"""`python -m nl.cli`: the command `nl`, for when the scripts are not on the PATH."""

from nl.cli.main import main

main()
