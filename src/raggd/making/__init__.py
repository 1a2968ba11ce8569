"""Demonstrations for users without labels: proposed from passages, tried on a round trip."""
