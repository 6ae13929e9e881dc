"""Curves, tables and one HTML page from finished runs, and every other picture."""
