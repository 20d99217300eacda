"""Arithmetic: the results of the plain formulas in fewer passes over memory; torch alone."""
