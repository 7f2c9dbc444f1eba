"""What replays the log beside the service: copies of read models, their comparison, and the swap. It adds no event."""
