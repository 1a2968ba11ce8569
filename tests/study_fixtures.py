"""A study on a tiny backbone that takes seconds: data, model folder, weights, study file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from raggd.adaptation.base_adapter import save_base
from raggd.adaptation.predictors.base import MeanPredictor, MLPPredictor, save_predictor
from raggd.backbone.load import Backbone
from raggd.methods.spec import BASE_FILE, MEAN_FILE, PREDICTOR_FILE
from raggd.records import RunRecord
from tiny import random_base
from workflow_fixtures import save_backbone, write_data

ALL = ("query-only", "vanilla-rag", "base", "mean-update", "tt-sgd", "rag-gd")


class Quiet:
    """A progress that remembers its labels."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.steps: list[tuple[str, int, int | None]] = []

    def __call__(self, label: str, done: int, total: int | None) -> None:
        assert total is None or done <= total
        self.labels.append(label)
        self.steps.append((label, done, total))

    def say(self, label: str) -> None:
        self.labels.append(label)


@dataclass(frozen=True)
class World:
    """What a study reads."""

    root: Path
    data: Path
    model: Path
    weights: Path

    def study(
        self,
        methods: Sequence[str] = ALL,
        *,
        name: str = "study",
        benchmarks: Sequence[str] = ("nq", "popqa"),
        retrievers: Sequence[str] = ("bm25", "again"),
        questions: int = 6,
        weights: Path | None = None,
        extra: str = "",
    ) -> Path:
        """Write a study file of one backbone and say where it lies."""
        listed = "".join(f'[[retrievers]]\nname = "{label}"\n' for label in retrievers)
        text = f"""
            {extra}
            [backbone]
            dtype = "float32"
            context_tokens = 256
            [data]
            folder = {json.dumps(str(self.data))}
            [retrieval]
            top_k = 2
            [target]
            demonstrations = 2
            steps = 2
            learning_rate = 0.1
            max_tokens = 160
            [evaluation]
            benchmarks = {json.dumps(list(benchmarks))}
            questions = {questions}
            draws = 2
            batch = 4
            max_answer_tokens = 4
            answer_loss = true
            {listed}
            [[backbones]]
            name = "tiny"
            model = {json.dumps(str(self.model))}
            weights = {json.dumps(str(weights or self.weights))}
            methods = {json.dumps(list(methods))}
        """
        path = self.root / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path


def write_weights(backbone: Backbone, folder: Path, seed: int = 1) -> Path:
    """Random weights that change the answers: base adapter, mean update, predictor."""
    base = random_base(backbone, seed)
    save_base(folder / BASE_FILE, base)
    torch.manual_seed(seed)
    vector = 0.2 * torch.randn(base.spec.size)
    save_predictor(folder / MEAN_FILE, MeanPredictor(base.spec, base.fingerprint, vector))
    predictor = MLPPredictor(base.spec, base.fingerprint, base.spec.d_in, 8, 4)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_predictor(folder / PREDICTOR_FILE, predictor)
    return folder


def make_world(backbone: Backbone, root: Path) -> World:
    """Everything on disk, for the real way of loading."""
    data = write_data(root / "data")
    model = save_backbone(backbone, root / "model")
    return World(root, data, model, write_weights(backbone, root / "weights"))


def read_records(out: Path) -> dict[str, RunRecord]:
    """The records of a study by their path below it."""
    found = {}
    for path in sorted(out.glob("*/*/seed-*/*.json")):
        name = path.relative_to(out).as_posix()
        found[name] = RunRecord.from_json(path.read_text(encoding="utf-8"), source=name)
    return found


def lasting(records: dict[str, RunRecord]) -> dict[str, dict[str, Any]]:
    """Records without what differs from run to run: time and command line."""
    passing = {"cost", "created", "command"}
    return {
        name: {k: v for k, v in asdict(record).items() if k not in passing}
        for name, record in records.items()
    }
