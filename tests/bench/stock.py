"""The pipelines a user would assemble, as their quick starts do; run by `tests/bench/baselines.py` in an environment of its own.

    python tests/bench/stock.py PIPELINE WORK MODEL

Reads `documents.jsonl` (`id`, `text`) and `questions.jsonl` (`id`, `text`) from WORK and prints one JSON object: the ids of the
ten best documents of each question, a document being as good as its best piece, and the seconds that indexing took.
Splitter, store and search are each library's defaults; the encoder is the same all-MiniLM-L6-v2 for all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

Search = Callable[[str], Iterable[str]]
"""A question to document ids, one a piece, best first."""
Texts = dict[str, str]
PIECES = 40
"""Pieces asked for, so that ten documents are left of them."""


def langchain(texts: Texts, model: str) -> Search:
    from langchain_chroma import Chroma
    from langchain_core.documents import Document
    from langchain_huggingface import HuggingFaceEmbeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    documents = [Document(page_content=text, metadata={"key": key}) for key, text in texts.items()]
    pieces = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200).split_documents(documents)
    store = Chroma(embedding_function=HuggingFaceEmbeddings(model_name=model))
    for at in range(0, len(pieces), 5000):  # Chroma takes no more at once
        store.add_documents(pieces[at : at + 5000])
    return lambda question: [found.metadata["key"] for found in store.similarity_search(question, k=PIECES)]


def llamaindex(texts: Texts, model: str) -> Search:
    from llama_index.core import Document, VectorStoreIndex
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    documents = [Document(text=text, metadata={"key": key}, excluded_embed_metadata_keys=["key"]) for key, text in texts.items()]
    index = VectorStoreIndex.from_documents(documents, embed_model=HuggingFaceEmbedding(model_name=model))
    retriever = index.as_retriever(similarity_top_k=PIECES)
    return lambda question: [found.metadata["key"] for found in retriever.retrieve(question)]


def _haystack(texts: Texts, model: str, lexical: bool) -> Search:
    from haystack import Document
    from haystack.components.embedders import SentenceTransformersDocumentEmbedder, SentenceTransformersTextEmbedder
    from haystack.components.preprocessors import DocumentSplitter
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    splitter = DocumentSplitter()
    pieces = splitter.run([Document(content=text, meta={"key": key}) for key, text in texts.items()])["documents"]
    store = InMemoryDocumentStore()
    if lexical:
        store.write_documents(pieces)
        words = InMemoryBM25Retriever(store, top_k=PIECES)
        return lambda question: [found.meta["key"] for found in words.run(question)["documents"]]
    embedder = SentenceTransformersDocumentEmbedder(model=model, progress_bar=False)
    asker = SentenceTransformersTextEmbedder(model=model, progress_bar=False)
    embedder.warm_up()
    asker.warm_up()
    store.write_documents(embedder.run(pieces)["documents"])
    near = InMemoryEmbeddingRetriever(store, top_k=PIECES)
    return lambda question: [found.meta["key"] for found in near.run(asker.run(question)["embedding"])["documents"]]


def haystack(texts: Texts, model: str) -> Search:
    return _haystack(texts, model, lexical=False)


def haystack_bm25(texts: Texts, model: str) -> Search:
    return _haystack(texts, model, lexical=True)


def bm25s(texts: Texts, model: str) -> Search:
    import bm25s
    import Stemmer

    keys, stemmer = list(texts), Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts.values()), stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)

    def search(question: str) -> list[str]:
        asked = bm25s.tokenize(question, stopwords="en", stemmer=stemmer, show_progress=False)
        found, _ = index.retrieve(asked, k=min(PIECES, len(keys)), show_progress=False)
        return [keys[at] for at in found[0]]

    return search


def minilm(texts: Texts, model: str) -> Search:
    from sentence_transformers import SentenceTransformer

    encoder, keys = SentenceTransformer(model), list(texts)
    vectors = encoder.encode(list(texts.values()), normalize_embeddings=True)
    return lambda question: [
        keys[at] for at in (-(vectors @ encoder.encode(question, normalize_embeddings=True))).argsort()[:PIECES]
    ]


PIPELINES = {each.__name__: each for each in (langchain, llamaindex, haystack, haystack_bm25, bm25s, minilm)}


def lines(path: Path) -> Texts:
    return {row["id"]: row["text"] for row in map(json.loads, path.read_text().splitlines())}


def main() -> None:
    pipeline, work, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    began = time.perf_counter()
    search = PIPELINES[pipeline](lines(work / "documents.jsonl"), model)
    indexed = time.perf_counter() - began
    orders = {key: list(dict.fromkeys(search(text)))[:10] for key, text in lines(work / "questions.jsonl").items()}
    print(json.dumps({"seconds": round(indexed, 1), "orders": orders}))


if __name__ == "__main__":
    main()
