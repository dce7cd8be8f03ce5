"""The web.config.yml: TLS, passwords, tokens and the rate limit, as clients see them; and what is wrong in it."""

from __future__ import annotations

import base64
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection
from itertools import pairwise

import bcrypt
import pytest
import trustme

from otel_mlops.sdk import passwords, server
from otel_mlops.sdk.passwords import Door
from otel_mlops.sdk.web_config import WebConfig, WebConfigFile, load
from tests.test_server import LARGE, PATIENCE_S, connect, eventually, everything, request_threads, serving, small

SECRET = "correct horse"


def hash_of(password: str | bytes) -> str:
    """A bcrypt hash that costs little."""
    return bcrypt.hashpw(password if isinstance(password, bytes) else password.encode(), bcrypt.gensalt(4)).decode()


HASH = hash_of(SECRET)
COSTLY_HASH = "$2b$31$" + "a" * 53


def basic(user: str | bytes, password: str | bytes) -> str:
    """An Authorization header."""
    user, password = (each if isinstance(each, bytes) else each.encode() for each in (user, password))
    return "Basic " + base64.b64encode(user + b":" + password).decode()


GOOD = basic("alice", SECRET)
WRONG = basic("alice", "wrong")


@pytest.fixture(scope="module")
def authority():
    """Who signs certificates."""
    return trustme.CA()


@pytest.fixture
def folder(tmp_path, authority):
    """A folder with a server's certificate, its key and the authority's certificate."""
    issued = authority.issue_cert("127.0.0.1", "localhost")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path


TLS = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"
MUTUAL = (
    "tls_server_config: {cert_file: cert.pem, key_file: key.pem, client_ca_file: ca.pem, "
    "client_auth_type: RequireAndVerifyClientCert%s}\n"
)
USERS = f"basic_auth_users: {{alice: {HASH}}}\n"


def write(folder, text):
    """The web.config.yml with this text, put in place of the one before."""
    path = folder / "web.config.yml"
    (folder / "new").write_text(text)
    (folder / "new").replace(path)
    return path


def trusting(authority, identity=None, **options):
    """What a client that trusts the authority, and may have a certificate, needs for TLS."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if identity is not None:
        identity.configure_cert(context)
    for name, value in options.items():
        setattr(context, name, value)
    return context


def ask(page_server, path="/metrics", method="GET", context=None, authorization=None):
    """One request: the response with its body as `.body`."""
    where = ("127.0.0.1", page_server.port)
    connection = (
        HTTPConnection(*where, timeout=PATIENCE_S)
        if context is None
        else HTTPSConnection(*where, timeout=PATIENCE_S, context=context)
    )
    try:
        connection.request(method, path, headers={"Authorization": authorization} if authorization else {})
        response = connection.getresponse()
        response.body = response.read()
        return response
    finally:
        connection.close()


def raw(page_server, data):
    """The answer to bytes."""
    with connect(page_server) as connection:
        connection.sendall(data)
        return everything(connection)


def refused_in(page_server):
    """The reasons for which clients were sent away, from now on."""
    reasons = []
    page_server._on_refused = reasons.append
    return reasons


# --- TLS ---------------------------------------------------------------------------------------------------


def test_the_page_is_served_over_tls(folder, authority):
    """With a certificate the page is at https, for who trusts its authority."""
    with serving(web_config_file=write(folder, TLS)) as page_server:
        response = ask(page_server, context=trusting(authority))
        assert (response.status, response.body) == (200, LARGE.body)
        assert page_server.url == f"https://127.0.0.1:{page_server.port}/metrics"


def test_tls_ends_with_a_goodbye(folder, authority):
    """A client that insists on the end of TLS being said, as OpenSSL 3 does, gets it after the page."""
    context = trusting(authority)
    with (
        serving(web_config_file=write(folder, TLS)) as page_server,
        connect(page_server) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as client,
    ):
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        got = everything(client)
    assert got.endswith(LARGE.body)


def test_certificate_and_key_may_stand_in_the_file(folder, authority):
    """Inline PEM texts work like files."""
    texts = {key: (folder / f"{key}.pem").read_text() for key in ("cert", "key", "ca")}
    lines = ["tls_server_config:", "  client_auth_type: VerifyClientCertIfGiven"]
    for key, text in (("cert", texts["cert"]), ("key", texts["key"]), ("client_ca", texts["ca"])):
        lines += [f"  {key}: |", *(f"    {line}" for line in text.splitlines())]
    with serving(web_config_file=write(folder, "\n".join(lines))) as page_server:
        assert ask(page_server, context=trusting(authority)).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_are_bounded(folder, authority, version):
    """min_version and max_version admit the versions between them, and no others."""
    name = {ssl.TLSVersion.TLSv1_2: "TLS12", ssl.TLSVersion.TLSv1_3: "TLS13"}[version]
    text = TLS.replace("}", f", min_version: {name}, max_version: {name}}}")
    other = {ssl.TLSVersion.TLSv1_2: ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3: ssl.TLSVersion.TLSv1_2}[version]
    with serving(web_config_file=write(folder, text)) as page_server:
        refused = refused_in(page_server)
        alike = trusting(authority, minimum_version=version, maximum_version=version)
        assert ask(page_server, context=alike).status == 200
        assert refused == []
        with pytest.raises(ssl.SSLError):
            ask(page_server, context=trusting(authority, minimum_version=other, maximum_version=other))
        eventually(lambda: refused == ["tls"])


def test_cipher_suites_and_curve_are_those_that_are_asked_for(folder, authority):
    """A client gets the suite that is configured, and none without it; a curve that is not the server's fails."""
    text = TLS.replace(
        "}",
        ", max_version: TLS12, cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,"
        " TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384], curve_preferences: [CurveP384]}",
    )
    with serving(web_config_file=write(folder, text)) as page_server:

        def agreed(configure):
            context = trusting(authority)
            configure(context)
            with connect(page_server) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
                return client.cipher()[0]

        assert agreed(lambda context: context.set_ciphers("ECDHE")).endswith("AES256-GCM-SHA384")
        with pytest.raises(ssl.SSLError):
            agreed(lambda context: context.set_ciphers("ECDHE+AES128"))
        with pytest.raises(ssl.SSLError):
            agreed(lambda context: context.set_ecdh_curve("prime256v1"))


