"""For tests of programs: free ports, process groups, comparisons of models; a public path over private modules."""

from torchrec.test_utils._models import (
    assert_state_buffers_parameters_equal,
    get_state_buffers_parameters,
)
from torchrec.test_utils._processes import (
    cuda_device_count,
    get_free_port,
    init_distributed_single_host,
    seed_and_log,
)
from torchrec.test_utils._sanitizers import (
    is_asan,
    is_asan_or_tsan,
    is_tsan,
    skip_if_asan,
    skip_if_asan_class,
)

__all__ = [
    "assert_state_buffers_parameters_equal",
    "cuda_device_count",
    "get_free_port",
    "get_state_buffers_parameters",
    "init_distributed_single_host",
    "is_asan",
    "is_asan_or_tsan",
    "is_tsan",
    "seed_and_log",
    "skip_if_asan",
    "skip_if_asan_class",
]
