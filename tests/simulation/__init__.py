"""The seeded simulation: the real decision code in a world whose time, faults and crashes follow from one number.

    python -m tests.simulation --seeds 2000
    python -m tests.simulation --seed 17 --trace

`virtual_time` (clock, event loop, processes that can be killed between any two steps) → `faults` (how likely what is)
→ `database` and `mail` (the ports, and how they fail) → `people` (registrants, squatters, operators) → `oracle` (what
must always hold, docs/reliability.md, I3 to I7) → `world` (one run) → `planted` (bugs that must be found).

What is real: `domain`, `Handlers`, `react`, `MailDelivery`, `ProcessManager.work`, `Relay.work`, `Batcher`, and
asyncio's tasks and locks below them. What is played: PostgreSQL, SMTP, the broker's line, and `follower.lead`.
"""
