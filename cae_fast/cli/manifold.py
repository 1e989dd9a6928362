# SPDX-License-Identifier: Apache-2.0
"""`cae-fast manifold`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cae_fast.cli.output import AsJson, Output, Quiet


def manifold(
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="bank.parquet or bank.csv.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="The bank's model: decodes and places.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(metavar="CLASSIFIER", help="Explained; needs --model.")
    ] = None,
    placed: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="IMAGE", help="Image or folder to place; may be repeated."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Folder that the bank was made of.")
    ] = None,
    views: Annotated[
        str | None, typer.Option(help="pca,tsne,umap or some of them; by default what there is.")
    ] = None,
    explain: Annotated[int, typer.Option(help="Images of the bank that get an explanation.")] = 40,
    path: Annotated[str, typer.Option(help="Paths of the explanations: line or graph.")] = "line",
    seed: Annotated[int, typer.Option(help="Of t-SNE and UMAP.")] = 0,
    backend: Annotated[str, typer.Option(help="auto, cpu, torch, cuda or tensorrt.")] = "auto",
    title: Annotated[str, typer.Option(help="Heading.")] = "Class-associated manifold",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in DIR.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw and measure the manifold of a bank's codes: one interactive page, PNGs, figures."""
    from cae_fast.bank import CodeBank
    from cae_fast.classifier import Classifier
    from cae_fast.files import check_output_directory
    from cae_fast.model import CAE
    from cae_fast.report.manifold_folder import ManifoldOptions, write_manifold

    check_output_directory(out, overwrite=overwrite)
    printed = Output(quiet=quiet, as_json=as_json)
    with printed.progress("explaining") as moved:
        found = write_manifold(
            CodeBank.load(bank),
            out,
            model=None if model is None else CAE.load(model),
            classifier=None if classifier is None else Classifier.load(classifier),
            options=ManifoldOptions(
                images=placed or (),
                data=data,
                views=None if views is None else [name.strip() for name in views.split(",")],
                explain=explain,
                path=path,
                seed=seed,
                backend=backend,
                title=title,
            ),
            overwrite=overwrite,
            on_progress=moved,
        )
    figures = found.figures()
    used, size = figures["participation_ratio"], figures["code_dim"]
    printed.line(
        f"{figures['images']} codes; {used:.1f} of {size} dimensions used (participation ratio); "
        f"{figures['components_90']} directions hold 90 %, {figures['components_99']} hold 99 %"
    )
    for k, share in figures["knn_accuracy"].items():
        if share is not None:
            printed.line(f"{k} nearest codes of other groups: {share:.1%} right")
    if figures["nearest_centre_accuracy"] is not None:
        printed.line(f"nearest class centre: {figures['nearest_centre_accuracy']:.1%} right")
    for row in figures["placed"]:
        near = ", ".join(row["nearest_classes"])
        printed.line(f"{row['name']}: nearest {near}; {row['apart']:.1f} of the usual distance")
    for note in found.notes:
        printed.warn(f"not made: {note}")
    printed.line(str(out / "index.html"))
    printed.result(figures | {"page": str(out / "index.html")})
