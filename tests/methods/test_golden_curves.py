"""The losses of every method and task are those that CHANGELOG last spoke of."""

import json

import pytest

from tests.golden import CASES, CURVES, curve, machine

RECORDED = json.loads(CURVES.read_text())
SEEN = 4  # of the steps that are recorded: two epochs of two steps
FIRST = 2  # steps in which the last digit's difference has not grown yet


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_losses_are_those_that_were_recorded(case):
    found, expected = curve(case, SEEN), RECORDED[case][:SEEN]
    assert found[:FIRST] == pytest.approx(expected[:FIRST], rel=1e-2, abs=1e-3)
    if machine() == RECORDED["machine"]:
        assert found == pytest.approx(expected, rel=1e-5)
