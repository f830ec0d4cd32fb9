"""`im2sp-evaluate`: scores of image descriptions in speech or text, beside the paper's.

    im2sp-evaluate --run runs/a --shards shards --split val
    im2sp-evaluate --captions captions.json --json > scores.json
    im2sp-evaluate --scores runs/a runs/b --out report

`evaluation.config.EvaluateConfig` documents the settings, `evaluation.chain` the stages.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_file, read_json
from im2sp.shards.stores import folder_or_url
from im2sp.tools.evaluation.captions import Scores, bleu, bleu_sums, score_captions
from im2sp.tools.evaluation.chart import draw_chart
from im2sp.tools.evaluation.config import EvaluateConfig
from im2sp.tools.evaluation.intervals import interval
from im2sp.tools.evaluation.paper import Row
from im2sp.tools.evaluation.tables import (
    as_json,
    as_markdown,
    as_text,
    make_tables,
    report,
    row_of,
    rows_of_opinions,
)
from im2sp.tools.listening.score import SCORES_FORM

if TYPE_CHECKING:
    from im2sp.tools.evaluation.chain import Chain
    from im2sp.tools.evaluation.samples import Judged

RESULT_NAME = "scores.json"
TABLES_NAME, TABLES_JSON_NAME, CHART_NAME = "tables.md", "tables.json", "tables.svg"


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run the stages that are not complete yet, score, and return the results as JSON values.

    Raises:
        ValueError: A file, package or model is missing or does not fit.
    """
    if config.captions is not None:
        candidates, references = read_captions(config.captions)
        scores = _captions(config, candidates, references)
        name = config.captions.name
        return {"name": name, "data": config.data, "captions": scores.as_json()}
    from im2sp.shards import ShardDataset
    from im2sp.tools.evaluation.chain import run_chain
    from im2sp.tools.evaluation.samples import find_images, judged_samples
    from im2sp.tools.evaluation.stages import StageFolder

    assert config.shards is not None
    dataset = ShardDataset(config.shards, config.split)
    image_column, images = "image_units", None
    if config.run is not None:
        from im2sp.trainer.transfer import unit_columns_of

        image_column = unit_columns_of(config.run).get("image", image_column)
        images = find_images(config)
    items, num_without = judged_samples(dataset, config.topline, config.limit, image_column, images)
    if not items:
        needed = "an image and a caption" if config.topline is None else "speech and two captions"
        raise ValueError(f"{dataset.path}: no sample of split {config.split!r} has {needed}")
    folder = StageFolder(_out(config))
    chain = run_chain(config, dataset, items, folder, images)
    result = _results(config, items, chain)
    result["num_left_out"] = num_without
    return result


