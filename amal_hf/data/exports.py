"""Exports of annotation tools as plain rows: Prodigy's JSON lines, Label Studio's JSON with its annotations inside.

One text becomes one row with one `label`, None where nobody gave one. Annotators who disagree are no label: refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
ANSWERS = ("accept", "reject", "ignore")
_OF_PRODIGY = ("answer", "accept", "options", "config", "spans", "tokens", "label")


def plain_rows(rows: Sequence[Row], file: str) -> Sequence[Row]:
    """The rows of an export as `{..., "label"}`, or the rows as they are where they are none.

    Raises:
        ValueError: several classes on one text, by one annotator or by two.

    Example:
        >>> chosen = {"text": "a", "options": [{"id": "x"}, {"id": "y"}]}
        >>> plain_rows([{**chosen, "accept": ["y"], "answer": "accept"}], "train.jsonl")
        [{'text': 'a', 'label': 'y'}]
        >>> of_x = {"from_name": "kind", "value": {"choices": ["x"]}}
        >>> plain_rows([{"id": 7, "data": {"text": "a"}, "annotations": [{"result": [of_x]}]}], "train.json")
        [{'text': 'a', 'label': 'x'}]
    """
    if rows and all(row.get("answer") in ANSWERS and {"label", "accept"} & {*row} for row in rows):
        return _of_prodigy(rows, file)
    if rows and all(isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list) for row in rows):
        return [{**_free(row["data"], file), "label": _only([*_choices(row, file)], row["data"], file)} for row in rows]
    return rows


def _of_prodigy(rows: Sequence[Row], file: str) -> list[Row]:
    texts: dict[Any, Row] = {}
    accepted: dict[Any, list[str]] = {}
    for row in rows:
        key = row.get("text", row.get("_input_hash"))
        texts.setdefault(key, {k: v for k, v in row.items() if k not in _OF_PRODIGY and not k.startswith("_")})
        chosen = row["accept"] if "accept" in row else [row["label"]]
        accepted.setdefault(key, [])
        if row["answer"] == "accept":
            if len(chosen := _names(chosen, file)) > 1:
                raise _several(chosen, row, file)
            accepted[key] += chosen
    asked = {str(row["label"]) for row in rows if "accept" not in row}
    if len(asked) == 1 and any(row["answer"] == "reject" for row in rows):
        raise ValueError(
            f"`data`: expected the class of every text in {file!r}, found rows on which {asked.pop()!r} alone was "
            'accepted or rejected. Write {"text": ..., "label": ...} with a name for what was rejected too.'
        )
    return [{**row, "label": _only(accepted[key], row, file)} for key, row in texts.items()]


def _choices(row: Row, file: str) -> Iterator[str]:
    """What the annotators of Label Studio chose, one class each."""
    for annotation in row["annotations"]:
        if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result"), list):
            raise _unread(annotation, file)
        if annotation.get("was_cancelled"):
            continue
        values = [each.get("value") if isinstance(each, Mapping) else None for each in annotation["result"]]
        choices = [value["choices"] for value in values if isinstance(value, Mapping) and "choices" in value]
        if len(chosen := [name for each in choices for name in _names(each, file)]) > 1:
            raise _several(chosen, row["data"], file)
        yield from chosen


def _names(chosen: Any, file: str) -> list[str]:
    if not isinstance(chosen, list) or not all(isinstance(each, (str, int)) for each in chosen):
        raise _unread(chosen, file)
    return [str(each) for each in chosen]


def _only(chosen: Sequence[str], row: Mapping[str, Any], file: str) -> str | None:
    """The class on which all agree; None where nobody says one."""
    if len({*chosen}) > 1:
        raise _several(sorted({*chosen}), row, file)
    return chosen[0] if chosen else None


def _free(data: Row, file: str) -> Row:
    if "label" in data:
        raise ValueError(
            f"`data`: expected no 'label' beside the annotations in {file!r}, found {str(data['label'])[:40]!r}. "
            "Remove or rename one of them."
        )
    return data


def _several(chosen: Sequence[str], row: Mapping[str, Any], file: str) -> ValueError:
    text = str(row.get("text", dict(row)))
    return ValueError(
        f"`data`: expected one class a text in {file!r}, found {', '.join(map(repr, chosen))} on {text[:40]!r}. Settle "
        "on one, or write a column of answers an annotator and name these in `annotators`."
    )


def _unread(found: Any, file: str) -> ValueError:
    return ValueError(
        f"`data`: expected names of classes chosen in {file!r}, found {str(found)[:60]!r}. Export them as the tool "
        'writes them, or write {"text": ..., "label": ...}.'
    )
