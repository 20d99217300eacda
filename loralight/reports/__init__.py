"""Finished runs side by side: what their folders say, in groups that differ by a setting, as tables and pages."""
