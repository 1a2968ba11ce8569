"""A LlamaIndex retriever as a raggd retriever (the extra ``llamaindex``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raggd.records import Hit, RaggdError
from raggd.retrieval.foreign import ForeignRetriever, foreign_passage, ranked

if TYPE_CHECKING:
    from llama_index.core.base.base_retriever import BaseRetriever


def from_llamaindex(retriever: BaseRetriever, name: str | None = None) -> ForeignRetriever:
    """Use a LlamaIndex retriever for questions and demonstrations.

    Args:
        retriever: any `BaseRetriever`; set its ``similarity_top_k`` to at least the number of
            passages that the settings name.
        name: stands for the retriever and its content; None: nothing is remembered.

    Returns:
        The retriever, for `raggd.load(retriever=...)`. A node's id becomes the passage's, its
        metadata's ``title``, ``file_name`` or ``source`` the title.

    Raises:
        RaggdError: llama-index-core is missing, or this is no LlamaIndex retriever.
    """
    try:
        from llama_index.core.base.base_retriever import BaseRetriever
    except ImportError as error:
        raise RaggdError(
            'llama-index-core is not installed: pip install "raggd[llamaindex]".'
        ) from error
    if not isinstance(retriever, BaseRetriever):
        raise RaggdError(
            f"a {type(retriever).__name__} is not a LlamaIndex retriever: expected a "
            "BaseRetriever, e.g. index.as_retriever(similarity_top_k=5)."
        )

    def search(query: str, k: int) -> list[Hit]:
        found = retriever.retrieve(query)
        passages = [foreign_passage(n.get_content(), n.metadata, n.node_id) for n in found]
        return ranked(passages, [n.score for n in found])

    return ForeignRetriever("llamaindex", search, name)
