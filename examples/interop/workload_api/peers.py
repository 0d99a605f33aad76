#!/usr/bin/env python3
"""Our client of the SPIFFE Workload API against a server of other people's making.

    pip install spiffe
    cargo build --example workload_api_client --example mesh_ca_server
    examples/interop/workload_api/peers.py target/debug/examples

The server is gRPC's own for Python, with the messages of the SPIFFE project's library; its certificates
and tokens are made by `cryptography` and PyJWT. Prints a table, and ends with 1 when a line fails.
Nothing listens beyond this machine.
"""

import atexit, concurrent.futures, datetime, os, pathlib, queue, re, socket, ssl, subprocess, sys
import tempfile, threading, time

import grpc, jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from spiffe._proto import workload_pb2 as pb
from spiffe._proto.workload_pb2_grpc import (
    SpiffeWorkloadAPIServicer,
    add_SpiffeWorkloadAPIServicer_to_server,
)

if len(sys.argv) != 2:
    sys.exit(__doc__)
EXAMPLES = pathlib.Path(sys.argv[1])
PATIENCE = 20
HOUR = datetime.timedelta(hours=1)
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
folder = pathlib.Path(tempfile.mkdtemp(prefix="workload-api-interop-"))
SOCKET = f"unix://{folder}/agent.sock"
processes, table = [], []


@atexit.register
def stop():
    for process in processes:
        process.kill()
        process.wait()


def check(what, run):
    """One line of the table: what `run` found, or why it failed."""
    try:
        table.append((what, "ok", run()))
    except Exception as error:  # noqa: BLE001 - a line of the table, whatever it is
        table.append((what, "FAILED", f"{type(error).__name__}: {error}"))


class Authority:
    """A root for a trust domain, and the key of its tokens."""

    def __init__(self, domain):
        self.domain, self.key = domain, ec.generate_private_key(ec.SECP256R1())
        self.token_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self.certificate(f"spiffe://{domain}", self.key.public_key(), self.key, True)

    def certificate(self, uri, public, signer, is_root):
        now = datetime.datetime.now(datetime.timezone.utc)
        issuer = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.domain)])
        subject = issuer if is_root else x509.Name([])
        usage = {name: False for name in (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")}
        usage |= dict(key_cert_sign=True, crl_sign=True) if is_root else dict(digital_signature=True)
        name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        made = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR).not_valid_after(now + HOUR)
            .add_extension(x509.BasicConstraints(is_root, None), True)
            .add_extension(x509.KeyUsage(**usage), True)
            .add_extension(name, not is_root)
        )
        if not is_root:
            both = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
            made = made.add_extension(x509.ExtendedKeyUsage(both), False)
        return made.sign(signer, hashes.SHA256())

    def svid(self, path, hint="", bundle=None):
        key, uri = ec.generate_private_key(ec.SECP256R1()), f"spiffe://{self.domain}{path}"
        form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        leaf = self.certificate(uri, key.public_key(), self.key, False)
        bundle = self.bundle() if bundle is None else bundle
        return pb.X509SVID(
            spiffe_id=uri, x509_svid=leaf.public_bytes(DER),
            x509_svid_key=key.private_bytes(DER, form, none), bundle=bundle, hint=hint,
        )

    def bundle(self):
        return self.root.public_bytes(DER)

    def revoked(self):
        now = datetime.datetime.now(datetime.timezone.utc)
        issuer = self.root.subject
        made = x509.CertificateRevocationListBuilder().issuer_name(issuer)
        made = made.last_update(now - HOUR).next_update(now + HOUR)
        return made.add_extension(x509.CRLNumber(1), False).sign(self.key, hashes.SHA256()).public_bytes(DER)

    def keys(self):
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.token_key.public_key(), as_dict=True)
        entry = {**public, "kid": "k1", "use": "jwt-svid"}
        return jwt.api_jws.json.dumps({"keys": [entry]}).encode()

    def token(self, path, audience):
        claims = {"sub": f"spiffe://{self.domain}{path}", "aud": list(audience), "exp": int(time.time()) + 300}
        return jwt.encode(claims, self.token_key, algorithm="ES256", headers={"kid": "k1"})


