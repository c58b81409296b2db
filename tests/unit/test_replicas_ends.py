"""A legacy completion counts as whole only when every choice of every prompt has ended."""

from typing import Any

import pytest

from serve_app.errors import UpstreamFailed
from serve_app.replicas.ends import CompletionEnds, choices_due, completions_due


@pytest.mark.parametrize(
    ("body", "due"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": "a", "n": 3}, 3),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": [], "n": "x"}, 1),
        ({"n": -5}, 1),
    ],
)
def test_how_many_are_due(body: dict[str, Any], due: int) -> None:
    assert completions_due(body) == due


def test_a_chat_counts_its_choices() -> None:
    assert (choices_due({}), choices_due({"n": None}), choices_due({"n": 2})) == (1, 1, 2)


def test_a_choice_that_is_cut_or_never_came_is_missed() -> None:
    ends = CompletionEnds(2)
    ends.note({"choices": [{"index": 0, "finish_reason": "stop"}]})
    with pytest.raises(UpstreamFailed, match="1 of 2"):
        ends.check()
    ends.note({"choices": [{"index": 1, "finish_reason": None}]})
    assert not ends.complete
    ends.note({"choices": [{"index": 1, "finish_reason": "length"}]})
    ends.check()
    ends.note({"choices": [], "usage": {}})
    assert ends.complete


@pytest.mark.parametrize("chunk", [{"choices": [{}]}, {"choices": 5}, {"choices": ["x"]}])
def test_nonsense_is_an_error(chunk: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed):
        CompletionEnds(1).note(chunk)
