"""Codex over WebSocket: a connection lives for many turns, its replica and its upstream may not."""

SCENARIOS = []
WITHIN_THE_LIMIT = []
WITHOUT = []
