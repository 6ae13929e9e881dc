"""A smaller network that computes the same, and what it costs: multiply-adds, latency."""

from __future__ import annotations

from atmc.compaction.compaction import Compacted, compact

__all__ = ["Compacted", "compact"]