def test_a_client_without_a_verified_certificate_is_sent_away(folder, authority):
    """With RequireAndVerifyClientCert only a client whose certificate the authority signed reads the page."""
    stranger = trustme.CA().issue_cert("prometheus.example.test")
    friend = authority.issue_cert("prometheus.example.test")
    with serving(web_config_file=write(folder, MUTUAL % "")) as page_server:
        refused = refused_in(page_server)
        assert ask(page_server, context=trusting(authority, friend)).status == 200
        assert refused == []
        for context in (trusting(authority), trusting(authority, stranger)):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask(page_server, context=context)
        eventually(lambda: refused == ["tls", "tls"])


def test_a_certificate_may_be_optional_but_not_wrong(folder, authority):
    """With VerifyClientCertIfGiven a client without a certificate is let in, and one with a stranger's is not."""
    text = (MUTUAL % "").replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")
    with serving(web_config_file=write(folder, text)) as page_server:
        assert ask(page_server, context=trusting(authority)).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(page_server, context=trusting(authority, trustme.CA().issue_cert("a.example.test")))


@pytest.mark.parametrize(
    "name", ["prometheus.example.test", "10.1.2.3", "2001:db8::1", "ops@example.test", "other.example.test"]
)
def test_a_client_must_have_an_allowed_name(folder, authority, name):
    """client_allowed_sans admits a certificate with one of the names: DNS, IP or e-mail, compared as a whole."""
    allowed = ', client_allowed_sans: [prometheus.example.test, 10.1.2.3, "2001:db8::1", ops@example.test]'
    with serving(web_config_file=write(folder, MUTUAL % allowed)) as page_server:
        refused = refused_in(page_server)
        context = trusting(authority, authority.issue_cert(name))
        if name == "other.example.test":
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask(page_server, context=context)
            eventually(lambda: refused == ["tls"])
        else:
            assert ask(page_server, context=context).status == 200
            assert refused == []


def test_silent_tls_clients_delay_nobody(folder, authority):
    """While clients hang in the handshake, having sent nothing or half a hello, others are served at once."""
    with serving(web_config_file=write(folder, TLS)) as page_server:
        silent = [connect(page_server) for _ in range(20)]
        for connection in silent[10:]:
            connection.sendall(b"\x16\x03\x01\x02")
        eventually(lambda: request_threads() == 20)
        began_s = time.monotonic()
        assert ask(page_server, context=trusting(authority)).status == 200
        assert time.monotonic() - began_s < 2.0
        for connection in silent:
            connection.close()


@pytest.mark.parametrize("said", [b"", b"\x16\x03"])
def test_a_handshake_has_a_time(folder, monkeypatch, said):
    """A client that does not finish the handshake is sent away when its time is over, and counted."""
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.1)
    with serving(web_config_file=write(folder, TLS)) as page_server:
        refused = refused_in(page_server)
        with connect(page_server) as connection:
            connection.sendall(said)
            assert everything(connection) == b""
        eventually(lambda: refused == ["tls"])


