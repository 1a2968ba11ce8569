"""Everything that needs a graphics card, in one script: `make gpu-check`.

Ends within eight minutes on a machine with torch and transformers, without a network; what else is
missing is installed beside the checkout from a folder of wheels. Every part that fails is recorded
with its reason, and the others go on. `--quick` runs the same on a processor, on tiny shapes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "gpu-check"
"""Where wheels are unpacked that the machine lacks."""


@dataclass(frozen=True)
class Plan:
    """What is run."""

    shape: str  # of the prices, with their `dtypes` and `lengths`
    trained: str  # shape of the trainings, each of so many `steps`
    dtypes: tuple[str, ...]
    lengths: dict[str, int]
    rounds: int  # of each comparison
    steps: int
    questions: int  # answered on the card and on the processor
    # moment (of `time.monotonic`) after which no part is begun
    deadline: float = field(default=0.0)
    only: tuple[str, ...] = ()  # first words of the parts that are run; none: all


FULL = Plan("qwen2.5-7b", "qwen2.5-0.5b", ("bfloat16", "nf4"), {}, 5, 20, 100)
QUICK = Plan(
    "tiny", "tiny", ("float32",), {"support": 24, "prompt": 24, "answer": 4, "steps": 2}, 1, 3, 4
)

GOALS = {
    "RAG-GD / one forward pass": 1.1,
    "RAG-GD / TT-SGD": 0.09,
    "8 rows: updates / base": 1.15,
    "1 rows: base / bare": 1.08,
    "8 rows: base / bare": 1.08,
    "decoding step / reading the weights": 2.0,
}
"""At most this, by the names of `raggd bench`; for the card's bfloat16."""


def install(wheels: Path) -> list[str]:
    """Unpack the wheels of a folder, which may be missing, that are not installed; name them.

    A wheel goes before what is installed in another version.
    """
    sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(SITE)]

    def missing(path: Path) -> bool:
        name, version = path.name.split("-")[:2]
        try:
            return importlib.metadata.version(name) != version
        except importlib.metadata.PackageNotFoundError:
            return True

    wanted = [path for path in sorted(wheels.glob("*.whl")) if missing(path)]
    if wanted:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile"]
        pip = [sys.executable, "-m", "pip", "install", *options]
        subprocess.run([*pip, "--target", str(SITE), *map(str, wanted)], check=True)
        importlib.invalidate_caches()
    return [path.name for path in wanted]


def machine() -> dict[str, Any]:
    """Return what everything ran on."""
    import torch
    import transformers

    card = torch.cuda.is_available()
    return {
        "card": torch.cuda.get_device_name() if card else None,
        "memory_gb": round(torch.cuda.mem_get_info()[1] / 1e9, 1) if card else None,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def tests(_: Plan) -> dict[str, Any]:
    """Return whether the tests that need a card pass, with their last lines."""
    import torch

    if not torch.cuda.is_available():
        return {"left out": "there is no card of NVIDIA"}
    if find_spec("pytest") is None:
        return {"left out": "pytest is not installed: put its wheel into the folder of wheels"}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(SITE)])
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "test_gpu.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return {"passed": done.returncode == 0, "said": done.stdout.strip().splitlines()[-12:]}


def _free() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prices(plan: Plan, dtype: str) -> dict[str, Any]:
    """Return the prices of the large shape with random weights, and the most memory."""
    import torch

    from raggd.evaluation.price import Lengths, measure_price, random_backbone, random_weights
    from raggd.progress import silent
    from raggd.settings import BackboneSettings

    card = torch.cuda.is_available()
    if card:
        torch.cuda.reset_peak_memory_stats()
    backbone = random_backbone(plan.shape, BackboneSettings(dtype=dtype))
    base, predictor = random_weights(backbone)
    lengths = Lengths(**plan.lengths)
    found = measure_price(backbone, base, predictor, lengths, plan.rounds, silent)
    peak = torch.cuda.max_memory_allocated() / 1e9 if card else None
    return {**found, "peak_gb": peak}


def trainings(plan: Plan) -> dict[str, Any]:
    """Return what a few steps of each stage took on random tokens."""
    import tempfile

    import torch

    from benchmarks.trainings import train_briefly
    from raggd.evaluation.price import random_backbone
    from raggd.settings import BackboneSettings

    auto = "auto" if torch.cuda.is_available() else "float32"
    backbone = random_backbone(plan.trained, BackboneSettings(dtype=auto))
    with tempfile.TemporaryDirectory() as folder:
        tokens = plan.lengths.get("support", 477)
        return train_briefly(backbone, Path(folder), plan.steps, tokens)


