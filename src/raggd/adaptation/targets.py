"""Support sets, drawn, rendered, encoded by backbone + W0, and their targets (paper section 5).

Targets are the updates that K steps of SGD on a set would make (equation 8). They are stored in
shards, resumable; denoised targets are a view of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggd.backbone.batch import Batch, answer_losses, last_states, make_batch
from raggd.backbone.interface import attach, check_fits, check_gradients
from raggd.backbone.load import Backbone
from raggd.core.inner_sgd import inner_sgd
from raggd.core.low_rank import BaseAdapter, Update, factors_of, tensors_of
from raggd.data.benchmarks import choose_by_hash
from raggd.data.prompts import Prompt, build_prompt, prompt_fingerprint
from raggd.files import is_whole, load_tensors, read_json, save_tensors, write_json
from raggd.progress import Progress, silent
from raggd.records import Demonstration, Question, RaggdError, SupportSet, content_id
from raggd.settings import TargetSettings

SHARD = 3  # support sets per shard: one batch of the inner loop, half a minute of two cores


def draw_supports(
    pool: Sequence[Question],
    size: int,
    draws: int,
    seed: int,
    purpose: str = "",  # as another seed: an evaluation must not draw the sets of a training
) -> list[list[Question]]:
    """Cut sets from a pool, shuffled by hash, anew when it is used up; a smaller one is refused."""
    if len(pool) < size:
        task = pool[0].task if pool else "?"
        raise RaggdError(
            f"the support pool of '{task}' holds {len(pool)} questions, a support set needs "
            f"{size}: lower target.demonstrations or give a larger pool."
        )
    sets: list[list[Question]] = []
    per_round = len(pool) // size
    for lap in range(-(-draws // per_round)):
        number = seed * 1_000_003 + lap
        number = int(content_id(purpose, str(number)), 16) if purpose else number
        order = choose_by_hash(pool, len(pool), number)
        sets += [list(order[i * size : (i + 1) * size]) for i in range(per_round)]
    return sets[:draws]


def answered_prompt(tokenizer: Any, shown: Demonstration, limit: int) -> Prompt:
    """Return a demonstration as the model is trained on it: passages, question, answer, end."""
    return build_prompt(tokenizer, shown.question, shown.passages, answer=shown.answer, limit=limit)


def support_batch(backbone: Backbone, supports: Sequence[SupportSet], limit: int) -> Batch:
    """Batch all demonstrations as rows, set after set; sets of two sizes are refused."""
    sizes = {len(s.demonstrations) for s in supports}
    if len(sizes) != 1:
        raise RaggdError(f"support sets of one batch must have one size, found {sorted(sizes)}.")
    prompts = [
        answered_prompt(backbone.tokenizer, shown, limit)
        for support in supports
        for shown in support.demonstrations
    ]
    return make_batch(prompts, backbone)


def encode_batch(backbone: Backbone, base: BaseAdapter, batch: Batch, sets: int) -> Tensor:
    """Return the states at the rows' end tokens under W0: (sets, N, hidden size), float32."""
    with attach(backbone, base):
        states = last_states(backbone, batch)
    return states.reshape(sets, -1, states.shape[-1])


def encode_supports(
    backbone: Backbone, base: BaseAdapter, supports: Sequence[SupportSet], limit: int
) -> Tensor:
    """Encode support sets of N demonstrations in one pass: (sets, N, hidden size), float32."""
    batch = support_batch(backbone, supports, limit)
    return encode_batch(backbone, base, batch, len(supports))


