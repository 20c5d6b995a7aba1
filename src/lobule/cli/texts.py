"""What the verbs print: short text for people and the JSON record for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule.errors import show
from lobule.identity import NOTICE

if TYPE_CHECKING:
    from lobule.checkup import Check
    from lobule.data.findings import Audit
    from lobule.data.manifest import Manifest
    from lobule.evaluation.compare import Comparison
    from lobule.evaluation.evaluate import Evaluation
    from lobule.evaluation.leakage import Leakage
    from lobule.evaluation.study import Study
    from lobule.inference.external import External
    from lobule.inference.stress import Stress
    from lobule.models.exports import Export
    from lobule.models.summary import Summary
    from lobule.run import Run


def scan_record(manifest: Manifest, out: Path | None) -> dict[str, Any]:
    """Return counts, the rows and what was passed over."""
    from lobule.files import plain_rows

    return {
        "schema": "lobule.scan/1",
        "root": str(manifest.root),
        "out": None if out is None else str(out),
        "n_images": len(manifest),
        "n_patients": int(manifest.table["patient"].nunique()),
        "patients_known": manifest.patients_known,
        "skipped": [vars(file) for file in manifest.skipped],
        "images": plain_rows(manifest.table),
    }


def scan_text(manifest: Manifest, out: Path | None) -> str:
    """Return a table of images, slides and patients by split and class."""
    table = manifest.table
    grouped = table.assign(split=table["split"].fillna("-"), label=table["label"].fillna("?"))
    counts = grouped.groupby(["split", "label"]).agg(
        images=("path", "size"), slides=("slide", "nunique"), patients=("patient", "nunique")
    )
    lines = [
        f"{len(manifest)} images below {show(manifest.root)}",
        f"  {'split':<11}{'class':<20}{'images':>8}{'slides':>8}{'patients':>10}",
    ]
    lines += [
        f"  {split:<11}{show(label):<20}{row.images:>8}{row.slides:>8}{row.patients:>10}"
        for (split, label), row in counts.iterrows()
    ]
    if not manifest.patients_known:
        n = int(table["patient"].isna().sum())
        lines.append(f"patients unknown for {n} image(s): name them with --pattern or --metadata")
    if out is not None:
        lines.append(f"manifest: {show(out)}")
        if out.suffix.lower() == ".csv":
            lines.append(
                f"  a CSV does not hold the root; read it with --root {show(manifest.root)}"
            )
    return "\n".join(lines)


def audit_text(found: Audit) -> str:
    """Return one block a finding, worst first."""
    who = f"{found.n_patients} patients" if found.patients_known else "patients unknown"
    lines = [f"{found.n_images} images, {who}: {len(found.findings)} finding(s)"]
    for finding in found.findings:
        lines.append(f"{finding.severity:<9}{finding.code}: {finding.message}")
        lines += [f"           {show(file)}" for file in finding.files[:10]]
        if len(finding.files) > 10:
            lines.append(f"           and {len(finding.files) - 10} more (--json lists all)")
    return "\n".join(lines)


def split_record(manifest: Manifest, column: str, out: Path) -> dict[str, Any]:
    """Return images and patients of each part and class."""
    parts = []
    for (part, label), rows in manifest.table.groupby([column, "label"]):
        parts.append({
            "part": str(part), "label": label, "n_images": len(rows),
            "n_patients": int(rows["patient"].nunique()),
        })  # fmt: skip
    return {
        "schema": "lobule.split/1",
        "out": str(out),
        "column": column,
        "patients_known": manifest.patients_known,
        "parts": parts,
    }


def split_text(record: dict[str, Any]) -> str:
    """Return the parts as a table."""
    lines = [f"  {record['column']:<12}{'class':<20}{'images':>8}{'patients':>10}"]
    lines += [
        f"  {p['part']:<12}{show(p['label']):<20}{p['n_images']:>8}{p['n_patients']:>10}"
        for p in record["parts"]
    ]
    if not record["patients_known"]:
        lines.append("patients unknown: images of one patient may lie in two parts")
    return "\n".join([*lines, f"manifest: {show(record['out'])}"])


def run_record(run: Run) -> dict[str, Any]:
    """Return where everything lies and the figures."""
    return {
        "schema": "lobule.train/1",
        "run": str(run.folder),
        "report": str(run.folder / "report.html"),
        "model": str(run.folder / "model"),
        "model_id": run.model.id,
        "audit": run.audit.to_json(),
        "evaluation": run.evaluation.to_json(),
        "leakage": run.leakage.to_json(),
    }


def run_text(run: Run) -> str:
    """Return findings in a line, figures, leakage and where the report lies."""
    told = [f"audit: {f.severity} {f.code}: {f.message}" for f in run.audit.findings
            if f.severity != "note"]  # fmt: skip
    return "\n".join([
        *told,
        evaluation_text(run.evaluation),
        leakage_text(run.leakage),
        f"model: {show(run.folder / 'model')} ({run.model.id})",
        f"report: {show(run.folder / 'report.html')}",
        NOTICE,
    ])  # fmt: skip


def evaluation_text(found: Evaluation) -> str:
    """Return the figures of every level at the last (strictest) decision rule."""
    who = f"{found.n_patients} patients" if found.patients_known else "patients unknown"
    lines = [f"{found.source}: {found.n_images} images, {who}; 95% patient-bootstrap intervals"]
    if len(found.classes) == 2:
        lines.append(f"  positive class: {show(found.classes[-1])}")
    if found.n_failed:
        lines.append(f"  {found.n_failed} image(s) could not be read and are in no figure")
    for level, figures in found.levels.items():
        decision = figures.decisions[-1]
        lines.append(f"  {level} level ({figures.n_units}), decisions at {decision.rule}")
        # what the Brier score is made of is for --json and the report
        shown = {k: v for k, v in figures.metrics.items() if not k.startswith("brier_")}
        shown |= decision.metrics
        lines += [f"    {name:<30}{value.told()}" for name, value in shown.items()]
        for name, baseline in found.baselines.items():
            auc = baseline[level].metrics["roc_auc"]
            lines.append(f"    {'roc_auc of ' + name:<30}{auc.told()}")
    return "\n".join(lines)


def leakage_text(found: Leakage) -> str:
    """Return the three AUCs and their difference."""
    lines = [
        f"leakage meter: image ROC AUC, {found.folds} folds, {found.n_images} images, "
        f"{found.n_slides} slides, {found.n_patients} patients, input {found.long_side_px} px"
    ]
    lines += [f"    {name + ' folds':<20}{auc.told()}" for name, auc in found.auc.items()]
    lines.append(f"    {'inflation':<20}{found.inflation.told()}")
    if not found.patients_known:
        lines.append("    patients unknown: the patient folds are folds of images here")
    return "\n".join(lines)


def comparison_text(found: Comparison, first: str, second: str) -> str:
    """Return a line a figure: both, their difference, and which is the better."""
    who = f"{found.n_patients} patients" if found.patients_known else "patients unknown"
    lines = [
        f"{first} less {second}: {found.n_images} images, {who}; 95% patient-bootstrap intervals"
    ]
    level = None
    for row in found.differences:
        if row.level != level:
            level = row.level
            lines.append(f"  {level} level")
        lines.append(
            f"    {row.figure:<20}{row.first.told():<26}{row.second.told():<26}"
            f"{row.difference.told():<28}{row.verdict(first, second)}"
        )
    if found.p_delong is not None:
        lines.append(
            f"  DeLong's test of the image ROC AUCs: p = {found.p_delong:.2g}; it takes the images "
            "of a patient as independent, so the intervals above are the answer"
        )
    return "\n".join(lines)


def stress_text(found: Stress, out: Path) -> str:
    """Return image ROC AUC undamaged and by severity of each damage."""
    who = f"{found.n_patients} patients" if found.patients_known else "patients unknown"
    lines = [
        f"{found.n_images} images, {who}; image ROC AUC undamaged "
        f"{found.undamaged['image']['roc_auc'].told()}",
        f"  {'damage':<12}{'severity':<28}{'image ROC AUC':<26}difference",
    ]
    lines += [
        f"  {row.damage:<12}{f'{row.severity:g} {row.unit}' + ' *' * row.moderate:<28}"
        f"{row.value.told():<26}{row.difference.told()}"
        for row in found.rows
        if (row.level, row.figure) == ("image", "roc_auc")
    ]
    return "\n".join([*lines, "  * moderate", f"report: {show(out / 'report.html')}"])


def external_text(found: External, out: Path) -> str:
    """Return the verdict, what cannot be known, and where all of it lies."""
    from lobule.reporting.external_words import verdict

    return "\n".join([
        *(show(line) for line in verdict(found)),
        "What this cannot know:",
        *(f"  - {show(line)}" for line in found.cannot_know),
        f"predictions: {show(out / 'predictions.parquet')}",
        f"report: {show(out / 'report.html')}",
        NOTICE,
    ])  # fmt: skip


def study_text(found: Study, out: Path) -> str:
    """Return image and patient ROC AUC of every recipe, and what is told from the baseline."""
    who = f"{found.n_patients} patients" if found.patients_known else "patients unknown"
    lines = [
        f"{found.n_images} images, {who}; {found.folds} patient folds under "
        f"{len(found.seeds)} splits; 95% patient-bootstrap intervals"
    ]
    for level in ("image", "patient"):
        rows = found.of(level, "roc_auc")
        lines.append(f"  {level} ROC AUC, and its difference from {show(found.baseline)}")
        lines += [
            f"    {show(row.recipe):<24}{row.value.told():<26}"
            + ("" if row.difference is None else f"{row.difference.told():<28}")
            + row.told
            for row in rows
        ]
    return "\n".join([*lines, f"report: {show(out / 'report.html')}"])


def summary_text(found: Summary) -> str:
    """Return a line a layer, and the totals."""
    lines = [f"  {'layer':<44}{'kind':<20}{'output':>16}{'parameters':>14}{'statistics':>12}"]
    for row in found.rows:
        shape = "" if row.output_shape is None else " x ".join(map(str, row.output_shape))
        lines.append(
            f"  {row.name:<44}{row.kind:<20}{shape:>16}{row.n_parameters:>14,}"
            f"{row.n_statistics:>12,}"
        )
    return "\n".join([
        *lines,
        f"{found.backbone}, one image of {found.input_px} x {found.input_px} px, "
        f"{found.n_features:,} features, {found.n_classes} classes",
        f"total with running statistics: {found.total:,}",
        f"trainable: {found.trainable:,}",
    ])  # fmt: skip


def export_record(found: Export) -> dict[str, Any]:
    """Return what export.json holds, and where it lies."""
    return {**found.to_json(), "folder": str(found.folder)}


def export_text(found: Export) -> str:
    """Return where the export lies and how it agrees with the original."""
    seen = found.agreement
    lines = [
        f"export: {show(found.folder)}",
        f"  compared on {seen['images']} images: largest difference of a probability "
        f"{seen['largest_difference']:.2g}",
    ]
    if "labels_changed" in seen:
        lines.append(
            f"  labels changed: {seen['labels_changed']:.2%}; ranges from "
            f"{seen['calibration_images']} training images"
        )
    if (gain := seen.get("roc_auc_gain")) is not None:
        lines.append(
            f"  image ROC AUC of the kept model, int8 less fp32: {gain['estimate']:+.4f} "
            f"({gain['low']:+.4f} to {gain['high']:+.4f}), paired by patient"
        )
    return "\n".join(lines)


def doctor_text(checks: Sequence[Check]) -> str:
    """Return a line a check, with the fix below those that failed."""
    lines = []
    for check in checks:
        lines.append(f"{'ok' if check.ok else 'FAULT':<6}{check.name:<34}{check.found}")
        if check.fix:
            lines.append(f"      fix: {check.fix}")
    return "\n".join(lines)