def answers(plan: Plan) -> dict[str, Any]:
    """Return how many answers of the card are those of the processor, both in float32."""
    import torch

    from raggd.assembly import Assembly
    from raggd.data.benchmarks import choose_by_hash, scored_questions, support_pool
    from raggd.evaluation.runner import support_sets
    from raggd.methods.answering import answer_batch, bounded_prompt
    from raggd.retrieval.evidence import evidence_for
    from raggd.settings import load_settings

    torch.backends.cuda.matmul.allow_tf32 = False

    def assembled(device: str) -> Assembly:
        changes = [f"backbone.device='{device}'", "backbone.dtype='float32'"]
        return Assembly(load_settings(None, changes))

    plain = assembled("cpu")
    settings, source = plain.settings, plain.source
    asked = choose_by_hash(scored_questions(source, "nq"), plan.questions, 0)
    passages = evidence_for(asked, plain.retriever, settings.retrieval.top_k)
    pool = support_pool(source, "nq")[: settings.target.demonstrations]
    support = support_sets("nq", [pool], plain.retriever, settings.retrieval.top_k)

    def answered(parts: Assembly) -> tuple[list[str], float]:
        row = parts.method(parts.adapting).adapt(support)[0]
        prompts = [
            bounded_prompt(settings, parts.backbone, row, q.text, shown)
            for q, shown in zip(asked, passages, strict=True)
        ]
        started = time.perf_counter()
        found = [
            answer
            for at in range(0, len(prompts), 8)
            for answer in answer_batch(
                parts.backbone, [row] * len(prompts[at : at + 8]), prompts[at : at + 8], 24
            )
        ]
        return found, round(time.perf_counter() - started, 2)

    expected, slow = answered(plain)
    found, fast = answered(assembled("auto"))
    same = sum(a == b for a, b in zip(expected, found, strict=True))
    return {"same": same, "of": len(asked), "processor_s": slow, "card_s": fast}


def parts_of(plan: Plan) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield everything that is checked, by name."""
    yield "tests", lambda: tests(plan)
    for dtype in plan.dtypes:
        yield f"prices, {dtype}", lambda dtype=dtype: prices(plan, dtype)  # type: ignore[misc]
    yield "trainings", lambda: trainings(plan)
    yield "answers", lambda: answers(plan)


def table(record: dict[str, Any]) -> str:
    """Return the record as a Markdown table of what was promised and found."""
    card = record["machine"]["card"] or "no card, processor"
    lines = [f"| {card} | goal | found | range |", "|---|---:|---:|---:|"]
    for part, found in record["parts"].items():
        for name, ratio in found.get("ratios", {}).items():
            goal = f"{GOALS[name]:g}" if name in GOALS else ""
            spread = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
            kind = part.removeprefix("prices, ")
            lines.append(f"| {name}, {kind} | {goal} | {ratio['ratio']:.3f} | {spread} |")
        for name, ms in found.get("ms", {}).items():
            lines.append(f"| {part}: {name}, ms | | {ms:,.1f} | |")
        if "same" in found:
            lines.append(
                f"| answers equal to the processor's, float32 | {found['of']} | {found['same']} | |"
            )
        if "passed" in found:
            lines.append(f"| tests | pass | {'pass' if found['passed'] else 'FAIL'} | |")
        for word in ("failed", "left out"):
            if word in found:
                lines.append(f"| {part} | | {word} | {found[word]} |")
    return "\n".join(lines) + "\n"


def check(plan: Plan, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all parts and return the record, ``gpu-check.json`` and ``.md``, written after each."""
    from raggd.files import write_json, write_text
    from raggd.provenance import origin

    record: dict[str, Any] = {"machine": machine(), "parts": {}, **origin()}
    for name, work in parts_of(plan):
        if plan.only and not name.startswith(plan.only):
            continue
        say(name)
        started = time.monotonic()
        if started > plan.deadline:
            found: dict[str, Any] = {"left out": "the time was over"}
        else:
            try:
                found = work()
            except Exception as error:  # one part that fails must not cost the others
                found = {"failed": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        _free()
        record["parts"][name] = {**found, "seconds": round(time.monotonic() - started, 1)}
        write_json(out / "gpu-check.json", record)
        write_text(out / "gpu-check.md", table(record))
    return record


def main() -> int:
    """Return 1 if a part failed; the table goes to standard output."""
    options = argparse.ArgumentParser(description="Check raggd on this machine's graphics card.")
    options.add_argument("--quick", action="store_true", help="tiny shapes, on any processor")
    options.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="folder of wheels")
    options.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-check")
    options.add_argument("--minutes", type=float, default=8.0, help="no part begins late")
    options.add_argument("--only", action="append", default=[], help="parts by their first words")
    chosen = options.parse_args()
    started = time.monotonic()
    unpacked = install(chosen.wheels)

    def say(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - started:5.0f} s  {text}\n")

    if unpacked:
        say(f"unpacked {', '.join(unpacked)}")
    from dataclasses import replace

    plan = QUICK if chosen.quick else FULL
    plan = replace(plan, deadline=started + 45 * chosen.minutes, only=tuple(chosen.only))
    record = check(plan, chosen.out, say)
    sys.stdout.write(table(record))
    return int(any("failed" in p or p.get("passed") is False for p in record["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
