"""What follows the log: leadership, positions, parked streams, and the followers themselves."""
