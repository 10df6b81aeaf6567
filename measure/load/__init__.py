"""Open-loop load: arrivals, prompts, the streaming client, and the metrics of what came back."""