def read_captions(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read candidates and references from a JSON file.

    Raises:
        ValueError: It cannot be read, or has another structure.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    parts = content if isinstance(content, dict) else {}
    candidates, references = parts.get("candidates"), parts.get("references")
    if not isinstance(candidates, dict) or not isinstance(references, dict):
        raise ValueError(
            f'{path}: expected {{"candidates": {{id: text}}, "references": {{id: [text]}}}}'
        )
    return candidates, references


def read_rows(paths: Sequence[Path], data: str | None) -> list[Row]:
    """Our rows from files of results.

    Args:
        paths: Files, or folders with a scores.json in them or in one of their folders.
        data: Name of the dataset of all rows; None for that in each file.

    Raises:
        ValueError: A path has no results, or a file another structure.
    """
    rows: list[Row] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(path.glob(RESULT_NAME)) or sorted(path.glob(f"*/{RESULT_NAME}"))
        if not files:
            raise ValueError(
                f"--scores {path}: neither {RESULT_NAME} nor */{RESULT_NAME} is in this folder;"
                " expected a run or --out of im2sp-evaluate"
            )
        for file in files:
            try:
                content = read_json(file)
                if content.get("form") == SCORES_FORM:
                    rows += rows_of_opinions(content, data or "-")
                else:
                    rows.append(row_of(content | ({"data": data} if data else {})))
            except OSError as error:
                raise ValueError(f"--scores {file}: {error.strerror}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"--scores {file}: {type(error).__name__} {error}; expected a {RESULT_NAME} of"
                    " im2sp-evaluate, or what tools/listening_test.py score --out wrote"
                ) from None
    return rows


def _out(config: EvaluateConfig) -> Path:
    if config.out is not None:
        return config.out
    assert config.run is not None
    run = Path(config.run)
    if not run.exists():
        raise ValueError(
            f"--out is missing: {config.run} is not a local path to store the results beside"
        )
    parent = run if run.is_dir() else run.parent
    cascade = f"-{Path(config.cascade).stem}" if config.cascade else ""
    return parent / f"evaluate-{config.split or 'all'}{cascade}"


def _captions(
    config: EvaluateConfig, candidates: Mapping[str, str], references: Mapping[str, list[str]]
) -> Scores:
    return score_captions(candidates, references, resamples=config.resamples, seed=config.seed)


def _results(config: EvaluateConfig, items: "Sequence[Judged]", chain: "Chain") -> dict[str, Any]:
    """Score the rows of the stages."""
    if "transcription" in chain.missing:
        captions = Scores(num_items=0, missing={"transcription": chain.missing["transcription"]})
    else:
        texts = chain.generated if chain.recognized is None else chain.recognized
        candidates = {row["key"]: row["text"] for row in texts}
        references = {item.sample.key: item.references for item in items}
        captions = _captions(config, candidates, references)
    voice = config.cascade and Path(config.cascade).stem
    what = " by ".join(filter(None, (config.topline, voice))) or chain.kind
    result: dict[str, Any] = {
        "name": f"{Path(config.run).name if config.run else 'topline'} ({what})",
        "shards": None if config.shards is None else str(folder_or_url(config.shards)),
        "data": config.data,
        "input": ("pixels" if "image_encoder" in chain.about else "image units")
        if config.run
        else None,
        "split": config.split,
        **chain.about,
        "captions": captions.as_json(),
    }
    if chain.kind == "speech" and config.topline is None:
        result["units"] = _unit_scores(config, items, chain.generated).as_json()
    expected = [
        item.text if item.text is not None else row.get("text")
        for item, row in zip(items, chain.generated, strict=True)
    ]
    if chain.recognized is not None and None not in expected:
        result["words"] = _word_scores(config, expected, chain.recognized).as_json()
    if chain.mos or _without_opinions(chain):
        result["opinions"] = _opinions(config, chain).as_json()
    if config.speech_lm is not None:
        result["likelihood"] = _likelihoods(config, chain).as_json()
    return result


def _unit_scores(config: EvaluateConfig, items: "Sequence[Judged]", generated: list[Any]) -> Scores:
    """BLEU-4 of units, and their error rate against each clip's closest reference."""
    from im2sp.tools.engines.asr import edits

    pairs = [
        (row["units"], [units.tolist() for units in item.sample.speech_units if len(units)])
        for item, row in zip(items, generated, strict=True)
    ]
    pairs = [(found, references) for found, references in pairs if references]
    sums = [bleu_sums(found, references) for found, references in pairs]
    scores = Scores(num_items=len(sums))
    if not sums:
        scores.missing["unit scores"] = "the images have no speech units"
        return scores
    table = np.stack(sums)
    ends = interval(table, bleu, resamples=config.resamples, seed=config.seed)
    scores.put("unit_bleu_4", bleu(table.sum(0))[3], ends[:, 3])
    try:
        errors = [
            min(((edits(found, units), len(units)) for units in references), key=_rate)
            for found, references in pairs
        ]
    except ValueError as error:
        scores.missing["unit error rate"] = str(error)
    else:
        _put_rate(config, scores, "unit_error_rate", errors)
    return scores


def _rate(errors: tuple[int, int]) -> float:
    """Errors per unit."""
    return errors[0] / errors[1]


def _word_scores(config: EvaluateConfig, expected: list[Any], recognized: list[Any]) -> Scores:
    """Word error rate of the transcripts against the synthesized text."""
    from im2sp.tools.engines.asr import word_errors

    pairs = list(zip(recognized, expected, strict=True))
    try:
        counted = [word_errors(row["text"], text) for row, text in pairs]
    except ValueError as error:
        return Scores(num_items=0, missing={"word error rate": str(error)})
    kept = [pair for pair in counted if pair[1]]
    scores = Scores(num_items=len(kept))
    if kept:
        _put_rate(config, scores, "word_error_rate", kept)
    else:
        scores.missing["word error rate"] = "no speech was generated"
    return scores


def _put_rate(
    config: EvaluateConfig, scores: Scores, name: str, errors: list[tuple[int, int]]
) -> None:
    """Add a rate: sum of errors over sum of lengths."""
    table = np.array(errors, np.float64)

    def rate(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    ends = interval(table, rate, resamples=config.resamples, seed=config.seed)
    scores.put(name, float(rate(table.sum(0))), ends)


def _without_opinions(chain: "Chain") -> dict[str, str]:
    """Predictors of opinions that failed, and why."""
    others = ("transcription", "SpeechLMScore")
    return {name: why for name, why in chain.missing.items() if name not in others}


def _opinions(config: EvaluateConfig, chain: "Chain") -> Scores:
    """Mean predicted opinions of the clips that are not empty."""
    scores = Scores(num_items=0, missing=_without_opinions(chain))
    for judge, rows in chain.mos.items():
        found = [row["scores"] for row in rows if row["scores"] is not None]
        scores.num_items = len(found)
        if not found:
            scores.missing[judge] = "no speech was generated"
        for name in found[0] if found else ():
            values = [one[name] for one in found]
            ends = interval(values, resamples=config.resamples, seed=config.seed)
            label = name if name == judge else f"{judge}_{name}"
            scores.put(label, float(np.mean(values)), ends)
    return scores


def _likelihoods(config: EvaluateConfig, chain: "Chain") -> Scores:
    """SpeechLMScore of the generated units, of the references, and the mean difference."""
    reason = {n: why for n, why in chain.missing.items() if n == "SpeechLMScore"}
    rows = [row for row in chain.likelihoods or [] if row["generated"] is not None]
    scores = Scores(num_items=len(rows), missing=reason)
    if not rows and chain.likelihoods is not None:
        scores.missing["SpeechLMScore"] = "no speech was generated"
    pairs = [(r["generated"], np.mean(r["references"])) for r in rows if r["references"]]
    figures = {
        "log_likelihood": [row["generated"] for row in rows],
        "reference_log_likelihood": [reference for _, reference in pairs],
        "difference": [generated - reference for generated, reference in pairs],
    }
    for name, values in figures.items():
        if values:
            ends = interval(values, resamples=config.resamples, seed=config.seed)
            scores.put(name, float(np.mean(values)), ends)
    return scores


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    resume = "run the same command again to resume"
    return run_command(
        "im2sp-evaluate", EvaluateConfig, _run, args, out=_written_folder, resume=resume
    )


def _written_folder(config: EvaluateConfig) -> Path | None:
    is_read = bool(config.captions or config.scores)
    return None if is_read and config.out is None else _out(config)


def _run(config: EvaluateConfig) -> None:
    if config.scores:
        tables = make_tables(read_rows(config.scores, config.data))
        content, text = as_json(tables), as_text(tables)
    else:
        content = evaluate(config)
        tables, text = make_tables([row_of(content)]), report(content)
    if (folder := _written_folder(config)) is not None:
        if not config.scores:
            _write(folder / RESULT_NAME, _json(content))
        _write(folder / TABLES_NAME, as_markdown(tables))
        _write(folder / TABLES_JSON_NAME, _json(as_json(tables)))
        draw_chart(tables, folder / CHART_NAME)
    if config.json:
        print(_json(content), end="")
    elif not config.quiet:
        print(text)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    sys.exit(main())
