"""Cutting texts into chunks: what a chunk keeps together, what it never exceeds, that nothing is lost."""

import re
from collections.abc import Iterator

import pytest

from serve_app.documents import Document
from serve_app.embeddings import OnnxEmbedder, load_embedder
from serve_app.rag import Chunking, Passage, chunk, chunking_for, chunks_of, refresh_chunks
from serve_app.settings import Settings
from serve_app.store.memory_documents import InMemoryDocuments


def words(text: str) -> int:
    """A tokenizer that knows words, and frames a text in two special tokens."""
    return len(text.split()) + 2


def cut(text: str, most: int = 10, overlap: int = 0) -> list[str]:
    passages = chunk(text, words, max_tokens=most, overlap=overlap)
    check(text, passages, most)
    return [text[p.start : p.end] for p in passages]


def check(text: str, passages: list[Passage], most: int) -> None:
    """What holds for every text: all of it is there, in order, and no passage is too long or has blanks at its ends."""
    covered = 0
    for passage in passages:
        part = text[passage.start : passage.end]
        assert part == part.strip() != ""
        assert passage.tokens <= most
        assert passage.end - passage.start <= 8 * most
        assert passage.end > covered
        assert text[covered : max(covered, passage.start)].strip() == "", "a part of the text is in no passage"
        covered = passage.end
    assert text[covered:].strip() == ""
    assert [p.start for p in passages] == sorted({p.start for p in passages})


@pytest.fixture(scope="module")
def embedder() -> Iterator[OnnxEmbedder]:
    made = load_embedder(Settings(config="simulated"))
    yield made
    made.close()


@pytest.mark.parametrize("text", ["", " \n\n\t ", "\n" * 100])
def test_blank_texts_have_no_chunks(text: str) -> None:
    assert cut(text) == []


def test_a_short_text_is_one_chunk() -> None:
    assert cut("  One thing.\n\nAnother thing.\n") == ["One thing.\n\nAnother thing."]


def test_paragraphs_that_fit_are_not_cut() -> None:
    text = "a b c d. e f.\n\ng h i. j k l m.\n\nn o p q r s t u v."
    assert cut(text) == ["a b c d. e f.", "g h i. j k l m.", "n o p q r s t u v."]
    assert cut(text, 13) == ["a b c d. e f.\n\ng h i. j k l m.", "n o p q r s t u v."]


def test_a_paragraph_that_does_not_fit_is_cut_at_sentences() -> None:
    assert cut("a b c d e f. g h i! j k l m. n o?") == ["a b c d e f. g h i!", "j k l m. n o?"]


def test_a_sentence_that_does_not_fit_is_cut_between_words() -> None:
    parts = cut(" ".join(f"w{n}" for n in range(35)))
    assert " ".join(parts).split() == [f"w{n}" for n in range(35)]


def test_a_heading_stays_with_its_paragraph() -> None:
    text = "a b c d e f.\n\n## The title\n\ng h i j. k l."
    assert cut(text) == ["a b c d e f.", "## The title\n\ng h i j. k l."]


def test_a_chunk_begins_with_the_last_sentences_of_the_one_before() -> None:
    text = "a b c. d e f. g h i. j k l. m n o. p q r."
    assert cut(text, 9, 3) == ["a b c. d e f. g h i.", "g h i. j k l. m n o.", "m n o. p q r."]
    assert cut(text, 9, 2)[1] == "j k l. m n o. p q r.", "a part of a sentence is not repeated"


def test_a_whole_paragraph_matters_more_than_an_overlap() -> None:
    assert cut("a b c. d e f.\n\ng h i. j k l. m n o.", 10, 3) == ["a b c. d e f.", "g h i. j k l. m n o."]


def test_one_endless_word_is_cut_by_length() -> None:
    assert all(len(part) <= 80 for part in cut("x" * 1000))


