"""The log: group commit, the hash chain, reading streams and following the end."""
