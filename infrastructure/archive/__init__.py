"""The log in a file that verifies by itself: written from a database, checked, and read into an empty one."""
