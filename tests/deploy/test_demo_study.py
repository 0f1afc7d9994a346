"""The study over seeds: each on its own feedback, one bound each, and all together."""

from dataclasses import replace

import pytest

from deploy.demo import study
from deploy.demo.terms import QUICK
from tests.deploy.scripted_loop import ScriptedGateway, ScriptedLoop, gateway_for, served
from tests.deploy.test_demo_story import prepared


@pytest.fixture
def gateway():
    with served(gateway_for([1, 2, 3])) as gateway:
        yield gateway


def _studied(loop: ScriptedLoop) -> study.Study:
    return study.play_seeds([prepared(loop, seed) for seed in (1, 2, 3)])


def test_every_seed_and_the_pool_gain_enough(gateway: ScriptedGateway):
    done = _studied(ScriptedLoop(gateway))
    assert done.as_expected
    assert done.pooled is not None and done.pooled.n == QUICK.held_out
    assert len({account.terms.digest for account in done.accounts}) == 3
    began = [account.began for account in done.accounts]
    assert began == sorted(set(began))  # a seed's data set begins with its own first request
    for earlier, later in zip(done.accounts, done.accounts[1:], strict=False):
        last = max(row.at for row in gateway.rows if row.user.startswith(earlier.terms.user_prefix))
        assert last < later.began
    text = study.markdown(done)
    assert "llmops demo study --seeds 1,2,3" in text
    assert text.count("promote |") == 3 and "| pooled |" in text


def test_a_small_gain_is_not_enough(gateway: ScriptedGateway):
    done = _studied(ScriptedLoop(gateway, gain=0.15))
    assert not done.as_expected
    assert "Not as expected" in study.ending(done)
    unmet = [one for one in done.expectations if not one.met]
    assert len(unmet) == 4  # three seeds and the pool


def test_a_seed_that_fails_leaves_no_pool(gateway: ScriptedGateway):
    class Fickle(ScriptedLoop):
        def train(self, order, show):
            if order.seed == 2:
                raise study_failure
            return super().train(order, show)

    from deploy.demo.stage import LoopFailed

    study_failure = LoopFailed("MLflow is away")
    done = _studied(Fickle(gateway))
    assert not done.as_expected and done.pooled is None
    assert [account.ended is None for account in done.accounts] == [True, False, True]
    assert "MLflow is away" in study.markdown(done)


def test_an_item_counts_once_in_the_pool(gateway: ScriptedGateway):
    done = _studied(ScriptedLoop(gateway))
    (first, *_) = done.accounts
    assert first.trained is not None
    copied = [replace(first.trained, seconds={}) for _ in range(5)]
    assert study._pooled(copied).n == first.trained.exact_match.n
