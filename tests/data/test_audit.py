"""The rules of the audit: every fault is found, named with its files, and weighed."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from lobule.data.audit import audit
from lobule.data.findings import OVERRIDABLE, check_allowed, require_clean
from lobule.data.images import dihedral_view
from lobule.data.manifest import Manifest
from lobule.data.scan import scan
from lobule.errors import DataError, UsageError

EVERY_CODE = {
    "unreadable",
    "changed",
    "empty-folder",
    "one-image-a-patient",
    "no-class",
    "one-class",
    "unbalanced",
    "patients-unknown",
    "one-patient",
    "few-patients",
    "patient-in-two-splits",
    "patient-in-two-classes",
    "exact-duplicate",
    "near-duplicate",
    "duplicate-in-two-splits",
    "duplicate-in-two-classes",
    "duplicate-in-two-patients",
    "name-contradicts-folder",
    "sizes",
    "modes",
    "skipped",
}


@pytest.fixture
def folder(tmp_path, picture):
    """Ten photographs of ten patients, nothing wrong with them."""
    for i in range(5):
        picture(f"benign/patient-b{i}_1.png", seed=i)
        picture(f"malignant/patient-m{i}_1.png", seed=10 + i)
    return tmp_path


def found(folder, **options):
    """Return {code: finding} of a folder."""
    findings = audit(scan(folder, **options)).findings
    codes = [finding.code for finding in findings]
    assert len(set(codes)) == len(codes)
    assert set(codes) <= EVERY_CODE
    return {finding.code: finding for finding in findings}


def only(folder, code, **options):
    """Return the one finding of a folder, which must have this code."""
    findings = found(folder, **options)
    assert list(findings) == [code]
    return findings[code]


def open_picture(path):
    with Image.open(path) as image:
        return image.convert("RGB")


# ---- findings


def test_a_clean_folder_has_no_findings(folder):
    result = audit(scan(folder))
    assert result.findings == ()
    assert (result.n_images, result.n_patients, result.patients_known) == (10, 10, True)
    assert result.duplicates == ()
    require_clean(result)


def test_files_that_cannot_be_read_are_named_with_the_reason(folder):
    (folder / "benign" / "patient-b5_1.png").write_text("not an image")
    (folder / "malignant" / "patient-m5_1.png").write_bytes(b"")
    whole = (folder / "malignant" / "patient-m1_1.png").read_bytes()
    (folder / "malignant" / "patient-m6_1.png").write_bytes(whole[: len(whole) // 2])
    finding = only(folder, "unreadable")
    assert finding.severity == "blocking"
    assert finding.files == (
        "benign/patient-b5_1.png",
        "malignant/patient-m5_1.png",
        "malignant/patient-m6_1.png",
    )
    assert finding.message == (
        "3 image(s) cannot be read; the first: cannot read benign/patient-b5_1.png: not a PNG, "
        "JPEG, TIFF, BMP or WEBP image (it begins with b'not an i')"
    )


def test_images_without_a_class_block(folder, picture):
    picture("patient-x_1.png", seed=50)
    finding = only(folder, "no-class")
    assert (finding.severity, finding.files) == ("blocking", ("patient-x_1.png",))
    assert finding.message == (
        "1 image(s) lie in no class folder and no name or metadata tells their class: "
        "patient-x_1.png"
    )


def test_one_class_blocks(folder):
    shutil.rmtree(folder / "malignant")
    finding = only(folder, "one-class")
    assert finding.severity == "blocking"
    assert finding.message == (
        "a classifier needs images of two classes, found only 'benign' (5 images); "
        "put each class in a folder of its own"
    )
    with pytest.raises(DataError) as caught:
        require_clean(audit(scan(folder)))
    assert str(caught.value) == (
        "the audit found what must be settled before training:\n"
        f"  one-class: {finding.message}\n"
        "  correct the data"
    )


def test_no_class_at_all_is_said(tmp_path, picture):
    picture("patient-x_1.png")
    findings = found(tmp_path)
    assert findings["one-class"].message.startswith(
        "a classifier needs images of two classes, found none;"
    )


def test_a_class_four_times_as_large_is_not_yet_unbalanced_and_one_more_is(folder, picture):
    for i in range(15):
        picture(f"malignant/patient-n{i}_1.png", seed=100 + i)
    assert found(folder) == {}
    picture("malignant/patient-n15_1.png", seed=120)
    finding = only(folder, "unbalanced")
    assert finding.severity == "warning"
    assert finding.message == (
        "'malignant' has 21 images, 'benign' 5; accuracy alone misleads here, "
        "read sensitivity and specificity"
    )


def test_unknown_patients_block_and_can_be_accepted(tmp_path, picture):
    names = [
        picture(f"{label}/{i}.png", seed=i).name for i, label in enumerate(["a", "a", "b", "b"])
    ]
    finding = only(tmp_path, "patients-unknown")
    assert finding.severity == "blocking"
    assert len(finding.files) == len(names)
    assert finding.message == (
        "the patient of every image is unknown, so no split can keep patients apart; "
        "name it with --pattern or --metadata"
    )
    require_clean(audit(scan(tmp_path)), ["patients-unknown"])


def test_some_unknown_patients_are_counted_and_named(folder, picture):
    picture("benign/other.png", seed=50)
    finding = only(folder, "patients-unknown")
    assert finding.message.startswith("the patient of 1 image(s) is unknown")
    assert finding.files == ("benign/other.png",)


def test_one_patient_in_a_class_blocks_and_cannot_be_accepted(tmp_path, picture):
    for i in range(5):
        picture(f"benign/patient-b{i}_1.png", seed=i)
    for i in range(3):
        picture(f"malignant/patient-7_{i}.png", seed=10 + i)
    finding = only(tmp_path, "one-patient")
    assert finding.severity == "blocking"
    assert finding.files == tuple(f"malignant/patient-7_{i}.png" for i in range(3))
    assert finding.message == (
        "class 'malignant' has one patient (7); one patient cannot be both learned from and "
        "tested on, add another"
    )
    with pytest.raises(DataError, match=r"one-patient: class 'malignant' has one patient \(7\)"):
        require_clean(audit(scan(tmp_path)), list(OVERRIDABLE))


@pytest.mark.parametrize(("n_patients", "warned"), [(2, True), (4, True), (5, False)])
def test_few_patients_are_a_warning(folder, picture, n_patients, warned):
    for i in range(n_patients):
        picture(f"normal/patient-n{i}_1.png", seed=20 + i)
    findings = found(folder)
    assert set(findings) == ({"few-patients"} if warned else set())
    if warned:
        assert findings["few-patients"].severity == "warning"
        assert findings["few-patients"].message == (
            f"class 'normal' has {n_patients} patients; every figure for it will be wide open"
        )


def test_a_patient_in_two_splits_blocks_and_is_named(folder, picture):
    for name in ("benign", "malignant"):
        (folder / "train").mkdir(exist_ok=True)
        shutil.move(folder / name, folder / "train" / name)
    picture("test/benign/patient-b3_2.png", seed=50)
    picture("test/benign/patient-c_1.png", seed=51)
    finding = only(folder, "patient-in-two-splits")
    assert finding.severity == "blocking"
    assert finding.message == "1 patient(s) lie on both sides of the split: b3"
    assert finding.files == ("test/benign/patient-b3_2.png", "train/benign/patient-b3_1.png")
    require_clean(audit(scan(folder)), ["patient-in-two-splits"])


def test_a_patient_in_two_classes_is_a_warning(folder, picture):
    picture("malignant/patient-b0_2.png", seed=50)
    finding = only(folder, "patient-in-two-classes")
    assert finding.severity == "warning"
    assert finding.message == "1 patient(s) have images in two classes: b0"
    assert finding.files == ("benign/patient-b0_1.png", "malignant/patient-b0_2.png")


def test_exact_copies_are_named(folder):
    shutil.copy(folder / "benign" / "patient-b0_1.png", folder / "benign" / "patient-b0_2.png")
    shutil.copy(folder / "benign" / "patient-b0_1.png", folder / "benign" / "patient-b0_3.png")
    result = audit(scan(folder))
    (finding,) = result.findings
    assert (finding.code, finding.severity) == ("exact-duplicate", "warning")
    assert finding.message == (
        "2 pair(s) of files hold the same bytes, such as "
        "benign/patient-b0_1.png and benign/patient-b0_2.png"
    )
    assert set(finding.files) == {f"benign/patient-b0_{i}.png" for i in (1, 2, 3)}
    paths = scan(folder).table["path"]
    assert [(paths[i], paths[j]) for i, j in result.duplicates] == [
        ("benign/patient-b0_1.png", "benign/patient-b0_2.png"),
        ("benign/patient-b0_2.png", "benign/patient-b0_3.png"),
    ]


@pytest.mark.parametrize("view", range(8))
def test_a_turned_or_mirrored_copy_is_named(folder, view):
    image = np.asarray(open_picture(folder / "benign" / "patient-b0_1.png"))
    turned = np.ascontiguousarray(dihedral_view(image, view))
    Image.fromarray(turned).save(folder / "benign" / "patient-b0_2.bmp")
    finding = found(folder)["near-duplicate"]
    assert finding.severity == "warning"
    assert finding.files == ("benign/patient-b0_1.png", "benign/patient-b0_2.bmp")
    assert finding.message == (
        "1 pair(s) of files show the same photograph (re-encoded, resized or turned), such as "
        "benign/patient-b0_1.png and benign/patient-b0_2.bmp"
    )


def test_a_copy_under_another_patient_is_a_warning(folder):
    shutil.copy(folder / "benign" / "patient-b0_1.png", folder / "benign" / "patient-b9_1.png")
    findings = found(folder)
    assert list(findings) == ["exact-duplicate", "duplicate-in-two-patients"]
    finding = findings["duplicate-in-two-patients"]
    assert finding.severity == "warning"
    assert finding.files == ("benign/patient-b0_1.png", "benign/patient-b9_1.png")
    assert finding.message == (
        "1 pair(s) of copies are filed under two patients, who are kept on one side of every "
        "split, such as benign/patient-b0_1.png and benign/patient-b9_1.png"
    )


def test_a_copy_in_another_class_blocks(folder):
    copy = open_picture(folder / "benign" / "patient-b0_1.png").resize((24, 16))
    copy.save(folder / "malignant" / "patient-b0_2.png")
    findings = found(folder)
    finding = findings["duplicate-in-two-classes"]
    assert finding.severity == "blocking"
    assert finding.files == ("benign/patient-b0_1.png", "malignant/patient-b0_2.png")
    assert finding.message == (
        "1 pair(s) of copies lie in two classes, such as "
        "benign/patient-b0_1.png and malignant/patient-b0_2.png"
    )
    assert next(iter(findings)) == "duplicate-in-two-classes"


def test_a_copy_in_another_split_blocks(folder):
    for name in ("benign", "malignant"):
        (folder / "train").mkdir(exist_ok=True)
        shutil.move(folder / name, folder / "train" / name)
    (folder / "test" / "benign").mkdir(parents=True)
    shutil.copy(
        folder / "train" / "benign" / "patient-b0_1.png",
        folder / "test" / "benign" / "patient-c_1.png",
    )
    findings = found(folder)
    finding = findings["duplicate-in-two-splits"]
    assert finding.severity == "blocking"
    assert finding.files == ("test/benign/patient-c_1.png", "train/benign/patient-b0_1.png")
    with pytest.raises(DataError) as caught:
        require_clean(audit(scan(folder)))
    assert str(caught.value).endswith(
        "  correct the data, or accept by name: --allow duplicate-in-two-splits "
        "(keep a split that has the same photograph on both sides)"
    )
    require_clean(audit(scan(folder)), ["duplicate-in-two-splits"])


def test_a_name_that_contradicts_its_folder_is_a_warning(folder, picture):
    picture("malignant/SOB_B_A-14-22549AB-100-001.png", seed=50)
    picture("benign/SOB_B_A-14-22549AB-100-002.png", seed=51)
    findings = found(folder)
    assert set(findings) == {"name-contradicts-folder", "patient-in-two-classes"}
    finding = findings["name-contradicts-folder"]
    assert finding.severity == "warning"
    assert finding.files == ("malignant/SOB_B_A-14-22549AB-100-001.png",)
    assert finding.message == (
        "1 image(s) lie in a class folder that their name contradicts: "
        "malignant/SOB_B_A-14-22549AB-100-001.png"
    )


def test_a_name_whose_class_is_none_of_the_folders_says_nothing(folder, picture):
    picture("malignant/is001.png", seed=50)
    assert set(found(folder)) == {"patients-unknown"}


def test_an_unlabelled_image_contradicts_nothing(folder, picture):
    picture("benign/SOB_B_A-14-22549AB-100-002.png", seed=51)
    manifest = scan(folder)
    labels = manifest.table["label"].where(manifest.table["path"] != "benign/patient-b0_1.png")
    unlabelled = labels.where(~manifest.table["path"].str.contains("SOB"))
    codes = {finding.code for finding in audit(manifest.with_columns(label=unlabelled)).findings}
    assert codes == {"no-class", "few-patients"}


@pytest.mark.parametrize(("width", "severity"), [(40, "note"), (24, "note"), (23, "warning")])
def test_mixed_sizes_are_a_note_and_very_mixed_ones_a_warning(folder, picture, width, severity):
    picture("benign/patient-b5_1.png", seed=50, size=(width, 32))
    finding = only(folder, "sizes")
    assert finding.severity == severity
    assert finding.message == f"images have 2 sizes: 48 x 32 px (10), {width} x 32 px (1)"


def test_mixed_modes_and_pages_are_a_note(folder, picture):
    grey = open_picture(picture("spare.png", seed=50)).convert("L")
    pages = [open_picture(picture("spare.png", seed=seed)) for seed in (51, 52)]
    (folder / "spare.png").unlink()
    grey.save(folder / "benign" / "patient-b5_1.png")
    pages[0].save(
        folder / "benign" / "patient-b6_1.tif", save_all=True, append_images=pages[1:]
    )  # fmt: skip
    finding = only(folder, "modes")
    assert finding.severity == "note"
    assert finding.files == ("benign/patient-b5_1.png", "benign/patient-b6_1.tif")
    assert finding.message == (
        "not all images are 8-bit RGB: RGB (10), L (1), RGB, 2 pages (1); they are converted, "
        "of several pages the first is taken"
    )


def test_files_passed_over_are_a_note_and_named(folder):
    (folder / "notes.txt").write_text("x")
    (folder / "benign" / ".DS_Store").write_text("x")
    finding = only(folder, "skipped")
    assert finding.severity == "note"
    assert finding.files == ("benign/.DS_Store", "notes.txt")
    assert finding.message == (
        "2 other file(s) were passed over (hidden file; not an image by its ending)"
    )


def test_a_name_with_a_newline_stays_on_one_line(folder):
    (folder / "benign" / "patient-b5_\n1.png").write_bytes(b"")
    finding = only(folder, "unreadable")
    assert "\n" not in finding.message
    assert finding.files == ("benign/patient-b5_\n1.png",)


def test_copies_without_a_hash_are_found_by_what_they_show(folder):
    shutil.copy(folder / "benign" / "patient-b0_1.png", folder / "benign" / "patient-b0_2.png")
    manifest = scan(folder)
    unhashed = Manifest(
        manifest.root, manifest.table.assign(sha256=None).astype({"sha256": "string"})
    )
    assert [finding.code for finding in audit(unhashed).findings] == ["near-duplicate"]


def test_the_worst_comes_first(tmp_path, picture):
    picture("a/patient-1_1.png", seed=1)
    picture("a/patient-2_1.png", seed=2, size=(46, 32))
    (tmp_path / "x.txt").write_text("x")
    severities = [finding.severity for finding in audit(scan(tmp_path)).findings]
    assert severities == ["blocking", "warning", "note", "note"]


def test_progress_sees_every_image(folder):
    seen = []

    def watch(items, *, total, task):
        for item in items:
            seen.append((task, total))
            yield item

    audit(scan(folder), progress=watch)
    assert seen == [("auditing", 10)] * 10


# ---- accepting


def test_only_blocking_findings_can_be_accepted_and_each_says_what_that_means():
    assert set(OVERRIDABLE) < EVERY_CODE
    check_allowed(list(OVERRIDABLE))
    assert all(re.fullmatch(r"[a-z].*[a-z]", meaning) for meaning in OVERRIDABLE.values())


@pytest.mark.parametrize(
    "code", ["one-class", "one-patient", "no-class", "sizes", "", "UNREADABLE"]
)
def test_what_cannot_be_accepted_is_refused_with_what_can(folder, code):
    expected = (
        f"--allow {code!r} is not a finding that can be accepted\n"
        "  these can: unreadable, patients-unknown, patient-in-two-splits, "
        "duplicate-in-two-splits, duplicate-in-two-classes"
    )
    with pytest.raises(UsageError) as caught:
        check_allowed(["unreadable", code])
    assert str(caught.value) == expected
    with pytest.raises(UsageError):
        require_clean(audit(scan(folder)), [code])


def test_accepting_one_finding_leaves_the_others(folder, picture):
    (folder / "benign" / "patient-b5_1.png").write_bytes(b"")
    picture("benign/other.png", seed=50)
    result = audit(scan(folder))
    assert [finding.code for finding in result.blocking()] == ["unreadable", "patients-unknown"]
    assert [finding.code for finding in result.blocking(["unreadable"])] == ["patients-unknown"]
    assert result.blocking(["unreadable", "patients-unknown"]) == []
    with pytest.raises(DataError) as caught:
        require_clean(result, ["unreadable"])
    assert "unreadable:" not in str(caught.value)
    assert str(caught.value).endswith(
        "  correct the data, or accept by name: --allow patients-unknown "
        "(treat every image of unknown patient as a patient of its own)"
    )


def test_warnings_stop_nothing(folder):
    shutil.copy(folder / "benign" / "patient-b0_1.png", folder / "benign" / "patient-b9_1.png")
    result = audit(scan(folder))
    assert result.findings
    require_clean(result)


def test_an_audit_is_plain_json(folder):
    (folder / "notes.txt").write_text("x")
    assert json.loads(json.dumps(audit(scan(folder)).to_json())) == {
        "schema": "lobule.audit/1",
        "findings": [
            {
                "code": "skipped",
                "severity": "note",
                "message": "1 other file(s) were passed over (not an image by its ending)",
                "files": ["notes.txt"],
            }
        ],
        "n_images": 10,
        "n_patients": 10,
        "patients_known": True,
    }


def test_class_folders_without_an_image_are_named(folder):
    (folder / "third").mkdir()
    (folder / "fourth").mkdir()
    (folder / "fourth" / "slide.svs").write_text("x")
    finding = found(folder)["empty-folder"]
    assert finding.severity == "warning"
    assert finding.message == "2 class folder(s) hold no image: fourth/, third/"


def test_a_file_that_changed_since_the_scan_blocks(folder, picture):
    manifest = scan(folder)
    picture("benign/patient-b3_1.png", seed=99)
    (finding,) = audit(manifest).findings
    assert (finding.code, finding.severity) == ("changed", "blocking")
    assert finding.files == ("benign/patient-b3_1.png",)


def test_one_image_for_every_one_of_many_patients_is_a_note(folder, picture):
    for i in range(20):
        picture(f"benign/patient-c{i}_1.png", seed=200 + i)
        picture(f"malignant/patient-n{i}_1.png", seed=300 + i)
    assert found(folder)["one-image-a-patient"].severity == "note"
    picture("benign/patient-c0_2.png", seed=400)
    assert found(folder) == {}
