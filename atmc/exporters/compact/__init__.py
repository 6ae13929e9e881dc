"""A smaller network that computes the same: without dead channels and constants."""

from __future__ import annotations

from atmc.exporters.compact.compaction import Compacted, compact

__all__ = ["Compacted", "compact"]
