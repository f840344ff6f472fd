"""The comparison of ledgers with what is found: balanced snapshots pass, each kind of lie is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fabric.controlplane.audit import compare
from fabric.controlplane.auditor import decode_snapshot, encode_snapshot

pytestmark = pytest.mark.promise("P1")

FLOW = 1 << 48 | 1
DELIVERED, DROPPED, FAILED = 1, 2, 3
EXPIRED, OUTCOME_UNKNOWN = 1, 7


def entry(
    sequence: int, state: str = "accepted", end: int = 0, reason: int = 0, flow: int = FLOW
) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "flow": flow,
        "flow_seq": sequence,
        "state": state,
        "end": end,
        "reason": reason,
    }


def snapshot() -> dict[str, Any]:
    """Ten accepted: six delivered and one expired are folded, one is in the lane, one held, one on its way back."""
    ledger = {
        "endpoint": 11,
        "channel": 1,
        "accepted": 10,
        "tail": 7,
        "counts": {(DELIVERED, 0): 6, (DROPPED, EXPIRED): 1},
        "outstanding": [entry(8), entry(9), entry(10)],
    }
    held = {"flow": FLOW, "flow_seq": 9, "state": "queued", "segment": 0, "slot": 0}
    flow = {"flow": FLOW, "drained": 9, "handed": 8, "ended_upto": 8, "reported": [0, 7, 1, 0]}
    lane = {
        "lane": 1,
        "ports": [1, 2],
        "directions": [
            {"records": [(FLOW, 10, 10, 1)], "returns": [(1, FLOW, 8, 8, DELIVERED, 0)]},
            {"records": [], "returns": []},
        ],
    }
    ports = [
        {"port": 1, "flows": [], "held": [], "ledgers": [ledger]},
        {"port": 2, "flows": [flow], "held": [held], "ledgers": []},
    ]
    return {"node": "a", "ports": ports, "lanes": [lane], "unsettled": 0}


def test_balanced_snapshot_is_counted_by_channel():
    report = compare([snapshot()], names={1: "kv"})
    assert report["differences"] == [] and report["balanced"]
    assert report["channels"]["kv"] == {
        "accepted": 10,
        "delivered": 6,
        "dropped": {"expired": 1},
        "failed": {},
        "in_flight": 3,
    }


def test_message_drained_and_never_queued_is_found_even_after_everything_else_ended():
    seen = snapshot()
    seen["ports"][1]["held"] = []
    found = " ".join(row["what"] for row in compare([seen])["differences"])
    assert "9 messages drained, 8 ends reported and 0 held" in found


def test_message_reported_twice_is_found_by_the_receivers_own_counts():
    seen = snapshot()
    seen["ports"][1]["flows"][0]["reported"] = [0, 8, 1, 0]
    found = " ".join(row["what"] for row in compare([seen])["differences"])
    assert "9 messages drained, 9 ends reported and 1 held" in found


def hand_back(seen: dict[str, Any]) -> None:
    """The receiver closed and handed 9 back; nothing is held any more."""
    seen["ports"][1]["flows"][0]["returned"] = 1
    seen["ports"][1]["held"] = []


def test_message_handed_back_is_known_to_its_sender_and_counted_by_its_receiver():
    seen = snapshot()
    hand_back(seen)
    report = compare([seen])
    assert report["differences"] == [] and report["channels"]["#1"]["in_flight"] == 3


def test_message_lost_beside_one_that_was_handed_back_is_found():
    seen = snapshot()
    hand_back(seen)
    seen["ports"][1]["flows"][0]["drained"] = 10
    found = " ".join(row["what"] for row in compare([seen])["differences"])
    assert "10 messages drained, 8 ends reported and 0 held, 1 handed back" in found


def test_counts_of_a_dead_receiver_cut_off_in_the_middle_are_not_compared():
    seen = snapshot()
    seen["ports"][1]["flows"][0]["reported"] = [0, 6, 1, 0]
    seen["ports"][1]["is_alive"] = False
    assert compare([seen])["balanced"]


def test_ends_behind_an_unended_message_are_counted_once():
    seen = snapshot()
    seen["ports"][0]["ledgers"][0]["outstanding"][2] = entry(10, "ended", FAILED, OUTCOME_UNKNOWN)
    seen["lanes"][0]["directions"][0]["records"] = []
    report = compare([seen])
    assert report["balanced"], report["differences"]
    assert (
        report["channels"]["#1"]["failed"] == {"outcome_unknown": 1}
        and report["channels"]["#1"]["in_flight"] == 2
    )


def test_message_waiting_for_a_consumer_is_in_flight_and_looked_for_nowhere():
    seen = snapshot()
    seen["ports"][0]["ledgers"][0]["outstanding"][2] = entry(10, "waiting", flow=0)
    seen["lanes"][0]["directions"][0]["records"] = []
    report = compare([seen])
    assert report["balanced"] and report["channels"]["#1"]["in_flight"] == 3


def lose_record(seen: dict[str, Any]) -> None:
    seen["lanes"][0]["directions"][0]["records"] = []


def lose_held(seen: dict[str, Any]) -> None:
    seen["ports"][1]["held"] = []


def lose_end(seen: dict[str, Any]) -> None:
    seen["lanes"][0]["directions"][0]["returns"] = []


def repeat_record(seen: dict[str, Any]) -> None:
    seen["lanes"][0]["directions"][0]["records"] *= 2


def repeat_held(seen: dict[str, Any]) -> None:
    seen["ports"][1]["held"] *= 2


def stray_record(seen: dict[str, Any]) -> None:
    seen["lanes"][0]["directions"][0]["records"].append((FLOW, 11, 11, 1))


def miscount(seen: dict[str, Any]) -> None:
    seen["ports"][0]["ledgers"][0]["counts"][DELIVERED, 0] = 7


def forget_entry(seen: dict[str, Any]) -> None:
    del seen["ports"][0]["ledgers"][0]["outstanding"][1]


def two_entries(seen: dict[str, Any]) -> None:
    seen["ports"][0]["ledgers"][0]["outstanding"].append(entry(10))


def accept_too_much(seen: dict[str, Any]) -> None:
    seen["ports"][0]["ledgers"][0]["accepted"] = 11


def corrupt_lane(seen: dict[str, Any]) -> None:
    seen["lanes"][0]["directions"][1] = {"error": "tail is ahead of head"}


def corrupt_state(seen: dict[str, Any]) -> None:
    seen["ports"][1]["error"] = "magic does not hold"


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lose_record, "nowhere to be found"), (lose_held, "nowhere to be found"), (lose_end, "nowhere to be found"),
        (repeat_record, "twice in this lane"), (repeat_held, "held twice"), (stray_record, "no sender knows it"),
        (miscount, "7 messages have ended"), (forget_entry, "neither an entry nor an end"),
        (two_entries, "has 2 entries"), (accept_too_much, "neither an entry nor an end"),
        (corrupt_lane, "unreadable"), (corrupt_state, "unreadable"),
    ],
)  # fmt: skip
def test_every_kind_of_lie_is_a_difference(lie, said):
    seen = copy.deepcopy(snapshot())
    lie(seen)
    report = compare([seen])
    assert not report["balanced"]
    assert any(said in difference["what"] for difference in report["differences"]), report[
        "differences"
    ]


def test_message_between_nodes_is_found_on_the_other_node():
    sender, receiver = snapshot(), snapshot()
    sender["ports"], receiver["ports"] = sender["ports"][:1], receiver["ports"][1:]
    receiver["node"], receiver["lanes"] = "b", []
    assert compare([sender, receiver])["balanced"]
    assert not compare([sender])["balanced"], "without the other node the held message is nowhere"


def test_repeat_that_will_be_discarded_is_no_difference():
    seen = snapshot()
    seen["lanes"][0]["directions"][0]["records"].insert(
        0, (FLOW, 3, 3, 1)
    )  # sent again by a restarted gateway
    assert compare([seen])["balanced"]


def test_records_of_a_flow_that_was_lost_belong_to_nobody():
    seen = snapshot()
    seen["lanes"][0]["directions"][0]["records"].append((FLOW + 5, 1, 1, 1))
    assert compare([seen])["balanced"]


def test_archived_counts_are_added_unless_their_endpoint_still_lives():
    final = {
        "endpoint": 99,
        "channel": 1,
        "accepted": 5,
        "counts": [(DELIVERED, 0, 4), (FAILED, OUTCOME_UNKNOWN, 1)],
    }
    twice = {**final, "endpoint": 11}
    report = compare([snapshot()], [final, twice])
    assert report["balanced"]
    assert (
        report["channels"]["#1"]["accepted"] == 15 and report["channels"]["#1"]["delivered"] == 10
    )
    lossy = {**final, "accepted": 6}
    assert not compare([snapshot()], [lossy])["balanced"]


def test_snapshot_survives_its_way_between_nodes():
    assert compare([decode_snapshot(encode_snapshot(snapshot()))]) == compare([snapshot()])