@pytest.mark.parametrize("overlap", [0, 5, 19])
@pytest.mark.parametrize(
    "text",
    [
        "One sentence. " * 300,
        "line without end\n" * 300,
        "Ünïcödé ☃ 😀. " * 200,
        "ราคาเท่าไหร่" * 500,
        "价格是多少？今天天气很好。" * 300,  # noqa: RUF001 - Chinese
        "a" * 5000 + " " + "b" * 5000,
        "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 300,
        "word\t" * 999,
        "# T\n\n" * 200,
        "Mr. X. " * 3 + "\n\n" + "y " * 400 + "\n\n\n \n" + "z. " * 50,
    ],
    ids=["sentences", "lines", "emoji", "thai", "chinese", "long words", "table", "tabs", "headings", "mixed"],
)
def test_nothing_is_lost_and_nothing_too_long_with_the_real_tokenizer(embedder: OnnxEmbedder, text: str, overlap: int) -> None:
    special = embedder.count_tokens("")
    passages = chunk(text, embedder.count_tokens, max_tokens=20, overlap=overlap)
    check(text, passages, 20)
    for passage in passages:
        assert embedder.count_tokens(text[passage.start : passage.end]) - special <= 20


def test_cutting_takes_time_in_proportion_to_the_text(embedder: OnnxEmbedder) -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return embedder.count_tokens(text)

    for text in ("ไทย" * 20_000, "One sentence. " * 4000, "word " * 12_000):
        counted = 0
        chunk(text, count, max_tokens=100, overlap=20)
        assert counted < 6 * len(text)


def test_an_overlap_as_long_as_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="the overlap must be smaller"):
        Chunking(10, 10)


def test_a_chunk_is_no_longer_than_the_model_reads(embedder: OnnxEmbedder) -> None:
    assert chunking_for(embedder, max_tokens=1000, overlap=300) == Chunking(254, 253)
    assert chunking_for(embedder, max_tokens=100, overlap=20) == Chunking(100, 20)


def test_what_chunks_depend_on_is_in_their_name(embedder: OnnxEmbedder) -> None:
    assert Chunking(9, 1).made_with(embedder) != Chunking(9, 2).made_with(embedder)
    assert re.fullmatch(r"minilm-l6-v2/384/9-1/v\d+", Chunking(9, 1).made_with(embedder))


async def test_chunks_carry_the_vector_of_their_text(embedder: OnnxEmbedder) -> None:
    text = "Cats sleep. Dogs bark.\n\nParis is the capital of France."
    document = Document("1", "p", "s", "a.txt", text, "h")
    made = await chunks_of(document, embedder, Chunking(8, 0))
    assert [c.content for c in made] == ["Cats sleep. Dogs bark.", "Paris is the capital of France."]
    assert [list(c.embedding) for c in made] == await embedder.embed([c.content for c in made])
    assert all(text[c.start : c.end] == c.content for c in made)


class ChangedMeanwhile(InMemoryDocuments):
    """Loses the race against somebody who changes each document while it is embedded."""

    async def replace_chunks(self, document: Document, chunks: object, *, made_with: str) -> bool:
        return False


async def test_a_document_that_keeps_changing_does_not_keep_the_job(embedder: OnnxEmbedder) -> None:
    documents = ChangedMeanwhile()
    await documents.put("p", "s", "a.txt", "Cats sleep.")
    refreshed = await refresh_chunks(documents, embedder, "p", Chunking(20, 0))
    assert (refreshed.documents, refreshed.chunks) == (0, 0)


async def test_only_stale_documents_are_chunked(embedder: OnnxEmbedder) -> None:
    documents = InMemoryDocuments()
    for name in ("a.txt", "b.txt"):
        await documents.put("p", "s", name, f"Text of {name}. It is short.")
    await documents.put("q", "s", "a.txt", "Of another project.")
    sizes = Chunking(20, 0)
    assert (await refresh_chunks(documents, embedder, "p", sizes)).documents == 2
    assert (await refresh_chunks(documents, embedder, "p", sizes)).documents == 0
    await documents.put("p", "s", "b.txt", "Changed.")
    assert (await refresh_chunks(documents, embedder, "p", sizes)).documents == 1
    assert (await refresh_chunks(documents, embedder, "p", Chunking(10, 0))).documents == 2, "made in another way"