def sgd_updates(
    backbone: Backbone,
    base: BaseAdapter,
    batch: Batch,
    sets: int,
    settings: TargetSettings,
    start: Update | None = None,
) -> dict[int, Update]:
    """Run the inner loop of several support sets at once, each with its own update.

    The loss of a set is the mean over its demonstrations of the mean answer-token cross-entropy.
    The sum over sets is differentiated with respect to the per-set updates, so no set sees
    another's gradient. The batch holds the demonstrations of all sets, set after set, equally many
    each; all start from W0, or from an update per set, `start` (sets leading).

    Returned are, by K, `settings.steps` and those of `settings.keep`, the updates ``W^(K) - W0``
    with a leading axis of `sets`, detached.
    """
    per_set = batch.tokens.shape[0] // sets
    wanted = {settings.steps, *settings.keep}
    reached: dict[int, Update] = {}

    def update_of(tensors: list[Tensor]) -> Update:
        factors = factors_of(dict(zip(base.spec.shapes, tensors, strict=True)))
        return Update(base.spec, factors, base.fingerprint)

    def loss(steps: list[Tensor]) -> Tensor:
        with attach(backbone, base, update_of(steps), group=per_set):
            return answer_losses(backbone, batch).sum() / per_set

    def watch(taken: int, current: list[Tensor]) -> None:
        if taken in wanted:
            check_gradients(current)
            reached[taken] = update_of([p.detach() for p in current])

    if start is None:
        shapes = base.spec.shapes.values()
        first = [torch.zeros(sets, *shape, device=backbone.device) for shape in shapes]
    else:
        check_fits(backbone, base, start)
        first = [t.float().to(backbone.device) for t in tensors_of(start.factors).values()]
    inner_sgd(loss, first, settings.learning_rate, max(wanted), watch)
    return reached


