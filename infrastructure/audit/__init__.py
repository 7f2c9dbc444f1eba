"""What an auditor asks: is the log as it was written, and how is that proved to others."""
