"""The checksums and rules of numbers: digits (and letters) without separators, as each kind defines them."""

from __future__ import annotations


def luhn(digits: str) -> bool:
    odd = sum(map(int, digits[-1::-2]))
    return (odd + sum((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[int(digit)] for digit in digits[-2::-2])) % 10 == 0


def ssn(digits: str) -> bool:
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def steuer_id(digits: str) -> bool:
    """ISO 7064 mod 11,10; of the first ten digits exactly one occurs two or three times."""
    counts = sorted(digits[:10].count(digit) for digit in set(digits[:10]))
    if digits[0] == "0" or counts[-1] not in (2, 3) or (len(counts) > 1 and counts[-2] > 1):
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def belgian(digits: str) -> bool:
    month, day, check = int(digits[2:4]), int(digits[4:6]), int(digits[9:])
    if month > 12 or day > 31 or not day:
        return False
    return any(97 - int(century + digits[:9]) % 97 == check for century in ("", "2"))


def cpf(digits: str) -> bool:
    if len(set(digits)) == 1:
        return False
    for size in (9, 10):
        rest = sum(int(digit) * weight for digit, weight in zip(digits, range(size + 1, 1, -1), strict=False)) * 10 % 11 % 10
        if rest != int(digits[size]):
            return False
    return True


def ean(digits: str) -> bool:
    return sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits)) % 10 == 0


def nir(number: str) -> bool:
    digits = number.replace("2A", "19").replace("2B", "18")
    return digits.isdecimal() and 97 - int(digits[:13]) % 97 == int(digits[13:])


def dni(number: str, letter: str) -> bool:
    digits = number.translate({ord("X"): "0", ord("Y"): "1", ord("Z"): "2", ord("."): "", ord("-"): "", ord(" "): ""})
    return len(digits) == 8 and "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == letter


_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21] * 2 + [2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23],
        strict=True,
    )
)


def fiscal(code: str) -> bool:
    even = sum(int(char, 36) if char.isdigit() else ord(char) - 65 for char in code[1:15:2])
    return chr(65 + (even + sum(_ODD[char] for char in code[0:15:2])) % 26) == code[15]


_D5 = ("0123456789", "1234067895", "2340178956", "3401289567", "4012395678", "5987604321", "6598710432", "7659821043", "8765932104", "9876543210")  # fmt: skip  # noqa: E501
_P8 = ("0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258")


def verhoeff(digits: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(_D5[check][int(_P8[place % 8][int(digit)])])
    return check == 0


def weighted(digits: str, weights: tuple[int, ...], modulus: int = 11) -> int:
    """The remainder of the digits' weighted sum."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False)) % modulus


def bsn(digits: str) -> bool:
    return len(set(digits)) > 1 and weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) == 0


def pesel(digits: str) -> bool:
    return weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10) == 0 and 1 <= int(digits[2:4]) % 20 <= 12


def tfn(digits: str) -> bool:
    return weighted(digits, (1, 4, 3, 7, 5, 8, 6, 9, 10)) == 0


def nhs(digits: str) -> bool:
    return weighted(digits, (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)) == 0


def nif(digits: str) -> bool:
    rest = weighted(digits[:8], (9, 8, 7, 6, 5, 4, 3, 2))
    return int(digits[8]) == (0 if rest < 2 else 11 - rest)


def fnr(digits: str) -> bool:
    return weighted(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) == 0 and weighted(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) == 0


def tckn(digits: str) -> bool:
    d = [int(digit) for digit in digits]
    return d[0] > 0 and (sum(d[0:9:2]) * 7 - sum(d[1:8:2])) % 10 == d[9] and sum(d[:10]) % 10 == d[10]


def hetu(number: str) -> bool:
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(number[:6] + number[7:10]) % 31] == number[10]


def chinese(number: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[weighted(number[:17], weights)] == number[17]


def rut(number: str) -> bool:
    total = sum(int(digit) * (2 + place % 6) for place, digit in enumerate(reversed(number[:-1])))
    return "0K987654321"[total % 11] == number[-1]
