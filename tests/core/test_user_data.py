"""User data as a settings document: what is one, what is cloud-init's, and the table that is taken out."""

from __future__ import annotations

import base64
import contextlib
import gzip
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.user_data import LARGEST, Malformed, Source, decode, split

BLOB = "https://account.blob.core.windows.net/settings/relay.toml"
SETTINGS = 'upstream = ["hub.example"]\n\n[access]\nallow = [\n  "10.0.0.0/8",\n]\n'


@given(st.binary(min_size=1, max_size=2000).filter(bytes.strip), st.integers(0, 100))
def test_base64_is_decoded_with_line_breaks_or_without(data: bytes, width: int) -> None:
    text = base64.b64encode(data)
    lines = b"\r\n".join(text[at : at + width] for at in range(0, len(text), width)) if width else text
    assert decode(lines) == data


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (base64.b64encode(b" \n"), "white space"),
        (b"workers = 2", "not base64"),
        (b"\xff\xfe", "not base64"),
        (b"QUJ", "not base64"),
        (base64.b64encode(b"#" * 71_680), "71680 bytes"),
    ],
)
def test_an_answer_that_is_no_document(answer: bytes, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        decode(answer)


def test_the_largest_document_is_one() -> None:
    assert len(decode(base64.b64encode(b"#" * LARGEST))) == LARGEST


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"#cloud-config\nruncmd: []\n", "cloud-init's"),
        (b"\n#cloud-config\n", "cloud-init's"),
        (b"#cloud-config\n# and a comment of TOML\nworkers = 2\n", "cloud-init's"),
        (b'Content-Type: multipart/mixed; boundary="=="\nMIME-Version: 1.0\n', "MIME"),
        (b"MIME-Version: 1.0\n", "MIME"),
        (b"## template: jinja\n#cloud-config\n", "template"),
        (b"#!/bin/sh\n", "script"),
        (gzip.compress(SETTINGS.encode(), mtime=0), "gzip"),
        (b"\xff\xfeu\0p\0", "not UTF-8"),
        (b"workers: 2\n", "not TOML"),
        (b"workers = " + b"9" * 5000, "not TOML"),
        (b"a = " + b"[" * 5000, "not TOML|nested"),
        (b"# workers = 2\n", "sets nothing"),
        (b"[limits]\n", "sets nothing"),
        (b"[settings_source]\npercentage = 10\n", "no settings"),
        (b"settings_source = 1\n", "not a table"),
        (b"settings_source.percentage = 1\nworkers = 2\n", "under one header"),
        (b"workers = 2\n[settings_source]\npercentage = 101\n", "0 to 100"),
        (b"workers = 2\n[settings_source]\npercentage = true\n", "0 to 100"),
        (b"workers = 2\n[settings_source]\npercentage = nan\n", "0 to 100"),
        (b"workers = 2\n[settings_source]\npercent = 1\n", "settings_source.percent: unknown"),
        (b"workers = 2\n[settings_source]\ncanary_tag = 'ring'\n", "name:value"),
        (b"workers = 2\n[settings_source]\nsalt = 5\n", "not a string"),
        (b"workers = 2\n[settings_source]\nclient_id = 'x'\n", "no settings_source.blob"),
        (f"workers = 2\n[settings_source]\nblob = '{BLOB}'\n".encode(), "workers: beside"),
        (f"[settings_source]\nblob = '{BLOB}'\nclient_id = 'me'\n".encode(), "client id"),
    ],
)
def test_a_document_that_is_not_taken(data: bytes, told: str) -> None:
    with pytest.raises(Malformed, match=told) as caught:
        split(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        BLOB.replace("https", "http"),
        BLOB + "?sv=2021&sig=secret",
        "https://me@account.blob.core.windows.net/c/n",
        "https://evil.example/settings/relay.toml",
        "https://account.blob.core.windows.net.evil.example/c/n",
        "https://account.blob.core.windows.net/",
        "https://account.blob.core.windows.net/container",
        "https://account.blob.core.windows.net/c/a b",
        "https://account.blob.core.windows.net:port/c/n",
        "relay.toml",
    ],
)
def test_a_token_goes_to_a_blob_and_nowhere_else(url: str) -> None:
    with pytest.raises(Malformed, match=r"settings_source\.blob"):
        split(f'[settings_source]\nblob = "{url}"\n'.encode())


@pytest.mark.parametrize("host", ["account.blob.core.chinacloudapi.cn", "account.z05.blob.storage.azure.net"])
def test_other_clouds_have_blobs_too(host: str) -> None:
    assert split(f'[settings_source]\nblob = "https://{host}/c/n"\n'.encode()).source.blob == f"https://{host}/c/n"


def test_a_document_without_the_table_is_left_as_it_is() -> None:
    data = ("\ufeff" + SETTINGS).encode()
    document = split(data)
    assert (document.source, document.settings) == (Source(), data)


@pytest.mark.parametrize("header", ["[settings_source]", "[ settings_source ] # first", '["settings_source"]'])
def test_the_table_is_taken_out_and_all_other_lines_stay_where_they_are(header: str) -> None:
    table = f'{header}\npercentage = 12.5\ncanary_tag = "ring:canary"\n\n'
    top, below = SETTINGS.split("\n\n", 1)
    for text in (f"{top}\n\n{table}{below}", f"{SETTINGS}{table}", f"{SETTINGS}{table}".replace("\n", "\r\n")):
        document = split(text.encode())
        assert document.source == Source(percentage=12.5, canary_tag="ring:canary")
        assert tomllib.loads(document.settings.decode()) == tomllib.loads(SETTINGS)
        kept = document.settings.decode().splitlines()
        assert len(kept) == len(text.splitlines())
        assert [(at, line) for at, line in enumerate(kept) if line] == [
            (at, line) for at, line in enumerate(text.splitlines()) if line and line not in table.splitlines()
        ]


@given(st.text(max_size=300))
def test_a_header_inside_a_string_takes_nothing_away(text: str) -> None:
    body = text.replace('"', "").replace("\\", "")
    body = "".join(c for c in body if c.isprintable() or c == "\n")
    data = f'note = """\n[settings_source]\n{body}"""\n[settings_source]\npercentage = 5\n'.encode()
    with contextlib.suppress(Malformed):
        document = split(data)
        assert tomllib.loads(document.settings.decode())["note"].startswith("[settings_source]")


@given(st.binary(max_size=400))
def test_whatever_is_published_is_a_document_or_one_line_that_says_why_not(data: bytes) -> None:
    found = ["one line"]
    for read in (decode, split):
        try:
            read(data)
        except Malformed as error:
            found.append(str(error))
    assert all(map(str.isprintable, found))
