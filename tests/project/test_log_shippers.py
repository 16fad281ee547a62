"""The examples for who ships log lines name the fields that the lines have, and make no label of what has many values."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
import yaml

from pointsman.callbacks.log_records import Entry, fields_of
from pointsman.callbacks.names import LOG_FIELDS
from pointsman.callbacks.privacy import Redactor
from support.marks import ROOT

DEPLOY = ROOT / "deploy/observability"
FEW = {"level", "process"}
"""Fields that have a handful of values."""


def stages() -> dict[str, dict[str, Any]]:
    """Promtail's pipeline: stage -> what it is given."""
    config = yaml.safe_load((DEPLOY / "loki/promtail.yaml").read_text())
    return {name: given for stage in config["scrape_configs"][0]["pipeline_stages"] for name, given in stage.items()}


@pytest.mark.requirement("T-8")
def test_promtail_reads_fields_that_there_are() -> None:
    found = stages()
    read = found["json"]["expressions"]
    assert set(read.values()) <= set(LOG_FIELDS)
    assert set(found["labels"]) <= FEW
    assert set(found["labels"]) | set(found["structured_metadata"]) | {found["timestamp"]["source"]} == set(read)


def test_alloy_does_what_promtail_does() -> None:
    text = (DEPLOY / "loki/config.alloy").read_text()
    found = stages()

    def block(name: str) -> dict[str, str]:
        inside = re.search(rf"stage\.{name} {{\s+\w+ = {{(.*?)\n    }}", text, re.DOTALL)
        assert inside is not None, name
        return dict(re.findall(r'(\w+)\s+= "(\w*)",', inside[1]))

    assert block("json") == found["json"]["expressions"]
    assert set(block("labels")) == set(found["labels"])
    assert set(block("structured_metadata")) == set(found["structured_metadata"])
    assert text.count("{") == text.count("}")


@pytest.mark.requirement("T-8")
def test_filebeat_reads_fields_that_there_are() -> None:
    config = yaml.safe_load((DEPLOY / "elk/filebeat.yaml").read_text())
    processors = {name: given for item in config["processors"] for name, given in item.items()}
    given = [field["from"] for field in processors["rename"]["fields"]]
    given += [processors["timestamp"]["field"], *processors["drop_event"]["when"]["not"]["has_fields"]]
    assert {name.removeprefix("pointsman.") for name in given} <= set(LOG_FIELDS)
    assert all(name.startswith("pointsman.") for name in given)


def test_the_time_has_the_form_that_they_expect() -> None:
    told = fields_of(Entry(1e9 + 0.25, 20, "x", "m", ("f", 1), {}), Redactor())["timestamp"]
    assert told == "2001-09-09T01:46:40.250000Z"
    assert datetime.fromisoformat(told).timestamp() == 1e9 + 0.25
