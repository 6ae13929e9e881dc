"""One run: its settings, its folder, its resumption; many runs as a sweep."""
