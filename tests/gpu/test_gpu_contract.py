"""The contract of the ops on a GPU: the bodies of tests/kernels, with their tensors taken there and back."""

from __future__ import annotations

import pytest
from gpu_bodies import bodies_of, load

pytestmark = pytest.mark.gpu

# Left out: what is about the CPU's threads, what the cpu backend refuses, and what picks its backends itself.
BODIES = {
    "append": (),
    "attend": (),
    "attend_records": (),
    "attend_top": ("test_threads_change_nothing", "test_threads_change_nothing_in_append"),
    "evict": (),
    "score": ("test_groups_beyond_the_kernels_room_are_refused",),
    "select": ("test_any_few_scores",),
}
for _name, _without in BODIES.items():
    _module = load(f"kernels/test_{_name}.py")
    for _test, _body in bodies_of(_module, without=_without).items():
        globals()[f"{_test}__{_name}"] = _body
    if hasattr(_module, "store"):
        store = _module.store  # a fixture that these bodies ask for
