"""Models behind OpenAI-compatible APIs: requests, retries, cached completions, costs."""
