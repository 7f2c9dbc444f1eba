"""The product against real servers: `python -m tests.ground`. No part of the test suite; docs/compatibility.md has its
table."""
