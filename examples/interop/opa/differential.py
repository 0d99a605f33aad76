#!/usr/bin/env python3
"""OPA itself as the judge of mesh-authz's Rego: the same policies, data and random inputs.

    pip download --no-deps --python-version 3.14 --only-binary=:all: opa-golib-python-bindings
    unzip opa_golib_python_bindings-*.whl -d /tmp/opa        # needs glibc 2.34, any Python 3
    pip install cryptography
    cargo build --release --example opa_differential
    examples/interop/opa/differential.py /tmp/opa target/release/examples/opa_differential [count] [seed]

Prints a line for each policy and ends with 1 when a single answer differs. An answer is the
value of data.envoy.authz.allow, or undefined, or a failure. Both sides run with strict builtin
errors: a builtin that fails is a failure, which denies.
"""

import base64, datetime, hashlib, hmac, json, pathlib, random, subprocess, sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, sys.argv[1])
from opa_bindings import OpaEngine  # noqa: E402
from opa_bindings.engine import OpaError, OpaUndefinedError  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils  # noqa: E402

COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 250
SEED = int(sys.argv[4]) if len(sys.argv) > 4 else 1
rng = random.Random(SEED)
NOW = 1_700_000_000

rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
other_rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ec_key = ec.generate_private_key(ec.SECP256R1())


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def pem(key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def certificate(key):
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    day = datetime.timedelta(days=1)
    start = datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(start).not_valid_after(start + 999 * day)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def number(value, size):
    return b64(value.to_bytes(size, "big"))


def jwks():
    r, e = rsa_key.public_key().public_numbers(), ec_key.public_key().public_numbers()
    return json.dumps({"keys": [
        {"kty": "RSA", "kid": "r1", "n": number(r.n, 256), "e": number(r.e, 3)},
        {"kty": "EC", "kid": "e1", "crv": "P-256", "x": number(e.x, 32), "y": number(e.y, 32)},
    ]})


def sign(alg, message):
    if alg == "HS256":
        secret = rng.choice([b"topsecret", b"topsecret", b"topsecret", b"wrong"])
        return hmac.new(secret, message, hashlib.sha256).digest()
    if alg == "ES256":
        der = ec_key.sign(message, ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    key = rng.choice([rsa_key, rsa_key, rsa_key, other_rsa])
    if alg == "PS256":
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        return key.sign(message, pss, hashes.SHA256())
    return key.sign(message, padding.PKCS1v15(), hashes.SHA256())


def token():
    if rng.random() < 0.08:
        return rng.choice(["", "a.b.c", "x", "eyJ.eyJ.", "....", "e30.e30.", "e30.W10.AA"])
    alg = rng.choice(["HS256", "HS256", "HS256", "RS256", "ES256", "PS256"])
    likely = rng.random() < 0.6
    header = {"alg": alg}
    if rng.random() < 0.5:
        header["kid"] = rng.choice(["r1", "e1", "x9"])
    if rng.random() < 0.05:
        header["typ"] = "JWT"
    if rng.random() < 0.03:
        header["crit"] = ["exp"]
    if rng.random() < 0.04:
        header["alg"] = rng.choice(["none", "HS256", "RS256"])
    claims = {"sub": rng.choice(USERS), "role": "admin" if likely else rng.choice(["guest", "other"])}
    if rng.random() < 0.8:
        claims["iss"] = "https://issuer.example" if likely else "evil"
    if rng.random() < 0.5:
        claims["aud"] = rng.choice(["shop", ["shop", "x"]] if likely else ["x", [], ["y"], 5])
    if rng.random() < 0.6:
        claims["exp"] = NOW + (3600 if likely else rng.choice([-1, 0, 1, 0.5]))
    if rng.random() < 0.4:
        claims["nbf"] = NOW + (-3600 if likely else rng.choice([-1, 0, 1, 0.5]))
    if rng.random() < 0.04:
        claims[rng.choice(["exp", "nbf"])] = "soon"
    message = b64(json.dumps(header).encode()) + "." + b64(json.dumps(claims).encode())
    signature = sign(alg, message.encode())
    if rng.random() < 0.1:
        signature = signature[:-1] + bytes([signature[-1] ^ 1])
    return message + "." + b64(signature)


USERS = ["ann", "bob", "carol", "dave", "eve"]
NETS = ["10.0.0.0/8", "192.168.1.0/24", "192.168.0.0/24", "2001:db8::/32", "172.16.0.0/12", "10.1.0.0/16"]
PATHS = ["/", "/users/ann", "/users/bob/x", "/public/a", "/public/private/b", "/documents/d1",
         "/documents/d2", "/documents/nope", "/a/../b", "/reports/q1", "/api/v1/items", "/api/v1/items/7"]
DATA = {
    "bindings": {f"spiffe://cluster.local/ns/{n}/sa/{u}": rng.sample(["viewer", "editor", "owner"], rng.randint(0, 2))
                 for n in ["shop", "web"] for u in USERS},
    "roles": {"viewer": [{"method": "GET", "path": "/api/**"}, {"method": "GET", "path": "/public/*"}],
              "editor": [{"method": "POST", "path": "/api/v1/*"}],
              "owner": [{"method": m, "path": "/**"} for m in ["GET", "PUT", "DELETE"]]},
    "users": {u: {"roles": rng.sample(["reader", "writer", "admin"], rng.randint(0, 3)),
                  "department": rng.choice(["hr", "it"]), "clearance": rng.randint(0, 3),
                  "title": rng.choice(["clerk", "auditor", "clerk"])} for u in USERS[:4]},
    "documents": {"d1": {"department": "hr", "level": 1}, "d2": {"department": "it", "level": 2}},
    "maintenance": {"from": "2023-11-18T00:00:00Z", "to": "2023-11-18T12:30:00.5+02:00"},
    "grants": [{"user": "spiffe://cluster.local/ns/shop/sa/ann", "until": "2023-11-15T00:00:00Z"},
               {"user": "spiffe://cluster.local/ns/shop/sa/bob", "until": "2023-12-31T23:59:59-05:00"}],
    "nets": NETS, "skus": ["a", "b"], "prefixes": list("0123456"), "namespaces": ["shop", "web"],
    "blocked": ["eve"], "jwks": jwks(), "rsa_pem": pem(rsa_key), "rsa_cert": certificate(other_rsa),
    "ec_pem": pem(ec_key), "token_digest": hashlib.sha256(b"open").hexdigest(),
    "token_sha1": hashlib.sha1(b"old").hexdigest(),
    "tenants": {"acme": {"plan": "gold", "members": ["ann", "bob"]},
                "evil": {"plan": "none", "members": ["eve"], "suspended": True}},
    "groups": {"staff": ["ann"], "ops": ["bob", "carol"], "guests": ["dave"]}, "parents": {"ops": "staff"},
    "directory": {f"u{i}": {"active": i % 3 == 0, "blocked": i % 7 == 0} for i in range(10_000)},
}


def maybe(chance, value):
    return value() if rng.random() < chance else None


def document():
    path = rng.choice(PATHS)
    query = {}
    if rng.random() < 0.5:
        query = {"page": [rng.choice(["1", "49", "50", "-1", "x", "2.5", ""])]}
        if rng.random() < 0.3:
            query["debug"] = rng.choice([["1"], ["0"], []])
    headers = {":method": "", "user-agent": rng.choice(["curl/8", "Mozilla", "Wget/1", "WGET/2"])}
    if rng.random() < 0.85:
        headers["authorization"] = rng.choice(["Bearer ", "Bearer ", "Bearer ", "bearer ", ""]) + token()
    if rng.random() < 0.5:
        good = hmac.new(b"webhook", path.encode(), hashlib.sha256).hexdigest()
        headers["x-signature"] = rng.choice([good, good, good.upper(), "", "0" * 64])
    if rng.random() < 0.7:
        headers["x-token"] = rng.choice(["open", "old", "bad", "", "\u00e4"])
    if rng.random() < 0.8:
        headers["x-tenant"] = rng.choice(["acme", "evil", "none"])
    method = rng.choice(["GET", "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"])
    address = rng.choice(["10.1.2.3", "192.168.1.9", "192.168.0.255", "8.8.8.8", "2001:db8::7", "::1", "172.31.255.255"])
    if rng.random() < 0.03:
        address = rng.choice(["", "10.1.2", "x"])
    http = {"method": method, "path": path, "headers": headers, "host": "shop.example"}
    source = {"address": {"socketAddress": {"address": address, "portValue": 5}}}
    if rng.random() < 0.9:
        source["principal"] = rng.choice(["spiffe://cluster.local", "spiffe://other"]) + "/ns/" + rng.choice(
            ["shop", "web", "istio-system", "x"]) + "/sa/" + rng.choice(USERS)
    seconds = rng.choice([NOW, NOW + rng.randint(-10**6, 10**6), rng.randint(0, 4 * 10**9)])
    attributes = {"request": {"http": http, "time": {"seconds": seconds}}, "source": source}
    if rng.random() < 0.9:
        claims = {"sub": rng.choice(USERS + [7]), "role": rng.choice(["guest", "user", "admin", "other", 3]),
                  "id": "u" + str(rng.randint(0, 10_500)),
                  "scope": rng.choice(["read", "read write", ["read"], ["admin"], "", 5, None])}
        for name in list(claims):
            if rng.random() < 0.08:
                del claims[name]
        attributes["metadataContext"] = {"filterMetadata": {"envoy.filters.http.jwt_authn": {"payload": claims}}}
    body = rng.choice([None, None, {"items": []}, [], "text", {"items": "x"}])
    if rng.random() < 0.6:
        body = {"items": [{"sku": rng.choice("abc"), "qty": rng.choice([1, 2, 10, 11, 0, 5.5, "3"])}
                          for _ in range(rng.randint(0, 4))]}
    return {"attributes": attributes, "parsed_path": path.lstrip("/").split("/"), "parsed_query": query,
            "parsed_body": body, "truncated_body": rng.random() < 0.1,
            "version": {"ext_authz": "v3", "encoding": "protojson"}}


def opa(engine, document):
    try:
        return {"value": engine.eval_document("envoy.authz.allow", document)}
    except OpaUndefinedError:
        return {"undefined": True}
    except OpaError as error:
        if "eval" not in error.code:
            raise
        return {"error": True}


def ours(program, module, data, documents):
    lines = "\n".join(json.dumps(line) for line in [{"module": module, "data": data}, *documents])
    done = subprocess.run([program], input=lines, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def main():
    total = differences = 0
    print(f"{'policy':30} {'inputs':>7} {'allowed':>8} {'denied':>7} {'undefined':>9} {'failed':>7} {'differ':>7}")
    for path in sorted((HERE / "policies").glob("*.rego")):
        module = path.read_text()
        documents = [document() for _ in range(COUNT)]
        data = DATA if "directory" in module else {k: v for k, v in DATA.items() if k != "directory"}
        with OpaEngine() as engine:
            engine.add_policy(path.name, module)
            engine.add_data(data)
            wanted = [opa(engine, one) for one in documents]
        got = ours(sys.argv[2], module, data, documents)
        differ = [trio for trio in zip(documents, wanted, got, strict=True) if trio[1] != trio[2]]
        allows = lambda a: a.get("value") is True or isinstance(a.get("value"), dict) and a["value"].get("allowed") is True
        allowed = sum(map(allows, wanted))
        undefined, failed = sum("undefined" in a for a in wanted), sum("error" in a for a in wanted)
        print(f"{path.stem:30} {COUNT:7} {allowed:8} {COUNT - allowed - undefined - failed:7} {undefined:9} {failed:7} {len(differ):7}")
        for one, want, have in differ[:2]:
            print(json.dumps({"input": one, "opa": want, "ours": have})[:3000])
        total, differences = total + COUNT, differences + len(differ)
    print(f"{total} inputs, {differences} differences (seed {SEED})")
    sys.exit(1 if differences else 0)


main()
