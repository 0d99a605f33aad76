package envoy.authz

import rego.v1

default allow := false
h := input.attributes.request.http.headers
allow if {
	expected := crypto.hmac.sha256(input.attributes.request.http.path, "webhook")
	crypto.hmac.equal(expected, h["x-signature"])
}
allow if crypto.sha256(h["x-token"]) == data.token_digest
allow if crypto.sha1(h["x-token"]) == data.token_sha1
