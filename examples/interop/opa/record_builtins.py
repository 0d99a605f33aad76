#!/usr/bin/env python3
"""Records what OPA says to calls of the builtins that mesh-authz adds to regorus.

    examples/interop/opa/record_builtins.py /tmp/opa record mesh-authz/tests/rego/builtins.json
    examples/interop/opa/record_builtins.py /tmp/opa check mesh-authz/tests/rego/builtins.json

/tmp/opa is the unpacked wheel of differential.py. `record` makes new keys and tokens and asks OPA;
`check` asks OPA again what is recorded and ends with 1 when an answer is another one.
mesh-authz/tests/rego_conformance.rs asks us. OPA runs with strict builtin errors.

The file: `data` is the data document, with keys and tokens by name; each of `groups` is an
expression and its cases, a pair of the input and of {"value": …}, {"undefined": true} or
{"error": true}.
"""

import base64, datetime, hashlib, hmac, itertools, json, pathlib, sys

sys.path.insert(0, sys.argv[1])
from opa_bindings import OpaEngine  # noqa: E402
from opa_bindings.engine import OpaError, OpaUndefinedError  # noqa: E402

NOW = 1_700_000_000


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ask(groups, data):
    for group in groups:
        with OpaEngine() as engine:
            engine.add_policy("p.rego", f"package p\n\nallow := {group['call']}\n")
            engine.add_data(data)
            for case in group["cases"]:
                try:
                    yield case, {"value": engine.eval_document("p.allow", case[0])}
                except OpaUndefinedError:
                    yield case, {"undefined": True}
                except OpaError as error:
                    if "eval" not in error.code and error.code != "panic":  # a panic of OPA ends the request, too
                        raise
                    yield case, {"error": True}