def test_a_handshake_that_trickles_has_no_more_time(folder, monkeypatch):
    """A client that sends its hello a byte at a time is sent away when the time for all of it is over."""
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.3)
    with serving(web_config_file=write(folder, TLS)) as page_server, connect(page_server) as connection:
        connection.sendall(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc")
        began_s, connection_ended = time.monotonic(), False
        connection.settimeout(0.02)
        with suppress(ConnectionError):
            while not connection_ended and time.monotonic() - began_s < PATIENCE_S:
                connection.sendall(b"\x00")
                with suppress(TimeoutError):
                    connection_ended = connection.recv(1) == b""
        assert time.monotonic() - began_s < 3.0


def test_a_plain_request_to_a_tls_port_is_told_so(folder):
    """Who asks with http gets a 400 that names the scheme, and is counted; who only looks at the port is not."""
    with serving(web_config_file=write(folder, TLS)) as page_server:
        refused = refused_in(page_server)
        connect(page_server).close()
        eventually(lambda: request_threads() == 0)
        assert refused == []
        answer = raw(page_server, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 400")
        assert b"scheme: https" in answer
        assert refused == ["tls"]


# --- Passwords and tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        WRONG,
        basic("mallory", SECRET),
        basic("", SECRET),
        basic("alice", ""),
        basic("alice", SECRET + " "),
        basic("alice", SECRET.upper()),
        basic("alice", SECRET + "\0"),
        basic("alice", f"{SECRET}\0{SECRET}"),
        basic("alice:", SECRET),
        GOOD + "A",
        GOOD.replace("Basic", "Bearer"),
        "Basic",
        "Basic ",
        "Basic !!!!",
        "Basic " + base64.b64encode(b"alice").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic \xe4",
        "Bearer ",
        "Digest username=alice",
        "x" * 60_000,
    ],
)
def test_who_has_no_password_reads_nothing(folder, header):
    """Without the right user and password the answer is a 401 that says how to ask, whatever the header is."""
    with serving(web_config_file=write(folder, USERS)) as page_server:
        refused = refused_in(page_server)
        response = ask(page_server, authorization=header)
    assert response.status == 401
    assert response.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert response.body == b"Unauthorized\n"
    assert refused == ["auth"]


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/-/ready"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_has_the_password_reads_all(folder, path, method):
    """The right user and password open every path, the probes' too."""
    with serving(web_config_file=write(folder, USERS)) as page_server:
        refused = refused_in(page_server)
        assert ask(page_server, path, method, authorization=GOOD).status == 200
        assert ask(page_server, path, method, authorization=GOOD.replace("Basic", "bAsIc")).status == 200
        assert refused == []


@pytest.mark.parametrize(
    "line",
    [
        b"GET //metrics HTTP/1.1",
        b"GET /metrics/ HTTP/1.1",
        b"GET /metrics?x=1 HTTP/1.1",
        b"GET http://example.test/metrics HTTP/1.1",
        b"GET /-/healthy HTTP/1.1",
        b"GET /-/ready HTTP/1.1",
        b"GET /nowhere HTTP/1.1",
        b"HEAD /metrics HTTP/1.1",
        b"POST /metrics HTTP/1.1",
        b"FOO /metrics HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET /metrics",
        b"GET /metrics HTTP/1.0",
        b"GET /metrics HTTP/1.1\r\nExpect: 100-continue",
        b"GET /metrics HTTP/1.1\r\nAuthorization: " + GOOD.encode() + b"\r\nAuthorization: " + WRONG.encode(),
        b"GET /metrics HTTP/1.1\r\nAuthorization : " + GOOD.encode(),
        b"GET /metrics HTTP/1.1\r\nX-Authorization: " + GOOD.encode(),
        b"GET /metrics HTTP/1.1\r\nAuthorization: Basic\r\n " + b"=" * 30_000,
    ],
)
def test_there_is_no_way_around_the_password(folder, line):
    """No spelling of the target, method, version or header gets anything without the password."""
    with serving(web_config_file=write(folder, USERS)) as page_server:
        answer = raw(page_server, line + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] == b"401"
    assert b"requests_total" not in answer


@pytest.mark.parametrize("size", [60_000, 70_000, 200_000])
def test_an_oversized_header_does_not_get_past_the_password(folder, size):
    """A header that is as large as is allowed, or larger, opens nothing."""
    with serving(web_config_file=write(folder, USERS)) as page_server:
        head = b"GET /metrics HTTP/1.1\r\nX: " + b"a" * size + b"\r\nAuthorization: " + WRONG.encode() + b"\r\n\r\n"
        answer = raw(page_server, head)
    assert answer.split(b" ", 2)[1] in {b"401", b"431"}
    assert b"requests_total" not in answer


@pytest.mark.parametrize("length", [71, 72, 73, 200])
def test_long_passwords_work_as_bcrypt_has_always_taken_them(folder, length):
    """A password longer than bcrypt's 72 bytes is right if these are."""
    users = f"basic_auth_users: {{alice: {hash_of(('p' * length)[:72])}}}\n"
    with serving(web_config_file=write(folder, users)) as page_server:
        assert ask(page_server, authorization=basic("alice", "p" * length)).status == 200
        assert ask(page_server, authorization=basic("alice", "p" * 70)).status == 401


@pytest.mark.parametrize("prefix", ["$2y$", "$2a$", "$2b$"])
def test_users_and_hashes_of_every_tool_work(folder, prefix):
    """What htpasswd, Go and Python write is a hash, and a name may be no ASCII."""
    hashed = HASH.replace("$2b$", prefix)
    with serving(web_config_file=write(folder, f"basic_auth_users: {{zoë: {hashed}}}\n")) as page_server:
        assert ask(page_server, authorization=basic("zoë", SECRET)).status == 200


