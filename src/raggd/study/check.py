"""What can be refused before anything is computed: weights that do not fit, pools too small."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from raggd.assembly import Assembly
from raggd.data.benchmarks import support_pool
from raggd.files import tensor_header
from raggd.methods.spec import BASE_FILE, FILES_OF, made_by
from raggd.records import RaggdError
from raggd.study.plan import Cell
from raggd.study.settings import StudySettings


def weight_problems(folder: Path, method: str) -> Iterator[str]:
    """Say what is wrong with the weights of a method, a sentence each.

    Yields:
        The sentences.
    """
    from raggd.adaptation.base_adapter import load_base

    files = FILES_OF[method]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        made = [f"{name} (made by `{made_by(name)}`)" for name in missing]
        yield f"{method} needs {', '.join(made)} in {folder}"
        return
    made_for = {name: tensor_header(folder / name).get("base") for name in files}
    named = {name: base for name, base in made_for.items() if name != BASE_FILE and base}
    if not named:
        return
    fingerprint = load_base(folder / BASE_FILE).fingerprint
    for name, base in named.items():
        if base != fingerprint:
            yield (
                f"{method}: {folder / name} was trained for base adapter {base}, the one beside it "
                f"is {fingerprint}"
            )


def weights_folder(study: StudySettings, backbone: str) -> Path:
    """Return the weights folder of a backbone, given its label."""
    settings = study.run_settings(backbone, study.retrievers[0].name, study.seeds[0])
    return Assembly(settings).weights


def check_cells(study: StudySettings, cells: Sequence[Cell], *, pools: bool = True) -> None:
    """Refuse cells that cannot be computed, before any of them is.

    Args:
        study: the settings.
        cells: to be computed.
        pools: whether their support sets are drawn from the data source.

    Raises:
        RaggdError: weights are missing or were trained for another base, or a support pool is
            missing or too small; all of a kind are named at once.
    """
    _check_weights(study, {(cell.backbone, cell.method) for cell in cells})
    if pools:
        _check_pools(study, list(dict.fromkeys(cell.benchmark for cell in cells)))


def _check_weights(study: StudySettings, wanted: Collection[tuple[str, str]]) -> None:
    problems = []
    for backbone in study.backbones:
        methods = [m for m in backbone.methods if (backbone.name, m) in wanted]
        needing = [m for m in methods if FILES_OF.get(m)]
        if needing:
            folder = weights_folder(study, backbone.name)
            problems += [p for m in needing for p in weight_problems(folder, m)]
    if problems:
        raise RaggdError(
            f"{'; '.join(problems)}. Train what is missing, name the right folder "
            "(adapter.weights; in a study [[backbones]] weights), or run the rest by --methods and "
            "--backbones."
        )


def pool_size(parts: Assembly, benchmark: str, demonstrations: int) -> int:
    """Count the questions that support sets of a benchmark are drawn from.

    Args:
        parts: of a run, for the data.
        benchmark: name.
        demonstrations: of a support set.

    Returns:
        The number.

    Raises:
        RaggdError: there is no support pool, or it is too small.
    """
    size = len(support_pool(parts.source, benchmark))
    if size < demonstrations:
        raise RaggdError(
            f"the support pool of {benchmark} holds {size} questions, fewer than "
            f"target.demonstrations = {demonstrations}."
        )
    return size


def _check_pools(study: StudySettings, benchmarks: Collection[str]) -> None:
    first = (study.backbones[0].name, study.retrievers[0].name, study.seeds[0])
    parts = Assembly(study.run_settings(*first))
    problems = []
    for name in benchmarks:
        try:
            pool_size(parts, name, study.target.demonstrations)
        except RaggdError as error:
            problems.append(str(error))
    if problems:
        raise RaggdError(f"{' '.join(problems)} Add questions, or run the rest by --benchmarks.")
