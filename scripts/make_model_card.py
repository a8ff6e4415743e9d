"""Write the model card of an encoder from what is known of it.

usage: python scripts/make_model_card.py MODEL... --evaluation FILE

FILE is what `python benchmarks/encoders.py MODEL... --part test val --json FILE` wrote; the numbers
of a card come from there and from the encoder's own config.json. The text is in model_card.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chgdb.train import settings_for
from chgdb.weights import EncoderConfig, load_config

TEMPLATE = Path(__file__).with_name("model_card.md")

ABOUT = {
    "periodic": """\
The default. The density, resampled to about 7.3 points/A, divided by its mean and square-rooted,
goes through a residual autoencoder with periodic convolutions: moving the origin by one point of
the latent moves the latent by one.""",
    "paper": """\
The published network of arXiv 2605.07227: the density in e/A^3 on VASP's grid (ENCUT = 500,
PREC = Accurate) in the corner of a 128^3 box of zeros.""",
}
LIMIT = {
    "periodic": "A cell longer than 17.5 A (128 points at 7.3/A) gets 128 points too, coarser.",
    "paper": "A cell whose VASP grid exceeds 128 points (8.8 A) gets 128 points too, coarser.",
}


def error_rows(parts: dict[str, Any]) -> str:
    """The table of errors."""
    rows = []
    for part, row in parts.items():
        numbers = " | ".join(f"{value:.2f}" for value in row["nmae"].values())
        box = f"{row['box_mse']:.2e} | {row['box_mae']:.2e}"
        rows.append(f"| {part} | {row['materials']} | {numbers} | {box} |")
    return "\n".join(rows)


def training_text(config: EncoderConfig, command: str | None) -> str:
    """How it was trained, as config.json tells it."""
    training = dict(config.training)
    if not training:
        raise SystemExit(f"{config.id}: config.json does not say how it was trained")
    usual = asdict(settings_for(config.kind, epochs=training["epochs"], seed=training["seed"]))
    unusual = {name: training[name] for name in usual if training.get(name) != usual[name]}
    made_by = command or (
        "chgdb train encoder DENSITIES --properties properties_6059.csv.gz "
        f"--kind {config.kind} --latent-size {config.latent_shape[0]} "
        f"--epochs {training['epochs']} --seed {training['seed']} -o {config.id}"
    )
    (metric, best), *_ = training["best_validation"].items()
    text = (
        f"{training['epochs_run']} epochs over {training['materials']} materials took "
        f"{training['seconds'] / 60:.0f} minutes on {training['device']}. "
        f"The weights are those of the lowest validation error, {best:.4g} ({metric})."
    )
    if config.refine_steps:
        text += f" Each latent is then refined by {config.refine_steps} steps through the decoder."
    if "note" in training:
        text += f" {training['note']}"
    lines = [
        text,
        "",
        "```",
        made_by,
        "```",
        "",
    ]
    if unusual:
        lines += ["Settings other than that command's defaults:", ""]
        lines += [f"- {name} = {value}" for name, value in unusual.items()] + [""]
    lines += ["| setting | value |", "| --- | --- |"]
    lines += [f"| {name} | {training[name]} |" for name in usual if name in training]
    return "\n".join(lines)


def card(folder: Path, evaluation: dict[str, Any], command: str | None) -> str:
    """The text of the card.

    Raises:
        SystemExit: the evaluation is not one of these weights.
    """
    config = load_config(folder)
    result = evaluation["encoders"].get(folder.name)
    if result is None or result["weights_sha256"] != config.weights_sha256:
        raise SystemExit(f"{folder}: the evaluation is not one of these weights")
    split = ", ".join(f"{count} {name}" for name, count in evaluation["split"].items())
    return TEMPLATE.read_text(encoding="utf-8").format(
        id=config.id,
        about=ABOUT[config.kind],
        latent=" x ".join(map(str, config.latent_shape)),
        dtype=result["dtype"],
        stored=result["stored_bytes"]["mean"],
        stored_part=result["stored_bytes"]["part"],
        parameters=result["parameters"],
        sha256=config.weights_sha256,
        errors=error_rows(result["parts"]),
        evaluation=evaluation["command"],
        machine=evaluation["machine"],
        split=split,
        training=training_text(config, command),
        limit=LIMIT[config.kind],
    )


def main() -> None:
    """Write `README.md` into each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--evaluation", type=Path, required=True, metavar="FILE")
    parser.add_argument("--command", metavar="TEXT", help="what made the weights, if not the CLI")
    arguments = parser.parse_args()
    evaluation = json.loads(arguments.evaluation.read_text(encoding="utf-8"))
    for folder in arguments.models:
        path = folder / "README.md"
        path.write_text(card(folder, evaluation, arguments.command), encoding="utf-8")
        print(shlex.quote(str(path)))


if __name__ == "__main__":
    main()