def test_a_token_opens_the_page(folder):
    """The token of bearer_token_file, without the newline at its end, is as good as a password."""
    (folder / "token").write_text("s3cr3t-token\n")
    config = write(folder, USERS + "bearer_token_file: token\n")
    with serving(web_config_file=config) as page_server:
        for header in ("Bearer s3cr3t-token", "bearer  s3cr3t-token", GOOD):
            assert ask(page_server, authorization=header).status == 200
        for header in ("Bearer s3cr3t-toke", "Bearer s3cr3t-token2", "Bearer ", "Basic s3cr3t-token", None):
            refusal = ask(page_server, authorization=header)
            assert refusal.status == 401
            assert [each.split()[0] for each in refusal.headers.get_all("WWW-Authenticate")] == ["Basic", "Bearer"]


class CountingBcrypt:
    """Counts checks, and what runs at a time."""

    def __init__(self, monkeypatch):
        self.checks = []
        self.at_a_time = self.most_at_a_time = 0
        self._check = bcrypt.checkpw
        monkeypatch.setattr(bcrypt, "checkpw", self)

    def __call__(self, password, hashed):
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        self.checks.append(hashed)
        try:
            return self._check(password, hashed)
        finally:
            self.at_a_time -= 1


def test_a_right_password_is_checked_once_and_a_wrong_one_always(monkeypatch):
    """What was right is remembered for this user, hash and password alone; what was wrong never is."""
    counted, door = CountingBcrypt(monkeypatch), Door()
    alice = WebConfig(users={b"alice": HASH.encode()})
    for _ in range(3):
        assert door.admit(alice, [GOOD], "a") is None
    assert len(counted.checks) == 1
    for _ in range(3):
        assert door.admit(alice, [WRONG], "a").reason == "auth"
    assert len(counted.checks) == 4
    changed = WebConfig(users={b"alice": hash_of("another").encode()})
    assert door.admit(changed, [GOOD], "a").reason == "auth", "the password was changed"
    assert door.admit(WebConfig(users={b"bob": HASH.encode()}), [GOOD], "a").reason == "auth", "alice has left"
    assert len(counted.checks) == 6


def test_an_unknown_user_costs_as_much_as_a_known_one(monkeypatch):
    """A user who is not there is compared with a hash of the same cost, always the same."""
    counted, door = CountingBcrypt(monkeypatch), Door()
    config = WebConfig(users={b"alice": HASH.encode()})
    for header in (basic("mallory", SECRET), basic("", "x"), WRONG):
        assert door.admit(config, [header], "a").reason == "auth"
    assert {each[:7] for each in counted.checks} == {HASH[:7].encode()}
    assert len(counted.checks) == 3


def test_an_unknown_user_is_let_in_by_no_hash(monkeypatch):
    """Whatever the comparison with a hash that is nobody's says, it opens nothing."""
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: True)
    config = WebConfig(users={b"alice": HASH.encode()})
    assert Door().admit(config, [basic("mallory", SECRET)], "a").reason == "auth"


def test_no_two_credentials_look_the_same_to_the_memory():
    """What is remembered of a right password differs however user, hash and password are cut (CVE-2022-46146)."""
    known = passwords._Passwords()
    cuts = [(b"a", b"b", b"cd"), (b"a", b"bc", b"d"), (b"ab", b"c", b"d"), (b"abcd", b"", b""), (b"", b"", b"abcd")]
    assert len({known._digest(*each) for each in cuts}) == len(cuts)
    assert known._digest(*cuts[0]) != passwords._Passwords()._digest(*cuts[0]), "each process has its secret"


def test_what_is_remembered_is_bounded(monkeypatch):
    """However many right passwords there are, few are remembered."""
    monkeypatch.setattr(passwords, "_MOST_CHECKED", 3)
    monkeypatch.setattr(passwords, "RESTS", 0)
    door = Door()
    config = WebConfig(users={b"user%d" % i: HASH.encode() for i in range(6)})
    for i in range(6):
        assert door.admit(config, [basic(f"user{i}", SECRET)], "a") is None
    assert len(door._passwords._right) == 3


def test_guessing_takes_one_check_at_a_time_and_keeps_nobody_out(monkeypatch):
    """Of many who guess at a time few wait and the rest are sent away, while who is known goes in without a check."""
    monkeypatch.setattr(passwords, "CHECK_TIMEOUT_S", 6 * PATIENCE_S)
    counted, door = CountingBcrypt(monkeypatch), Door()
    config = WebConfig(users={b"alice": HASH.encode()})
    assert door.admit(config, [GOOD], "scraper") is None
    go_on = threading.Event()
    check = counted._check
    counted._check = lambda password, hashed: go_on.wait(PATIENCE_S) and check(password, hashed)
    with ThreadPoolExecutor(40) as guessers:
        guesses = [guessers.submit(door.admit, config, [WRONG], f"host{i % 20}") for i in range(40)]
        eventually(lambda: sum(guess.done() for guess in guesses) >= 40 - 1 - passwords.MOST_IN_LINE)
        assert door.admit(config, [GOOD], "scraper") is None
        go_on.set()
        reasons = [guess.result().reason for guess in guesses]
    assert counted.most_at_a_time == 1
    # One is being checked, or rested for, while the line is full.
    assert passwords.MOST_IN_LINE <= reasons.count("auth") <= 1 + passwords.MOST_IN_LINE
    assert reasons.count("busy") == 40 - reasons.count("auth")


