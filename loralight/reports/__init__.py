"""Finished runs side by side: read from their folders, grouped by their settings, shown as tables and pages."""
