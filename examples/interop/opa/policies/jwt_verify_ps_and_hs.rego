package envoy.authz

import rego.v1

default allow := false
token := trim_prefix(input.attributes.request.http.headers.authorization, "Bearer ")
allow if io.jwt.verify_hs256(token, "topsecret")
allow if io.jwt.verify_ps256(token, data.rsa_pem)
