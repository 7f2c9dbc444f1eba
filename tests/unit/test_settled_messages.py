"""What RabbitMQ is told about messages, against the rule that it follows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from infrastructure.rabbitmq.subscription import Settled


class Channel:
    """The rule: a tag that is not in hand is an error; "multiple" stands for all in hand up to the tag."""

    def __init__(self, delivered: int) -> None:
        self.in_hand = set(range(1, delivered + 1))
        self.requeued: set[int] = set()
        self.dead: set[int] = set()

    def hear(self, frame: Basic.Ack | Basic.Reject) -> None:
        tag = frame.delivery_tag or 0
        assert tag in self.in_hand
        if isinstance(frame, Basic.Reject):
            (self.requeued if frame.requeue else self.dead).add(tag)
            self.in_hand.remove(tag)
        else:
            self.in_hand -= {one for one in self.in_hand if one == tag or (frame.multiple and one < tag)}


@given(st.data())
def test_whatever_the_order_each_message_is_told_once_and_as_it_was_settled(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    order = data.draw(st.permutations(range(1, count + 1)))[: data.draw(st.integers(0, count))]
    how = {tag: data.draw(st.sampled_from([None, None, None, True, False])) for tag in order}
    settled, channel = Settled(), Channel(count)

    for tag in order:
        settled.add(tag, how[tag])
        if data.draw(st.booleans()):
            for frame in settled.frames():
                channel.hear(frame)
    for frame in settled.frames():
        channel.hear(frame)

    assert channel.in_hand == set(range(1, count + 1)) - set(order)
    assert channel.requeued == {tag for tag in order if how[tag] is True}
    assert channel.dead == {tag for tag in order if how[tag] is False}
    assert settled.frames() == []


def test_those_before_the_first_in_hand_are_told_in_one_frame() -> None:
    settled = Settled()
    for tag in (3, 1, 2, 5):
        settled.add(tag, None)

    assert [(frame.delivery_tag, getattr(frame, "multiple", None)) for frame in settled.frames()] == [
        (3, True),
        (5, False),
    ]
