"""The library's own test cases for recorders, on our event store."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TypeVar

import pytest

from tests.support.recorder_adapter import StoreAggregateRecorder, StoreApplicationRecorder

# The library's module also holds test cases of its cipher, whose package (pycryptodome) we do not need otherwise.
_cipher = ModuleType("eventsourcing.cipher")
_cipher.AESCipher = None  # type: ignore[attr-defined]
with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, _cipher.__name__, _cipher)
    from eventsourcing.tests import persistence as contract

R = TypeVar("R", bound=StoreAggregateRecorder)


class _OnOurDatabase(contract.RecorderTestCase):
    @pytest.fixture(autouse=True)
    def _fresh_database(self, dsn: str) -> None:
        self.dsn = dsn

    def opened(self, kind: type[R]) -> R:
        recorder = kind(self.dsn)
        self.addCleanup(recorder.close)
        return recorder


class TestAggregateRecorder(_OnOurDatabase, contract.AggregateRecorderTestCase):
    def create_recorder(self) -> StoreAggregateRecorder:
        return self.opened(StoreAggregateRecorder)


class TestApplicationRecorder(_OnOurDatabase, contract.ApplicationRecorderTestCase[StoreApplicationRecorder]):
    def create_recorder(self) -> StoreApplicationRecorder:
        return self.opened(StoreApplicationRecorder)

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestNotificationIdsDoNotInterleave(_OnOurDatabase, contract.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> StoreApplicationRecorder:
        return self.opened(StoreApplicationRecorder)
