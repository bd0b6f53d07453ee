"""nanollm serve --check: the law of load, tried on the device at hand; and what it says where the law is broken."""

from __future__ import annotations

import math

import pytest
import serving

from nanollm_jax.cli import run
from nanollm_jax.engine.check import check, difference
from nanollm_jax.engine.engine import Engine


@pytest.fixture(scope="module")
def engine():
    return Engine(serving.tiny(), serving.ROWS, piece=serving.PIECE)


def test_the_law_holds(engine):
    found = check(engine, 128, count=12, orders=2)
    assert found.others == [] and found.compiled == 0
    assert found.tokens > 12 and found.cached > 0
    assert engine.idle and not engine.prefixes[0]


def test_an_answer_that_depends_on_others_is_found(engine, monkeypatch):
    """One bit of one number, where two rows write at a time."""
    step = engine.step

    def wrong():
        grown = step()
        if sum(slot.ticket is not None for slot in engine.slots) > 1:
            for ticket in grown:
                if ticket.answer.logprobs:
                    ticket.answer.logprobs[-1] = math.nextafter(ticket.answer.logprobs[-1], 0)
        return grown

    monkeypatch.setattr(engine, "step", wrong)
    found = check(engine, 128, count=12, orders=2)
    assert len(found.others) == 2 and "log-probability" in found.others[0] and "beside others" in found.others[0]


def test_how_an_answer_ended_is_told():
    ended, failed = (
        ([5, 6], [-1.0, -2.0], [], [], reason, error) for reason, error in (("stop", ""), ("", "no numbers"))
    )
    told = "request 3: stop after 2 tokens alone, no numbers after 2 tokens beside others"
    assert difference(3, ended, failed) == told


@pytest.mark.parity
def test_the_command(capsys):
    assert run(["serve", "--check", "--rows", "2", "--context", "256"]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("24 requests in 2 rows of 256")
        and "all with the same bits; 0 programs compiled meanwhile" in out
    )
