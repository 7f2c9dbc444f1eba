#!/usr/bin/env bash
# tomlkit 0.15.2, tomllib of CPython 3.11 (the reader). Needs Python 3.11 or later.
#
# tomlkit changes a value in a TOML file and leaves all else as it is, comments included. Where a file has dotted keys
# (`server.port = 1`), a table that is added below them, `document["server"]["tls"] = {...}`, is written as a header in
# their midst: the keys that follow, all up to the next header, now belong to that table. Within a table, the header lacks
# the table's own name, too. The document in memory is right, and the file is valid TOML: who reads it next finds a default
# where a setting was. Assigning `document["server"]` as a whole is right. (Known: issues 556 and 557 of
# python-poetry/tomlkit; their neighbours 513, 524 and 542 are mended in this version.)
#
# Expected: what is read back is what the document has.
# Seen (in the document; read back):
#   dotted keys: {'server': {'host': 'a', 'tls': {'cert': 'c'}, 'port': 1}, 'name': 'x'}
#     read back: {'server': {'host': 'a', 'tls': {'cert': 'c', 'server': {'port': 1}, 'name': 'x'}}}
#   in a table: {'web': {'server': {'host': 'a', 'tls': {'cert': 'c'}, 'port': 1}, 'name': 'x'}}
#     read back: {'web': {'server': {'host': 'a'}}, 'server': {'tls': {'cert': 'c', 'server': {'port': 1}, 'name': 'x'}}}
#   as a whole: {'name': 'x', 'server': {'host': 'a', 'port': 1, 'tls': {'cert': 'c'}}}
#     read back: the same
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install tomlkit==0.15.2
python <<'PYTHON'
import tomllib

import tomlkit

DOTTED = 'server.host = "a"\nserver.port = 1\nname = "x"\n'
TLS = {"cert": "c"}


def below(document):
    document["server"]["tls"] = TLS


def below_in_table(document):
    document["web"]["server"]["tls"] = TLS


def as_a_whole(document):
    document["server"] = document["server"].unwrap() | {"tls": TLS}


def written(title, text, change):
    document = tomlkit.parse(text)
    change(document)
    has, read = document.unwrap(), tomllib.loads(document.as_string())
    print(f"{title}: {has}")
    print(f"  read back: {'the same' if read == has else read}")
    return has, read


LOST = {"cert": "c", "server": {"port": 1}, "name": "x"}
has, read = written("dotted keys", DOTTED, below)
assert has == {"server": {"host": "a", "tls": TLS, "port": 1}, "name": "x"}
assert read == {"server": {"host": "a", "tls": LOST}}
has, read = written("in a table", f"[web]\n{DOTTED}", below_in_table)
assert has == {"web": {"server": {"host": "a", "tls": TLS, "port": 1}, "name": "x"}}
assert read == {"web": {"server": {"host": "a"}}, "server": {"tls": LOST}}
has, read = written("as a whole", DOTTED, as_a_whole)
assert has == read
PYTHON
echo "still so"