def targets_of(
    backbone: Backbone, base: BaseAdapter, supports: Sequence[SupportSet], settings: TargetSettings
) -> tuple[dict[int, Update], Tensor]:
    """Compute targets, by K, and encoder states (sets, N, hidden size) of sets of equal size."""
    batch, sets = support_batch(backbone, supports, settings.max_tokens), len(supports)
    updates = sgd_updates(backbone, base, batch, sets, settings)
    return updates, encode_batch(backbone, base, batch, sets)


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets with the encoder states that predict them, in one order."""

    vectors: Tensor  # (n, spec.size) updates as vectors, bfloat16
    states: Tensor  # (n, N, hidden size) states of the demonstrations, float32
    tasks: tuple[str, ...]  # task of each
    support_ids: tuple[str, ...]  # content hash of each support set
    demonstration_ids: tuple[tuple[str, ...], ...]  # ids of each set's questions
    base: str  # fingerprint of the base adapter
    identity: str  # hash of all that the store was made from

    def __len__(self) -> int:
        return len(self.tasks)

    def take(self, numbers: Sequence[int]) -> Targets:
        """Select some of them by their positions, in the order given."""
        return replace(
            self,
            vectors=self.vectors[list(numbers)],
            states=self.states[list(numbers)],
            tasks=tuple(self.tasks[i] for i in numbers),
            support_ids=tuple(self.support_ids[i] for i in numbers),
            demonstration_ids=tuple(self.demonstration_ids[i] for i in numbers),
        )


@dataclass(frozen=True)
class TargetStore:
    """A folder in which the targets of support sets of equal size are made, shard by shard."""

    backbone: Backbone
    base: BaseAdapter
    supports: Sequence[SupportSet]
    settings: TargetSettings
    folder: Path

    @cached_property
    def identity(self) -> str:
        """Hash of everything that its content depends on: 16 hexadecimal digits."""
        return content_id(
            self.backbone.fingerprint,
            self.base.fingerprint,
            prompt_fingerprint(self.backbone.tokenizer),
            self.settings.model_dump_json(),
            *(s.id for s in self.supports),
        )

    def open(self) -> None:
        """Make the folder, or find it as it was made; targets of another run are refused."""
        header = self.folder / "store.json"
        if not header.exists():
            facts = {"identity": self.identity, "sets": len(self.supports), "shard": SHARD}
            write_json(header, facts | {"steps": self.settings.steps})
        found, _ = _read_header(header)
        if found != self.identity:
            raise RaggdError(
                f"{self.folder} holds targets of another run (identity {found}, this run is "
                f"{self.identity}): base, settings or support sets changed. Choose another folder."
            )

    def file(self, start: int) -> Path:
        """Return the file of the shard whose first set is number `start`."""
        return self.folder / f"shard-{start // SHARD:05d}.safetensors"

    def missing(self) -> list[int]:
        """Return the number of the first set of every shard that is not there, or not whole."""
        return [n for n in range(0, len(self.supports), SHARD) if not is_whole(self.file(n))]

    def build(self, start: int) -> None:
        """Compute the targets of the shard whose first set is number `start`."""
        part = self.supports[start : start + SHARD]
        updates, states = targets_of(self.backbone, self.base, part, self.settings)
        vectors = {f"vectors-k{k}": u.vector().to(torch.bfloat16) for k, u in updates.items()}
        sets = [
            {"task": s.task, "id": s.id, "demonstrations": [d.id for d in s.demonstrations]}
            for s in part
        ]
        about = {"base": self.base.fingerprint, "identity": self.identity, "sets": json.dumps(sets)}
        save_tensors(self.file(start), vectors | {"states": states}, about)

    def build_all(self, progress: Progress = silent, label: str = "targets") -> None:
        """Compute what is missing: interrupted at any moment and called again, it continues."""
        self.open()
        for start in self.missing():
            self.build(start)
            progress(label, min(start + SHARD, len(self.supports)), len(self.supports))


def _read_header(header: Path) -> tuple[str, int]:
    if not header.exists():
        raise RaggdError(f"no targets in {header.parent}: make them there with `raggd targets`.")
    found = read_json(header, what="target store")
    if not isinstance(found, dict) or not {"identity", "steps"} <= set(found):
        raise RaggdError(f"{header} is not the header of a target store: choose another folder.")
    return str(found["identity"]), int(found["steps"])


def load_targets(folder: Path, steps: int = 0) -> Targets:
    """Read a store, as far as it is built: of K `steps`, or 0 for its own; else it is refused."""
    identity, own_steps = _read_header(folder / "store.json")
    key = f"vectors-k{steps or own_steps}"
    vectors, states, sets, base = [], [], [], ""
    for path in sorted(folder.glob("shard-*.safetensors")):
        tensors, metadata = load_tensors(path)
        if metadata.get("identity") != identity:
            raise RaggdError(f"{path} belongs to another run than {folder}/store.json: remove it.")
        if key not in tensors:
            known = ", ".join(sorted(name for name in tensors if name != "states"))
            raise RaggdError(
                f"{folder} holds no {key} (only {known}): name that K in target.keep and make the "
                "targets again."
            )
        vectors.append(tensors[key])
        states.append(tensors["states"])
        sets += json.loads(metadata["sets"])
        base = metadata["base"]
    if not vectors:
        raise RaggdError(f"{folder} holds no targets yet: make them with `raggd targets`.")
    return Targets(
        torch.cat(vectors),
        torch.cat(states),
        tuple(s["task"] for s in sets),
        tuple(s["id"] for s in sets),
        tuple(tuple(s["demonstrations"]) for s in sets),
        base,
        identity if steps in {0, own_steps} else content_id(identity, key),
    )


def split_held_out(targets: Targets, share: float) -> tuple[Targets, Targets]:
    """Split targets into those to train on and a share of each task, by hash, kept from it.

    At least one set of a task is held out; a training set that shares a question with it goes.
    """
    held: list[int] = []
    for task in sorted(set(targets.tasks)):
        numbers = [i for i, t in enumerate(targets.tasks) if t == task]
        ranked = sorted(numbers, key=lambda i: content_id("held out", targets.support_ids[i]))
        held += ranked[: max(1, round(share * len(ranked))) if share else 0]
    asked = {q for i in held for q in targets.demonstration_ids[i]}
    kept = [i for i, own in enumerate(targets.demonstration_ids) if not asked & set(own)]
    return targets.take(kept), targets.take(sorted(held))


def denoised(targets: Targets) -> Targets:
    """Replace each target by the average over the task's other sets that share no question.

    The update of one support is mostly noise; what its task's sets share helps other questions. A
    set without others keeps its own.
    """
    rows = []
    for i, task in enumerate(targets.tasks):
        own = set(targets.demonstration_ids[i])
        others = [
            j
            for j, other in enumerate(targets.tasks)
            if other == task and not own & set(targets.demonstration_ids[j])
        ]
        chosen = others or [i]
        rows.append(targets.vectors[chosen].float().mean(0).to(torch.bfloat16))
    return replace(targets, vectors=torch.stack(rows))
