from __future__ import annotations

import time

import pytest

from governance.guardrails.pii import find

FOUND = [
    ("EMAIL", "anna.b+x@example.co.uk"),
    ("PHONE", "+49 30 1234567"),
    ("PHONE", "(212) 555-1234"),
    ("PHONE", "0171 1234567"),
    ("PHONE", "01 23 45 67 89"),
    ("CREDIT_CARD", "4111 1111 1111 1111"),
    ("CREDIT_CARD", "5500-0000-0000-0004"),
    ("CREDIT_CARD", "378282246310005"),
    ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "gb29nwbk60161331926819"),
    ("US_SSN", "123-45-6789"),
    ("UK_NINO", "AB 12 34 56 C"),
    ("DE_TAX_ID", "86095742719"),
    ("FR_NIR", "2 69 05 49 588 157 80"),
    ("ES_DNI", "12345678Z"),
    ("ES_DNI", "X1234567L"),
    ("IT_FISCAL_CODE", "RSSMRA85T10A562S"),
    ("CH_AHV", "756.9217.0769.85"),
    ("BR_CPF", "529.982.247-25"),
    ("IN_AADHAAR", "2341 2341 2346"),
    ("IP_ADDRESS", "10.1.2.3"),
    ("IP_ADDRESS", "2001:db8::1"),
    ("API_KEY", "sk-abcdefghijklmnopqrstuvwx"),
    ("API_KEY", "AKIAIOSFODNN7EXAMPLE"),
    ("PRIVATE_KEY", "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----"),
]


@pytest.mark.parametrize(("kind", "text"), FOUND)
@pytest.mark.parametrize("around", ["{}", "It is {} today.", "({}),", "Name: {}\nnext", "„{}“"])
def test_each_kind_is_found_whole(kind: str, text: str, around: str) -> None:
    said = around.format(text)
    (found,) = find(said)
    assert (found.kind, said[found.start : found.end]) == (kind, text)


@pytest.mark.parametrize(
    "text",
    [
        "On 2024-10-11 at 12:30:45, version 1.2.3 of 3.11.7",
        "01.02.2024 12:30, pages 12-14, 1,234,567 items at 12.50 EUR",
        "HTTP 200 on 127.0.0.1:8000 in 2026-11-22T10:00:00.123456Z",
        "4111 1111 1111 1112",  # a wrong check digit
        "DE88370400440532013000",
        "12345678A",
        "86095742718",
        "000-12-3456",
        "id 123456789, 1700000000, 0.123456789, 100 000 000",
        "user@localhost, @mention, a@b",
        "sk-short and eyJ",
        "0d0b2f0c9a7e4f3e8d6c5b4a39281706",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert find(text) == []


def test_nothing_said_in_a_handbook_is_taken_for_personal_data() -> None:
    from tests.live import ROOT

    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        assert [each for each in find(page.read_text()) if each.kind != "EMAIL"] == []


@pytest.mark.parametrize(
    "text",
    ["1 " * 50_000, "1" * 100_000, "a@" * 50_000, "@" * 50_000, "1-1." * 25_000, "eyJa" * 25_000, "a:b:" * 25_000, "+(" * 50_000],
)
def test_a_hostile_text_costs_linear_time(text: str) -> None:
    def seconds(said: str) -> float:
        begun = time.thread_time()
        find(said)
        return time.thread_time() - begun

    assert seconds(text) < 20 * seconds(text[: len(text) // 4]) + 0.05
