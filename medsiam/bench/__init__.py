"""The public scoreboard: what was measured, beside the published reference."""