class Agent(SpiffeWorkloadAPIServicer):
    """Plays a list of steps on each stream: messages, waits for `go`, and ends."""

    def __init__(self):
        self.plays, self.go, self.streams, self.unary = queue.Queue(), threading.Semaphore(0), 0, {}

    def play(self, context):
        assert ("workload.spiffe.io", "true") in context.invocation_metadata(), "the security header"
        self.streams += 1
        for step in self.plays.get(timeout=PATIENCE):
            if isinstance(step, grpc.StatusCode):
                context.abort(step, "as the script says")
            elif step == "wait":
                self.go.acquire(timeout=PATIENCE)
            elif step == "hang":
                time.sleep(PATIENCE)
            else:
                yield step

    def FetchX509SVID(self, request, context):
        yield from self.play(context)

    def FetchX509Bundles(self, request, context):
        yield from self.play(context)

    def FetchJWTBundles(self, request, context):
        yield from self.play(context)

    def FetchJWTSVID(self, request, context):
        assert ("workload.spiffe.io", "true") in context.invocation_metadata(), "the security header"
        token = home.token("/ns/shop/sa/a", request.audience)
        svid = pb.JWTSVID(spiffe_id=f"spiffe://{home.domain}/ns/shop/sa/a", svid=token, hint="first")
        return pb.JWTSVIDResponse(svids=[svid])

    def ValidateJWTSVID(self, request, context):
        try:
            public = home.token_key.public_key()
            claims = jwt.decode(request.svid, public, algorithms=["ES256"], audience=request.audience)
        except jwt.InvalidTokenError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = pb.ValidateJWTSVIDResponse(spiffe_id=claims["sub"])
        answer.claims.update(claims)
        return answer


def serve(agent):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
    add_SpiffeWorkloadAPIServicer_to_server(agent, server)
    assert server.add_insecure_port(SOCKET.replace("unix://", "unix:"))
    server.start()
    return server


ENV = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": SOCKET}


class Client:
    """Our client, and the lines that it prints."""

    def __init__(self, what):
        command = [EXAMPLES / "workload_api_client", what]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENV)
        processes.append(self.process)
        self.lines = queue.Queue()
        threading.Thread(target=lambda: [self.lines.put(line.strip()) for line in self.process.stdout], daemon=True).start()

    def expect(self, pattern):
        line = self.lines.get(timeout=PATIENCE)
        assert re.search(pattern, line), f"{line!r} is not {pattern!r}"
        return line

    def until(self, pattern):
        while True:
            line = self.lines.get(timeout=PATIENCE)
            if re.search(pattern, line):
                return line

    def end(self):
        self.process.kill()
        self.process.wait()


home, foreign = Authority("shop.example"), Authority("bank.example")
agent = Agent()
server = serve(agent)


def message(*svids, crl=(), federated=()):
    return pb.X509SVIDResponse(
        svids=svids, crl=crl, federated_bundles={f"spiffe://{one.domain}": one.bundle() for one in federated})


def states():
    client = Client("x509")
    first, second = home.svid("/ns/shop/sa/a", "first"), home.svid("/ns/shop/sa/b", "second")
    agent.plays.put([
        message(first, second, crl=[home.revoked()], federated=[foreign]), "wait",
        message(home.svid("/ns/shop/sa/c"), federated=[foreign]), "wait",
        message(home.svid("/ns/shop/sa/c", bundle=b"")), "wait",
        message(), "wait",
        message(home.svid("/ns/shop/sa/d")), "hang",
    ])
    seen = client.expect(r'^taken spiffe://shop.example/ns/shop/sa/a "first".*/sa/b "second"')
    assert "bank.example 1 roots" in seen and "shop.example 1 roots" in seen and "1 lists" in seen, seen
    agent.go.release()
    client.expect(r"^taken spiffe://shop.example/ns/shop/sa/c .*bank.example 1 roots.* 0 lists")
    agent.go.release()
    client.expect(r"^taken .*/sa/c .*shop.example 0 roots")
    agent.go.release()
    client.expect("^failed the Workload API's answer is not taken")
    agent.go.release()
    client.expect(r"^taken spiffe://shop.example/ns/shop/sa/d ")
    client.end()
    return "two SVIDs, list, federation; rotation; empty bundle: 0 roots; no SVID: not taken; next one taken"


def cut():
    client = Client("x509")
    svid = message(home.svid("/ns/shop/sa/a"))
    agent.plays.put([svid, grpc.StatusCode.UNAVAILABLE])
    agent.plays.put([svid])
    agent.plays.put([grpc.StatusCode.PERMISSION_DENIED])
    agent.plays.put([svid, "hang"])
    client.expect("^taken")
    client.expect("^failed .*Unavailable")
    client.expect("^taken")
    client.expect("^failed .*ended the stream")
    client.expect("^withdrawn .*denies an identity")
    client.expect("^taken")
    client.end()
    return "UNAVAILABLE, end of stream: failed, then taken; PERMISSION_DENIED: withdrawn, then taken"


