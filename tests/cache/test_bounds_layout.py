"""Which layout of bounds a cache chooses, and that methods cannot tell the difference."""

from dataclasses import dataclass

import pytest
import torch
from core_helpers import PAGE, Driver, same, state

from questbench import attention
from questbench.errors import UsageError
from questbench.kernels._bounds import LANES, read_bounds
from questbench.methods._base import Keep
from questbench.methods.dense import Dense
from questbench.methods.quest import Quest

MHA = {"heads": 2, "kv_heads": 2}
LENGTHS = [37, 20, 55]


def test_by_channel_where_every_query_head_has_its_own_keys(ops):
    assert Driver(Quest(16), ops, 1, **MHA).layer.pool.layout == "channel"
    assert Driver(Quest(16), ops, 1, heads=4, kv_heads=2).layer.pool.layout == "page"
    assert Driver(Quest(16, variant="eval"), ops, 1, **MHA).layer.pool.layout == "page"
    assert Driver(Dense(), ops, 1, **MHA).layer.pool.layout == "none"
    assert Driver(Dense(), ops, 1, **MHA, bounds=True).layer.pool.layout == "channel"


def play(driver: Driver, lengths: list[int], steps: int) -> torch.Tensor:
    driver.prefill(lengths)
    return torch.stack([driver.step() for _ in range(steps)])


@pytest.mark.parametrize("lengths", [LENGTHS, [600, 3, 500]])
def test_outputs_do_not_depend_on_the_layout(ops, lengths):
    """The second case grows past one block of pages in a pool that started small."""
    by_channel, by_page = (Driver(Quest(24), ops, 3, **MHA, by_channel=flag) for flag in (True, False))
    torch.testing.assert_close(play(by_channel, lengths, 20), play(by_page, lengths, 20), rtol=1e-5, atol=1e-6)
    assert by_channel.layer.bounds.shape[0] == -(-by_channel.layer.paged.k.shape[0] // LANES)
    assert by_channel.layer.pool.in_use == by_page.layer.pool.in_use


def test_closed_pages_have_exact_bounds_after_going_back(ops):
    """A page that is reopened and filled with other keys gets their bounds, not a mixture."""
    driver = Driver(Quest(16), ops, 2, **MHA)
    driver.prefill([40, 33])
    driver.layer.rewind(29)
    for _ in range(2 * PAGE):
        driver.step()
    layer = driver.layer
    for row in range(2):
        keys = layer.gather(row)[0]
        for page in range(layer.held[row] // PAGE):
            own = keys[:, page * PAGE : (page + 1) * PAGE]
            got = read_bounds(layer.bounds, layer.page_table[row, page : page + 1].long())[0]
            assert torch.equal(got, torch.stack([own.amax(1), own.amin(1)], dim=1))


@pytest.mark.parametrize("variant", ["kernel", "eval"])
def test_forks_of_either_kind_start_from_the_same_cache(ops, variant):
    """A fork that scores open pages cannot share bounds by channel: it gets pages of its own."""
    method = Quest(24, variant=variant)
    parent = Driver(Dense(), ops, 3, **MHA, bounds=True)
    parent.prefill(LENGTHS)
    twin = parent.layer.fork(method)
    assert (twin.pool is parent.layer.pool) == (variant == "kernel")
    direct = Driver(method, ops, 3, **MHA)
    direct.prefill(LENGTHS)
    before = state(parent.layer)
    for _ in range(11):
        q, k, v = direct.entries(1)
        outs = []
        for layer in (twin, direct.layer):
            layer.append(k, v)
            outs.append(attention.decode(layer, q[:, :, 0].contiguous(), direct.scoring))
        torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-6)
    assert same(state(twin), state(direct.layer)) and same(state(parent.layer), before)


@dataclass(frozen=True)
class CutQuest(Quest):
    """Keeps the newest entries of a prompt and selects among their pages."""

    kept: int = 61

    def keep_prompt(self) -> Keep:
        return Keep(self.kept, recent=self.kept, by="age")


@pytest.mark.parametrize("heads", [MHA, {"heads": 4, "kv_heads": 2}])
def test_what_is_kept_of_a_prompt_has_bounds(ops, heads):
    """A cache that held these entries alone from the start reads the same pages, forks included."""
    cut, whole = Driver(CutQuest(24), ops, 2, **heads), Driver(Quest(24), ops, 2, **heads)
    cut.prefill([90, 75])
    whole.layer.copy_entries([cut.layer.gather(row) for row in range(2)])
    assert cut.layer.held == [61, 61] and cut.layer.pool.layout == whole.layer.pool.layout != "none"
    twin = cut.layer.fork(CutQuest(24))
    for _ in range(PAGE + 3):
        q, k, v = cut.entries(1)
        outs = []
        for layer in (cut.layer, twin, whole.layer):
            layer.append(k, v)
            outs.append(attention.decode(layer, q[:, :, 0].contiguous(), cut.scoring))
        assert torch.equal(outs[0], outs[2]) and torch.equal(outs[1], outs[2])


def test_bounds_and_eviction_in_steps_are_refused_together(ops):
    class Both(Quest):
        def keep_step(self) -> Keep:
            return Keep(15, recent=15, by="age")

    with pytest.raises(UsageError, match=r"drops an entry in every step and needs page bounds"):
        Driver(Both(16), ops)
