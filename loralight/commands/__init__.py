"""The verbs of the command line, one in each file; no library code imports them."""
