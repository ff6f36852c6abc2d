"""Compare what tables do with ids they have no row for, on a stream whose ids come and go.

    python examples/id_policies.py docs/images/id_policies.svg

Ids are skewed (few come often) and drift: all the time new ones appear, grow common and fade. Every policy has the same
memory, for weights, state of the optimizer and map together: who needs a map has fewer rows. Each batch is predicted
first and learnt from afterwards, so nothing is judged on what it has seen.
"""

from __future__ import annotations

import argparse
import bisect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    IdPolicy,
    KeyedJaggedTensor,
    OptimizerType,
)
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.ops.embedding import hash_ids

DIM = 32
ROWS = 2000  # of a table without a map, whose memory every policy may use
BATCH = 1000
ACTIVE = 20_000  # ids that are about at any time
LIFE = 600  # batches from an id's first to its last
WINDOW = 50  # batches a point of the figure stands for


def stream(batches: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids and the probability that each sample is positive."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, ACTIVE + 1, dtype=torch.float64) ** 1.1
    rank = torch.randperm(ACTIVE, generator=generator)
    for now in range(batches):
        popular = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        # Each place in the ranking is held by one id for LIFE batches, then by the next one.
        place = rank[popular]
        generation = (now + place * LIFE // ACTIVE) // LIFE
        ids = generation * ACTIVE + place
        taste = hash_ids(-7 * ids, 10_000).double() / 10_000  # as good as random, and fixed
        yield ids, torch.sigmoid(4 * taste - 2.5)


def plain(**options: object) -> nn.Module:
    """Return a table without a map."""
    config = EmbeddingBagConfig(name="t", feature_names=["id"], **shape(), **options)  # type: ignore[arg-type]
    return EmbeddingBagCollection(tables=[config])


def managed(rows: int, policy: MCHEvictionPolicy, residual: int | None = None) -> nn.Module:
    """Return a table whose rows a map gives to ids, some of them perhaps to all others by hash."""
    config = EmbeddingBagConfig(
        name="t",
        feature_names=["id"],
        num_embeddings=rows,
        **shape(),  # type: ignore[arg-type]
    )
    own = rows - (residual or 0)
    module = MCHManagedCollisionModule(own, "cpu", policy, 5, mch_size=residual, name="t")
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=[config]), ManagedCollisionCollection({"t": module}, [config])
    )


def shape() -> dict[str, object]:
    """Return what all tables have in common."""
    start = {"weight_init_min": -0.01, "weight_init_max": 0.01}
    return {"embedding_dim": DIM, "optimizer": OptimizerType.ROWWISE_ADAGRAD, "lr": 0.3, **start}


POLICIES: dict[str, Callable[[int], nn.Module]] = {
    "plain rows, the rest unknown": lambda rows: plain(
        num_embeddings=rows - 1, id_policy=IdPolicy.UNKNOWN
    ),
    "hash_size: half plain, half hashed": lambda rows: plain(
        num_embeddings=rows // 2, hash_size=rows - rows // 2
    ),
    "hash: all ids share all rows": lambda rows: plain(
        num_embeddings=rows, id_policy=IdPolicy.HASH
    ),
    "managed, LFU": lambda rows: managed(rows, LFU_EvictionPolicy()),
    "managed, DistanceLFU": lambda rows: managed(rows, DistanceLFU_EvictionPolicy()),
    "managed, DistanceLFU, residual zone": lambda rows: managed(
        rows, DistanceLFU_EvictionPolicy(), rows // 4
    ),
}


def size_of(tables: nn.Module) -> int:
    """Return the bytes of weights, state of the optimizer and map."""
    (embeddings,) = (m for m in tables.modules() if isinstance(m, EmbeddingBagCollection))
    states = embeddings.fused_optimizer.state_dict()["state"].values()
    state = [tensor for tensors in states for tensor in tensors.values()]
    return sum(tensor.nbytes for tensor in [*tables.parameters(), *tables.buffers(), *state])


def rows_within(size: int, make: Callable[[int], nn.Module]) -> int:
    """Return the most rows that a policy can have in so many bytes."""
    return bisect.bisect(range(ROWS + 1), size, lo=8, key=lambda rows: size_of(make(rows))) - 1


def known_first(ids: Tensor, vocabulary: Tensor) -> Tensor:
    """Number ids by how often they came at the start: what a vocabulary does for plain rows."""
    place = torch.searchsorted(vocabulary.sort().values, ids).clamp(max=len(vocabulary) - 1)
    number = vocabulary.argsort()[place]
    return torch.where(vocabulary[number] == ids, number, ids + 10**6)


def auc(scores: Tensor, labels: Tensor) -> float:
    """Return the chance that a positive sample has a higher score than a negative one."""
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # ties share their middle rank
    positive = labels.bool()
    p, n = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].double().sum() - p * (p + 1) / 2) / (p * n))