def restart():
    global server
    client = Client("x509")
    svid = message(home.svid("/ns/shop/sa/a"))
    agent.plays.put([svid, "hang"])
    client.expect("^taken")
    server.stop(None).wait()
    client.expect("^failed")
    client.until("^failed cannot reach the Workload API")
    server = serve(agent)
    agent.plays.put([svid, "hang"])
    client.until("^taken")
    client.end()
    return "socket gone: failed; back: taken"


def final():
    client = Client("x509")
    agent.plays.put([grpc.StatusCode.INVALID_ARGUMENT])
    client.expect("^failed .*InvalidArgument.*not asked again")
    before = agent.streams
    time.sleep(1)
    assert agent.streams == before and client.lines.empty()
    client.end()
    return "INVALID_ARGUMENT: not asked again"


def thousand():
    client = Client("x509")
    svid = message(home.svid("/ns/shop/sa/a"))
    open_files = lambda: len(os.listdir(f"/proc/{client.process.pid}/fd"))
    for _ in range(1000):
        agent.plays.put([svid, grpc.StatusCode.UNAVAILABLE])
    agent.plays.put([svid, "hang"])
    client.until("^taken")
    files = open_files()
    for _ in range(1000):
        client.until("^taken")
    more = open_files() - files
    assert more <= 1, f"{more} more open files"
    client.end()
    return "1,001 states, no file more open at the end"


def bundles():
    client = Client("bundles")
    roots = pb.X509BundlesResponse(bundles={f"spiffe://{one.domain}": one.bundle() for one in (home, foreign)})
    agent.plays.put([roots, "hang"])
    client.expect("^taken bank.example 1 roots, shop.example 1 roots")
    client.end()
    client = Client("jwt-bundles")
    agent.plays.put([pb.JWTBundlesResponse(bundles={f"spiffe://{home.domain}": home.keys()}), "hang"])
    client.expect("^taken shop.example k1")
    client.end()
    return "2 trust domains; 1 key"


def ask(*words):
    command = [EXAMPLES / "workload_api_client", *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=PATIENCE)


def tokens():
    shown, hint, token = ask("jwt", "bank").stdout.split()
    assert shown == "spiffe://shop.example/ns/shop/sa/a" and hint == '"first"', shown
    good = ask("validate", "bank", token)
    assert shown in good.stdout and '"aud"' in good.stdout, good
    bad = ask("validate", "another", token)
    assert bad.returncode != 0 and "InvalidArgument" in bad.stderr, bad
    return "fetched; valid; another audience refused"


def mesh():
    """A service of ours, whom another program calls with an identity of the same server."""
    agent.plays.put([
        message(home.svid("/ns/shop/sa/server")), "wait", grpc.StatusCode.PERMISSION_DENIED])
    server = subprocess.Popen(
        [EXAMPLES / "mesh_ca_server", home.domain], stdout=subprocess.PIPE, text=True, env=ENV)
    processes.append(server)
    port = int(server.stdout.readline().rsplit(":", 1)[1])
    own = home.svid("/ns/shop/sa/client")
    key = serialization.load_der_private_key(own.x509_svid_key, None)
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(PEM, form, none))
    (folder / "chain.pem").write_bytes(x509.load_der_x509_certificate(own.x509_svid).public_bytes(PEM))
    (folder / "roots.pem").write_bytes(home.root.public_bytes(PEM))

    def call():
        tls = ssl.create_default_context(cafile=str(folder / "roots.pem"))
        tls.check_hostname = False
        tls.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw, tls.wrap_socket(raw) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            return b"".join(iter(lambda: stream.recv(4096), b"")).decode()

    answer = call()
    assert answer.endswith("spiffe://shop.example/ns/shop/sa/client"), answer
    agent.go.release()
    end = time.monotonic() + PATIENCE
    while True:
        try:
            call()
        except (ssl.SSLError, OSError):
            break
        assert time.monotonic() < end, "still served"
        time.sleep(0.02)
    return "mutual TLS with OpenSSL, the peer is seen; identity withdrawn: no handshake any more"


check("FetchX509SVID: states", states)
check("FetchX509SVID: broken streams", cut)
check("FetchX509SVID: server restarted", restart)
check("FetchX509SVID: final error", final)
check("FetchX509SVID: 1,000 reconnects", thousand)
check("FetchX509Bundles, FetchJWTBundles", bundles)
check("FetchJWTSVID, ValidateJWTSVID", tokens)
check("a mesh with this source", mesh)

stop()
server.stop(None).wait()
for line in table:
    print("{:<34} {:<7} {}".format(*line))
sys.exit(any(state != "ok" for _, state, _ in table))