def test_who_guesses_does_not_fill_the_line(monkeypatch):
    """One host has few places in the line, so another's first password is checked among a guesser's many."""
    monkeypatch.setattr(passwords, "CHECK_TIMEOUT_S", 6 * PATIENCE_S)
    door = Door()
    config = WebConfig(users={b"alice": HASH.encode()})
    go_on, check = threading.Event(), bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *pair: go_on.wait(PATIENCE_S) and check(*pair))
    with ThreadPoolExecutor(20) as pool:
        guesses = [pool.submit(door.admit, config, [WRONG], "guesser") for _ in range(15)]
        eventually(lambda: sum(guess.done() for guess in guesses) >= 15 - 1 - passwords.MOST_IN_LINE_OF_A_HOST)
        scraper = pool.submit(door.admit, config, [GOOD], "scraper")
        eventually(lambda: door._passwords._line["scraper"] == 1)
        go_on.set()
        assert scraper.result() is None


def test_checking_rests(monkeypatch):
    """After a check that took a while none begins for twice as long, so that guessing never takes a whole CPU."""
    check, spans = bcrypt.checkpw, []

    def slow(password, hashed):
        began_s = time.monotonic()
        threading.Event().wait(0.05)
        spans.append((began_s, time.monotonic()))
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    door, config = Door(), WebConfig(users={b"alice": HASH.encode()})
    for _ in range(3):
        door.admit(config, [WRONG], "a")
    for (began_s, ended_s), (next_s, _) in pairwise(spans):
        assert next_s - ended_s >= passwords.RESTS * (ended_s - began_s) * 0.9


def test_who_waits_too_long_for_a_check_is_told_to_come_again(monkeypatch, folder):
    """A password that does not get its turn in time is a 503 with Retry-After, never a wrong answer."""
    monkeypatch.setattr(passwords, "CHECK_TIMEOUT_S", 0.0)
    with serving(web_config_file=write(folder, USERS)) as page_server:
        page_server._door._passwords._next_s = time.monotonic() + PATIENCE_S
        refused = refused_in(page_server)
        response = ask(page_server, authorization=GOOD)
    assert (response.status, response.headers["Retry-After"]) == (503, "5")
    assert refused == ["busy"]


# --- The rate limit ----------------------------------------------------------------------------------------


def test_more_requests_than_allowed_are_told_when_to_come_again(folder):
    """After a burst each request is a 429 that says when there is room, and is counted."""
    config = write(folder, "rate_limit: {interval: 1m30s, burst: 2}\n")
    with serving(web_config_file=config) as page_server:
        refused = refused_in(page_server)
        responses = [ask(page_server, path) for path in ("/metrics", "/-/healthy", "/metrics")]
    assert [response.status for response in responses] == [200, 200, 429]
    assert 80 <= int(responses[-1].headers["Retry-After"]) <= 90
    assert refused == ["rate"]


def test_an_interval_brings_one_request_more():
    """The allowance grows by one in each interval, up to the burst."""
    now = [1000.0]
    door = Door(clock=lambda: now[0])
    config = WebConfig(interval_s=2.0, burst=3)

    def allowed():
        return sum(door.admit(config, [], "a") is None for _ in range(10))

    counts = [allowed()]
    for passed_s in (1.9, 0.1, 4.0, 3600.0):
        now[0] += passed_s
        counts.append(allowed())
    assert counts == [3, 0, 1, 2, 3]


def test_strangers_do_not_use_up_the_allowance(monkeypatch):
    """Requests without the password have an allowance of their own, so they keep no scraper out."""
    door = Door(clock=lambda: 1000.0)
    config = WebConfig(users={b"alice": HASH.encode()}, token=b"t0k3n", interval_s=3600.0, burst=2)
    assert [door.admit(config, [], "a").reason for _ in range(4)] == ["auth", "auth", "rate", "rate"]
    assert [door.admit(config, ["Bearer t0k3n"], "a") for _ in range(2)] == [None, None]
    assert door.admit(config, ["Bearer t0k3n"], "a").reason == "rate"


def test_a_password_is_limited_as_well():
    """Who is known by a password draws from the allowance like any other."""
    door = Door(clock=lambda: 1000.0)
    config = WebConfig(users={b"alice": HASH.encode()}, interval_s=3600.0, burst=2)
    assert [door.admit(config, [GOOD], "a") for _ in range(3)] == [None, None, None]
    assert door.admit(config, [GOOD], "a").reason == "rate"


def test_an_unchanged_limit_keeps_its_count_and_a_changed_one_begins_anew(folder):
    """Reading another part of the file again gives no fresh burst; a new limit does."""
    with serving(web_config_file=write(folder, "rate_limit: {interval: 1h, burst: 1}\n")) as page_server:
        statuses = [ask(page_server).status for _ in range(2)]
        write(folder, "rate_limit: {interval: 1h, burst: 1}\nhttp_server_config: {http2: false}\n")
        statuses.append(ask(page_server).status)
        write(folder, "rate_limit: {interval: 1h, burst: 2}\n")
        statuses += [ask(page_server).status for _ in range(3)]
        write(folder, "rate_limit: {interval: 0, burst: 2}\n")
        statuses += [ask(page_server).status for _ in range(3)]
    assert statuses == [200, 429, 429, 200, 200, 429, 200, 200, 200]