def run(make: Callable[[], nn.Module] | None, batches: int) -> tuple[list[float], list[float]]:
    """Return AUC and the share of rows that learn, for each window; ``make=None``: the true scores."""
    torch.manual_seed(0)
    tables = make() if make else None
    head = nn.Linear(DIM, 1)
    optimizer = torch.optim.Adagrad(head.parameters(), lr=0.05)
    labels_generator = torch.Generator().manual_seed(1)
    start = torch.cat([ids for ids, _ in stream(WINDOW)])
    seen, counts = start.unique(return_counts=True)
    vocabulary = seen[counts.argsort(descending=True, stable=True)][: ROWS - 1]
    numbered = isinstance(tables, EmbeddingBagCollection)
    quality, use, scores, labels = [], [], [], []
    before = torch.zeros(0)
    for number, (ids, truth) in enumerate(stream(batches), start=1):
        label = torch.bernoulli(truth, generator=labels_generator).float()
        logit = torch.logit(truth).float()
        if tables is not None:
            values = known_first(ids, vocabulary) if numbered else ids
            features = KeyedJaggedTensor(
                ["id"], values, lengths=torch.ones(BATCH, dtype=torch.int64)
            )
            pooled = tables(features)
            logit = head((pooled if numbered else pooled[0]).values())[:, 0]
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(logit, label, reduction="sum").backward()
            optimizer.step()
        scores.append(logit.detach())
        labels.append(label)
        if number % WINDOW == 0:
            quality.append(auc(torch.cat(scores), torch.cat(labels)))
            scores, labels = [], []
            if tables is not None:
                weight = next(tables.parameters()).detach()
                if len(before):
                    use.append(float((weight != before).any(1).float().mean()))
                before = weight.clone()
    return quality, use


COLOURS = ["#999999", "#b8860b", "#cc3311", "#33bbee", "#0055cc", "#117733", "#000000"]


def panel(
    lines: dict[str, list[float]], top: int, title: str, low: float, high: float, first: int
) -> str:
    """Draw one set of lines as SVG."""
    left, width, height = 50, 600, 220
    longest = max(len(line) for line in lines.values()) + first
    parts = [f'<text x="{left}" y="{top - 8}" font-weight="bold">{title}</text>']
    for step in range(5):
        value = low + (high - low) * step / 4
        y = top + height - height * step / 4
        parts += [
            f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#ddd"/>',
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:.2f}</text>',
        ]
    for colour, line in zip(COLOURS, lines.values(), strict=False):
        points = " ".join(
            f"{left + width * (i + first) / (longest - 1):.1f},"
            f"{top + height - height * (min(max(v, low), high) - low) / (high - low):.1f}"
            for i, v in enumerate(line)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    return "\n".join(parts)


def figure(quality: dict[str, list[float]], use: dict[str, list[float]], batches: int) -> str:
    """Draw AUC and the use of rows over time."""
    low = 0.5
    high = 0.8
    caption = (
        f"{batches} batches of {BATCH}; memory of {ROWS} rows of {DIM} and their state; "
        f"{ACTIVE} ids at any time, each for {LIFE} batches"
    )
    legend = "\n".join(
        f'<rect x="670" y="{40 + 22 * i}" width="14" height="4" fill="{colour}"/>'
        f'<text x="690" y="{46 + 22 * i}">{name}</text>'
        for i, (colour, name) in enumerate(zip(COLOURS, quality, strict=False))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 930 560" font-family="sans-serif" font-size="12">
<rect width="930" height="560" fill="white"/>
{panel(quality, 30, "AUC on batches not seen yet", low, high, 0)}
{panel(use, 300, "Occupancy: share of rows that learnt something in the last 50 batches", 0, 1, 1)}
<text x="350" y="545" text-anchor="middle">{caption}</text>
{legend}
</svg>
"""


def main() -> None:
    """Run all policies and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("id_policies.svg"))
    parser.add_argument("--batches", type=int, default=1500)
    arguments = parser.parse_args()
    quality, use, rows = {}, {}, {}
    size = size_of(POLICIES["hash: all ids share all rows"](ROWS))
    for name, make in POLICIES.items():
        rows[name] = rows_within(size, make)
        quality[name], use[name] = run(partial(make, rows[name]), arguments.batches)
    quality["the true probabilities"], _ = run(None, arguments.batches)
    half = len(quality["managed, LFU"]) // 2
    print(f"{size} bytes each; second half of the stream    AUC  rows  in use")
    for name, line in quality.items():
        shares = use.get(name, [])[half:]
        filled = f"{rows[name]:6}{100 * sum(shares) / len(shares):6.0f} %" if shares else ""
        print(f"{name:40} {sum(line[half:]) / len(line[half:]):.4f}{filled}")
    arguments.out.write_text(figure(quality, use, arguments.batches))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
