"""How good spoken or written descriptions are: generate, speak, hear, score.

    im2sp-evaluate --run runs/a --shards shards --split val
    im2sp-evaluate --captions captions.json --json scores.json

A run of speech goes through the vocoder and a recognizer (`--asr`: pocketsphinx, or a CTC or
sequence-to-sequence model of transformers); a run of text is scored as it is, or spoken first
(`--cascade flite`). `--topline units` speaks the split's own units and `--topline captions` its
captions: what a perfect model would reach here. The scores are those of the COCO caption
evaluation, with 95 % bootstrap intervals; speech also gets predicted opinions (DNSMOS), units their
BLEU and error rate. The table is laid out as the paper's Table 3, beside its rows.

Stages are kept in `--out`: a run that was killed goes on, and what has not changed is not made
again. `--captions` holds `{"candidates": {id: text}, "references": {id: [text]}}`.

Exit codes: 0 scored, 1 not possible, 2 usage.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from im2sp.shards import ShardDataset
from im2sp.shards.files import atomic_file
from im2sp.tools.captions import Scores, bleu, bleu_sums, score_captions
from im2sp.tools.evaluate_table import report
from im2sp.tools.intervals import DEFAULT_RESAMPLES, interval

if TYPE_CHECKING:
    from im2sp.tools.evaluate_chain import Chain, Judged

RESULT_NAME = "scores.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score descriptions of images."""

    run: str | None = None
    """The trained model: a run's folder, one step of it, or published weights."""
    shards: Path | None = None
    """Dataset whose images are described, and whose captions are the references."""
    split: str | None = None
    """Split of the dataset; all of it without."""
    out: Path | None = None
    """Folder of the stages, the speech and scores.json; without it, RUN/evaluate-SPLIT."""
    captions: Path | None = None
    """Score this file of candidates and references instead."""
    json: Path | None = None
    """Write the results here, too."""
    topline: Literal["units", "captions"] | None = None
    """No model: speak the dataset's own units, or its first captions."""
    cascade: Literal["flite"] | None = None
    """Speak what a text run says, and score what is heard."""
    voice: str = "rms"
    """flite's voice, of --cascade and --topline captions."""
    vocoder: str = "compact"
    """Vocoder of the units: a bundled name, a folder or a file."""
    asr: str = "pocketsphinx"
    """Recognizer: pocketsphinx, a hub id or a folder."""
    codebook: Path | None = None
    """Vectors behind the image units, for published weights that lack them."""
    num_beams: int = 1
    """Beams of the generation; 1 is greedy."""
    max_tokens: int = 511
    """Longest generation, with its end."""
    limit: int | None = None
    """Score the first so many images only."""
    resamples: int = DEFAULT_RESAMPLES
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""
    device: str | None = None
    """As torch names it; CUDA where there is one."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show no bars and no table."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        num_sources = sum(x is not None for x in (self.run, self.captions, self.topline))
        if num_sources != 1:
            raise ValueError(
                "expected exactly one of --run, --topline and --captions, found"
                f" {num_sources or 'none'}"
            )
        if self.captions is None and self.shards is None:
            raise ValueError("--shards is missing: the dataset to describe")
        if self.topline is not None and self.out is None:
            raise ValueError("--out is missing: the folder of the stages")
        if self.cascade is not None and self.run is None:
            raise ValueError("--cascade goes with --run")
        for name, least in (("limit", 1), ("resamples", 2), ("max_tokens", 1), ("num_beams", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {value}, expected at least {least}")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run the stages that are not kept yet and score; the results as JSON values.

    Raises:
        ValueError: A file, package or model is missing or does not fit.
    """
    if config.captions is not None:
        candidates, references = read_captions(config.captions)
        scores = _captions(config, candidates, references)
        return {"name": config.captions.name, "captions": scores.as_json()}
    from im2sp.tools.evaluate_chain import ChainSettings, judged_samples, run_chain
    from im2sp.tools.evaluate_stages import StageFolder

    assert config.shards is not None
    dataset = ShardDataset(config.shards, config.split)
    items, num_without = judged_samples(dataset, config.topline, config.limit)
    if not items:
        needed = "an image and a caption" if config.topline is None else "speech and two captions"
        raise ValueError(f"{config.shards}: no sample of split {config.split!r} has {needed}")
    settings = ChainSettings(
        run=config.run,
        codebook=config.codebook,
        topline=config.topline,
        num_beams=config.num_beams,
        max_tokens=config.max_tokens,
        vocoder=config.vocoder,
        asr=config.asr,
        voice=config.voice,
        cascade=config.cascade is not None,
        device=config.device,
        quiet=config.quiet,
    )
    folder = StageFolder(_out(config))
    chain = run_chain(settings, dataset, items, folder)
    result = _results(config, items, chain)
    result["num_left_out"] = num_without
    return result


