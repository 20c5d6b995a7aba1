"""The doctor: what is well, and what it says of the usual faults."""

from __future__ import annotations

from lobule.checkup import PACKAGES, check_torch_pair, doctor


def test_everything_is_well_where_the_tests_run():
    checks = doctor()
    assert {c.name for c in checks} >= {*PACKAGES, "python", "offline backbone", "cache folder"}
    assert [c for c in checks if not c.ok] == []


def test_a_torchvision_of_another_build_is_recognised():
    said = "RuntimeError: operator torchvision::nms does not exist"
    check = check_torch_pair(lambda _: (1, f"Traceback ...\n{said}"))
    assert not check.ok
    assert check.found == said
    assert "builds for different machines" in check.fix


def test_a_missing_torchvision_is_told_apart_from_a_mismatch():
    said = "ModuleNotFoundError: No module named 'torchvision'"
    check = check_torch_pair(lambda _: (1, said))
    assert (check.ok, check.fix) == (False, "pip install torch torchvision")


def test_a_crash_without_words_is_reported_too():
    check = check_torch_pair(lambda _: (-11, ""))
    assert (check.ok, check.found) == (False, "exit status -11")


def test_versions_are_shown_where_the_pair_works():
    check = check_torch_pair(lambda _: (0, "2.15.0 0.29.2 CPU"))
    assert (check.ok, check.found, check.fix) == (True, "2.15.0 0.29.2 CPU", None)
