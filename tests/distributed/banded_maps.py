"""The slow model of a map that is divided by rows: in one process, a map for each range of rows."""

from __future__ import annotations

import torch

from torchrec.modules.collision.features import split_values
from torchrec.modules.mc_modules import ManagedCollisionModule, MCHManagedCollisionModule


class BandedMap(ManagedCollisionModule):
    """Asks, id by id, the map of the range of rows that has the id's home."""

    def __init__(self, whole: MCHManagedCollisionModule, bands: list[range]) -> None:
        super().__init__("cpu")
        self.homes_of, self.offset, self.size = (
            whole.homes(),
            whole.output_offset,
            whole.output_size(),
        )
        self.bands, self.changed, self.parts = [], [], torch.nn.ModuleList()
        for band in bands:
            first, end = max(band.start, self.offset), min(band.stop, self.offset + self.size)
            if end - first >= 2:
                self.bands.append(end)
                self.parts.append(whole.rebuild_with_output_id_range((first, end)))

    @property
    def output_offset(self):
        return self.offset

    def forward(self, features, mutate_miss_lengths=True):
        ids = torch.cat([jt.values() for jt in features.values()])
        owners = [
            next((p for p, end in enumerate(self.bands) if home < end), len(self.bands) - 1)
            for home in self.homes_of.homes_of(ids, "f").tolist()
        ]
        rows = torch.empty_like(ids)
        for number, part in enumerate(self.parts):
            mine = torch.tensor([owner == number for owner in owners], dtype=torch.bool)
            mapped = part.map_keys(None, {"f": ids[mine]})
            rows[mine] = mapped.rows[0]
            if mapped.changed is not None:
                self.changed.append(mapped.changed)
        return split_values(features, rows)

    def evict(self):
        found, self.changed = self.changed, []
        return torch.cat(found) if found else None

    def held(self):
        found = [part.held() for part in self.parts]
        return torch.cat([rows for rows, _ in found]), torch.cat([ids for _, ids in found])

    def preprocess(self, features):
        return features

    def remap(self, features, mutate_miss_lengths=True, write_weights=None):
        raise NotImplementedError

    def input_size(self):
        return 2**63 - 1

    def output_size(self):
        return self.size

    def open_slots(self):
        return sum(part.open_slots() for part in self.parts)

    def rebuild_with_output_id_range(self, output_id_range, output_segments=None, device=None):
        raise NotImplementedError