def keys_and_tokens():
    """Names for all keys and tokens."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

    sha = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
    private = {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "rsa other": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "rsa 1024": rsa.generate_private_key(public_exponent=65537, key_size=1024),
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p256 other": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "p521": ec.generate_private_key(ec.SECP521R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
    }

    def pem(key, form=serialization.PublicFormat.SubjectPublicKeyInfo):
        return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def certificate(key, signer):
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
        start = datetime.datetime(2020, 1, 1)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
        builder = builder.public_key(key.public_key()).serial_number(7)
        builder = builder.not_valid_before(start).not_valid_after(start.replace(year=2021))
        digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        signed = builder.sign(signer, digest)
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def jwk(name, **members):
        key = private[name].public_key()
        if isinstance(key, rsa.RSAPublicKey):
            n = key.public_numbers()
            own = {"kty": "RSA", "n": b64(n.n.to_bytes(key.key_size // 8, "big")), "e": "AQAB"}
        elif isinstance(key, ec.EllipticCurvePublicKey):
            n, size = key.public_numbers(), (key.key_size + 7) // 8
            own = {"kty": "EC", "crv": f"P-{key.key_size}", "x": b64(n.x.to_bytes(size, "big")),
                   "y": b64(n.y.to_bytes(size, "big"))}
        else:
            raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            own = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw)}
        return own | members

    def jwks(*keys):
        return json.dumps({"keys": list(keys)})

    oct_key = {"kty": "oct", "k": b64(b"topsecret")}
    keys = {name: pem(key) for name, key in private.items()}
    keys |= {
        "rsa pkcs1": pem(private["rsa"], serialization.PublicFormat.PKCS1),
        "rsa certificate": certificate(private["rsa"], private["rsa"]),
        "p256 certificate": certificate(private["p256"], private["rsa"]),
        "p384 certificate": certificate(private["p384"], private["p384"]),
        "ed25519 certificate": certificate(private["ed25519"], private["ed25519"]),
        "rsa private": private["rsa"].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()).decode(),
        "rsa without last newline": pem(private["rsa"]).rstrip("\n"),
        "rsa after spaces": "  \n" + pem(private["rsa"]),
        "rsa after text": "a key:\n" + pem(private["rsa"]),
        "rsa with header": pem(private["rsa"]).replace("KEY-----\n", "KEY-----\nProc-Type: 4\n\n", 1),
        "rsa and text": pem(private["rsa"]) + "end",
        "rsa and spaces": pem(private["rsa"]) + "  \n",
        "two pems": pem(private["rsa other"]) + pem(private["rsa"]),
        "pem of nothing": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "pem with another end": pem(private["rsa"]).replace("END PUBLIC", "END OTHER"),
        "pem without end": pem(private["rsa"]).split("-----END")[0],
        "pem of unknown kind": pem(private["rsa"]).replace("PUBLIC KEY", "THING"),
        "jwk rsa": json.dumps(jwk("rsa")), "jwk p256": json.dumps(jwk("p256")),
        "jwk p521": json.dumps(jwk("p521")), "jwk ed25519": json.dumps(jwk("ed25519")),
        "jwk oct": json.dumps(oct_key),
        "set": jwks(jwk("rsa", kid="r"), jwk("p256", kid="e"), jwk("p384", kid="f"),
                    jwk("p521", kid="g"), jwk("ed25519", kid="d")),
        "set without kids": jwks(jwk("rsa"), jwk("p256"), jwk("p384"), jwk("ed25519")),
        "set of others": jwks(jwk("rsa other", kid="r"), jwk("p256 other", kid="e")),
        "set, other first": jwks(jwk("rsa other"), jwk("rsa"), jwk("p256 other"), jwk("p256")),
        "set, kids swapped": jwks(jwk("rsa", kid="e"), jwk("p256", kid="r")),
        "set, kid twice": jwks(jwk("rsa other", kid="r"), jwk("rsa", kid="r")),
        "set, empty kid": jwks(jwk("rsa other", kid=""), jwk("rsa", kid="")),
        "set with algs": jwks(jwk("rsa", alg="RS256"), jwk("p256", alg="ES256")),
        "set with algs and kids": jwks(jwk("rsa", alg="PS256", kid="r"), jwk("p256", alg="ES384", kid="e")),
        "set with other algs": jwks(jwk("rsa", alg="RS512"), jwk("p256", alg="ES384")),
        "set with unknown alg": jwks(jwk("rsa", alg="RS1024"), jwk("p256", alg="ES256")),
        "set with encryption alg": jwks(jwk("rsa", alg="RSA-OAEP"), jwk("p256")),
        "set with unknown kty": jwks({"kty": "XYZ", "x": "AA"}, jwk("rsa"), jwk("p256")),
        "set without kty": jwks({"n": "AA"}, jwk("rsa")),
        "set with unknown curve": jwks({"kty": "EC", "crv": "P-999", "x": "AA", "y": "AA"}, jwk("rsa")),
        "set with secp256k1": jwks({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}, jwk("rsa")),
        "set with broken rsa": jwks({"kty": "RSA", "n": "!!", "e": "AQAB"}, jwk("rsa")),
        "set with rsa without e": jwks({"kty": "RSA", "n": "AQAB"}, jwk("rsa")),
        "set with point off the curve": jwks({"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 32), "y": b64(b"\1" * 32)}, jwk("p256")),
        "set with short point": jwks({"kty": "EC", "crv": "P-256", "x": b64(b"\1"), "y": b64(b"\1")}, jwk("p256")),
        "set with use enc": jwks(jwk("rsa", use="enc")), "set with use sig": jwks(jwk("rsa", use="sig")),
        "set with use other": jwks(jwk("rsa", use="other")),
        "set with key_ops": jwks(jwk("rsa", key_ops=["encrypt"])),
        "set with kid number": jwks(jwk("rsa", kid=5)), "set with alg number": jwks(jwk("rsa", alg=5)),
        "set with unknown member": jwks(jwk("rsa", more={"a": 1})),
        "set with oct": jwks(oct_key, jwk("rsa")), "set of oct with kid": jwks(oct_key | {"kid": "r"}),
        "set with oct alg": jwks(oct_key | {"alg": "HS256"}),
        "set with x25519": jwks({"kty": "OKP", "crv": "X25519", "x": b64(b"\1" * 32)}, jwk("ed25519")),
        "empty set": jwks(), "set of null": json.dumps({"keys": None}), "set of text": json.dumps({"keys": "x"}),
        "set of object": json.dumps({"keys": jwk("rsa")}), "set with null": jwks(None, jwk("rsa")),
        "array of keys": json.dumps([jwk("rsa")]), "empty object": "{}", "empty array": "[]", "null": "null",
        "number": "5", "nothing": "", "text": "topsecret", "broken": '{"keys":[', "two jsons": "{} {}",
        "set and spaces": " " + jwks(jwk("rsa")) + "\n",
    }

    def signature(alg, message, key):
        if alg.startswith("HS"):
            return hmac.new(key, message, getattr(hashlib, "sha" + alg[2:])).digest()
        key = private[key]
        if alg == "EdDSA":
            return key.sign(message)
        digest = sha[alg[2:]]
        if alg.startswith("ES"):
            r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
            size = (key.key_size + 7) // 8
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if alg.startswith("PS"):
            return key.sign(message, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        return key.sign(message, padding.PKCS1v15(), digest)

    usual = {"HS": b"topsecret", "RS": "rsa", "PS": "rsa", "EdDSA": "ed25519",
             "ES256": "p256", "ES384": "p384", "ES512": "p521"}

    def raw(header, payload, alg="HS256", key=None):
        key = key or usual.get(alg) or usual[alg[:2]]
        return header + "." + payload + "." + b64(signature(alg, f"{header}.{payload}".encode(), key))

    def token(claims={"sub": "ann", "exp": NOW + 60}, alg="HS256", key=None, **header):
        texts = [json.dumps({"alg": alg} | header), claims if isinstance(claims, str) else json.dumps(claims)]
        header, payload = (b64(text.encode()) for text in texts)
        return raw(header, payload, alg, key)

    algs = [k + n for k in ["HS", "RS", "PS", "ES"] for n in ["256", "384", "512"]] + ["EdDSA"]
    tokens = {alg: token(alg=alg) for alg in algs}
    tokens |= {f"{alg} kid {kid}": token(alg=alg, kid=kid)
               for alg, kid in [("RS256", "r"), ("RS256", "x"), ("RS256", ""), ("ES256", "e"), ("ES256", "r"),
                                ("ES384", "f"), ("ES512", "g"), ("EdDSA", "d"), ("PS256", "r"), ("HS256", "r")]}
    tokens |= {
        "RS256 by other": token(alg="RS256", key="rsa other"), "RS256 by 1024 bits": token(alg="RS256", key="rsa 1024"),
        "RS256 by other, kid r": token(alg="RS256", key="rsa other", kid="r"),
        "ES256 by other": token(alg="ES256", key="p256 other"), "ES256 on p384": token(alg="ES256", key="p384"),
        "ES384 on p256": token(alg="ES384", key="p256"), "HS256 by other": token(key=b"other"),
        "HS256 by nothing": token(key=b"\0"), "HS256 keyed with the public key": token(key=keys["rsa"].encode()),
    }
    header, payload, mac = tokens["HS256"].split(".")
    rs_header, rs_payload, rs_mac = tokens["RS256"].split(".")
    es_header, es_payload, es_mac = tokens["ES256"].split(".")
    es_raw = base64.urlsafe_b64decode(es_mac + "==")
    es_der = utils.encode_dss_signature(int.from_bytes(es_raw[:32], "big"), int.from_bytes(es_raw[32:], "big"))
    ps = b64(json.dumps({"alg": "PS256"}).encode()) + "." + rs_payload
    ps_salts = private["rsa"].sign(ps.encode(), padding.PSS(padding.MGF1(sha["256"]), 20), sha["256"])
    tokens |= {
        "nothing": "", "text": "x", "one dot": header + "." + payload, "three dots": tokens["HS256"] + ".x",
        "dots": "..", "no header": "." + payload + "." + mac, "no payload": header + ".." + mac,
        "no signature": header + "." + payload + ".", "spaces": " " + tokens["HS256"], "newline": tokens["HS256"] + "\n",
        "newline within": header[:4] + "\n" + header[4:] + "." + payload + "." + mac,
        "header no base64": "!!." + payload + "." + mac, "payload no base64": header + ".!!." + mac,
        "signature no base64": header + "." + payload + ".!!", "signature one character": header + "." + payload + ".A",
        "signature padded": header + "." + payload + "." + mac + "=", "signature overpadded": header + "." + payload + "." + mac + "==",
        "signature of standard base64": header + "." + payload + "." + "ab+/",
        "signature changed": header + "." + payload + "." + ("A" if mac[0] != "A" else "B") + mac[1:],
        "signature with other last bits": header + "." + payload + "." + mac[:-1] + chr(ord(mac[-1]) + 1),
        "signature cut": header + "." + payload + "." + mac[:-4], "signature longer": header + "." + payload + "." + mac + "AAAA",
        "RS256 changed": rs_header + "." + rs_payload + "." + ("A" if rs_mac[0] != "A" else "B") + rs_mac[1:],
        "RS256 cut": rs_header + "." + rs_payload + "." + rs_mac[:-4], "RS256 unsigned": rs_header + "." + rs_payload + ".",
        "RS256 other payload": rs_header + "." + b64(b'{"sub":"eve"}') + "." + rs_mac,
        "ES256 DER": es_header + "." + es_payload + "." + b64(es_der), "ES256 cut": es_header + "." + es_payload + "." + es_mac[:-4],
        "ES256 zero": es_header + "." + es_payload + "." + b64(bytes(64)),
        "ES256 unsigned": es_header + "." + es_payload + ".",
        "PS256 salt of 20": ps + "." + b64(ps_salts),
        "payload padded": raw(header, base64.urlsafe_b64encode(b'{"sub":"ann"}').decode()),
        "header padded": raw(base64.urlsafe_b64encode(b'{"alg":"HS256"}  ').decode(), payload),
        "header null": raw(b64(b"null"), payload), "header array": raw(b64(b"[]"), payload), "header text": raw(b64(b'"x"'), payload),
        "header broken": raw(b64(b'{"alg":'), payload), "header twice": raw(b64(b'{"alg":"none","alg":"HS256"}'), payload),
        "header and more": raw(b64(b'{"alg":"HS256"} x'), payload), "header empty": raw(b64(b"{}"), payload),
        "header no text": raw(b64(b'{"alg":"HS256","x":"\xff"}'), payload),
        "payload no text": raw(header, b64(b'{"sub":"\xff"}')),
        "alg none unsigned": b64(b'{"alg":"none"}') + "." + payload + ".", "alg None": raw(b64(b'{"alg":"None"}'), payload),
        "alg none signed": raw(b64(b'{"alg":"none"}'), payload), "alg lower": raw(b64(b'{"alg":"hs256"}'), payload),
        "alg number": raw(b64(b'{"alg":5}'), payload), "alg null": raw(b64(b'{"alg":null}'), payload), "alg empty": raw(b64(b'{"alg":""}'), payload),
        "alg unknown": raw(b64(b'{"alg":"HS1"}'), payload), "alg RS256, signed HS256": raw(b64(b'{"alg":"RS256"}'), payload),
        "alg HS256, signed RS256": raw(b64(b'{"alg":"HS256"}'), rs_payload, "RS256"),
        "alg HS512, signed HS256": raw(b64(b'{"alg":"HS512"}'), payload),
        "kid number": token(kid=5), "kid null": token(kid=None), "typ number": token(typ=5), "typ JWT": token(typ="JWT"),
        "RS256 kid number": token(alg="RS256", kid=5), "RS256 typ number": token(alg="RS256", typ=5),
        "enc": token(enc="A128GCM"), "enc null": token(enc=None), "RS256 enc": token(alg="RS256", enc="A128GCM"),
        "crit exp": token(crit=["exp"]), "crit b64 present": token(crit=["b64"], b64=True),
        "crit unknown present": token(crit=["x"], x=1), "crit known": token(crit=["alg"]), "crit empty": token(crit=[]),
        "crit number": token(crit=5), "crit of numbers": token(crit=[5]), "crit null": token(crit=None),
        "crit text": token(crit="exp"), "crit mixed": token(crit=["x", 5], x=1),
        "RS256 crit present": token(alg="RS256", crit=["x"], x=1), "RS256 crit empty": token(alg="RS256", crit=[]),
        "RS256 crit number": token(alg="RS256", crit=5), "jku and jwk": token(jku="https://x", jwk={"kty": "oct", "k": "AA"}),
        "cty JWT": token(tokens["HS256"], cty="JWT"), "cty jwt": token(tokens["HS256"], cty="jwt"),
        "cty JWT quoted": token(json.dumps(tokens["HS256"]), cty="JWT"), "cty JWT of claims": token(cty="JWT"),
        "cty JWT twice": token(token(tokens["HS256"], cty="JWT"), cty="JWT"), "cty json": token(cty="application/json"),
        "cty JWT of other": token(token(key=b"other"), cty="JWT"), "cty number": token(cty=5), "cty null": token(cty=None),
        "RS256 cty JWT": token(tokens["RS256"], alg="RS256", cty="JWT"), "RS256 cty JWT of HS256": token(tokens["HS256"], alg="RS256", cty="JWT"),
        "payload array": token("[]"), "payload text": token('"x"'), "payload number": token("5"), "payload null": token("null"),
        "payload empty": token(""), "payload broken": token('{"a":'), "payload no json": token("x"), "payload {}": token("{}"),
        "payload twice": token('{"sub":"a","sub":"b"}'), "payload and more": token('{"a":1} x'), "payload spaces": token(' {"a": 1} \n'),
        "payload unicode": token({"sub": "\u00e4\U0001f600"}), "payload surrogate": token('{"sub":"\\ud800"}'),
        "payload control": token('{"sub":"\\u0000"}'), "payload raw control": token('{"sub":"\n"}'),
        "payload numbers": token('{"a":1,"b":-1,"c":1.5,"d":1e3,"e":0,"f":-0,"g":9007199254740993,"h":1E-2,"i":18446744073709551615}'),
        "payload large number": token('{"a":100000000000000000000}'), "payload huge number": token('{"a":1e300}'),
        "payload deep": token(json.dumps({"a": [[[[{"b": [{}]}]]]]})), "payload bom": token("\ufeff{}"),
    }
    for name, values in {
        "exp": [NOW, NOW + 1, NOW - 1, NOW + 0.5, NOW - 0.5, 0, -1, str(NOW + 60), None, True, [], {}, 1e30, 1e-5],
        "nbf": [NOW, NOW + 1, NOW - 1, NOW + 0.5, NOW - 0.5, 0, -1, str(NOW - 60), None, False, [], {}, 1e30],
        "iat": [NOW + 3600, "x"],
        "iss": ["https://issuer.example", "https://ISSUER.example", "other", "", 5, None, [], ["https://issuer.example"], {}, True],
        "aud": ["shop", "Shop", "", ["shop"], ["web", "shop"], ["web"], [], [""], [5, "shop"], [["shop"]], 5, None, {}, {"shop": 1}, True],
    }.items():
        tokens |= {f"{name} {json.dumps(value)}": token({"sub": "ann", name: value}) for value in values}
    tokens["without exp"] = token({"sub": "ann"})
    tokens["iss, aud, exp, nbf"] = token({"iss": "https://issuer.example", "aud": "shop", "exp": NOW + 1, "nbf": NOW - 1})
    tokens["RS256 iss, aud, exp"] = token({"iss": "https://issuer.example", "aud": ["shop"], "exp": NOW + 1}, alg="RS256", kid="r")
    return keys, tokens


def jwt_groups(keys, tokens):
    yield "io.jwt.decode(data.tokens[input])", list(tokens)
    yield "io.jwt.decode(input)", [5, None, True, [], {}]
    own = {alg: [name for name in tokens if name.startswith(alg)] for alg in ["RS256", "PS256", "ES256", "HS256"]}
    odd = ["nothing", "text", "one dot", "dots", "header null", "header broken", "header empty", "signature no base64",
           "signature one character", "RS256 enc", "RS256 typ number", "RS256 kid number", "RS256 crit empty", "RS256 crit number",
           "RS256 crit present", "alg none unsigned", "alg RS256, signed HS256", "alg HS256, signed RS256", "payload array"]
    for alg in [k + n for k in ["RS", "PS", "ES"] for n in ["256", "384", "512"]] + ["EdDSA"]:
        pairs = [(name, key) for name in [alg] for key in keys]
        pairs += [(name, key) for name in own.get(alg, []) for key in [
            "rsa", "p256", "set", "set of others", "set, kids swapped", "set, kid twice", "set, empty kid", "set with algs and kids"]]
        pairs += [(name, "rsa") for name in (odd if alg == "RS256" else odd[:6])]
        pairs += [(name, "set without kids") for name in ["RS256", "PS256", "ES256", "ES384", "EdDSA"]]
        if alg == "ES256":
            pairs += [("ES256 on p384", key) for key in ["p384", "set", "set without kids"]]
        if alg == "RS256":
            pairs += [("RS256 by 1024 bits", "rsa 1024")]
        yield f"io.jwt.verify_{alg.lower()}(data.tokens[input[0]], data.keys[input[1]])", list(dict.fromkeys(pairs))
    yield "io.jwt.verify_rs256(input[0], input[1])", [["x", 5], [5, "x"], [tokens["RS256"], None]]
    for alg in ["HS256", "HS384", "HS512"]:
        secrets = ["topsecret", "other", "", "\u00e4", "topsecret\n", "t" * 200]
        pairs = [(name, "topsecret") for name in tokens] if alg == "HS256" else []
        pairs += itertools.product([alg, "HS256 by other", "nothing", "dots"], secrets)
        yield f"io.jwt.verify_{alg.lower()}(data.tokens[input[0]], input[1])", list(dict.fromkeys(pairs))
    yield "io.jwt.verify_hs256(input[0], input[1])", [["x", 5], [5, "x"], [tokens["HS256"], None]]
    secret = {"secret": "topsecret", "time": NOW * 10**9}
    yield "io.jwt.decode_verify(data.tokens[input[0]], input[1])", [
        *([name, secret] for name in tokens),
        *([name, secret | {"alg": alg}] for name in ["HS256", "HS384", "alg lower", "RS256"] for alg in ["HS256", "HS384", "", "hs256", "none"]),
        *([name, secret | {"iss": iss}] for name in tokens if name.startswith("iss") for iss in ["https://issuer.example", ""]),
        *([name, secret | {"aud": aud}] for name in tokens if name.startswith("aud") or name == "HS256" for aud in ["shop", ""]),
        *(["iss, aud, exp, nbf", secret | {"iss": "https://issuer.example", "aud": "shop", "alg": "HS256", "time": time}]
          for time in [NOW * 10**9, NOW * 10**9 + 10**9, NOW * 10**9 + 999_999_999, NOW * 10**9 - 10**9, NOW * 10**9 - 1_000_000_001, 0, 1.7e18]),
        *(["HS256", constraints] for constraints in [
            {}, {"time": NOW * 10**9}, secret | {"secret": ""}, secret | {"secret": "other"}, secret | {"secret": 5}, secret | {"secret": None},
            secret | {"alg": 5}, secret | {"iss": 5}, secret | {"aud": 5}, secret | {"aud": ["shop"]}, secret | {"time": "now"},
            secret | {"time": -1}, secret | {"time": None}, secret | {"time": 10**30}, secret | {"more": 1},
            secret | {"cert": ""}, secret | {"cert": "{}"}, secret | {"cert": '{"keys":[]}'}, secret | {"secret": "", "cert": '{"keys":[]}'},
            {"cert": "", "time": 0}, {"cert": 5, "time": 0}, {"cert": '{"keys":[]}', "time": 0}, [], None, "x", 5]),
    ]
    yield "io.jwt.decode_verify(data.tokens[input[0]], object.union({\"cert\": data.keys[input[1]], \"time\": 1700000000000000000}, input[2]))", [
        *(["RS256", key, {}] for key in keys), *(["ES256", key, {}] for key in keys if key.startswith(("p", "set", "jwk"))),
        *([name, key, {}] for name in tokens if name[:2] in {"RS", "PS", "ES", "Ed"} for key in ["set", "set with algs and kids"]),
        *([name, name2, {}] for name in ["ES384", "ES512", "EdDSA", "HS256"] for name2 in keys if name2.startswith(("p", "jwk", "ed", "set with oct", "set of oct"))),
        *(["RS256 iss, aud, exp", "set", more] for more in [
            {"iss": "https://issuer.example", "aud": "shop"}, {"aud": "shop"}, {"iss": "https://issuer.example"}, {"alg": "RS256", "aud": "shop"},
            {"alg": "PS256", "aud": "shop"}, {"aud": "web"}, {"iss": "other", "aud": "shop"}, {"secret": "topsecret"}, {"secret": ""}]),
        ["HS256 keyed with the public key", "rsa", {}], ["alg HS256, signed RS256", "rsa", {}], ["alg RS256, signed HS256", "rsa", {}],
        ["ES256 on p384", "p384", {}], ["ES384 on p256", "p256", {}], ["PS256 salt of 20", "rsa", {}], ["RS256 by 1024 bits", "rsa 1024", {}],
    ]


def crypto_groups():
    texts = ["", "a", "abc", "\u00e4\U0001f600", "x" * 1000, "a\nb", "\0", " "]
    for name in ["md5", "sha1", "sha256"]:
        yield f"crypto.{name}(input)", [*texts, 5, None, True, [], {}]
    for name in ["md5", "sha1", "sha256", "sha512"]:
        yield f"crypto.hmac.{name}(input[0], input[1])", [
            *itertools.product(texts, ["", "key", "k" * 65, "k" * 200, "\u00e4"]), ["a", 5], [5, "a"], [None, "a"], ["a", []]]
    macs = ["", "a", "b", "ab", "aB", "\u00e4", "a" * 64, "a" * 63 + "b"]
    yield "crypto.hmac.equal(input[0], input[1])", [*itertools.product(macs, macs), ["a", 5], [5, "a"], [None, None], [[], []]]


def net_groups():
    nets = ["10.0.0.0/8", "10.1.2.3/16", "10.1.0.0/16", "192.168.0.0/24", "192.168.1.0/24", "0.0.0.0/0", "1.2.3.4/32", "1.2.3.4/31",
            "2001:db8::/32", "2001:db8::1/64", "::/0", "::1/128", "::ffff:10.0.0.0/104", "::ffff:10.1.2.3/128", "::ffff:0:0/96", "::10.0.0.0/104"]
    addresses = ["10.1.2.3", "192.168.1.9", "1.2.3.5", "0.0.0.0", "255.255.255.255", "2001:db8::7", "::1", "::", "::ffff:10.1.2.3", "::ffff:a01:203",
                 "::10.1.2.3", "fe80::1", "2001:DB8::7"]
    bad = ["", "x", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "/8", "10.0.0/8", "10.0.0.0/08", "010.0.0.0/8", "10.0.0.0/8 ", " 10.0.0.0/8", "10.0.0.0/+8",
           "10.0.0.0/8/8", "256.0.0.0/8", "::/129", ":::/8", "1::2::3/8", "fe80::1%eth0/64", "fe80::1%eth0", "10.0.0.1%eth0", "2001:db8::/32x", "1.2.3.4.5", "0x0a.0.0.0/8",
           "10.0.0.0/255.0.0.0", "::ffff:10.0.0.0/8", "12345::/16", "10.0.0.00/8", "1.2.3"]
    yield "net.cidr_is_valid(input)", [*nets, *addresses, *bad, 5, None, [], {}]
    inner = nets + addresses + ["", "x", "10.0.0.0/33", "010.0.0.1", "fe80::1%eth0", "10.0.0.1%eth0"]
    yield "net.cidr_contains(input[0], input[1])", [*itertools.product(nets, inner), *([one, "10.0.0.1"] for one in bad), ["10.0.0.0/8", 5], [5, "10.0.0.1"], [None, None]]
    yield "net.cidr_intersects(input[0], input[1])", [*itertools.product(nets, nets), *([one, "10.0.0.0/8"] for one in bad + addresses),
                                                      *(["10.0.0.0/8", one] for one in bad[:6] + addresses[:2]), ["10.0.0.0/8", 5], [5, "10.0.0.0/8"]]
    yield "net.cidr_merge(input)", [
        [], [""], ["x"], "10.0.0.0/8", 5, None, {}, {"a": "10.0.0.0/8"}, [5], [["10.0.0.0/8"]], [None],
        *([one] for one in nets + addresses + bad), *(list(pair) for pair in itertools.combinations(nets[:7] + nets[8:12], 2)),
        ["10.0.0.0/24", "10.0.1.0/24"], ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/23"], ["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24"],
        ["10.0.0.0/24", "10.0.2.0/24"], ["10.0.1.0/24", "10.0.2.0/24"], ["10.0.0.0/32", "10.0.0.1/32", "10.0.0.2/32"], ["10.0.0.5", "10.0.0.6"],
        ["192.168.1.1", "192.168.1.2"], ["172.16.3.4", "172.17.0.0/16"], ["224.0.0.1"], ["240.0.0.1"], ["0.0.0.0/1", "128.0.0.0/1"],
        ["255.255.255.254/32", "255.255.255.255/32"], ["0.0.0.0/32", "0.0.0.1/32"], ["2001:db8::/33", "2001:db8:8000::/33"], ["2001:db8::/64", "2001:db8:0:1::/64", "2001:db8:0:2::/64"],
        ["::/1", "8000::/1"], ["::1/128", "::2/128"], ["10.0.0.0/8", "10.0.0.0/8"], ["10.0.0.0/8", "10.5.0.0/16", "10.0.0.1"],
        ["192.0.128.0/24", "192.0.129.0/24"], ["fe80::/120", "192.0.2.0/24"], ["0.0.0.0/0", "::/0"], ["::ffff:10.0.0.0/104", "11.0.0.0/8"]]
    yield "net.cidr_merge({net | some net in input})", [[], ["10.0.0.0/24", "10.0.1.0/24"], ["10.0.0.0/8", "2001:db8::/32"], ["x"], [5]]
    lists = ["10.0.0.0/8", [], ["10.0.0.0/8", "192.168.0.0/16"], {"a": "10.0.0.0/8", "b": "2001:db8::/32"}, {}, [["10.0.0.0/8", "x"]], [[]], [5], "x", ["x"], 5, None, {"a": 5}, {"a": []}, [["x"]]]
    inside = ["10.1.2.3", ["10.1.2.3", "192.168.9.9", "8.8.8.8"], {"k": "10.0.0.0/9", "l": "2001:db8::1"}, [], {}, [["10.1.2.3", 7]], [[]], [5], "x", ["x"], 5, None, ["10.1.2.3", "x"], ["::ffff:10.1.2.3"]]
    yield "net.cidr_contains_matches(input[0], input[1])", list(itertools.product(lists, inside))
    yield "net.cidr_contains_matches({net | some net in input[0]}, {net | some net in input[1]})", [
        [["10.0.0.0/8", "192.168.0.0/16"], ["10.1.2.3", "192.168.9.9", "8.8.8.8"]], [[], ["10.1.2.3"]], [["10.0.0.0/8"], []], [[["10.0.0.0/8", "a"]], [["10.1.2.3", "b"]]], [["x"], ["10.1.2.3"]]]


def glob_groups():
    # Patterns that mesh-authz refuses, as docs/rego.md tells, are not among them.
    patterns = ["*", "**", "?", "a*", "*a", "a*b", "a**b", "/admin**", "/admin/**", "/users/**/public", "/users/*/public", "*.com", "**.com",
                "{a,b}", "a{b,c}d", "{*.com,*.org}", "{a,{b,c}}", "[abc]", "[!abc]", "[a-c]", "[!a-c]", "[]", "[!]", "[^a]", "a[", "[a-]", "[c-a]",
                "a}", "a,b", "\\*", "a\\b", "[*]", "{,a}", "{}", "?*", "**?", "a?c", "", "[\\]]", "[a\\-c]", "é*", "**/x", "x/**", "a.*.c",
                "arn:*:read", "arn:**:read", "[!a-c][abc]", "*b*"]
    delimiters = [None, [], ["/"], [":"], ["é"], ["ab"], [""], "x", [5]]
    texts = ["", "a", "b", "ab", "abc", "a/b", "/admin/x", "/adminx", "/users/public", "/users/1/public", "/users/1/2/public", "x.com", "x.y.com",
             "*", "]", "-", "a,b", "éa", "a.b.c", "arn:a:read", "arn:a:b:read", "x/y/x", "ac", "d"]
    yield "glob.match(input[0], input[1], input[2])", [list(one) for one in itertools.product(patterns, delimiters[:4], texts)] + [
        ["*", one, "a/b"] for one in delimiters[4:]]


def main():
    command, path = sys.argv[2], pathlib.Path(sys.argv[3])
    if command == "check":
        recorded = json.loads(path.read_text())
        differ = 0
        for case, answer in ask(recorded["groups"], recorded["data"]):
            if case[1] != answer:
                differ += 1
                print(json.dumps({"input": case[0], "recorded": case[1], "opa": answer})[:1000])
        print(f"{sum(len(group['cases']) for group in recorded['groups'])} cases, {differ} differ")
        sys.exit(1 if differ else 0)
    keys, tokens = keys_and_tokens()
    data = {"keys": keys, "tokens": tokens}
    groups = [*jwt_groups(keys, tokens), *crypto_groups(), *net_groups(), *glob_groups()]
    # No input at all is not what an input of null would be.
    groups = [{"call": call, "cases": [[one, None] for one in inputs if one is not None]} for call, inputs in groups]
    for case, answer in ask(groups, data):
        case[1] = answer
    lines = ["{", '"data": ' + json.dumps(data, indent=0) + ",", '"groups": [']
    for group in groups:
        lines.append('{"call": ' + json.dumps(group["call"]) + ', "cases": [')
        lines.append(",\n".join(json.dumps(case) for case in group["cases"]))
        lines.append("]}" + ("" if group is groups[-1] else ","))
    path.write_text("\n".join([*lines, "]}", ""]))
    print(f"{sum(len(group['cases']) for group in groups)} cases of {len(groups)} calls")


main()
