"""`raggd serve`: an OpenAI-compatible server whose batches carry a predicted update per row."""
