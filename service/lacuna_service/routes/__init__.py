"""HTTP: one module for each group of paths. Every answer that is not 200 is `{"error": text}`."""
