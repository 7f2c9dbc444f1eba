"""Which passwords are accepted (NIST SP 800-63-4: length and a blocklist, no composition rules)."""

import unicodedata

MIN_CHARACTERS = 8
MAX_CHARACTERS = 128
MAX_BYTES = 1024

# The most used passwords of at least eight characters, over several published breach lists, in lower case.
_COMMON = frozenset(
    [
        "12345678",
        "123456789",
        "1234567890",
        "0123456789",
        "987654321",
        "9876543210",
        "11111111",
        "00000000",
        "12341234",
        "12121212",
        "123123123",
        "123321123",
        "1q2w3e4r",
        "1q2w3e4r5t",
        "1qaz2wsx",
        "q1w2e3r4",
        "q1w2e3r4t5",
        "qwertyui",
        "qwertyuiop",
        "qwerty12",
        "qwerty123",
        "qwerty1234",
        "asdfghjk",
        "asdfghjkl",
        "asdf1234",
        "zxcvbnm1",
        "zaq12wsx",
        "password",
        "password1",
        "password12",
        "password123",
        "password1234",
        "passw0rd",
        "p@ssw0rd",
        "p@ssword",
        "passwort",
        "passwort1",
        "passwort123",
        "iloveyou",
        "iloveyou1",
        "sunshine",
        "sunshine1",
        "princess",
        "princess1",
        "football",
        "football1",
        "baseball",
        "baseball1",
        "superman",
        "superman1",
        "batman123",
        "trustno1",
        "welcome1",
        "welcome123",
        "whatever",
        "starwars",
        "computer",
        "internet",
        "michelle",
        "jennifer",
        "charlie1",
        "danielle",
        "jordan23",
        "liverpool",
        "chelsea1",
        "arsenal1",
        "monkey123",
        "dragon123",
        "master123",
        "shadow123",
        "letmein1",
        "letmein123",
        "abcd1234",
        "abc12345",
        "abcdefgh",
        "abcdefg1",
        "aa123456",
        "a1234567",
        "a12345678",
        "admin123",
        "admin1234",
        "administrator",
        "changeme",
        "changeme1",
        "secret123",
        "default1",
        "testtest",
        "test1234",
        "hallo123",
        "schatz123",
        "ficken123",
        "registrar",
        "registrar1",
        "registrar123",
    ]
)


def parse_password(typed: str, *, email: str = "") -> str:
    """The password in NFKC, as it is hashed.

    Raises:
        ValueError: too short, too long, among the most used ones, or the address itself; the message can be shown.
    """
    if len(typed) > MAX_CHARACTERS or len(typed.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ValueError(f"too long: at most {MAX_CHARACTERS} characters")
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise ValueError("contains an unpaired surrogate") from None
    password = unicodedata.normalize("NFKC", typed)
    if "\x00" in password:
        raise ValueError("contains a NUL character")
    # Also as typed: NFKC may turn one character into up to eighteen.
    if min(len(typed), len(password)) < MIN_CHARACTERS:
        raise ValueError(f"too short: at least {MIN_CHARACTERS} characters")
    lowered = password.lower()
    if lowered in _COMMON or len(set(lowered)) == 1:
        raise ValueError("too common: it is among the first ones that an attacker tries")
    if email and lowered in {email.lower(), email.lower().partition("@")[0]}:
        raise ValueError("too easy to guess: it is the mail address")
    return password