def read_captions(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Candidates and references of a file.

    Raises:
        ValueError: It cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    parts = content if isinstance(content, dict) else {}
    candidates, references = parts.get("candidates"), parts.get("references")
    if not isinstance(candidates, dict) or not isinstance(references, dict):
        raise ValueError(
            f'{path}: expected {{"candidates": {{id: text}}, "references": {{id: [text]}}}}'
        )
    return candidates, references


def _out(config: EvaluateConfig) -> Path:
    if config.out is not None:
        return config.out
    assert config.run is not None
    run = Path(config.run)
    if not run.exists():
        raise ValueError(f"--out is missing: {config.run} is no folder or file to put it beside")
    parent = run if run.is_dir() else run.parent
    cascade = f"-{config.cascade}" if config.cascade else ""
    return parent / f"evaluate-{config.split or 'all'}{cascade}"


def _captions(
    config: EvaluateConfig, candidates: Mapping[str, str], references: Mapping[str, list[str]]
) -> Scores:
    return score_captions(candidates, references, resamples=config.resamples, seed=config.seed)


def _results(config: EvaluateConfig, items: "Sequence[Judged]", chain: "Chain") -> dict[str, Any]:
    """Score the rows of the stages."""
    texts = chain.said if chain.heard is None else chain.heard
    candidates = {row["key"]: row["text"] for row in texts}
    references = {item.sample.key: item.references for item in items}
    what = config.topline or config.cascade or chain.kind
    result: dict[str, Any] = {
        "name": f"{Path(config.run).name if config.run else 'topline'} ({what})",
        "shards": str(config.shards),
        "split": config.split,
        **chain.about,
        "captions": _captions(config, candidates, references).as_json(),
    }
    if chain.kind == "speech" and config.topline is None:
        result["units"] = _unit_scores(config, items, chain.said).as_json()
    spoken = [
        item.said if item.said is not None else row.get("text")
        for item, row in zip(items, chain.said, strict=True)
    ]
    if chain.heard is not None and None not in spoken:
        result["words"] = _word_scores(config, spoken, chain.heard).as_json()
    if chain.heard is not None:
        result["opinions"] = _opinions(config, chain).as_json()
    return result


def _unit_scores(config: EvaluateConfig, items: "Sequence[Judged]", said: list[Any]) -> Scores:
    """BLEU-4 of units, and their error rate against each clip's closest reference."""
    from im2sp.tools.asr import edits

    sums, errors = [], []
    for item, row in zip(items, said, strict=True):
        references = [units.tolist() for units in item.sample.speech_units if len(units)]
        if references:
            sums.append(bleu_sums(row["units"], references))
            counted = [(edits(row["units"], units), len(units)) for units in references]
            errors.append(min(counted, key=lambda pair: pair[0] / pair[1]))
    scores = Scores(num_items=len(sums))
    if not sums:
        scores.missing["unit scores"] = "the images have no speech units"
        return scores
    table = np.stack(sums)
    ends = interval(table, bleu, resamples=config.resamples, seed=config.seed)
    scores.put("unit_bleu_4", bleu(table.sum(0))[3], ends[:, 3])
    _put_rate(config, scores, "unit_error_rate", errors)
    return scores


def _word_scores(config: EvaluateConfig, spoken: list[Any], heard: list[Any]) -> Scores:
    """Word error rate of what is heard against what was spoken."""
    from im2sp.tools.asr import word_errors

    counted = [word_errors(h["text"], text) for h, text in zip(heard, spoken, strict=True)]
    kept = [pair for pair in counted if pair[1]]
    scores = Scores(num_items=len(kept))
    if kept:
        _put_rate(config, scores, "word_error_rate", kept)
    else:
        scores.missing["word error rate"] = "nothing was spoken"
    return scores


def _put_rate(
    config: EvaluateConfig, scores: Scores, name: str, errors: list[tuple[int, int]]
) -> None:
    """Errors over lengths, both added up."""
    table = np.array(errors, np.float64)

    def rate(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    ends = interval(table, rate, resamples=config.resamples, seed=config.seed)
    scores.put(name, float(rate(table.sum(0))), ends)


def _opinions(config: EvaluateConfig, chain: "Chain") -> Scores:
    """Means of the predicted opinions of clips that have sound."""
    rows = [row["scores"] for row in chain.mos or [] if row["scores"] is not None]
    scores = Scores(num_items=len(rows), missing=dict(chain.missing))
    if not rows and chain.mos is not None:
        scores.missing["DNSMOS"] = "nothing was spoken"
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        ends = interval(values, resamples=config.resamples, seed=config.seed)
        scores.put(f"DNSMOS_{name}", float(np.mean(values)), ends)
    return scores


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    try:
        config = tyro.cli(EvaluateConfig, prog="im2sp-evaluate", description=__doc__, args=argv)
        result = evaluate(config)
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        kept = [] if config.captions is not None else [_out(config) / RESULT_NAME]
        for path in [*kept, *([config.json] if config.json is not None else [])]:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(text.encode())
    except (ValueError, OSError) as error:
        print(f"im2sp-evaluate: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("im2sp-evaluate: stopped; the same command goes on", file=sys.stderr)
        return 130
    if not config.quiet:
        print(report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
