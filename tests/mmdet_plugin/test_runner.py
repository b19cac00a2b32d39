"""Workers of a run's data loaders."""

import os

import pytest
from torch.utils.data import Dataset

from sp_fast.mmdet_plugin.runner import Runner


class Groups(Dataset):
    """Process group and process of the worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return index, os.getpgid(0), os.getpid()


@pytest.mark.skipif(not hasattr(os, "setpgrp"), reason="no process groups")
@pytest.mark.parametrize("seed", [None, 0])
def test_workers_do_not_get_signals_to_the_group_of_the_training(seed) -> None:
    loader = Runner.build_dataloader(
        dict(
            batch_size=1,
            num_workers=1,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=Groups(),
            collate_fn=dict(type="pseudo_collate"),
        ),
        seed=seed,
    )
    groups = list(loader)
    assert [index for ((index,), _, _) in groups] == [0, 1, 2, 3]
    assert all(group == process != os.getpgrp() for (_, (group,), (process,)) in groups)