# --- Headers -----------------------------------------------------------------------------------------------


def test_headers_are_added_to_every_answer(folder):
    """The headers of http_server_config are on pages and refusals alike; a blank one is not sent."""
    config = write(
        folder,
        "http_server_config:\n  http2: true\n  headers:\n    Strict-Transport-Security: max-age=60\n"
        "    X-Frame-Options: deny\n    X-Content-Type-Options: nosniff\n    X-XSS-Protection: ''\n"
        "    Content-Security-Policy: default-src 'none'\n" + USERS,
    )
    with serving(web_config_file=config) as page_server:
        for response in (ask(page_server), ask(page_server, authorization=GOOD)):
            assert response.headers["Strict-Transport-Security"] == "max-age=60"
            assert response.headers["Content-Security-Policy"] == "default-src 'none'"
            assert response.headers.get_all("X-Content-Type-Options") == ["nosniff"]
            assert response.headers["X-Frame-Options"] == "deny"
            assert response.headers["X-XSS-Protection"] is None


# --- What is wrong in the file -----------------------------------------------------------------------------

TLS_WITH = "tls_server_config: {cert_file: cert.pem, key_file: key.pem, %s}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["it is empty", "tls_server_config"]),
        ("{}", ["it is empty"]),
        ("- a\n", ["list", "tls_server_config"]),
        ("a: [\n", ["line 2", "expected YAML"]),
        ("tls_sever_config: {}", ["tls_sever_config", "did you mean tls_server_config?"]),
        ("rate_limit: {interval: 1s, burst: 1}\nrate_limit: {}", ["rate_limit", "once"]),
        ("tls_server_config: {min_version: TLS13}", ["tls_server_config.cert_file", "certificate"]),
        ("tls_server_config: {cert_file: cert.pem}", ["tls_server_config.key_file"]),
        ("tls_server_config: {cert_file: none.pem, key_file: key.pem}", ["cert_file", "none.pem", "No such file"]),
        ("tls_server_config: {cert_file: ., key_file: key.pem}", ["cert_file", "directory"]),
        ("tls_server_config: {cert_file: key.pem, key_file: key.pem}", ["tls_server_config.cert", "PEM"]),
        ("tls_server_config: {cert_file: 5, key_file: key.pem}", ["tls_server_config.cert_file: 5", "text"]),
        ("tls_server_config: {cert_file: '', key_file: key.pem}", ["cert_file: ''", "not empty"]),
        ("tls_server_config: cert.pem", ["tls_server_config", "str", "cert_file"]),
        (TLS_WITH % "cert: x", ["cert_file", "not both"]),
        (TLS_WITH % "certfile: x", ["tls_server_config.certfile", "did you mean cert_file?"]),
        (TLS_WITH % "min_version: TLS11", ["min_version: 'TLS11'", "TLS12 or TLS13"]),
        (TLS_WITH % "min_version: TLS13, max_version: TLS12", ["max_version: 'TLS12'", "below min_version"]),
        (TLS_WITH % "client_auth_type: RequireAnyClientCert", ["client_auth_type", "Python's ssl"]),
        (TLS_WITH % "client_auth_type: RequestClientCert", ["client_auth_type", "Python's ssl"]),
        (TLS_WITH % "client_auth_type: Always", ["client_auth_type: 'Always'", "RequireAndVerifyClientCert"]),
        (TLS_WITH % "client_auth_type: RequireAndVerifyClientCert", ["client_ca_file", "verified"]),
        (TLS_WITH % "client_ca_file: ca.pem", ["client_ca_file: 'ca.pem'", "client_auth_type"]),
        (
            TLS_WITH % "client_ca_file: key.pem, client_auth_type: RequireAndVerifyClientCert",
            ["client_ca_file: 'key.pem'", "certificates in PEM"],
        ),
        (TLS_WITH % "client_allowed_sans: [a]", ["client_allowed_sans", "RequireAndVerifyClientCert"]),
        (
            TLS_WITH % "client_ca_file: ca.pem, client_auth_type: VerifyClientCertIfGiven, client_allowed_sans: [a]",
            ["client_allowed_sans", "RequireAndVerifyClientCert"],
        ),
        (TLS_WITH % "client_allowed_sans: []", ["client_allowed_sans: []", "at least one"]),
        (TLS_WITH % "client_allowed_sans: a", ["client_allowed_sans: 'a'", "list"]),
        (TLS_WITH % "cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]", ["TLS_RSA_WITH_RC4_128_SHA", "TLS_ECDHE_RSA"]),
        (TLS_WITH % "cipher_suites: [TLS_AES_128_GCM_SHA256]", ["cipher_suites", "min_version: TLS13"]),
        (TLS_WITH % "curve_preferences: [X25519, CurveP256]", ["curve_preferences", "one curve"]),
        (TLS_WITH % "curve_preferences: [Curve25519]", ["curve_preferences: 'Curve25519'", "X25519"]),
        (TLS_WITH % "prefer_server_cipher_suites: 1", ["prefer_server_cipher_suites: 1", "true or false"]),
        ("http_server_config: {http2: on please}", ["http_server_config.http2", "true or false"]),
        ("http_server_config: {headers: {X-Powered-By: us}}", ["headers.X-Powered-By", "X-Frame-Options"]),
        ("http_server_config: {headers: {X-Frame-Options: allow}}", ["X-Frame-Options: 'allow'", "sameorigin"]),
        (
            'http_server_config: {headers: {Content-Security-Policy: "a\\r\\nX: b"}}',
            ["Content-Security-Policy", "one line"],
        ),
        ("basic_auth_users: [alice]", ["basic_auth_users", "list"]),
        ("basic_auth_users: {123: $2y$10$abc}", ["basic_auth_users.123", "in quotes"]),
        ('basic_auth_users: {"a:b": $2y$10$abc}', ["a:b", "colon"]),
        ("basic_auth_users: {a: " + COSTLY_HASH + "}", ["basic_auth_users.a", "18"]),
        ("bearer_token_file: none", ["bearer_token_file", "none", "No such file"]),
        ("bearer_token_file: empty", ["bearer_token_file", "empty", "one token"]),
        ("bearer_token_file: two", ["bearer_token_file", "two", "one token"]),
        ("rate_limit: {interval: 5, burst: 1}", ["rate_limit.interval: 5", "unit"]),
        ("rate_limit: {interval: soon, burst: 1}", ["rate_limit.interval: 'soon'", "1s"]),
        ("rate_limit: {burst: 3}", ["rate_limit.interval", "unit"]),
        ("rate_limit: {interval: 1s}", ["rate_limit.burst", "whole number"]),
        ("rate_limit: {interval: 1s, burst: 0}", ["rate_limit.burst: 0", "whole number"]),
        ("rate_limit: {interval: 1s, burst: true}", ["rate_limit.burst: True", "whole number"]),
    ],
)
def test_what_is_wrong_is_an_error_that_says_what_and_where(folder, text, parts):
    """Nothing is ever weaker than asked for: what cannot be done names the file, the key and what was expected."""
    (folder / "empty").write_text("\n")
    (folder / "two").write_text("a\nb\n")
    path = write(folder, text)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        server.PageServer(small, "127.0.0.1", 0, web_config_file=path)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "basic_auth_users: {alice: hunter2}",
        "basic_auth_users: {alice: *hunter2}",
        "basic_auth_users: {alice: %hunter2}",
        "basic_auth_users: hunter2",
        "tls_server_config: {cert_file: cert.pem, key: hunter2}",
        "tls_server_config: {cert_file: cert.pem, key: [hunter2]}",
    ],
)
def test_no_message_repeats_a_secret(folder, text):
    """What stands where a hash or a key should, which may be a password, is in no message."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
        load(write(folder, text), {})
    assert "hunter2" not in str(error.value)


def test_a_missing_file_is_an_error(tmp_path):
    """A web.config.yml that is not there is named."""
    with pytest.raises(ValueError, match=r"none\.yml"):
        load(tmp_path / "none.yml", {})


def test_a_key_with_a_passphrase_is_an_error_and_not_a_question(folder):
    """Nobody is asked for a passphrase on the terminal."""
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    locked = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"passphrase"))
    (folder / "key.pem").write_bytes(locked)
    with pytest.raises(ValueError, match=r"key_file: 'key.pem'; expected a key without a passphrase"):
        load(write(folder, TLS), {})


def test_a_missing_extra_says_how_to_get_it(folder):
    """Without PyYAML or bcrypt the error names the command that installs them."""
    path = write(folder, USERS)
    for module in ("yaml", "bcrypt"):
        program = (
            f"import sys; sys.modules[{module!r}] = None\n"
            "from pathlib import Path; from otel_mlops.sdk.web_config import load\n"
            f"load(Path({str(path)!r}), {{}})"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert "ImportError: " in done.stderr
        assert "pip install 'otel-mlops[web]'" in done.stderr


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("1s", 1), ("250ms", 0.25), ("1m30s", 90), ("1.5h", 5400), ("0", 0), ("0s", 0), ("10us", 1e-5)],
)
def test_intervals_are_written_as_in_go(folder, interval, seconds):
    """A duration is numbers with units."""
    config = load(write(folder, f"rate_limit: {{interval: '{interval}', burst: 1}}"), {})
    assert config.interval_s == pytest.approx(seconds)


def test_passwords_without_tls_are_warned_of_once(folder, caplog):
    """Passwords that go over the network in clear are said at the start, and not at each request."""
    with serving(web_config_file=write(folder, USERS)) as page_server:
        for _ in range(3):
            ask(page_server, authorization=GOOD)
    assert caplog.text.count("in clear") == 1
    caplog.clear()
    WebConfigFile(write(folder, TLS + USERS))
    assert not caplog.records


# --- A file that changes -----------------------------------------------------------------------------------


def test_changes_are_in_force_with_the_next_request(folder, caplog):
    """A user who is taken out is refused, and one who is put in is let in, without a restart."""
    caplog.set_level(logging.INFO)
    with serving(web_config_file=write(folder, USERS)) as page_server:
        assert ask(page_server, authorization=GOOD).status == 200
        write(folder, f"basic_auth_users: {{bob: {HASH}}}\n")
        assert ask(page_server, authorization=GOOD).status == 401
        assert ask(page_server, authorization=basic("bob", SECRET)).status == 200
    assert "has changed and is in force" in caplog.text


def test_a_new_certificate_is_shown_to_the_next_client(folder, authority):
    """A certificate that is renewed in its file is used without a restart."""

    def serial():
        context = trusting(authority)
        with connect(page_server) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            return client.getpeercert()["serialNumber"]

    with serving(web_config_file=write(folder, TLS)) as page_server:
        before = serial()
        assert serial() == before
        renewed = authority.issue_cert("127.0.0.1")
        for name, blob in (("cert.pem", renewed.cert_chain_pems[0]), ("key.pem", renewed.private_key_pem)):
            (folder / "new").write_bytes(blob.bytes())
            (folder / "new").replace(folder / name)
        assert serial() != before
        assert page_server.config_fault is None


@pytest.mark.parametrize("broken", ["", "basic_auth_users: {alice: x}\n", "rubbish", None])
def test_a_file_that_breaks_leaves_what_was_in_force(folder, caplog, broken):
    """After a bad change the last good configuration holds, said once and visible; a good one ends it."""
    path = write(folder, USERS)
    with serving(web_config_file=path) as page_server:
        if broken is None:
            path.unlink()
        else:
            write(folder, broken)
        for _ in range(3):
            assert ask(page_server).status == 401
            assert ask(page_server, authorization=GOOD).status == 200
            if broken is not None:
                write(folder, broken)
        assert str(path) in page_server.config_fault
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        write(folder, "rate_limit: {interval: 0}\n")
        assert ask(page_server).status == 200
        assert page_server.config_fault is None


def test_half_a_renewal_waits_for_the_other_half(folder, authority, caplog):
    """While the new certificate is there and its key is not, the old pair is shown; then the new one."""
    with serving(web_config_file=write(folder, TLS)) as page_server:
        renewed = authority.issue_cert("127.0.0.1")
        (folder / "cert.pem").write_bytes(renewed.cert_chain_pems[0].bytes())
        assert ask(page_server, context=trusting(authority)).status == 200
        assert "PEM" in page_server.config_fault
        (folder / "key.pem").unlink()
        assert ask(page_server, context=trusting(authority)).status == 200
        (folder / "key.pem").write_bytes(renewed.private_key_pem.bytes())
        assert ask(page_server, context=trusting(authority)).status == 200
        assert page_server.config_fault is None


def test_a_token_that_changes_is_asked_for_at_once(folder):
    """A new token is in force with the next request, and the old one is not."""
    (folder / "token").write_text("old")
    with serving(web_config_file=write(folder, "bearer_token_file: token\n")) as page_server:
        assert ask(page_server, authorization="Bearer old").status == 200
        (folder / "token").write_text("new")
        assert ask(page_server, authorization="Bearer old").status == 401
        assert ask(page_server, authorization="Bearer new").status == 200


def test_an_unchanged_file_is_not_read_again(folder, monkeypatch):
    """A request costs a look at each file, and reads none."""
    config = WebConfigFile(write(folder, TLS + USERS))
    monkeypatch.setattr("otel_mlops.sdk.web_config.load", lambda *_: pytest.fail("it was read again"))
    assert config.current() is config.current()


def test_a_look_that_hangs_holds_up_nobody(folder, monkeypatch):
    """While one thread looks at files on a disk that hangs, the others go on with what there was."""
    config = WebConfigFile(write(folder, USERS))
    hangs, go_on = threading.Event(), threading.Event()

    def look(path):
        hangs.set()
        go_on.wait(PATIENCE_S)

    monkeypatch.setattr("otel_mlops.sdk.web_config.signature", look)
    thread = threading.Thread(target=config.current)
    thread.start()
    assert hangs.wait(PATIENCE_S)
    assert config.current().users == {b"alice": HASH.encode()}
    assert thread.is_alive()
    monkeypatch.undo()
    go_on.set()
    thread.join()


def test_a_forked_child_reads_the_file_too(folder):
    """A child that was forked while a thread looked at the file is not locked out of it."""
    page_server = server.PageServer(small, "127.0.0.1", 0, web_config_file=write(folder, USERS))
    config = page_server._web_config_file
    with config._lock:
        child = os.fork()
        if child == 0:
            page_server.after_fork()
            write(folder, "rate_limit: {interval: 0}\n")
            os._exit(0 if config.current().users is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_plain_port_stays_what_it_is_without_a_file():
    """Without a web.config.yml there is neither TLS nor a password."""
    with serving() as page_server:
        assert ask(page_server).status == 200
        assert page_server.config_fault is None
        assert isinstance(page_server.listener, socket.socket)
