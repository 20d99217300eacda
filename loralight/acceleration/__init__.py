"""The same results in less time or memory."""
