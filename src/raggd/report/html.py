"""What all pages share: templates that escape, the style and script, figures that are checked."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from raggd.methods.spec import method_label
from raggd.records import RaggdError

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_SVG_TAGS = frozenset(
    {"svg", "title", "style", "defs", "g", "path", "use", "clippath", "rect", "text", "tspan"}
)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the templates of the pages, with their filters; every text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("raggd.report"),
        autoescape=True,  # not select_autoescape: it would leave *.j2 unescaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "label": method_label,
        "minus": lambda text: text.replace("-", "\N{MINUS SIGN}"),
    }
    return made


def source(name: str) -> Markup:
    """Return a file of the template folder as it is: our own style or script."""
    from markupsafe import Markup

    loaded = environment()
    assert loaded.loader is not None
    return Markup(loaded.loader.get_source(loaded, name)[0])


def _unsafe(svg: str) -> str:
    """Return what keeps a figure from being put into a page; empty when nothing does."""
    if "<!" in svg or not svg.startswith("<svg"):
        return "it is not one bare <svg> element"
    try:
        nodes = list(ElementTree.fromstring(svg).iter())
    except ElementTree.ParseError as error:
        return f"it is not well-formed ({error})"
    for node in nodes:
        tag = node.tag.rpartition("}")[2].lower()
        if tag not in _SVG_TAGS:
            return f"it contains <{tag}>"
        for name, value in [*node.attrib.items(), ("text", (node.text or "") * (tag == "style"))]:
            name = name.rpartition("}")[2].lower()
            away = re.search(r"url\(\s*(?!#)|@import|javascript:", value, re.IGNORECASE)
            if name.startswith("on") or away or (name == "href" and not value.startswith("#")):
                return f"<{tag}> has {name}='{value[:60]}'"
    return ""


def checked_figure(svg: str) -> Markup:
    """Let a figure into a page unescaped, after a look at all that it contains.

    Args:
        svg: one ``<svg>`` element, or an empty string for no figure.

    Returns:
        Safe HTML.

    Raises:
        RaggdError: it holds something that a figure of raggd does not.
    """
    from markupsafe import Markup

    problem = _unsafe(svg) if svg else ""
    if problem:
        raise RaggdError(
            f"the figure cannot be put into the page: {problem}. Give the result of "
            "a figure function of raggd.report, or an empty string for no figure."
        )
    return Markup(svg)


def script_hash(script: str) -> str:
    """Return the hash by which a page's security policy admits its own script alone."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
