"""The model card says what model.json says, of a frozen network and of a tuned one."""

from __future__ import annotations

import copy

import pytest

from lobule.models.card import card_facts, count, figure_name, model_card, people

RECORD = {
    "id": "lobule-features-0123",
    "created": "2026-01-02T03:04:05Z",
    "classes": ["benign", "malignant"],
    "positive": "malignant",
    "versions": {"lobule": "9.8.7"},
    "operating_points": {
        "image": {"threshold": 0.41, "target": "sensitivity", "value": 0.95, "achieved": 0.97,
                  "source": "other patients"},
    },
    "calibration": {"method": "none", "source": "as they are"},
    "preprocessing": {"long_side_px": 560, "aspect": "keep", "interpolation": "bicubic",
                      "id": "abc"},
    "backbone": {"name": "net", "weights": "package 1.0", "license": "Apache-2.0",
                 "n_features": 1280},
    "training": {
        "data_hash": "d" * 64, "n_images": 12, "n_patients": 4, "patients_known": True,
        "classes": {"benign": {"images": 1, "patients": 1},
                    "malignant": {"images": 11, "patients": 3}},
        "strength": 0.001, "tuning": None,
    },
    "performance": {"source": "held-out test part",
                    "rows": [{"level": "image", "name": "roc_auc", "text": "0.9 (0.8 to 1)"}]},
    "weights_sha256": "a" * 64,
}  # fmt: skip

TUNING = {"selected_epoch": 7, "epochs": 20, "select": "roc_auc", "n_validation_patients": 4}


def changed(**training):
    record = copy.deepcopy(RECORD)
    record["training"] |= training
    return record


def test_a_frozen_network_has_features_and_a_regression():
    facts = dict(card_facts(RECORD))
    assert facts["Features"] == (
        "frozen net (package 1.0; licence Apache-2.0), 1,280 numbers, for the 8 rotations and "
        "mirror images"
    )
    assert facts["Head"].startswith("logistic regression, C = 0.001, chosen inside the training")
    assert "Network" not in facts


def test_the_calibration_is_told_with_its_numbers():
    record = copy.deepcopy(RECORD)
    assert dict(card_facts(record))["Calibration"].startswith("none: ")
    record["calibration"] = {"method": "temperature", "temperature": 1.23456, "source": "others"}
    assert dict(card_facts(record))["Calibration"] == "temperature 1.235, fitted on others"
    record["calibration"] = {"method": "isotonic", "steps": [[0, 0], [1, 1]], "source": "others"}
    assert dict(card_facts(record))["Calibration"] == "isotonic, 2 steps, fitted on others"


def test_sets_say_what_they_promise_or_that_patients_are_too_few():
    record = copy.deepcopy(RECORD)
    assert "Sets of classes" not in dict(card_facts(record))
    record["sets"] = {"coverage": 0.9, "quantile": 0.75, "patients": 23, "source": "others"}
    told = dict(card_facts(record))["Sets of classes"]
    assert told.startswith("classes of probability 0.2500 or more; they hold the true one in 90%")
    record["sets"]["quantile"] = None
    assert "23 patients are too few" in dict(card_facts(record))["Sets of classes"]


def test_a_record_of_before_tuning_is_of_a_frozen_network():
    record = changed()
    del record["training"]["tuning"]
    assert card_facts(record) == card_facts(RECORD)


def test_a_tuned_network_says_from_what_which_epoch_and_who_chose_it():
    facts = dict(card_facts(changed(strength=None, tuning=TUNING)))
    assert facts["Network"].startswith(
        "net, tuned from package 1.0 (licence Apache-2.0); epoch 7 of 20 chosen by ROC AUC on 4 "
        "validation patients"
    )
    assert facts["Head"] == "batch norm and linear layer, trained with the network"
    assert "Features" not in facts
    assert "frozen" not in model_card(changed(strength=None, tuning=TUNING))


def test_patients_that_are_unknown_are_not_counted():
    record = changed(strength=None, tuning=TUNING, patients_known=False)
    facts = dict(card_facts(record))
    assert "on 4 validation images (patients unknown)" in facts["Network"]
    assert facts["Trained on"] == "12 images, patients unknown"
    assert facts["By class"] == (
        "benign: 1 image, patients unknown; malignant: 11 images, patients unknown"
    )
    assert "**Patients unknown**: images of one patient may lie on both sides" in (
        model_card(record)
    )
    assert "Patients unknown" not in model_card(RECORD)


def test_the_card_holds_every_fact_and_the_figures():
    card = model_card(RECORD)
    for term, text in card_facts(RECORD):
        assert f"- **{term}:** {text}\n" in card
    for told in (
        "Research use only. Not for diagnosis.", "Lobule 9.8.7", "d" * 64,
        "Measured on held-out test part.", "| image | roc_auc | 0.9 (0.8 to 1) |",
    ):  # fmt: skip
        assert told in card


def test_without_operating_points_the_most_probable_class_is_said_to_be_taken():
    record = {**RECORD, "operating_points": {}}
    assert ("Operating point", "none: the most probable class is taken") in card_facts(record)


def test_a_name_with_a_line_break_stays_on_its_line():
    record = {**RECORD, "classes": ["benign\n# title", "malignant"]}
    assert "- **Classes:** benign\\n# title / malignant\n" in model_card(record)


@pytest.mark.parametrize(
    ("name", "told"),
    [("roc_auc", "ROC AUC"), ("balanced_accuracy", "balanced accuracy"), ("loss", "loss")],
)
def test_figures_are_named_as_people_write_them(name, told):
    assert figure_name(name) == told


def test_counts_are_words_of_one_or_many():
    assert count(1, "image") == "1 image"
    assert people(1234, 1, known=True) == "1,234 images, 1 patient"


def test_a_licence_that_binds_is_told_and_another_is_not():
    record = copy.deepcopy(RECORD)
    assert "Licence" not in dict(card_facts(record))
    record["backbone"]["license"] = "cc-by-nc-nd-4.0 (gated)"
    assert dict(card_facts(record))["Licence"] == (
        "The backbone's weights (licence: cc-by-nc-nd-4.0 (gated)) may not be used commercially "
        "and are given only to those who accept their makers' terms; this may hold for a model "
        "made with them too."
    )
