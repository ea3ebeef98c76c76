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
    ("PRIVATE_KEY", "-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQabc\n-----END PGP PRIVATE KEY BLOCK-----"),
    ("PHONE", "0612345678"),
    ("PHONE", "01711234567"),
    ("PHONE", "(11) 98765-4321"),
    ("IBAN", "gb29 nwbk 6016 1331 9268 19"),
    ("IBAN", "DE89.3704.0044.0532.0130.00"),
    ("US_SSN", "123.45.6789"),
    ("UK_NINO", "AB-12-34-56-C"),
    ("ES_DNI", "12.345.678-Z"),
    ("ES_DNI", "x-1234567-l"),
    ("FR_NIR", "2-69-05-49-588-157-80"),
    ("IT_FISCAL_CODE", "rssmra85t10a562s"),
    ("API_KEY", "smo_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"),
    ("API_KEY", "rk_test_4eC39HqLyjWDarjtT1zdp7dc"),
    ("API_KEY", "ghu_16C7e42F292c6912E7710c838347Ae178B4a"),
    ("API_KEY", "xapp-1-A0123456789-1234567890123-abcdef0123456789"),
    ("API_KEY", "SG.abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"),
    ("API_KEY", "ya29.a0AfH6SMBx-abcdefghijklmnopqrstuvwxyz0123456789"),
    ("API_KEY", "shpat_0123456789abcdef0123456789abcdef"),
    ("PHONE", "(415)-555-2671"),
    ("PHONE", "(415) 555 2671"),
    ("PHONE", "(415).555.2671"),
    ("PHONE", "(415) 555 - 2671"),
    ("PHONE", "+49 (0) 170 / 1234567"),
    ("PHONE", "8 (912) 345-67-89"),
    ("PHONE", "138-0013-8000"),
]


@pytest.mark.parametrize(("kind", "text"), FOUND)
@pytest.mark.parametrize("around", ["{}", "It is {} today.", "({}),", "Name: {}\nnext", "„{}“", "我的{}谢谢"])
def test_each_kind_is_found_whole(kind: str, text: str, around: str) -> None:
    said = around.format(text)
    (found,) = find(said)
    assert (found.kind, said[found.start : found.end]) == (kind, text)


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("phone: 2125551234", "PHONE", "2125551234"),
        ("Tel. 98765 43210", "PHONE", "98765 43210"),
        ('{"mobile": "5125550100"}', "PHONE", "5125550100"),
        ("my mobile number is 612345678", "PHONE", "612345678"),
        ("电话：138 0013 8000", "PHONE", "138 0013 8000"),
        ("SSN: 536221234", "US_SSN", "536221234"),
        ("postgres://app:s3cr3tPass@localhost/x", "PASSWORD", "s3cr3tPass"),
    ],
)
def test_what_is_said_to_be_personal_needs_no_form(text: str, kind: str, found: str) -> None:
    (one,) = find(text)
    assert (one.kind, text[one.start : one.end]) == (kind, found)
    assert find(found) == []


@pytest.mark.parametrize(
    "text",
    [
        "phone 2026-11-23, mobile 23.11.2026, phone model 20241234, hotel 20241234567, microphone 48000000 Hz",
        "ISBN 0679783261, ISBN-10: 0679783261",
        "git clone git@github.com:org/repo and redis://app:secret@cache, redis://:${PASSWORD}@cache",
        "sk-learn-contrib-project, task-management-system-overview",
        "version 1.2.3.4, mask 255.255.255.0, network 10.0.0.0/8, group 224.0.0.1",
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
