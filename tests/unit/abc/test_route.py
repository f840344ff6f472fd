import pytest

from fabric.abc.route import Header, Target, decide, route
from fabric.errors import ContractError

HEADER = Header("c")
TARGETS = [Target(flow=1, endpoint=10), Target(flow=2, endpoint=20)]


def test_function_stays_callable_after_decoration():
    @route("first")
    def first(header, targets):
        return targets[0]

    assert first(HEADER, TARGETS) is TARGETS[0]
    assert first.__fabric_export__.name == "first"


def test_class_policy_keeps_state_between_calls_of_one_load():
    @route("alternate")
    class Alternate:
        def __init__(self):
            self.turn = 0

        def select(self, header, targets):
            self.turn += 1
            return targets[self.turn % len(targets)]

    policy = Alternate.__fabric_export__.factory()
    assert decide("alternate", policy, HEADER, TARGETS) == [TARGETS[1]]
    assert decide("alternate", policy, HEADER, TARGETS) == [TARGETS[0]]


def one_argument(header): ...


async def asynchronous(header, targets): ...


class WithoutSelect: ...


class NeedsArgument:
    def __init__(self, size): ...

    def select(self, header, targets): ...


@pytest.mark.parametrize(
    ("policy", "fix"),
    [
        (one_argument, "write it as"),
        (asynchronous, "write it as"),
        (WithoutSelect, "add `def select"),
        (NeedsArgument, "give every parameter"),
        (42, "decorate a function"),
    ],
)
def test_broken_policy_is_refused_naming_the_fix(policy, fix):
    with pytest.raises(ContractError, match=fix):
        route("broken")(policy)


def test_policy_without_a_name_is_refused():
    with pytest.raises(ContractError, match="has no name"):
        route("")(lambda header, targets: targets[0])


@pytest.mark.parametrize("answer", [None, [], "x", Target(flow=9, endpoint=9), [TARGETS[0], None]])
def test_answer_outside_the_offered_targets_is_refused(answer):
    with pytest.raises(ContractError, match="return one of the given targets"):
        decide("bad", lambda header, targets: answer, HEADER, TARGETS)


def test_several_targets_keep_their_order():
    assert decide("all", lambda h, t: reversed(t), HEADER, TARGETS) == TARGETS[::-1]
