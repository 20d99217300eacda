"""The verbs of the command line, one a file; nothing imports them."""
