"""Fusing ranks, the floor of relevance, the budget, and what a fence lets through. Pure."""

from collections.abc import Sequence

import pytest

from serve_app.documents import Hit
from serve_app.evidence_prompt import harmless, system_text, with_evidence
from serve_app.lifecycle.research import last_words
from serve_app.retrieval import Evidence, Terms, fuse, is_relevant, within
from serve_app.runs import Question

TERMS = Terms(top_k=4, budget_tokens=100, min_similarity=0.3)


def hit(
    name: str, meaning: int | None, words: int | None, *, similarity: float = 0.5, coverage: float = 1.0, tokens: int = 10
) -> Hit:
    return Hit(name, f"{name}.md", 0, f"Text of {name}.", tokens, similarity, coverage, meaning, words)


def names(evidence: Sequence[Evidence]) -> list[str]:
    return [found.hit.document_id for found in evidence]


def test_what_both_ways_found_comes_first() -> None:
    hits = [hit("meaning", 1, None), hit("both", 3, 2), hit("words", None, 1)]
    assert names(fuse(hits)) == ["both", "meaning", "words"]
    assert fuse(hits)[0].score == pytest.approx(1 / 63 + 1 / 62)
    assert names(fuse(hits, words=False)) == ["meaning", "both"]
    assert names(fuse(hits, meaning=False)) == ["words", "both"]


def test_a_few_shared_words_do_not_lift_a_passage() -> None:
    hits = [hit("right", 1, None), hit("noise", 2, 1, coverage=0.4)]
    assert names(fuse(hits)) == ["right", "noise"]


def test_equal_scores_are_ordered_the_same_way_each_time() -> None:
    hits = [hit("b", 1, None), hit("a", None, 1), hit("c", None, 1, similarity=0.6)]
    assert names(fuse(hits)) == names(fuse(list(reversed(hits)))) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("similarity", "coverage", "words", "relevant"),
    [(0.3, 0, None, True), (0.29, 0.5, 1, False), (0.0, 0.6, 1, True), (0.0, 1.0, None, False)],
)
def test_relevance_needs_meaning_or_most_of_the_words(
    similarity: float, coverage: float, words: int | None, relevant: bool
) -> None:
    assert is_relevant(hit("x", 1, words, similarity=similarity, coverage=coverage), TERMS) is relevant


def test_a_long_passage_does_not_keep_a_shorter_one_out_of_the_budget() -> None:
    evidence = [Evidence(hit(name, 1, 1, tokens=tokens), 1) for name, tokens in (("a", 60), ("b", 50), ("c", 40))]
    assert names(within(evidence, 100)) == ["a", "c"]
    assert within(evidence, 10) == []


@pytest.mark.parametrize(
    "border",
    ["<<<", ">>>", "<<<<<<", "<|im_start|>", "<|eot_id|>", "</s>", "<S>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>"],
)
def test_borders_are_broken_and_words_stay(border: str) -> None:
    made = harmless(f"before {border} after")
    assert border not in made
    assert made.replace(" ", "") == f"before{border}after".replace(" ", "")


@pytest.mark.parametrize("text", ["a < b > c", "x << 2 >> 1", "list |> map", "<strong>", "[1] [x]", "<a|b>", "Vec<Vec<u8>>"])
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert harmless(text) == text


def test_each_prompt_has_a_fence_of_its_own_and_no_evidence_no_prompt() -> None:
    evidence = [Evidence(hit("a", 1, 1), 1)]
    assert system_text(evidence) != system_text(evidence)
    asked = [{"role": "user", "content": "q"}]
    assert with_evidence(asked, []) == asked
    assert with_evidence([{"role": "system", "content": None}, *asked], evidence)[0]["content"].startswith("Reference documents")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "c"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], "a"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}], "a"),
        ([{"role": "user", "content": None}], ""),
        ([{"role": "system", "content": "a"}], ""),
    ],
)
def test_the_newest_text_of_the_user_is_looked_for(messages: list[dict[str, object]], text: str) -> None:
    assert last_words(Question("p", "rag", "m", None, messages)) == text


def test_the_corpus_and_the_terms_are_a_part_of_the_question_on_route_rag_alone() -> None:
    def ids(route: str, **more: object) -> tuple[str, str, str]:
        question = Question("p", route, "m", None, [{"role": "user", "content": "q"}], **more)  # type: ignore[arg-type]
        return question.req_id, question.scope, question.asked_id

    one, two = ids("rag", rag={"top_k": 1}, corpus="1"), ids("rag", rag={"top_k": 1}, corpus="2")
    assert one[:2] != two[:2]
    assert one[0] != two[0]
    assert one[1] != two[1]
    assert one[2] == two[2], "what the caller said is the same"
    assert ids("rag", rag={"top_k": 2}, corpus="1")[2] != one[2]
    assert ids("direct") == ids("direct", corpus="1", rag={})
