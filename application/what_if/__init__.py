"""What-if: the saga's decisions of today over the recorded history of one registration, beside those made then.

A decision follows from the saga's state, what happened, the time, and the settings. The record has the first three: the
saga's notes give its state at each step, each note says which event it follows from (a note of the saga itself: then
its date had come) and at what time it was made. So `react` is asked again with the same of each, and only code and
settings are today's. What it asks for is compared with the notes, and its commands with what they recorded.

What else shaped the record is no decision, and must not look like one:

* a command without effect leaves nothing, so one is missing only if it would have recorded something at every moment at
  which it may have run;
* after a crash, or under two leaders, commands ran whose decision was never noted: they are accounted for if any state
  that their leader may have seen leads to them;
* an event without a note was decided at an unknown moment: one at which nothing followed is enough;
* what the saga has not seen yet, or what is parked, is not decided;
* a date is compared by its distance from the decision. One that differs is one difference, not one more at everything
  that follows from it; but what would happen between today's date and that of then is another.

After another decision the record goes on, as if it had been the same: each decision is judged by itself.
"""

from typing import Final

from application.what_if.decision import Difference
from application.what_if.history import End, History
from application.what_if.review import differences

__all__ = ["FIGURES", "Difference", "End", "History", "differences"]

FIGURES: Final = ("otp_ttl", "registration_ttl")
"""The figures of `domain.policy.Policy` that the saga's decisions depend on."""
