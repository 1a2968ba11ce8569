"""Fixtures that several test files share; what they are made of stands in ``tiny.py``.

torch and transformers load with the first fixture that needs them, so light test files stay light.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from raggd.backbone.load import Backbone
    from raggd.core.low_rank import BaseAdapter
    from raggd.data.prompts import Prompt
    from raggd.records import SupportSet
    from serving_fixtures import Running
    from study_fixtures import World


settings.register_profile("usual", deadline=None)
settings.register_profile("long", deadline=None, max_examples=10_000)  # --hypothesis-profile=long
settings.load_profile("usual")


@pytest.fixture(scope="session")
def frozen_backbone() -> Backbone:
    """The model behind `tiny_backbone`, made once."""
    from tiny import make_backbone

    return make_backbone()


@pytest.fixture
def tiny_backbone(frozen_backbone: Backbone) -> Iterator[Backbone]:
    """A random tiny Llama in float32 with a chat template; every test must leave it as it was."""
    from tiny import hooks_of

    yield frozen_backbone
    assert hooks_of(frozen_backbone) == 0, "the test left adapter hooks on the shared model"


@pytest.fixture
def base(tiny_backbone: Backbone) -> BaseAdapter:
    """A base adapter of `tiny_backbone` that changes its outputs."""
    from tiny import random_base

    return random_base(tiny_backbone)


@pytest.fixture
def supports() -> list[SupportSet]:
    """Three support sets of two demonstrations."""
    from tiny import support_sets

    return support_sets()


@pytest.fixture
def examples(tiny_backbone: Backbone, supports: list[SupportSet]) -> list[Prompt]:
    """Every demonstration of `supports` as an answered prompt."""
    from raggd.adaptation.targets import answered_prompt

    return [
        answered_prompt(tiny_backbone.tokenizer, d, 200) for s in supports for d in s.demonstrations
    ]


@pytest.fixture(scope="module")
def world(frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """What a tiny study reads, with a cache of its own."""
    from study_fixtures import make_world

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_world(frozen_backbone, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(
    frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A running server on a tiny model."""
    from serving_fixtures import served

    with served(frozen_backbone, tmp_path_factory) as started:
        yield started


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, named by RAGGD_DATA or beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RAGGD_DATA") or beside)
    if not (folder / "corpus").is_dir():
        pytest.skip(f"no real data at {folder}: set RAGGD_DATA to a folder in FlashRAG's layout")
    return folder
