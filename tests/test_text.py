"""The one normal form of text, and the terms of the index made from it."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggd.data.answers import contains_answer
from raggd.data.text import normal_text, search_form, without_marks
from raggd.retrieval.terms import TermNumbers, terms_fingerprint, tokenize

ANY = st.text(st.characters(exclude_categories=()))


@pytest.mark.fuzz
@given(ANY)
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    once = normal_text(text)
    assert normal_text(once) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode()  # no half of a surrogate pair is left
    assert all(c in "\n\t" or unicodedata.category(c) != "Cc" for c in once)
    assert search_form(once) == search_form(text)


@pytest.mark.fuzz
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert normal_text(text) is text
    assert search_form(text) == text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("hy\xadphen", "hyphen"),
        ("le\u200bft \u200eright\u200f", "left right"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("ﬁne aﬄuent", "fine affluent"),
        ("1\xa0000\u202f000", "1 000 000"),
        ("nul\x00l bell\x07", "null bell"),
        ("\x1b[1;32mok\x1b[0m\x1b[K [31m \x1b\x1b[2J.\x1b[", "ok [31m .["),
        ("half \ud83c pair", "half \ufffd pair"),
        ("see \U000e0053\U000e0045this", "see this"),
        ("u\u0308ber", "über"),
        ("می\u200cروم 👩\u200d🚀", "می\u200cروم 👩\u200d🚀"),
    ],
)
def test_what_nobody_sees_goes(text: str, normal: str) -> None:
    assert normal_text(text) == normal


@pytest.mark.fuzz
@given(ANY)
def test_composed_and_decomposed_text_have_the_same_terms(text: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert tokenize(composed) == tokenize(decomposed)


@given(st.text(st.characters(max_codepoint=126, exclude_characters="_")))
def test_plain_words_without_humps_are_split_as_ever(text: str) -> None:
    text = re.sub(r"(\d)([a-z])", r"\1 \2", text.lower())  # no measure, "10km"
    held = [word for word in re.findall(r"\w+", text) if tokenize(word)]
    assert tokenize(text) == [term for word in held for term in tokenize(word)]
    assert all(len(tokenize(word)) == 1 for word in held)


@pytest.mark.parametrize(
    "name", ["McDonald", "YouTube", "LeBron", "iPhone", "NATO", "eBay", "K2", "PCs"]
)
def test_names_of_people_and_firms_stay_whole(name: str) -> None:
    assert len(tokenize(name)) == 1


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("set read_time_out first", "time"),
        ("call __enter__ at once", "enter"),
        ("the *_bold_* word", "bold"),
        ("use followRedirects here", "redirects"),
        ("use followRedirects here", "followredirects"),
        ("parseXMLFile()", "xml file"),
        ("raise `LookupError`", "lookup"),
        ("json.JSONDecoder", "decoder"),
        ("MAX_SIZE", "max_size"),
        ("מְדִינָה", "מדינה"),
        ("الكِتَابُ الجَدِيد", "الكتاب"),
        ("کتاب‌ها", "کتابها"),
        ("أحمد", "احمد"),
        ("e\u0301cole", "École"),
        ("ＷＩＤＥ letters", "wide"),
        ("नमस्कार दुनिया", "दुनिया"),
        ("駅は北にあります", "北"),
        ("营业时间为九点", "时间"),
        ("พิพิธภัณฑ์เปิดทุกวัน", "เปิด"),
        ("도서관은 열려", "도서관"),
        ("ພິພິທະພັນ", "ພິພິ"),
        ("ទិញសៀវភៅ", "សៀវភៅ"),
        ("İzmir", "izmir"),
        ("straße", "STRASSE"),
        ("das Schloß", "Schloss"),
        ("ёлка", "елка"),
        ("Αθήνα", "ΑΘΗΝΑ"),
        ("ὁδός", "οδοσ"[:3] + "ς"),
        ("class HTTPServer", "server"),
        ("im Jahr ١٩٥٢", "1952"),
        ("अध्याय ३", "3"),
        ("GROẞ", "gross"),
        ("a 40mm hose", "40 mm"),
        ("runs at 3GHz", "3 ghz"),
        ("(512MB)", "512 mb"),
        ("a 230V socket, 16A", "230 v"),
        ("16A fuses", "16 A"),
        ("holds 7l of oil", "7 l"),
        ("opens at 9am", "9 am"),
        ("a 5\u00b5m sieve", "5 \u03bcm"),
        ("a 10\u2126 resistor", "10 \u03a9"),
        ("重さ5kgです", "5 kg"),
        ("使用max_retry_count参数", "max retry count"),
        ("使用maxRetries参数", "retries"),
        ("المكتبة مغلقة", "مكتبة"),
        ("της Ελλάδας", "ΕΛΛΑΔΑ"),
        ("насосами", "насос"),
        ("किताबें", "किताब"),
        ("புத்தகங்கள்", "புத்தகம்"),
        ("ışık", "IŞIK"),
        ("DİŞ", "diş"),
        ("în aceea\u0219i \u021bar\u0103", "aceea\u015fi \u0163ar\u0103"),
        ("м\u02bcята", "м'ята"),
        ("Hawai\u02bbi, the Qur\u02bean", "Hawai'i Qur'an"),
        ("the Acme\u2122 pump, its guarantee\xb9 and hose\xb2\xb3.", "acme guarantee hose"),
        ("wash 1\xbd cups, \u2460Open", "1 1/2 cups open"),
        ("\u043f\u0440\u0438\u043a\u0430\u0437 \u21165", "\u2116 5"),
        ("5 km\xb2, CO\u2082", "km2 co2"),
    ],
)
def test_a_part_is_found(written: str, asked: str) -> None:
    assert set(tokenize(asked)) & set(tokenize(written))
    assert set(tokenize(asked)) <= set(tokenize(written)) | set(tokenize("_"))


@pytest.mark.parametrize("text", ["the 1990s", "2nd 3D F16", "v2.10km", "x10km", "10kmh", "5 ms"])
def test_numbers_without_a_unit_stay_whole(text: str) -> None:
    words = [word for word in re.findall(r"\w+", text.lower()) if word != "the"]
    assert len(tokenize(text)) == len(words)


@pytest.mark.parametrize("word", ["{} x_y", "ABC{}\u00e9", "{}1\u00e9 10km", "aB{}\u00e9"])
def test_a_word_of_any_length_is_told_at_once(word: str) -> None:
    # in the square of its length, this would not end
    assert len(tokenize(word.format("a" * 1_000_000))) <= 6


def test_other_words_of_an_unspaced_script_are_not_found() -> None:
    assert not set(tokenize("山川")) & set(tokenize("图书馆关门"))
    assert not set(tokenize("เปิด")) & set(tokenize("ปลา"))


@pytest.mark.fuzz
@given(st.lists(ANY, max_size=5))
def test_numbers_of_terms_are_those_of_the_terms(texts: list[str]) -> None:
    numbers = TermNumbers()
    found = [number for text in texts for number in numbers.of(text)]
    names = {number: term for term, number in numbers.terms.items()}
    assert [names[n] for n in found] == [term for text in texts for term in tokenize(text)]


def test_the_fingerprint_knows_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    before = terms_fingerprint()
    assert before == terms_fingerprint()
    monkeypatch.setattr("raggd.retrieval.terms._PART", re.compile("x"))
    assert terms_fingerprint() != before


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("图书馆晚上九点关门", "九点", True),
        ("图书馆晚上九点关门", "八点", False),
        ("مُدَرِّس فِي الحَدِيقَة", "الحديقة", True),
        ("the oﬃce of Zoe\u0308", "Zoë", True),
        ("main\xadten\xadance costs", "maintenance", True),
        ("cafés", "café", False),
        ("the Acme\u2122 pump", "Acme", True),
        ("the Acme pump", "Acme\u2122", True),
        ("a guarantee\xb9 of", "guarantee", True),
        ("5 km\xb2", "5 km2", True),
        ("takes 1\xbd hours", "11", False),
    ],
)
def test_evidence_is_compared_in_the_same_form(text: str, answer: str, held: bool) -> None:
    assert contains_answer(text, [answer]) is held


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("*structlog* and **its** ***kin***", "structlog and its kin"),
        ("`unbind()` and ``new`` and `a*b`", "unbind() and new and a*b"),
        ('[a page](b.md "t"), ![c](d.png), [1] f(x)[0](y)', "a page, c, [1] f(x)[0](y)"),
        ("{mod}`logging`, :func:`a.b`; note: `x`", "logging, a.b; note: x"),
        ("{doc}`the chain <processors>` or `a page <https://x.org>`__", "the chain or a page"),
        ("~~gone~~ to ~/home", "gone to ~/home"),
        ("2 * 3 * 4, a*b*c, p < 0.05*** and q**", "2 * 3 * 4, a*b*c, p < 0.05*** and q**"),
        ("__init__ and try_unbind_all", "__init__ and try_unbind_all"),
        ("* one\n* two", "* one\n* two"),
    ],
)
def test_marks_go_and_what_only_looks_like_them_stays(text: str, plain: str) -> None:
    assert without_marks(text) == plain


@given(st.text("ab *`~[]()_:{}\n", max_size=60))
def test_without_marks_no_word_is_lost_but_where_links_lead(text: str) -> None:
    found = without_marks(text)
    assert len(found) <= len(text)
    if not re.search(r"[\[{:<]", text):
        assert re.findall(r"\w+", found) == re.findall(r"\w+", text)
