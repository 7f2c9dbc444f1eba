"""Other ways to take a registration, beside ours. Not part of `make bench`: `python -m bench.peers` installs them."""
