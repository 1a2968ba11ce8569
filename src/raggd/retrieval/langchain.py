"""A LangChain retriever as a raggd retriever (the extra ``langchain``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raggd.records import Hit, RaggdError
from raggd.retrieval.foreign import ForeignRetriever, foreign_passage, ranked

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever


def from_langchain(retriever: BaseRetriever, name: str | None = None) -> ForeignRetriever:
    """Use a LangChain retriever for questions and demonstrations.

    Args:
        retriever: any `BaseRetriever`. One of a vector store is asked for as many passages as the
            settings name; others return what they were set up to return, cut to that number.
        name: stands for the retriever and its content; None: nothing is remembered.

    Returns:
        The retriever, for `raggd.load(retriever=...)`. A document's ``id`` becomes the passage's,
        its metadata's ``title``, ``file_name`` or ``source`` the title.

    Raises:
        RaggdError: langchain-core is missing, or this is no LangChain retriever.
    """
    try:
        from langchain_core.retrievers import BaseRetriever
        from langchain_core.vectorstores import VectorStoreRetriever
    except ImportError as error:
        raise RaggdError(
            'langchain-core is not installed: pip install "raggd[langchain]".'
        ) from error
    if not isinstance(retriever, BaseRetriever):
        raise RaggdError(
            f"a {type(retriever).__name__} is not a LangChain retriever: expected a BaseRetriever, "
            "e.g. vector_store.as_retriever()."
        )
    by_number = isinstance(retriever, VectorStoreRetriever)

    def search(query: str, k: int) -> list[Hit]:
        found = retriever.invoke(query, k=k) if by_number else retriever.invoke(query)
        passages = [foreign_passage(d.page_content, d.metadata, d.id) for d in found]
        return ranked(passages, [None] * len(passages))

    return ForeignRetriever("langchain", search, name)
