"""Which variables are secrets, and what a text keeps of them: nothing, however it was encoded."""

from __future__ import annotations

import base64
import json
import os
import traceback
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mot_core.completers.endpoint_client import read_key
from mot_core.errors import MotError, ProblemError
from mot_core.secrets import HIDDEN, is_secret, masked, name_secret, names_in, without_secrets
from mot_core.spec import Endpoint
from mot_core.workers.parent import told

SECRET = "s3cr3t/with+all=of it"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if is_secret(name):
            monkeypatch.delenv(name)
    monkeypatch.setattr("mot_core.secrets._named", set())


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "HF_TOKEN", "MOT_TEACHER_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD",
     "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "AZURE_STORAGE_CONNECTION_STRING", "APIKEY", "my_token", "GITHUBTOKEN"],
)  # fmt: skip
def test_a_name_says_that_it_is_a_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["PATH", "TOKENIZERS_PARALLELISM", "KEYBOARD", "MOT_DATA_ROOTS", "SECRETARY", "MLFLOW_TRACKING_URI"]
)
def test_other_names_do_not(name: str) -> None:
    assert not is_secret(name)


def test_a_variable_that_a_spec_names_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER", "plain-looking")
    assert masked("plain-looking") == "plain-looking"
    spec = {"teachers": [{"endpoint": {"api_key_env": "PROVIDER"}}, {"endpoint": {"api_key_env": None}}]}
    assert list(names_in(spec)) == ["PROVIDER"]
    read_key(Endpoint(base_url="http://h/v1", api_key_env="PROVIDER"))
    assert masked("a plain-looking one") == f"a {HIDDEN} one"


def test_every_form_of_a_secret_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    for form in (SECRET, quote(SECRET), quote(SECRET, safe=""), quote_plus(SECRET), json.dumps(SECRET)[1:-1]):
        assert masked(f"before {form} after") == f"before {HIDDEN} after", form
    monkeypatch.setenv("SOME_TOKEN", 'quo"ted\\and-long')
    assert "and-long" not in masked(json.dumps({"key": 'quo"ted\\and-long'}))


@given(st.binary(max_size=8), st.text(st.characters(codec="utf-8"), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_base64_of_a_text_with_a_secret_keeps_none_of_it(before: bytes, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_TOKEN", SECRET)
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(before + SECRET.encode() + after.encode()).decode()
            text = masked(f"Basic {whole}")
            own = whole[len(before) * 8 // 6 + 4 : (len(before) + len(SECRET)) * 8 // 6 - 4]
            assert HIDDEN in text and not any(own[at : at + 6] in text for at in range(len(own) - 5))


def test_a_value_that_is_no_utf_8_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"s3cr3t \xff\xfe of bytes"
    monkeypatch.setenv("SOME_TOKEN", os.fsdecode(raw))
    forms = (
        os.fsdecode(raw),
        raw.decode(errors="replace"),
        quote(raw),
        quote_plus(raw),
        json.dumps(os.fsdecode(raw))[1:-1],
    )
    for form in forms:
        assert masked(f"before {form} after") == f"before {HIDDEN} after", form
    assert base64.b64encode(raw).decode()[:-4] not in masked(base64.b64encode(raw).decode())


PEM = "-----BEGIN PRIVATE KEY-----\r\nMIIEvQIBADANBgkqhkiG\r\nAASCBKcwggSjAgEAAoIB\r\nx==\r\n-----END PRIVATE KEY-----\r\n"
CREDENTIALS = json.dumps({"type": "service_account", "private_key": "MIIEvQIBADANBgkqhkiG", "id": 1}, indent=2)


@pytest.mark.parametrize("value", [PEM, CREDENTIALS], ids=["PEM", "JSON"])
def test_a_secret_of_several_lines_is_hidden_line_by_line(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOME_CREDENTIALS", value)
    kept = [line for line in value.split() if line in ("x==", "{", "}")]  # too short to say anything
    lines = [masked(f"key:{line.strip()}").removeprefix("key:") for line in value.splitlines()]
    assert [line for line in lines if line != HIDDEN] == kept
    assert masked(f"<{value.strip()}>") == masked(f"<{json.dumps(value.strip())[1:-1]}>") == f"<{HIDDEN}>"


def test_what_a_json_credential_holds_is_hidden_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n"
    account = {"type": "service_account", "private_key": key, "nested": [{"refresh_token": ["1//0gLongRefresh"]}]}
    monkeypatch.setenv("CLOUD_CREDENTIALS", json.dumps(account, indent=1))
    assert masked(f"key\n{key}") == f"key\n{HIDDEN}\n"
    assert masked("MIIEvQIBADANBgkq, 1//0gLongRefresh") == f"{HIDDEN}, {HIDDEN}"
    assert masked("of type service_account") == "of type service_account"
    for damaged in ('{"private_key": ', "{" * 100_000, '{"a":' * 20_000 + "1" + "}" * 20_000):
        monkeypatch.setenv("CLOUD_CREDENTIALS", damaged)
        assert masked("a line") == "a line"


def test_a_short_value_stays_since_it_may_be_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "none")
    assert masked("none of it") == "none of it"


def test_credentials_in_urls_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user-one:pass%20word@host:5000/x")
    assert masked("at http://user-one:pass%20word@host:5000/x.") == "at http://***@host:5000/x."
    assert masked("password 'pass word' of it") == f"password '{HIDDEN}' of it"
    assert masked("postgresql+asyncpg://me:p@ss@db/prefect") == "postgresql+asyncpg://***@db/prefect"
    basic = base64.b64encode(b"user-one:pass word").decode()
    assert "cGFzcyB3b3Jk" not in masked(f"Authorization: Basic {basic}")
    assert masked("mail a@b.c, see https://host/a@b") == "mail a@b.c, see https://host/a@b"


def test_an_error_that_leaves_a_worker_holds_neither_secret_nor_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    event = told({"event": "error", "error": {"type": "", "message": f"a \x1b[31m{SECRET}\nand \ud800\u202e"}})
    assert event["error"]["message"] == f"a ␛[31m{HIDDEN}\nand ⟨U+D800⟩⟨U+202E⟩"
    assert told({"event": "progress", "done": 1}) == {"event": "progress", "done": 1}


def test_an_error_is_raised_without_secrets_of_its_own_or_of_what_led_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    with pytest.raises(ProblemError) as own, without_secrets():
        raise ProblemError(f"401 for https://host/?token={SECRET}")
    assert str(own.value) == f"401 for https://host/?token={HIDDEN}"
    with pytest.raises(MotError, match="RuntimeError: no rows") as led, without_secrets():
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise RuntimeError("no rows") from error
    for raised in (own, led):
        assert SECRET not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(KeyError), without_secrets():
        raise KeyError("as it is")


def test_naming_a_variable_that_is_not_set_hides_nothing() -> None:
    name_secret("ABSENT_VARIABLE")
    assert masked("text") == "text"
