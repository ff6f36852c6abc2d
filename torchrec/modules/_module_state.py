"""State that modules keep beside their parameters."""

from __future__ import annotations

from torch import nn

from torchrec.types import CacheMixin

_HASH_ZCH_BUCKET = "_hash_zch_bucket"


def reset_module_states_post_sharding(module: nn.Module) -> None:
    """Make a module and its submodules forget what they cached before the model was sharded.

    Args:
        module: the sharded model.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import reset_module_states_post_sharding
        >>> reset_module_states_post_sharding(torch.nn.Linear(2, 2))  # nothing cached
    """
    for submodule in module.modules():
        if isinstance(submodule, CacheMixin):
            submodule.clear_cache()


def make_hash_zch_buckets_non_persistent(module: nn.Module) -> int:
    """Leave the buckets of multi-probe hash modules out of the state dict.

    The buckets say how many shares the ids of a table were hashed into. A model that is loaded into
    another number of shares has to keep its own.

    Args:
        module: model whose submodules may have a buffer named ``_hash_zch_bucket``.

    Returns:
        The number of buffers left out.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import make_hash_zch_buckets_non_persistent
        >>> make_hash_zch_buckets_non_persistent(torch.nn.Linear(2, 2))
        0
    """
    count = 0
    for submodule in module.modules():
        buffers = dict(submodule.named_buffers(recurse=False))
        if _HASH_ZCH_BUCKET in buffers:
            bucket = buffers[_HASH_ZCH_BUCKET]
            submodule.register_buffer(_HASH_ZCH_BUCKET, bucket, persistent=False)
            count += 1
    return count
